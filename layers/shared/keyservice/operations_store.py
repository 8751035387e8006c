"""The SQL of the operator's view of the journal."""

from datetime import datetime
from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec

from keyservice.database import Database, Statement
from keyservice.journal import audited, identity
from keyservice.models import Caller, OperationQuery
from keyservice.standing import CALLER, Standing, ask_as_caller, change_as_caller


class StoredOperation(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    kind: str
    phase: str
    state: str
    api_key_id: UUID
    user_id: UUID
    attempts: int
    last_error: str | None
    age_seconds: float
    created_at: datetime
    next_attempt_at: datetime
    finished_at: datetime | None


_LIST_OPERATIONS: LiteralString = (
    """/* list_operations */
WITH """
    + CALLER
    + """,
page AS (
    SELECT o.* FROM api_key_operations AS o
    WHERE o.state = %(state)s
    AND (%(after_id)s::uuid IS NULL OR (o.created_at, o.id) > (%(after_created_at)s, %(after_id)s))
    AND EXISTS (SELECT FROM standing WHERE may_see_all)
    ORDER BY o.created_at, o.id
    LIMIT %(limit)s + 1
)
SELECT
    to_jsonb(standing) AS standing,
    page.id, page.kind, page.phase, page.state, page.api_key_id, page.user_id, page.attempts, page.last_error,
    page.created_at, page.next_attempt_at, page.finished_at,
    extract(epoch FROM now() - page.created_at)::float8 AS age_seconds
FROM standing
LEFT JOIN page ON true
ORDER BY page.created_at, page.id"""
)


def list_operations(
    database: Database, caller: Caller, query: OperationQuery
) -> tuple[Standing, list[StoredOperation]]:
    """Operations in one state, oldest first, at most `limit` + 1; none for a caller who is no administrator."""
    parameters: dict[str, Any] = {
        **identity(caller),
        "state": query.state,
        "limit": query.limit,
        "after_created_at": query.cursor and query.cursor.created_at,
        "after_id": query.cursor and query.cursor.id,
    }
    standing, rows = ask_as_caller(database, caller, Statement(_LIST_OPERATIONS, parameters, is_prepared=False))
    return standing, [msgspec.convert(row, StoredOperation) for row in rows if row["id"] is not None]


_RETRY_OPERATION: LiteralString = (
    """/* retry_operation */
WITH """
    + CALLER
    + """,
found AS (
    SELECT o.id, o.state FROM api_key_operations AS o WHERE o.id = %(operation_id)s
),
due AS (
    UPDATE api_key_operations AS o SET next_attempt_at = now(), updated_at = now()
    FROM found, standing
    WHERE o.id = found.id AND o.state = 'pending' AND standing.may_change_all
    RETURNING o.id, o.api_key_id, standing.user_id AS caller_id
),
audited AS (
    INSERT INTO audit_logs (user_id, action, resource_type, resource_id, ip_address, user_agent, success, metadata)
    SELECT
        due.caller_id, 'API_KEY_OPERATION_RETRY', 'API_KEY', due.api_key_id, %(ip_address)s::inet, %(user_agent)s, true,
        jsonb_build_object('requestId', %(request_id)s::text, 'operationId', due.id)
    FROM due
)
SELECT
    to_jsonb(standing) AS standing,
    CASE WHEN found.id IS NULL THEN 'missing' WHEN due.id IS NULL THEN 'over' ELSE 'due' END AS outcome
FROM standing
LEFT JOIN found ON true
LEFT JOIN due ON true"""
)


def retry_operation(
    database: Database, caller: Caller, operation_id: UUID
) -> tuple[Standing, Literal["missing", "over", "due"]]:
    """Makes a pending operation due now, if the caller is an administrator; its holder's lease is left alone."""
    parameters: dict[str, Any] = {
        **identity(caller),
        "operation_id": operation_id,
        **audited(caller.actor),
    }
    standing, rows = change_as_caller(database, caller, Statement(_RETRY_OPERATION, parameters))
    return standing, rows[0]["outcome"]
