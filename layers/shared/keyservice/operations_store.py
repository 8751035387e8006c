"""The SQL of the operator's view of the journal."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from keyservice.database import Database, Statement
from keyservice.journal import audited, identity, reading, require_known
from keyservice.models import Caller, OperationQuery


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


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What the database says of a caller; roles are those of the row and of the token together."""

    user_id: UUID | None
    is_active: bool
    roles: frozenset[str]


_LIST_OPERATIONS = """/* list_operations */
WITH known AS (
    SELECT id, is_active, roles FROM users WHERE id = %(caller_id)s OR (oauth_provider = %(provider)s AND oauth_id = %(subject)s)
),
caller AS (
    -- One who has no row yet is what the token says.
    SELECT * FROM known UNION ALL SELECT NULL, true, '{}' WHERE %(caller_id)s::uuid IS NULL AND NOT EXISTS (SELECT FROM known)
),
page AS (
    SELECT o.* FROM api_key_operations AS o
    WHERE o.state = %(state)s
    AND (%(after_id)s::uuid IS NULL OR (o.created_at, o.id) > (%(after_created_at)s, %(after_id)s))
    AND EXISTS (
        SELECT FROM caller
        WHERE caller.is_active AND (caller.roles || %(claimed_roles)s::text[]) && '{admin,admin-readonly}'
    )
    ORDER BY o.created_at, o.id
    LIMIT %(limit)s + 1
)
SELECT
    caller.id AS caller_id, caller.is_active AS is_caller_active, caller.roles AS caller_roles,
    page.id, page.kind, page.phase, page.state, page.api_key_id, page.user_id, page.attempts, page.last_error,
    page.created_at, page.next_attempt_at, page.finished_at,
    extract(epoch FROM now() - page.created_at)::float8 AS age_seconds
FROM caller
LEFT JOIN page ON true
ORDER BY page.created_at, page.id"""


def list_operations(
    database: Database, caller: Caller, query: OperationQuery
) -> tuple[Standing, list[StoredOperation]]:
    """Operations in one state, oldest first, at most `limit` + 1; none for a caller who is no administrator."""
    parameters: dict[str, Any] = {
        **identity(caller),
        "claimed_roles": list(caller.roles),
        "state": query.state,
        "limit": query.limit,
        "after_created_at": query.cursor and query.cursor.created_at,
        "after_id": query.cursor and query.cursor.id,
    }
    [rows] = reading(lambda: database.round_trip(Statement(_LIST_OPERATIONS, parameters)))
    require_known(caller, rows)
    standing = _standing(rows[0], caller)
    return standing, [msgspec.convert(row, StoredOperation) for row in rows if row["id"] is not None]


_RETRY_OPERATION = """/* retry_operation */
WITH known AS (
    SELECT id, is_active, roles FROM users WHERE id = %(caller_id)s OR (oauth_provider = %(provider)s AND oauth_id = %(subject)s)
),
caller AS (
    -- One who has no row yet is what the token says.
    SELECT * FROM known UNION ALL SELECT NULL, true, '{}' WHERE %(caller_id)s::uuid IS NULL AND NOT EXISTS (SELECT FROM known)
),
found AS (
    SELECT o.id, o.state FROM api_key_operations AS o WHERE o.id = %(operation_id)s
),
due AS (
    UPDATE api_key_operations AS o SET next_attempt_at = now(), updated_at = now()
    FROM found, caller
    WHERE o.id = found.id AND o.state = 'pending'
    AND caller.is_active AND 'admin' = ANY (caller.roles || %(claimed_roles)s::text[])
    RETURNING o.id, o.api_key_id, caller.id AS caller_id
),
audited AS (
    INSERT INTO audit_logs (user_id, action, resource_type, resource_id, ip_address, user_agent, success, metadata)
    SELECT
        due.caller_id, 'API_KEY_OPERATION_RETRY', 'API_KEY', due.api_key_id, %(ip_address)s::inet, %(user_agent)s, true,
        jsonb_build_object('requestId', %(request_id)s::text, 'operationId', due.id)
    FROM due
)
SELECT
    caller.id AS caller_id, caller.is_active AS is_caller_active, caller.roles AS caller_roles,
    CASE WHEN found.id IS NULL THEN 'missing' WHEN due.id IS NULL THEN 'over' ELSE 'due' END AS outcome
FROM caller
LEFT JOIN found ON true
LEFT JOIN due ON true"""


def retry_operation(
    database: Database, caller: Caller, operation_id: UUID
) -> tuple[Standing, Literal["missing", "over", "due"]]:
    """Makes a pending operation due now, if the caller is an administrator; its holder's lease is left alone."""
    parameters: dict[str, Any] = {
        **identity(caller),
        "claimed_roles": list(caller.roles),
        "operation_id": operation_id,
        **audited(caller.actor),
    }
    [rows] = database.round_trip(Statement(_RETRY_OPERATION, parameters))
    require_known(caller, rows)
    return _standing(rows[0], caller), rows[0]["outcome"]


def _standing(row: dict[str, Any], caller: Caller) -> Standing:
    return Standing(
        user_id=row["caller_id"],
        is_active=bool(row["is_caller_active"]),
        roles=frozenset(caller.roles) | frozenset(row["caller_roles"] or ()),
    )
