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


# Of how many of the newest records a search looks at each: 4 microseconds apiece. What one in 50 has is found among them, but for
# the longest pages.
_LEAST_NEWEST = 5_000
_NEWEST_FOR_EACH_WANTED = 50
_MOST_NEWEST = 250_000

_FILTERED: LiteralString = """filtered AS NOT MATERIALIZED (
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
    AND (%(after_id)s::uuid IS NULL OR (a.created_at, a.id) < (%(after_created_at)s, %(after_id)s))
)"""

_NEWEST: LiteralString = """page AS (
    SELECT * FROM filtered ORDER BY created_at DESC, id DESC LIMIT %(limit)s + 1
)"""

# The expression is that of the index audit_logs_words, to the letter.
_HAS_WORDS: LiteralString = """to_tsvector('simple'::regconfig,
        regexp_replace(a.action || ' ' || coalesce(a.metadata ->> 'name', ''), '[^[:alnum:]]+', ' ', 'g'))
        @@ to_tsquery('simple'::regconfig, %(words)s)"""

# One index has the records in order, another those with given words, none both. Words that many records have are soon met
# among the newest; the records with words that few have are all found by the words' index, and sorted. PostgreSQL cannot
# choose between the two: it has no idea how many records have a word that begins so, and went through ten million of them
# for 38 s to find none.
_NEWEST_WITH_WORDS: LiteralString = (
    """among_newest AS MATERIALIZED (
    SELECT a.*
    FROM (SELECT * FROM filtered ORDER BY created_at DESC, id DESC LIMIT %(newest)s) AS a
    WHERE """
    + _HAS_WORDS
    + """
    ORDER BY a.created_at DESC, a.id DESC
    LIMIT %(limit)s + 1
),
among_all AS (
    SELECT a.*
    FROM filtered AS a
    WHERE (SELECT count(*) FROM among_newest) <= %(limit)s AND """
    + _HAS_WORDS
    + """
    -- In an order that no index has, so that none is followed for its sake.
    ORDER BY a.created_at + interval '0' DESC, a.id DESC
    LIMIT %(limit)s + 1
),
page AS (
    SELECT * FROM among_newest WHERE (SELECT count(*) FROM among_newest) > %(limit)s
    UNION ALL
    SELECT * FROM among_all
)"""
)


def _list(name: LiteralString, *, page: LiteralString) -> LiteralString:
    return (
        "/* "
        + name
        + """ */
WITH """
        + CALLER
        + ",\n"
        + _FILTERED
        + ",\n"
        + page
        + """,
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


_LIST_AUDIT_RECORDS = _list("list_audit_records", page=_NEWEST)
_SEARCH_AUDIT_RECORDS = _list("search_audit_records", page=_NEWEST_WITH_WORDS)


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
        "words": " & ".join(f"'{word}':*" for word in query.words),
        "newest": min(max(_LEAST_NEWEST, _NEWEST_FOR_EACH_WANTED * query.limit), _MOST_NEWEST),
        "limit": query.limit,
        "after_created_at": after and after.created_at,
        "after_id": after and after.id,
        "max_bytes": max_bytes,
    }
    sql = _SEARCH_AUDIT_RECORDS if query.words else _LIST_AUDIT_RECORDS
    standing, rows = ask_as_caller(database, caller, Statement(sql, parameters, is_prepared=False))
    records = [msgspec.convert(row, StoredRecord) for row in rows if row["id"] is not None]
    return standing, rows[0]["found"], records
