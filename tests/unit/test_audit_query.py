from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyservice.audit_trail import MAX_PAGE_BYTES, fitting, parse_audit_query, without_secrets
from keyservice.errors import InvalidRequest
from keyservice.models import AuditQuery, AuditRecord, Cursor
from keyservice.queries import encode_cursor

USER_ID = UUID("3f2504e0-4f89-41d3-9a0c-0305e82c3301")
CURSOR = Cursor(created_at=datetime(2026, 11, 22, 13, 5, 9, 123456, tzinfo=UTC), id=USER_ID, total=0)


def parsed(parameters: dict[str, str]) -> AuditQuery:
    return parse_audit_query(parameters, default_limit=20, max_limit=100)


def broken_parameters(parameters: dict[str, str]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        parsed(parameters)
    return [(violation.field, violation.code) for violation in caught.value.details["validation"]]


def record(**fields: Any) -> AuditRecord:
    return AuditRecord(
        id=USER_ID, created_at="2026-11-22T13:05:09.123Z", action="TEST", resource_type="TEST", success=True, **fields
    )


def test_without_parameters_it_is_the_first_page_of_everything():
    assert parsed({}) == AuditQuery(limit=20)


def test_every_parameter_is_read():
    query = parsed(
        {
            "limit": "5",
            "cursor": encode_cursor(CURSOR),
            "action": "API_KEY_DELETE",
            "userId": str(USER_ID),
            "subjectId": str(USER_ID),
            "resourceType": "API_KEY",
            "resourceId": "r",
            "success": "false",
            "from": "2026-11-01T00:00:00Z",
            "to": "2026-11-02T00:00:00+01:00",
            "search": "ci nightly",
        }
    )

    assert query == AuditQuery(
        limit=5,
        cursor=CURSOR,
        action="API_KEY_DELETE",
        user_id=USER_ID,
        subject_id=USER_ID,
        resource_type="API_KEY",
        resource_id="r",
        success=False,
        start=datetime(2026, 11, 1, tzinfo=UTC),
        end=datetime(2026, 11, 1, 23, tzinfo=UTC),
        words=["ci", "nightly"],
    )


def test_empty_texts_are_not_given():
    assert parsed({"action": "", "resourceId": "", "search": ""}) == AuditQuery(limit=20)


def test_unknown_parameters_are_ignored():
    assert parsed({"excludeResourceTypes": "API_ACCESS", "page": "0"}) == AuditQuery(limit=20)


def test_our_names_win_over_litemaass():
    query = parsed({"from": "2026-11-01T00:00:00Z", "startDate": "nonsense"})

    assert query.start == datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize("name", ["from", "to", "startDate", "endDate"])
@pytest.mark.parametrize(
    "text", ["", "2026-11-01", "2026-11-01T00:00:00", "tomorrow", "1700000000", "2026-13-01T00:00:00Z"]
)
def test_a_moment_has_date_time_and_zone(name: str, text: str):
    assert broken_parameters({name: text}) == [(name, "format")]


def test_a_time_of_no_length_is_refused():
    moment = "2026-11-01T00:00:00Z"

    assert broken_parameters({"startDate": moment, "endDate": moment}) == [("endDate", "range")]


@pytest.mark.parametrize(
    ("search", "words"),
    [
        pytest.param("api_key_delete", ["api", "key", "delete"], id="an action"),
        pytest.param("ci-2026.10", ["ci", "2026", "10"], id="punctuation"),
        pytest.param("a' & | !b ( ) : * \\", ["a", "b"], id="the query language"),
        pytest.param("Ключ 鍵", ["Ключ", "鍵"], id="not ASCII"),
    ],
)
def test_a_search_is_its_words(search: str, words: list[str]):
    assert parsed({"search": search}).words == words


def test_a_search_without_a_word_is_told_so():
    assert broken_parameters({"search": "' & | ! ( ) : * \\ _"}) == [("search", "format")]


@given(st.text(max_size=50))
def test_no_search_ever_has_a_word_that_has_to_be_quoted(search: str):
    words = parsed({"search": "a " + search.replace("\0", "")}).words

    assert all(word.isalnum() for word in words)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param("sk-lmk_" + "a" * 49, "[secret]", id="a secret of ours"),
        pytest.param("key=sk-iLDLjtkRhouNy-BI_Uokxg.", "key=[secret].", id="one of LiteLLM within a text"),
        pytest.param("sk-lmk_YUyj", "sk-lmk_YUyj", id="a prefix"),
        pytest.param("ltm_admin_0123", "[secret]", id="an administrator's key"),
        pytest.param("eyJhbGciOi.eyJzdWIi.", "[secret]", id="a token without a signature"),
        pytest.param({"a": ["sk-" + "b" * 20, 1, None, True]}, {"a": ["[secret]", 1, None, True]}, id="nested"),
        pytest.param({"sk-" + "b" * 20: 1}, {"[secret]": 1}, id="a name"),
        pytest.param(None, None, id="nothing"),
    ],
)
def test_what_looks_like_a_secret_is_replaced(value: Any, shown: Any):
    assert without_secrets(value) == shown


def test_a_page_ends_before_the_record_that_does_not_fit():
    records = [record(metadata="x" * 2_000_000) for _ in range(3)]

    assert len(fitting(records)) == 2


def test_a_page_has_at_least_one_record():
    large = record(metadata="x" * (MAX_PAGE_BYTES + 1))

    assert fitting([large, record()]) == [large]


def test_no_records_make_an_empty_page():
    assert fitting([]) == []


def test_what_is_not_known_of_a_record_is_left_out():
    assert msgspec.json.decode(msgspec.json.encode(record())) == {
        "id": str(USER_ID),
        "createdAt": "2026-11-22T13:05:09.123Z",
        "action": "TEST",
        "resourceType": "TEST",
        "success": True,
    }
