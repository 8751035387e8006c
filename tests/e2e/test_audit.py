"""GET /api/v1/admin/audit: filters, search, pages, and the same as NDJSON."""

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.e2e.service import AUDIT, USER_AGENT, Person, Row, Service, violations_of

LINES = "application/x-ndjson"
LAMBDAS_LIMIT_BYTES = 6 * 1024 * 1024


@pytest.fixture
def admin(service: Service) -> Person:
    return service.person(roles=["admin-readonly"])


def get(admin: Person, query: str, *, accept: str = "application/json") -> httpx.Response:
    answer = admin.service.call("GET", f"{AUDIT}?{query}", token=admin.token, headers={"accept": accept})
    assert answer.status_code in (200, 400), answer.text
    return answer


def found(admin: Person, query: str) -> list[Row]:
    return get(admin, query).json()["data"]


def insert_records(person: Person, count: int, *, metadata: Any = None, action: str = "TEST") -> list[str]:
    """The newest a day ago, three for each moment so that ids decide too: the ids, newest first."""
    rows = person.service.rows(
        """
        WITH made AS (
            INSERT INTO audit_logs (user_id, action, resource_type, resource_id, metadata, created_at)
            SELECT %(user)s, %(action)s, 'TEST', %(subject)s, %(metadata)s::jsonb,
                date_trunc('milliseconds', now()) - n / 3 * interval '1 minute' - interval '1 day'
            FROM generate_series(1, %(count)s) AS n
            RETURNING id, created_at
        )
        SELECT id::text FROM made ORDER BY created_at DESC, id DESC
        """,
        user=person.user_id,
        subject=person.subject,
        action=action,
        count=count,
        metadata=json.dumps(metadata),
    )
    return [row["id"] for row in rows]


def test_a_record_tells_who_did_what_to_which_key(alice: Person, admin: Person):
    key = alice.has_key(name="ci")

    [record] = found(admin, f"resourceId={key['id']}")

    [stored] = alice.audit()
    assert record == {
        "id": str(stored["id"]),
        "createdAt": record["createdAt"],
        "action": "API_KEY_CREATE",
        "resourceType": "API_KEY",
        "resourceId": key["id"],
        "userId": str(alice.user_id),
        "username": alice.subject,
        "email": alice.email,
        "success": True,
        "ipAddress": "127.0.0.1",
        "userAgent": USER_AGENT,
        "metadata": stored["metadata"],
    }
    assert record["metadata"]["name"] == "ci"


def test_records_come_newest_first_page_by_page(alice: Person, admin: Person):
    expected = insert_records(alice, 7)
    user = f"userId={alice.user_id}"

    first = get(admin, f"{user}&limit=3")
    second = get(admin, f"{user}&limit=3&cursor={first.json()['pagination']['nextCursor']}")
    third = get(admin, f"{user}&limit=3&cursor={second.json()['pagination']['nextCursor']}")

    pages = [answer.json() for answer in (first, second, third)]
    assert [record["id"] for page in pages for record in page["data"]] == expected
    assert third.json()["pagination"] == {"limit": 3}


def test_a_record_that_comes_meanwhile_moves_nothing(alice: Person, admin: Person):
    expected = insert_records(alice, 4)
    user = f"userId={alice.user_id}"
    first = get(admin, f"{user}&limit=2").json()
    alice.create({"modelIds": ["unknown"]})

    second = found(admin, f"{user}&limit=2&cursor={first['pagination']['nextCursor']}")

    assert [record["id"] for record in [*first["data"], *second]] == expected


def test_filters_narrow_down_what_is_found(alice: Person, bob: Person, admin: Person):
    key = alice.has_key()
    bob.has_key()
    alice.create({"modelIds": ["unknown"]})
    alice.delete(key["id"])
    user = f"userId={alice.user_id}"

    def actions(query: str) -> list[tuple[str, bool]]:
        return [(record["action"], record["success"]) for record in found(admin, query)]

    assert actions(user) == [("API_KEY_DELETE", True), ("API_KEY_CREATE", False), ("API_KEY_CREATE", True)]
    assert actions(f"{user}&success=false") == [("API_KEY_CREATE", False)]
    assert actions(f"{user}&action=API_KEY_DELETE") == [("API_KEY_DELETE", True)]
    assert actions(f"resourceId={key['id']}") == [("API_KEY_DELETE", True), ("API_KEY_CREATE", True)]
    assert actions(f"{user}&action=NO_SUCH_ACTION") == []


@pytest.mark.parametrize(("start", "end"), [("from", "to"), ("startDate", "endDate")], ids=["ours", "LiteMaaS's"])
def test_a_time_begins_with_its_first_moment_and_ends_before_its_last(
    service: Service, alice: Person, admin: Person, start: str, end: str
):
    service.rows(
        """
        INSERT INTO audit_logs (user_id, action, resource_type, resource_id, created_at)
        SELECT %(user)s, 'MOMENT', 'TEST', n, timestamptz '2026-01-01T00:00:00Z' + n * interval '1 day'
        FROM generate_series(0, 2) AS n
        """,
        user=alice.user_id,
    )

    records = found(admin, f"userId={alice.user_id}&{start}=2026-01-01T01:00:00%2B01:00&{end}=2026-01-03T00:00:00.000Z")

    assert [record["resourceId"] for record in records] == ["1", "0"]


@pytest.mark.parametrize(
    ("search", "is_found"),
    [
        pytest.param("nightly", True, id="a word of the name"),
        pytest.param("NIGHT", True, id="its beginning, in capitals"),
        pytest.param("build-2026", True, id="with punctuation"),
        pytest.param("2026", True, id="a number after a hyphen"),
        pytest.param("api_key_rotate", True, id="the action"),
        pytest.param("rotate nightly", True, id="action and name"),
        pytest.param("café", True, id="not ASCII"),
        pytest.param("weekly", False, id="another word"),
        pytest.param("nightly weekly", False, id="one word of two"),
        pytest.param("ightly", False, id="the end of a word"),
        pytest.param("nightly' & !'x':* | (", False, id="the query language"),
    ],
)
def test_search_finds_words_of_action_and_name(alice: Person, admin: Person, search: str, *, is_found: bool):
    ids = insert_records(alice, 1, action="API_KEY_ROTATE", metadata={"name": "Nightly build-2026 café", "x": "weekly"})

    records = found(admin, f"userId={alice.user_id}&search={quote(search)}")

    assert [record["id"] for record in records] == (ids if is_found else [])


def test_everything_wrong_with_the_query_is_named_at_once(admin: Person):
    answer = get(
        admin,
        "limit=101&cursor=x&action=" + "a" * 101 + "&resourceId=" + "r" * 256 + "&userId=me&success=1"
        "&from=2026-01-02&to=tomorrow&search=%00",
    )

    assert violations_of(answer) == [
        ("limit", "range"),
        ("cursor", "format"),
        ("action", "format"),
        ("resourceId", "format"),
        ("userId", "format"),
        ("success", "type"),
        ("from", "format"),
        ("to", "format"),
        ("search", "format"),
    ]


def test_a_time_that_ends_before_it_begins_is_refused(admin: Person):
    answer = get(admin, "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z")

    assert violations_of(answer) == [("to", "range")]


def test_nothing_that_looks_like_a_secret_is_shown(alice: Person, admin: Person):
    secrets = ["sk-iLDLjtkRhouNy-BI_Uokxg", "ltm_admin_0123456789", "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl"]
    metadata = {
        "note": f"made {secrets[0]} today",
        "deep": [{"authorization": f"Bearer {secrets[2]}"}],
        secrets[1]: 1,
    }
    insert_records(alice, 1, metadata=metadata)

    [record] = found(admin, f"userId={alice.user_id}")

    assert record["metadata"] == {
        "note": "made [secret] today",
        "deep": [{"authorization": "Bearer [secret]"}],
        "[secret]": 1,
    }


# NDJSON.


def test_lines_are_the_same_records(alice: Person, admin: Person):
    insert_records(alice, 3, metadata={"name": "line\nbreak"})
    user = f"userId={alice.user_id}"

    answer = get(admin, user, accept="application/json;q=0.5, application/x-ndjson")

    assert answer.headers["content-type"] == LINES
    assert answer.headers["cache-control"] == "no-store"
    assert "link" not in answer.headers
    assert answer.text.endswith("\n")
    assert [json.loads(line) for line in answer.text.splitlines()] == found(admin, user)


def test_no_records_are_no_lines(bob: Person, admin: Person):
    answer = get(admin, f"userId={bob.user_id}", accept=LINES)

    assert (answer.status_code, answer.text) == (200, "")


def followed(admin: Person, query: str) -> list[httpx.Response]:
    answers = [get(admin, query, accept=LINES)]
    while link := answers[-1].headers.get("link"):
        path, _, relation = link.partition("; ")
        assert relation == 'rel="next"'
        answers.append(admin.service.call("GET", path.strip("<>"), token=admin.token, headers={"accept": LINES}))
    return answers


def ids_of(answers: list[httpx.Response]) -> list[str]:
    return [json.loads(line)["id"] for answer in answers for line in answer.text.splitlines()]


def test_links_lead_through_all_lines_with_their_filters(alice: Person, admin: Person):
    expected = insert_records(alice, 5, metadata={"name": "a & b"})
    insert_records(alice, 2)

    answers = followed(admin, f"userId={alice.user_id}&search={quote('a & b')}&limit=2")

    assert ids_of(answers) == expected
    assert [len(answer.text.splitlines()) for answer in answers] == [2, 2, 1]


def test_a_page_of_lines_is_at_most_five_megabytes(alice: Person, admin: Person):
    # Nothing but quotation marks: Lambda's own answer is twice as long as what is sent.
    expected = insert_records(alice, 24, metadata={"text": '"' * 120_000})

    answers = followed(admin, f"userId={alice.user_id}")

    assert ids_of(answers) == expected
    assert len(answers) > 1
    assert max(len(answer.content) for answer in answers) <= 5_000_000
    assert max(len(json.dumps(answer.text)) for answer in answers) < LAMBDAS_LIMIT_BYTES


def test_a_record_too_large_for_a_page_says_so(alice: Person, admin: Person):
    [large] = insert_records(alice, 1, metadata={"text": "x" * 6_000_000})
    [small] = insert_records(alice, 1, metadata={"name": "small"})

    answers = followed(admin, f"userId={alice.user_id}")

    assert sorted(ids_of(answers)) == sorted([large, small])
    [record] = [
        json.loads(line) for page in answers for line in page.text.splitlines() if json.loads(line)["id"] == large
    ]
    assert record["isTruncated"] is True
    assert "metadata" not in record
