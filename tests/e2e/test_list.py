"""GET /api/v1/api-keys: pages, cursors, filters and what a row says."""

import base64
import json
from typing import Any, LiteralString
from urllib.parse import quote

import pytest

from tests.e2e.service import Person, Service, error_of, violations_of


def insert_keys(person: Person, count: int, *, model: str = "gpt-4o") -> list[str]:
    """Active keys with made-up hashes, three for each moment so that ids decide too: the ids, newest first."""
    person.service.rows(
        """
        WITH made AS (
            INSERT INTO api_keys (user_id, name, key_hash, key_prefix, sync_status, created_at)
            SELECT %(user)s, 'made ' || n, %(subject)s || ':' || gen_random_uuid(), 'sk-made', 'synced',
                   date_trunc('milliseconds', now()) - n / 3 * interval '1 minute' - interval '1 day'
            FROM generate_series(1, %(count)s) AS n
            RETURNING id
        )
        INSERT INTO api_key_models (api_key_id, model_id) SELECT id, %(model)s FROM made
        """,
        user=person.user_id,
        subject=person.subject,
        count=count,
        model=model,
    )
    rows = person.service.rows(
        "SELECT id::text FROM api_keys WHERE user_id = %(user)s ORDER BY created_at DESC, id DESC", user=person.user_id
    )
    return [row["id"] for row in rows]


def test_a_caller_without_keys_gets_an_empty_page(alice: Person):
    answer = alice.get()

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {"data": [], "pagination": {"page": 1, "limit": 20, "total": 0, "totalPages": 0}}
    assert list(answer.json()["pagination"]) == ["page", "limit", "total", "totalPages"]


def test_a_bare_key_shows_what_it_has_and_litemaass_empty_values(alice: Person):
    key = alice.has_key()

    [listed] = alice.listed()

    spend_as_of = listed.pop("spendAsOf")
    assert spend_as_of >= key["createdAt"]
    assert listed == {
        "id": key["id"],
        "userId": key["userId"],
        "keyPrefix": key["keyPrefix"],
        "models": ["gpt-4o"],
        "createdAt": key["createdAt"],
        "isActive": True,
        "status": "active",
        "name": "",
        "modelDetails": [{"id": "gpt-4o", "name": "gpt-4o", "provider": "openai"}],
        "currentSpend": 0,
        "budgetDuration": "",
        "modelMaxBudget": {},
        "modelRpmLimit": {},
        "modelTpmLimit": {},
        "metadata": {},
    }


def test_a_full_key_shows_every_setting(service: Service, alice: Person):
    key = alice.has_key(
        modelIds=["gpt-4o-mini", "gpt-4o"],
        name="full",
        expiresAt="2029-06-01T00:00:00Z",
        maxBudget=25.5,
        softBudget=20,
        budgetDuration="monthly",
        tpmLimit=1000,
        rpmLimit=60,
        maxParallelRequests=4,
        metadata={"env": "prod"},
    )
    service.rows(
        """
        UPDATE api_keys SET current_spend = 9.25, last_used_at = '2026-11-01T10:00:00.123456Z',
            -- Later than every round over the shared stack's keys.
            last_sync_at = '2028-11-01T11:00:00Z'
        WHERE id = %(id)s
        """,
        id=key["id"],
    )

    [listed] = alice.listed()

    assert listed["models"] == ["gpt-4o", "gpt-4o-mini"]
    assert listed["modelDetails"] == [
        {"id": "gpt-4o", "name": "gpt-4o", "provider": "openai"},
        {"id": "gpt-4o-mini", "name": "gpt-4o-mini", "provider": "openai"},
    ]
    assert listed["name"] == "full"
    assert listed["expiresAt"] == "2029-06-01T00:00:00.000Z"
    assert listed["lastUsedAt"] == "2026-11-01T10:00:00.123Z"
    assert listed["spendAsOf"] == "2028-11-01T11:00:00.000Z"
    assert listed["currentSpend"] == 9.25
    assert (listed["maxBudget"], listed["softBudget"], listed["budgetDuration"]) == (25.5, 20, "monthly")
    assert (listed["tpmLimit"], listed["rpmLimit"], listed["maxParallelRequests"]) == (1000, 60, 4)
    assert listed["metadata"] == {"env": "prod"}
    assert "key" not in listed


def test_a_budget_of_zero_is_shown_as_zero(alice: Person):
    alice.has_key(maxBudget=0, rpmLimit=0)

    [listed] = alice.listed()

    assert (listed["maxBudget"], listed["rpmLimit"]) == (0, 0)


def test_a_caller_sees_only_their_own_keys_newest_first(alice: Person, bob: Person):
    first, _, second = alice.has_key(), bob.has_key(), alice.has_key()

    assert [key["id"] for key in alice.listed()] == [second["id"], first["id"]]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        pytest.param("expires_at = now() - interval '1 second'", "expired", id="expired"),
        pytest.param("is_active = false, revoked_at = now()", "revoked", id="revoked"),
        pytest.param("is_active = false", "revoked", id="switched off"),
        pytest.param("is_active = false, sync_status = 'error'", "error", id="error"),
    ],
)
def test_a_key_that_does_not_work_is_shown_as_inactive(
    service: Service, alice: Person, change: LiteralString, status: str
):
    key = alice.has_key()
    service.rows(f"UPDATE api_keys SET {change} WHERE id = %(id)s", id=key["id"])

    [listed] = alice.listed()

    assert (listed["status"], listed["isActive"]) == (status, False)


# Pages by number.


def test_pages_by_number_cover_all_keys(alice: Person):
    ids = insert_keys(alice, 5)

    pages = [alice.get(f"limit=2&page={page}").json() for page in (1, 2, 3, 4)]

    assert [[key["id"] for key in page["data"]] for page in pages] == [ids[:2], ids[2:4], ids[4:], []]
    assert [page["pagination"]["page"] for page in pages] == [1, 2, 3, 4]
    assert [(page["pagination"]["total"], page["pagination"]["totalPages"]) for page in pages[:3]] == [(5, 3)] * 3
    assert ["nextCursor" in page["pagination"] for page in pages] == [True, True, False, False]


def test_a_page_beyond_the_end_still_tells_the_total(alice: Person):
    insert_keys(alice, 5)

    answer = alice.get("page=50&limit=2")

    assert answer.json() == {"data": [], "pagination": {"page": 50, "limit": 2, "total": 5, "totalPages": 3}}


def test_a_page_holds_at_most_a_hundred_keys(alice: Person):
    ids = insert_keys(alice, 101)

    page = alice.get("limit=100").json()

    assert [key["id"] for key in page["data"]] == ids[:100]
    assert page["pagination"]["total"] == 101
    assert page["pagination"]["totalPages"] == 2


# The cursor.


def test_a_walk_by_cursor_misses_and_repeats_nothing_while_keys_come_and_go(service: Service, alice: Person):
    ids = insert_keys(alice, 121)
    gone_before_seen, gone_after_seen = ids[60], ids[10]

    pages = [alice.get("limit=25").json()]
    service.rows(
        "INSERT INTO api_keys (user_id, key_hash, key_prefix) VALUES (%(user)s, 'came meanwhile', 'sk-new')",
        user=alice.user_id,
    )
    service.rows(
        "DELETE FROM api_keys WHERE id = ANY (%(ids)s::uuid[])", ids=[gone_before_seen, gone_after_seen, ids[24]]
    )
    while "nextCursor" in pages[-1]["pagination"]:
        pages.append(alice.get(f"limit=25&cursor={pages[-1]['pagination']['nextCursor']}").json())

    seen = [key["id"] for page in pages for key in page["data"]]
    assert seen == [key_id for key_id in ids if key_id != gone_before_seen]
    assert [len(page["data"]) for page in pages] == [25, 25, 25, 25, 20]
    assert [page["pagination"]["total"] for page in pages] == [121] * 5
    assert [list(page["pagination"]) for page in pages[1:4]] == [["limit", "total", "totalPages", "nextCursor"]] * 3


def test_a_cursor_goes_on_under_the_same_filter(alice: Person):
    insert_keys(alice, 3, model="claude-sonnet")
    insert_keys(alice, 4, model="gpt-4o-mini")
    first = alice.get("limit=3&modelIds=gpt-4o-mini").json()

    rest = alice.get(f"limit=3&modelIds=gpt-4o-mini&cursor={first['pagination']['nextCursor']}").json()

    assert [key["models"] for key in first["data"] + rest["data"]] == [["gpt-4o-mini"]] * 4
    assert "nextCursor" not in rest["pagination"]


def test_a_cursor_shows_nobody_elses_keys(alice: Person, bob: Person):
    insert_keys(alice, 3)
    cursor = alice.get("limit=1").json()["pagination"]["nextCursor"]

    answer = bob.get(f"cursor={cursor}")

    assert answer.status_code == 200
    assert answer.json()["data"] == []


# Filters.


def test_is_active_tells_working_keys_from_all_others(service: Service, alice: Person):
    working, expired, revoked = alice.has_key(), alice.has_key(), alice.has_key()
    service.rows("UPDATE api_keys SET expires_at = now() WHERE id = %(id)s", id=expired["id"])
    service.rows("UPDATE api_keys SET revoked_at = now() WHERE id = %(id)s", id=revoked["id"])

    active, inactive = alice.get("isActive=true").json(), alice.get("isActive=false").json()

    assert [key["id"] for key in active["data"]] == [working["id"]]
    assert [key["id"] for key in inactive["data"]] == [revoked["id"], expired["id"]]
    assert (active["pagination"]["total"], inactive["pagination"]["total"]) == (1, 2)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        pytest.param("modelIds=gpt-4o", ["both", "large"], id="one"),
        pytest.param("modelIds=gpt-4o-mini", ["both", "small"], id="another"),
        pytest.param("modelIds=gpt-4o&modelIds=gpt-4o-mini", ["both", "small", "large"], id="repeated"),
        pytest.param("modelIds=gpt-4o,gpt-4o-mini", ["both", "small", "large"], id="joined by a comma"),
        pytest.param("modelIds=no-such-model", [], id="unknown"),
        pytest.param("modelIds=", ["both", "small", "large"], id="empty"),
        pytest.param("modelIds=gpt-4o%27--", [], id="SQL"),
        pytest.param("modelIds=%FF%ED%A0%80", [], id="not UTF-8"),
    ],
)
def test_keys_are_found_by_any_of_their_models_and_shown_with_all(alice: Person, query: str, names: list[str]):
    alice.has_key(name="large")
    alice.has_key(modelIds=["gpt-4o-mini"], name="small")
    alice.has_key(modelIds=["gpt-4o", "gpt-4o-mini"], name="both")

    page = alice.get(query).json()

    assert [key["name"] for key in page["data"]] == names
    assert all(key["models"] == ["gpt-4o", "gpt-4o-mini"] for key in page["data"] if key["name"] == "both")
    assert page["pagination"]["total"] == len(names)


def test_keys_are_found_by_their_subscription(service: Service, alice: Person):
    [subscription] = service.rows(
        "SELECT id::text FROM subscriptions WHERE user_id = %(user)s AND model_id = 'gpt-4o'", user=alice.user_id
    )
    alice.has_key(name="by model")
    legacy = alice.create({"subscriptionId": subscription["id"]}).json()

    [listed] = alice.listed(f"subscriptionId={subscription['id']}")

    assert listed["id"] == legacy["id"]
    assert listed["subscriptionId"] == subscription["id"]
    assert alice.listed("subscriptionId=99999999-9999-4999-8999-999999999999") == []


@pytest.mark.parametrize("query", ["sort=name", "search=x&search=y", "limit[]=5", "cursor2=zzz", "=5", "%00=1"])
def test_unknown_parameters_are_ignored(alice: Person, query: str):
    key = alice.has_key()

    answer = alice.get(query)

    assert answer.status_code == 200
    assert [listed["id"] for listed in answer.json()["data"]] == [key["id"]]


# Refused queries.


def forged(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


NOBODY = "99999999-9999-4999-8999-999999999999"


@pytest.mark.parametrize(
    ("query", "violations"),
    [
        *(
            pytest.param(f"page={quote(value)}", [("page", "range")], id=f"page={value}")
            for value in ("0", "-1", "1.01", "1e18", "9" * 30, "abc", "", " 1", "\u0661", "0x1", "1,2", "NaN")
        ),
        *(
            pytest.param(f"limit={quote(value)}", [("limit", "range")], id=f"limit={value}")
            for value in ("0", "101", "1.5", "abc", "", "+5", "1e1", "-5")
        ),
        pytest.param("page=1&page=2", [("page", "range")], id="two pages"),
        *(
            pytest.param(f"isActive={value}", [("isActive", "type")], id=f"isActive={value}")
            for value in ("maybe", "", "1", "True", "true,false")
        ),
        *(
            pytest.param(f"subscriptionId={value}", [("subscriptionId", "format")], id=f"subscriptionId={value}")
            for value in ("zzz", "", "99999999999949998999999999999999", f"{NOBODY},{NOBODY}", "%00")
        ),
        pytest.param("modelIds=a%00b", [("modelIds", "pattern")], id="NUL in a model"),
        *(
            pytest.param(f"cursor={cursor}", [("cursor", "format")], id=name)
            for name, cursor in {
                "an empty cursor": "",
                "a cursor that is no base64": "%%%",
                "a cursor that is not ASCII": "%C3%A4",
                "a cursor that is no JSON": base64.urlsafe_b64encode(b"nonsense").decode(),
                "a cursor that is an object": forged({"id": NOBODY}),
                "a cursor that is too short": forged(["2026-01-01T00:00:00Z"]),
                "a cursor that is too long": forged(["2026-01-01T00:00:00Z", NOBODY, 1, 1]),
                "a cursor without timezone": forged(["2026-01-01T00:00:00", NOBODY, 1]),
                "a cursor with a negative total": forged(["2026-01-01T00:00:00Z", NOBODY, -1]),
                "a cursor with SQL": forged(["2026-01-01T00:00:00Z", "' OR 1=1 --", 1]),
                "a cursor of 4000 characters": "A" * 4000,
            }.items()
        ),
        pytest.param("cursor=zzz&page=1", [("cursor", "format"), ("page", "not")], id="a bad cursor and a page"),
        pytest.param(
            "page=0&limit=101&isActive=maybe&subscriptionId=x&cursor=&modelIds=%00",
            [
                ("page", "range"),
                ("limit", "range"),
                ("isActive", "type"),
                ("subscriptionId", "format"),
                ("cursor", "format"),
                ("page", "not"),
                ("modelIds", "pattern"),
            ],
            id="everything wrong at once",
        ),
    ],
)
def test_a_query_that_breaks_a_rule_is_refused(alice: Person, query: str, violations: list[tuple[str, str]]):
    answer = alice.get(query)

    assert violations_of(answer) == violations


def test_a_cursor_and_a_page_together_are_refused(alice: Person):
    insert_keys(alice, 2)
    cursor = alice.get("limit=1").json()["pagination"]["nextCursor"]

    answer = alice.get(f"cursor={cursor}&page=2")

    assert violations_of(answer) == [("page", "not")]


@pytest.mark.parametrize(
    "moment",
    ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59", "2026-01-01T00:00:00Z"],
)
def test_a_forged_cursor_that_could_be_one_only_says_where_to_go_on(alice: Person, moment: str):
    alice.has_key()

    answer = alice.get(f"cursor={forged([moment, NOBODY, 0])}")

    assert answer.status_code == 200
    assert len(answer.json()["data"]) == (1 if moment.startswith("9999") else 0)


def test_a_query_is_checked_before_anything_is_looked_up(service: Service):
    stranger = service.person(is_known=False)

    answer = stranger.get("page=0")

    error_of(answer, status=400, code="VALIDATION_ERROR")
    assert stranger.user is None


def test_a_key_that_litemaas_never_said_is_inactive_is_active(service: Service, alice: Person):
    """The column may be NULL in LiteMaaS's table."""
    key = alice.has_key()
    service.rows("UPDATE api_keys SET is_active = NULL WHERE id = %(id)s", id=key["id"])

    [listed] = alice.listed()

    assert (listed["isActive"], listed["status"]) == (True, "active")


def test_a_row_has_litemaass_fields_in_litemaass_order(service: Service, alice: Person):
    [subscription] = service.rows(
        "SELECT id::text FROM subscriptions WHERE user_id = %(user)s AND model_id = 'gpt-4o'", user=alice.user_id
    )
    full = {"maxBudget": 5, "tpmLimit": 5, "rpmLimit": 5, "expiresAt": "2029-01-01T00:00:00Z"}
    alice.create({"subscriptionId": subscription["id"], **full})
    service.rows("UPDATE api_keys SET last_used_at = now() WHERE user_id = %(user)s", user=alice.user_id)

    [listed] = alice.listed()

    added = {"userId", "status", "softBudget", "maxParallelRequests", "spendAsOf"}
    assert [name for name in listed if name not in added] == [
        "id",
        "keyPrefix",
        "models",
        "createdAt",
        "isActive",
        "name",
        "modelDetails",
        "subscriptionId",
        "lastUsedAt",
        "expiresAt",
        "maxBudget",
        "currentSpend",
        "tpmLimit",
        "rpmLimit",
        "budgetDuration",
        "modelMaxBudget",
        "modelRpmLimit",
        "modelTpmLimit",
        "metadata",
    ]


@pytest.mark.parametrize("column", ["metadata", "model_max_budget", "model_rpm_limit", "model_tpm_limit"])
def test_one_odd_row_of_litemaass_does_not_hide_all_others(service: Service, alice: Person, column: str):
    key, odd = alice.has_key(), alice.has_key()
    statements: dict[str, LiteralString] = {
        "metadata": "UPDATE api_keys SET metadata = '[1]' WHERE id = %(id)s",
        "model_max_budget": "UPDATE api_keys SET model_max_budget = '[1]' WHERE id = %(id)s",
        "model_rpm_limit": "UPDATE api_keys SET model_rpm_limit = '[1]' WHERE id = %(id)s",
        "model_tpm_limit": "UPDATE api_keys SET model_tpm_limit = '[1]' WHERE id = %(id)s",
    }
    service.rows(statements[column], id=odd["id"])

    answer = alice.get()

    assert answer.status_code == 200
    assert key["id"] in [listed["id"] for listed in answer.json()["data"]]
