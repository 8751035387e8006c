"""The SQL of reading audit records."""

from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID

import msgspec

from keyservice.database import Database, Statement
from keyservice.journal import identity
from keyservice.models import AuditQuery, Caller
from keyservice.standing import CALLER, Standing, ask_as_caller


class StoredRecord(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    created_at: datetime
    action: str
    resource_type: str
    resource_id: str | None
    user_id: UUID | None
    username: str | None
    email: str | None
    success: bool
    error_message: str | None
    ip_address: str | None
    user_agent: str | None
    metadata: Any
    old_values: Any
    new_values: Any


# The expression of the search is that of the index audit_logs_words, to the letter.
_LIST_AUDIT_RECORDS: LiteralString = (
    """/* list_audit_records */
WITH """
    + CALLER
    + """,
page AS (
    SELECT a.*
    FROM audit_logs AS a
    WHERE EXISTS (SELECT FROM standing WHERE may_see_all)
    AND (%(action)s::text IS NULL OR a.action = %(action)s)
    AND (%(user_id)s::uuid IS NULL OR a.user_id = %(user_id)s)
    AND (%(subject_id)s::text IS NULL OR a.metadata ->> 'userId' = %(subject_id)s)
    AND (%(resource_type)s::text IS NULL OR a.resource_type = %(resource_type)s)
    AND (%(resource_id)s::text IS NULL OR a.resource_id = %(resource_id)s)
    AND (%(success)s::boolean IS NULL OR coalesce(a.success, true) = %(success)s)
    AND (%(start)s::timestamptz IS NULL OR a.created_at >= %(start)s)
    AND (%(end)s::timestamptz IS NULL OR a.created_at < %(end)s)
    AND (
        %(words)s::text IS NULL
        OR to_tsvector('simple'::regconfig,
            regexp_replace(a.action || ' ' || coalesce(a.metadata ->> 'name', ''), '[^[:alnum:]]+', ' ', 'g'))
            @@ to_tsquery('simple'::regconfig, %(words)s)
    )
    AND (%(after_id)s::uuid IS NULL OR (a.created_at, a.id) < (%(after_created_at)s, %(after_id)s))
    ORDER BY a.created_at DESC, a.id DESC
    LIMIT %(limit)s + 1
),
sized AS (
    SELECT
        page.*,
        row_number() OVER newest_first AS number,
        sum(
            coalesce(octet_length(page.metadata::text), 0) + coalesce(octet_length(page.old_values::text), 0)
            + coalesce(octet_length(page.new_values::text), 0)
        ) OVER newest_first AS bytes_so_far
    FROM page
    WINDOW newest_first AS (ORDER BY page.created_at DESC, page.id DESC ROWS UNBOUNDED PRECEDING)
)
SELECT
    to_jsonb(standing) AS standing,
    (SELECT count(*) FROM page) AS found,
    r.id, r.created_at, r.action, r.resource_type, r.resource_id, r.user_id, u.username, u.email,
    coalesce(r.success, true) AS success, r.error_message, host(r.ip_address) AS ip_address, r.user_agent,
    r.metadata, r.old_values, r.new_values
FROM standing
LEFT JOIN sized AS r ON r.number = 1 OR r.bytes_so_far <= %(max_bytes)s
LEFT JOIN users AS u ON u.id = r.user_id
ORDER BY r.created_at DESC, r.id DESC"""
)


def list_audit_records(
    database: Database, caller: Caller, query: AuditQuery, *, max_bytes: int
) -> tuple[Standing, int, list[StoredRecord]]:
    """How many records were found, at most `limit` + 1, and the newest of them that are not too large together; at
    least one. None for a caller who may not see them."""
    after = query.cursor
    parameters = {
        **identity(caller),
        "action": query.action,
        "user_id": query.user_id,
        "subject_id": query.subject_id and str(query.subject_id),
        "resource_type": query.resource_type,
        "resource_id": query.resource_id,
        "success": query.success,
        "start": query.start,
        "end": query.end,
        "words": " & ".join(f"'{word}':*" for word in query.words) or None,
        "limit": query.limit,
        "after_created_at": after and after.created_at,
        "after_id": after and after.id,
        "max_bytes": max_bytes,
    }
    standing, rows = ask_as_caller(database, caller, Statement(_LIST_AUDIT_RECORDS, parameters, is_prepared=False))
    records = [msgspec.convert(row, StoredRecord) for row in rows if row["id"] is not None]
    return standing, rows[0]["found"], records
