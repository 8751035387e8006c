import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyservice.errors import InvalidRequest
from keyservice.listing import parse_list_query
from keyservice.models import Cursor, ListQuery

KEY_ID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
MOMENT = "2026-11-22T13:05:09.123456Z"


def cursor_of(content: Any) -> str:
    """As the service writes it: base64url of JSON, without padding."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def broken_parameters(parameters: dict[str, str]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        parse_list_query(parameters)
    return [(violation.field, violation.code) for violation in caught.value.details["validation"]]


def test_without_parameters_it_is_the_first_page_of_twenty():
    assert parse_list_query({}) == ListQuery(
        page=1, limit=20, cursor=None, is_active=None, model_ids=None, subscription_id=None
    )


def test_every_parameter_is_read():
    query = parse_list_query(
        {"page": "3", "limit": "100", "isActive": "false", "modelIds": "gpt-4o,o3", "subscriptionId": KEY_ID}
    )

    assert query == ListQuery(
        page=3, limit=100, cursor=None, is_active=False, model_ids=["gpt-4o", "o3"], subscription_id=UUID(KEY_ID)
    )


def test_unknown_parameters_are_ignored():
    assert parse_list_query({"sort": "name", "utm_source": "mail", "userId": "me"}) == ListQuery()


def test_a_user_is_named_where_keys_of_others_are_listed():
    assert parse_list_query({"userId": KEY_ID}, takes_user_id=True) == ListQuery(user_id=UUID(KEY_ID))
    assert parse_list_query({"userId": "me"}, user_id=UUID(KEY_ID)) == ListQuery(user_id=UUID(KEY_ID))


def test_a_malformed_user_is_refused():
    with pytest.raises(InvalidRequest) as caught:
        parse_list_query({"userId": "me"}, takes_user_id=True)

    assert [violation.field for violation in caught.value.details["validation"]] == ["userId"]


@pytest.mark.parametrize(
    ("text", "model_ids"),
    [
        pytest.param("", None, id="empty"),
        pytest.param(",,", None, id="only commas"),
        pytest.param("gpt-4o,,o3,", ["gpt-4o", "o3"], id="gaps"),
    ],
)
def test_empty_model_ids_are_left_out(text: str, model_ids: list[str] | None):
    assert parse_list_query({"modelIds": text}).model_ids == model_ids


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "abc", "", " 1", "1_000", "٣", "1e2", "10000000000", "1,2"])
@pytest.mark.parametrize("name", ["page", "limit"])
def test_malformed_number_is_refused(name: str, text: str):
    assert broken_parameters({name: text}) == [(name, "range")]


def test_limit_of_101_is_refused():
    assert broken_parameters({"limit": "101"}) == [("limit", "range")]


def test_page_beyond_a_million_is_refused():
    assert broken_parameters({"page": "1000001"}) == [("page", "range")]
    assert parse_list_query({"page": "1000000"}).page == 1_000_000


@pytest.mark.parametrize("text", ["TRUE", "1", "yes", "", "true,false"])
def test_activity_is_true_or_false(text: str):
    assert broken_parameters({"isActive": text}) == [("isActive", "type")]


@pytest.mark.parametrize("text", ["", "abc", KEY_ID.replace("-", ""), KEY_ID + "," + KEY_ID])
def test_subscription_is_a_uuid(text: str):
    assert broken_parameters({"subscriptionId": text}) == [("subscriptionId", "format")]


def test_nul_in_a_model_is_refused():
    assert broken_parameters({"modelIds": "gpt-4o,a\0b"}) == [("modelIds", "pattern")]


def test_page_and_cursor_together_are_refused():
    assert broken_parameters({"page": "1", "cursor": cursor_of([MOMENT, KEY_ID, 3])}) == [("page", "not")]


def test_everything_that_is_wrong_is_reported_at_once():
    found = broken_parameters(
        {"page": "0", "limit": "101", "isActive": "x", "subscriptionId": "x", "cursor": "x", "modelIds": "\0"}
    )

    assert found == [
        ("page", "range"),
        ("limit", "range"),
        ("isActive", "type"),
        ("subscriptionId", "format"),
        ("cursor", "format"),
        ("page", "not"),
        ("modelIds", "pattern"),
    ]


def test_cursor_says_where_to_go_on():
    query = parse_list_query({"cursor": cursor_of([MOMENT, KEY_ID, 42]), "limit": "5"})

    assert query.cursor == Cursor(
        created_at=datetime(2026, 11, 22, 13, 5, 9, 123456, tzinfo=UTC), id=UUID(KEY_ID), total=42
    )
    assert query.limit == 5


@given(
    created_at=st.datetimes(timezones=st.just(UTC)),
    key_id=st.uuids(),
    total=st.integers(min_value=0, max_value=2_147_483_647),
)
def test_every_cursor_that_the_service_writes_comes_back_whole(created_at: datetime, key_id: UUID, total: int):
    cursor = Cursor(created_at=created_at, id=key_id, total=total)
    text = cursor_of(msgspec.json.encode(cursor))

    assert parse_list_query({"cursor": text}).cursor == cursor


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("x", id="one character"),
        pytest.param("!!!!", id="not base64"),
        pytest.param("ééé", id="not ASCII"),
        pytest.param("a" * 100_000, id="endless"),
        pytest.param(cursor_of(b"\xff\xfe"), id="not UTF-8"),
        pytest.param(cursor_of(b"[" * 5000), id="nested without end"),
        pytest.param(cursor_of("text"), id="a string"),
        pytest.param(cursor_of({}), id="an object"),
        pytest.param(cursor_of([]), id="nothing in it"),
        pytest.param(cursor_of([MOMENT, KEY_ID]), id="without the total"),
        pytest.param(cursor_of([MOMENT, KEY_ID, 1, 1]), id="one part too many"),
        pytest.param(cursor_of([MOMENT, KEY_ID, -1]), id="negative total"),
        pytest.param(cursor_of([MOMENT, KEY_ID, 2**31]), id="total too large for the column"),
        pytest.param(cursor_of([MOMENT, KEY_ID, 10**30]), id="huge total"),
        pytest.param(cursor_of([MOMENT, "x", 1]), id="no id"),
        pytest.param(cursor_of(["2026-11-22T13:05:09", KEY_ID, 1]), id="time without zone"),
        pytest.param(cursor_of(["yesterday", KEY_ID, 1]), id="no time"),
        pytest.param(cursor_of([None, None, None]), id="nulls"),
    ],
)
def test_forged_cursor_is_refused(text: str):
    assert broken_parameters({"cursor": text}) == [("cursor", "format")]


@given(st.binary(max_size=60))
def test_no_cursor_ever_ends_in_anything_but_a_refusal(content: bytes):
    assert broken_parameters({"cursor": cursor_of(content)}) == [("cursor", "format")]


@given(st.text(max_size=60))
def test_no_text_as_cursor_ever_ends_in_anything_but_a_refusal(text: str):
    assert broken_parameters({"cursor": text}) == [("cursor", "format")]


def test_time_that_is_before_the_calendar_in_utc_is_taken():
    query = parse_list_query({"cursor": cursor_of(["0001-01-01T00:00:00+14:00", KEY_ID, 1])})

    assert query.cursor is not None
    assert query.cursor.created_at.utcoffset() == timedelta(hours=14)
