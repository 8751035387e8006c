"""What every change shares: the locks, the parameters that identify a caller, giving an operation back.

Each SQL statement begins with its name as a comment. Lock order in every transaction: users, api_keys, operation,
tokens. Times are the database's own. A change and its audit record are one statement.
"""

from typing import Any
from uuid import UUID

import msgspec
from psycopg import errors as pg
from psycopg.types.json import Jsonb

from keyservice import telemetry
from keyservice.database import Database, Rows, Statement
from keyservice.errors import DatabaseUnavailable, GatewayUnavailable, IdentityConflict, OutcomeUnknown, ServiceError
from keyservice.models import Actor, Caller

# Why an operation waits although LiteLLM answers.
DRAINING = "an earlier request to LiteLLM may still make the key"

LOCK_USER = """/* lock_user */
SELECT id FROM users WHERE id = %(user_id)s FOR NO KEY UPDATE"""

LOCK_KEY = """/* lock_key */
SELECT id FROM api_keys WHERE id = %(api_key_id)s FOR UPDATE"""


# A generate that LiteLLM itself answered, or that was never sent, cannot come true later.
_RELEASE = """/* release */
WITH gate AS (
    UPDATE api_key_operations AS o
    SET lease_until = now(), updated_at = now(), last_error = %(error)s,
        -- Not before a lost request can no longer come true: until then the operation could not be finished.
        next_attempt_at = CASE WHEN %(waits_for_drain)s THEN greatest(
            o.next_attempt_at, (SELECT max(t.unsafe_until) FROM api_key_tokens AS t WHERE t.api_key_id = o.api_key_id)
        ) ELSE o.next_attempt_at END
    WHERE o.id = %(operation_id)s AND o.epoch = %(epoch)s AND o.state = 'pending'
    RETURNING o.token_hash, o.earlier_answered
)
UPDATE api_key_tokens AS t SET unsafe_until = NULL, updated_at = now()
FROM gate
WHERE t.hash = gate.token_hash AND gate.earlier_answered AND NOT %(may_still_happen)s"""


def release(
    database: Database,
    *,
    operation_id: UUID,
    epoch: int,
    error: str,
    may_still_happen: bool = True,
    waits_for_drain: bool = False,
) -> None:
    """Gives an operation that could not be finished back, with the reason, for whoever comes next.

    Not needed for correctness, the lease runs out by itself: a database that is gone is no failure here.
    """
    parameters = {
        "operation_id": operation_id,
        "epoch": epoch,
        "error": error,
        "may_still_happen": may_still_happen,
        "waits_for_drain": waits_for_drain,
    }
    telemetry.explain(error)
    try:
        database.round_trip(Statement(_RELEASE, parameters))
    except DatabaseUnavailable:
        return


def identity_conflict(error: pg.UniqueViolation) -> Exception:
    """IdentityConflict for the two columns another identity may hold; any other violation is our own mistake."""
    if error.diag.constraint_name not in ("users_username_key", "users_email_key"):
        return error
    return IdentityConflict(
        "The username or email of this token belongs to another account. Ask an administrator to clear it up."
    )


def repeated_once(database: Database, *statements: Statement) -> list[Rows]:
    """Runs statements that are safe to repeat; once more when the connection broke and the outcome is unknown."""
    try:
        return database.round_trip(*statements)
    except OutcomeUnknown:
        return database.round_trip(*statements)


def identity(caller: Caller) -> dict[str, Any]:
    """The parameters that statements find, register and judge a caller by."""
    return {
        "provider": caller.provider,
        "subject": caller.subject,
        "username": caller.username,
        "email": caller.email,
        "full_name": caller.full_name,
        "claimed_roles": list(caller.roles),
    }


def audited(actor: Actor) -> dict[str, Any]:
    return {**msgspec.structs.asdict(actor), "actor": Jsonb(msgspec.structs.asdict(actor))}


def reason(trouble: ServiceError) -> str:
    """What the journal keeps of a failure: its kind and what LiteLLM did, never its answer's text."""
    return trouble.reason if isinstance(trouble, GatewayUnavailable) else type(trouble).__name__
