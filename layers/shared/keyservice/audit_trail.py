"""The audit records, for administrators: filtered, newest first, page by page, as JSON or as lines."""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from keyservice import audit_trail_store as store
from keyservice.database import Database
from keyservice.decoding import invalid
from keyservice.errors import Violation
from keyservice.models import (
    AuditPage,
    AuditQuery,
    AuditRecord,
    Caller,
    Cursor,
    CursorPage,
    RecordLines,
    or_unset,
    timestamp,
)
from keyservice.queries import (
    decode_cursor,
    encode_cursor,
    parse_boolean,
    parse_id,
    parse_moment,
    parse_text,
    parse_whole_number,
)
from keyservice.standing import require_may_see_all

# A page in bytes, counted as Lambda will send them: inside a JSON string, of which it takes 6 MB at most.
MAX_PAGE_BYTES = 5_000_000
# The large fields of a record that alone takes more are left out, and it says so.
_MAX_RECORD_BYTES = 1_000_000
_MAX_RECORDS = 100
_MAX_LINES = 10_000
# Secrets of LiteLLM and LiteMaaS, and signed tokens. Nothing of ours writes one into a record; others write there too.
_SECRET = re.compile(
    r"sk-[A-Za-z0-9_-]{16,}|ltm_admin_[A-Za-z0-9_-]+|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
)


class AuditTrail:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    def page(self, caller: Caller, parameters: Mapping[str, str]) -> AuditPage:
        """Raises InvalidRequest naming every parameter that is wrong, Forbidden for anyone but administrators."""
        query = parse_audit_query(parameters, default_limit=20, max_limit=_MAX_RECORDS)
        records, next_cursor = self._read(caller, query)
        return AuditPage(data=records, pagination=CursorPage(limit=query.limit, next_cursor=or_unset(next_cursor)))

    def lines(self, caller: Caller, parameters: Mapping[str, str]) -> RecordLines:
        """The same as NDJSON; `next_query` is the query string of the page that follows. Raises as `page` does."""
        query = parse_audit_query(parameters, default_limit=1000, max_limit=_MAX_LINES)
        records, next_cursor = self._read(caller, query)
        return RecordLines(
            text=msgspec.json.Encoder().encode_lines(records).decode(),
            next_query=None if next_cursor is None else urlencode({**parameters, "cursor": next_cursor}),
        )

    def _read(self, caller: Caller, query: AuditQuery) -> tuple[list[AuditRecord], str | None]:
        standing, found, stored = store.list_audit_records(self._database, caller, query, max_bytes=MAX_PAGE_BYTES)
        require_may_see_all(standing)
        records = fitting([_shown(record) for record in stored[: query.limit]])
        if len(records) == found:
            return records, None
        last = stored[len(records) - 1]
        return records, encode_cursor(Cursor(created_at=last.created_at, id=last.id, total=0))


def parse_audit_query(parameters: Mapping[str, str], *, default_limit: int, max_limit: int) -> AuditQuery:
    """`startDate` and `endDate` are LiteMaaS's names for `from` and `to`. Unknown parameters are ignored.

    Raises InvalidRequest naming every parameter that is wrong.
    """
    violations: list[Violation] = []
    limit = parse_whole_number(parameters, "limit", default=default_limit, maximum=max_limit, violations=violations)
    cursor = decode_cursor(parameters, violations=violations)
    action = parse_text(parameters, "action", max_length=100, violations=violations)
    resource_type = parse_text(parameters, "resourceType", max_length=50, violations=violations)
    resource_id = parse_text(parameters, "resourceId", max_length=255, violations=violations)
    user_id = parse_id(parameters, "userId", violations=violations)
    subject_id = parse_id(parameters, "subjectId", violations=violations)
    success = parse_boolean(parameters, "success", violations=violations)
    start_name = "from" if "from" in parameters else "startDate"
    end_name = "to" if "to" in parameters else "endDate"
    start = parse_moment(parameters, start_name, violations=violations)
    end = parse_moment(parameters, end_name, violations=violations)
    if start is not None and end is not None and start >= end:
        violations.append(Violation(end_name, f"must be later than {start_name}", "range"))
    search = parse_text(parameters, "search", max_length=200, violations=violations)
    words = re.findall(r"[^\W_]+", search or "")
    if search and not words:
        violations.append(Violation("search", "must have a letter or a digit", "format"))
    if violations:
        raise invalid(violations)
    return AuditQuery(
        limit=limit,
        cursor=cursor,
        action=action,
        user_id=user_id,
        subject_id=subject_id,
        resource_type=resource_type,
        resource_id=resource_id,
        success=success,
        start=start,
        end=end,
        words=words,
    )


def fitting(records: Sequence[AuditRecord]) -> list[AuditRecord]:
    """The first of them that fit into a page; at least one."""
    taken: list[AuditRecord] = []
    size = 0
    for record in records:
        size += _size(record)
        if taken and size > MAX_PAGE_BYTES:
            break
        taken.append(record)
    return taken


def _size(record: AuditRecord) -> int:
    """With its line's end, as part of a JSON string."""
    return len(msgspec.json.encode(msgspec.json.encode(record).decode())) + 2


def _shown(record: store.StoredRecord) -> AuditRecord:
    shown = AuditRecord(
        id=record.id,
        created_at=timestamp(record.created_at),
        action=without_secrets(record.action),
        resource_type=record.resource_type,
        resource_id=or_unset(without_secrets(record.resource_id)),
        user_id=or_unset(record.user_id),
        username=or_unset(record.username),
        email=or_unset(record.email),
        success=record.success,
        error_message=or_unset(without_secrets(record.error_message)),
        ip_address=or_unset(record.ip_address),
        user_agent=or_unset(without_secrets(record.user_agent)),
        metadata=or_unset(without_secrets(record.metadata)),
        old_values=or_unset(without_secrets(record.old_values)),
        new_values=or_unset(without_secrets(record.new_values)),
    )
    if _size(shown) <= _MAX_RECORD_BYTES:
        return shown
    return msgspec.structs.replace(
        shown,
        error_message=msgspec.UNSET,
        user_agent=msgspec.UNSET,
        metadata=msgspec.UNSET,
        old_values=msgspec.UNSET,
        new_values=msgspec.UNSET,
        is_truncated=True,
    )


def without_secrets(value: Any) -> Any:
    """The same with everything that looks like a secret replaced, however deep."""
    match value:
        case str():
            return _SECRET.sub("[secret]", value)
        case dict():
            return {without_secrets(name): without_secrets(part) for name, part in value.items()}  # pyright: ignore[reportUnknownVariableType]
        case list():
            return [without_secrets(part) for part in value]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return value
