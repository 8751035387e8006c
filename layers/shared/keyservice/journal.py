"""What every change shares: the locks, the parameters that identify a caller, giving an operation back.

Each SQL statement begins with its name as a comment. Lock order in every transaction: users, api_keys, operation,
tokens. Times are the database's own. A change and its audit record are one statement.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec
from psycopg import errors as pg
from psycopg.types.json import Jsonb

from keyservice import telemetry
from keyservice.database import Database, Rows, Statement
from keyservice.errors import (
    DatabaseUnavailable,
    IdentityConflict,
    OutcomeUnknown,
    Unauthorized,
    Unavailable,
)
from keyservice.models import Actor, Caller

# Why an operation waits although LiteLLM answers.
DRAINING = "an earlier request to LiteLLM may still make the key"

_OF_AN_IDENTITY = ("users_username_key", "users_email_key")

LOCK_USER = """/* lock_user */
SELECT id FROM users WHERE id = %(user_id)s FOR NO KEY UPDATE"""

LOCK_KEY = """/* lock_key */
SELECT id FROM api_keys WHERE id = %(api_key_id)s FOR UPDATE"""

# Serialises what a caller asks for; the next statement's snapshot is taken once it is held.
LOCK_CALLER = """/* lock_caller */
SELECT id FROM users
WHERE id = %(caller_id)s OR (oauth_provider = %(provider)s AND oauth_id = %(subject)s)
FOR NO KEY UPDATE"""

# Only for its owner: nobody else can make others wait.
LOCK_OWN_KEY = """/* lock_own_key */
SELECT k.id
FROM api_keys AS k
JOIN users AS u ON u.id = k.user_id
WHERE k.id = %(api_key_id)s AND (u.id = %(caller_id)s OR (u.oauth_provider = %(provider)s AND u.oauth_id = %(subject)s))
FOR UPDATE OF k"""


# A generate or a change that LiteLLM itself answered, or that was never sent, cannot come true later.
_RELEASE = """/* release */
WITH gate AS (
    UPDATE api_key_operations AS o
    SET lease_until = now(), updated_at = now(), last_error = %(error)s,
        -- Not before a lost request can no longer come true: until then the operation could not be finished.
        next_attempt_at = CASE WHEN %(waits_for_drain)s THEN greatest(
            o.next_attempt_at, (SELECT max(t.unsafe_until) FROM api_key_tokens AS t WHERE t.api_key_id = o.api_key_id)
        ) ELSE o.next_attempt_at END
    WHERE o.id = %(operation_id)s AND o.epoch = %(epoch)s AND o.state = 'pending'
    RETURNING o.api_key_id, o.kind, o.token_hash, o.earlier_answered, o.request
),
settings_safe AS (
    UPDATE api_key_tokens AS t
    SET settings_unsafe_until = (gate.request ->> 'earlier_unsafe_until')::timestamptz, updated_at = now()
    FROM gate
    WHERE gate.kind = 'update' AND t.api_key_id = gate.api_key_id AND NOT %(may_still_happen)s
    AND t.settings_unsafe_until IS NOT NULL
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
    except Unavailable:
        return


def registering(database: Database, *statements: Statement) -> list[Rows]:
    """Runs statements of which one may register the caller. Two first requests of one user may meet on the username:
    the second try then finds the row; when it does not, the name is somebody else's. Raises IdentityConflict."""
    try:
        return database.round_trip(*statements)
    except pg.UniqueViolation as error:
        if error.diag.constraint_name not in _OF_AN_IDENTITY:
            raise
    try:
        return database.round_trip(*statements)
    except pg.UniqueViolation as error:
        if error.diag.constraint_name not in _OF_AN_IDENTITY:
            raise
        raise IdentityConflict(
            "The username or email of this token belongs to another account. Ask an administrator to clear it up."
        ) from error


def reading[T](read: Callable[[], T]) -> T:
    """Reads once more when the connection broke in the middle: a read changes nothing. Raises DatabaseUnavailable."""
    try:
        return read()
    except OutcomeUnknown:
        pass
    try:
        return read()
    except OutcomeUnknown as error:
        raise DatabaseUnavailable from error


def repeated_once(database: Database, *statements: Statement) -> list[Rows]:
    """Runs statements that are safe to repeat, of which one may register the caller; once more when the connection broke
    and the outcome is unknown."""
    try:
        return registering(database, *statements)
    except OutcomeUnknown:
        pass
    try:
        return registering(database, *statements)
    except DatabaseUnavailable as error:
        # The first try may have committed: "nothing was changed" would not be true.
        raise OutcomeUnknown from error


def identity(caller: Caller) -> dict[str, Any]:
    """The parameters that statements find, register and judge a caller by. What finds the row is
    `id = %(caller_id)s OR (oauth_provider = %(provider)s AND oauth_id = %(subject)s)`: the half that does not apply is
    null and matches nothing."""
    return {
        "caller_id": caller.user_id,
        "provider": caller.provider,
        "subject": caller.subject,
        "username": caller.username,
        "email": caller.email,
        "full_name": caller.full_name,
        "claimed_roles": list(caller.roles),
    }


def require_known(caller: Caller, rows: Rows) -> None:
    """Raises Unauthorized for a token that names a row of `users` which is not there: that row is never made."""
    if caller.user_id is not None and not rows:
        raise Unauthorized("The token's user does not exist. Log in again.")


def audited(actor: Actor) -> dict[str, Any]:
    return {**msgspec.structs.asdict(actor), "actor": Jsonb(msgspec.structs.asdict(actor))}
