from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest

from keyservice.models import Deadline, parse_uuid, timestamp


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        pytest.param(datetime(2026, 11, 22, 13, 5, 9, tzinfo=UTC), "2026-11-22T13:05:09.000Z", id="whole seconds"),
        pytest.param(
            datetime(2026, 11, 22, 13, 5, 9, 123_999, tzinfo=UTC), "2026-11-22T13:05:09.123Z", id="microseconds are cut"
        ),
        pytest.param(
            datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=2))),
            "2025-12-31T22:30:00.000Z",
            id="other zone",
        ),
    ],
)
def test_timestamp_is_utc_with_milliseconds(moment: datetime, text: str):
    assert timestamp(moment) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("3f2504e0-4f89-41d3-9a0c-0305e82c3301", id="canonical"),
        pytest.param("3F2504E0-4F89-41D3-9A0C-0305E82C3301", id="upper case"),
    ],
)
def test_uuid_is_parsed(text: str):
    assert parse_uuid(text) == UUID("3f2504e0-4f89-41d3-9a0c-0305e82c3301")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("not-a-uuid", id="words"),
        pytest.param("3f2504e04f8941d39a0c0305e82c3301", id="without dashes"),
        pytest.param("{3f2504e0-4f89-41d3-9a0c-0305e82c3301}", id="braces"),
        pytest.param("urn:uuid:3f2504e0-4f89-41d3-9a0c-0305e82c3301", id="URN"),
        pytest.param("3f2504e0-4f89-41d3-9a0c-0305e82c3301\n", id="line break"),
        pytest.param("3f2504e0-4f89-41d3-9a0c-0305e82c330g", id="not hexadecimal"),
        pytest.param("3f2504e0-4f89-41d3-9a0c-0305e82c3301' OR 1=1", id="SQL"),
        pytest.param("\0", id="NUL"),
    ],
)
def test_anything_else_is_no_uuid(text: str):
    assert parse_uuid(text) is None


def test_deadline_that_passed_leaves_nothing():
    assert Deadline(-5).remaining_seconds() == 0.0


def test_deadline_counts_down_from_what_it_was_given():
    assert 59 < Deadline(60).remaining_seconds() <= 60
