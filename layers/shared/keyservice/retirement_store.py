"""The SQL of retiring: secrets that a rotation has replaced, and whose time is over, leave LiteLLM."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec

from keyservice.audit import record_of
from keyservice.database import Database, Statement
from keyservice.journal import LOCK_KEY, LOCK_OWN_KEY, audited, identity, repeated_once, require_known
from keyservice.models import Caller, PendingEnding
from keyservice.standing import OWNER, STANDING, Standing, require_may_change_own


def retirement_of(keys: LiteralString) -> LiteralString:
    """The INSERT of a pending retirement for each row of the CTE `keys`: operation_id, api_key_id, user_id, actor,
    lease_seconds, key_name, key_prefix, models."""
    return (
        """INSERT INTO api_key_operations (
        id, api_key_id, user_id, actor, kind, lease_until, next_attempt_at, key_name, key_prefix, models
    )
    SELECT
        x.operation_id, x.api_key_id, x.user_id, x.actor, 'retire', now() + make_interval(secs => x.lease_seconds),
        now() + make_interval(secs => x.lease_seconds), x.key_name, x.key_prefix, x.models
    FROM """
        + keys
        + """ AS x
    ON CONFLICT (api_key_id) WHERE state = 'pending' DO NOTHING
    RETURNING id, epoch, api_key_id"""
    )


_BEGIN_RETIREMENTS: LiteralString = (
    """/* begin_retirements */
WITH due AS (
    SELECT
        gen_random_uuid() AS operation_id, k.id AS api_key_id, k.user_id,
        jsonb_build_object('user_id', %(system_user)s::text) AS actor, 0.0::float8 AS lease_seconds,
        k.name AS key_name, k.key_prefix,
        ARRAY(SELECT m.model_id::text FROM api_key_models AS m WHERE m.api_key_id = k.id ORDER BY m.model_id) AS models
    FROM api_keys AS k
    WHERE k.id IN (
        SELECT t.api_key_id FROM api_key_tokens AS t WHERE t.state = 'retiring' AND t.valid_until <= now()
    )
    AND NOT EXISTS (SELECT FROM api_key_operations AS o WHERE o.api_key_id = k.id AND o.state = 'pending')
    LIMIT %(at_most)s
    FOR UPDATE OF k SKIP LOCKED
),
begun AS (
    """
    + retirement_of("due")
    + """
)
SELECT count(*) AS keys FROM begun"""
)


def begin_retirements(database: Database, *, system_user: str, at_most: int) -> int:
    """Turns the ends of graces of at most so many keys into pending retirements, due at once; how many it were."""
    parameters: dict[str, Any] = {"system_user": system_user, "at_most": at_most}
    [rows] = database.round_trip(Statement(_BEGIN_RETIREMENTS, parameters))
    return rows[0]["keys"]


_BEGIN_COMPLETION: LiteralString = (
    """/* begin_completion */
WITH caller AS (
    SELECT id, is_active, roles FROM users
    WHERE id = %(caller_id)s OR (oauth_provider = %(provider)s AND oauth_id = %(subject)s)
),
"""
    + STANDING
    + ",\n"
    + OWNER
    + """,
asked AS (
    SELECT
        %(operation_id)s::uuid AS operation_id, k.id AS api_key_id, k.user_id,
        %(actor)s::jsonb || jsonb_build_object('user_id', standing.user_id) AS actor,
        %(lease_seconds)s::float8 AS lease_seconds, k.name AS key_name, k.key_prefix,
        ARRAY(SELECT m.model_id::text FROM api_key_models AS m WHERE m.api_key_id = k.id ORDER BY m.model_id) AS models
    FROM api_keys AS k
    JOIN owner ON owner.id = k.user_id
    CROSS JOIN standing
    WHERE k.id = %(api_key_id)s
),
running AS (
    SELECT o.id, o.kind, o.epoch, o.lease_until FROM api_key_operations AS o
    JOIN asked ON asked.api_key_id = o.api_key_id
    WHERE o.state = 'pending'
),
resumed AS (
    -- Another's lease is left alone, but not our own of a first try whose answer was lost.
    UPDATE api_key_operations AS o
    SET epoch = o.epoch + 1, attempts = o.attempts + 1, updated_at = now(),
        lease_until = now() + make_interval(secs => %(lease_seconds)s)
    FROM running
    WHERE o.id = running.id AND o.epoch = running.epoch AND o.state = 'pending' AND running.kind = 'retire'
    AND (running.lease_until <= now() OR running.id = %(operation_id)s)
    RETURNING o.id, o.epoch
),
ended AS (
    UPDATE api_key_tokens AS t SET valid_until = least(t.valid_until, now()), updated_at = now()
    FROM asked
    WHERE t.api_key_id = asked.api_key_id AND t.state = 'retiring'
    AND NOT EXISTS (SELECT FROM running WHERE kind <> 'retire')
    RETURNING t.hash, coalesce(t.unsafe_until <= now(), true) AS is_safe
),
retired AS (
    SELECT * FROM asked WHERE EXISTS (SELECT FROM ended) AND NOT EXISTS (SELECT FROM running)
),
begun AS (
    """
    + retirement_of("retired")
    + """
)
SELECT
    to_jsonb(standing) AS standing,
    asked.api_key_id,
    asked.user_id,
    running.kind AS running,
    coalesce(begun.id, resumed.id) AS operation_id,
    coalesce(begun.epoch, resumed.epoch) AS epoch,
    (SELECT jsonb_agg(to_jsonb(ended)) FROM ended) AS tokens
FROM standing
LEFT JOIN asked ON true
LEFT JOIN running ON true
LEFT JOIN begun ON true
LEFT JOIN resumed ON true"""
)


def begin_completion(
    database: Database, caller: Caller, *, operation_id: UUID, api_key_id: UUID, lease_seconds: float
) -> PendingEnding | Literal["not found", "running", "busy", "over"]:
    """T1 of ending a grace early, one round trip: the earlier secrets have had their time from now on, and will leave
    LiteLLM whatever happens. Takes a retirement over whose holder's lease has run out; "running" while it has not, "busy"
    while another change is pending, "over" when there is no earlier secret. Raises Forbidden."""
    parameters: dict[str, Any] = {
        **identity(caller),
        **audited(caller.actor),
        "owner_id": None,
        "operation_id": operation_id,
        "api_key_id": api_key_id,
        "lease_seconds": lease_seconds,
    }
    _, rows = repeated_once(database, Statement(LOCK_OWN_KEY, parameters), Statement(_BEGIN_COMPLETION, parameters))
    require_known(caller, rows)
    if not rows:
        return "not found"
    [row] = rows
    require_may_change_own(msgspec.convert(row["standing"], Standing))
    if row["api_key_id"] is None:
        return "not found"
    if row["operation_id"] is not None:
        return msgspec.convert({**row, "tokens": row["tokens"] or []}, PendingEnding)
    match row["running"]:
        case "retire":
            return "running"
        case None:
            return "over"
        case _:
            return "busy"


# Passes only when every secret that has had its time was confirmed gone for ever.
_FINISH_RETIREMENT: LiteralString = (
    """/* finish_retirement */
WITH gate AS (
    UPDATE api_key_operations AS o
    SET state = 'done', finished_at = now(), last_error = NULL, updated_at = now()
    WHERE o.id = %(operation_id)s AND o.epoch = %(epoch)s AND o.state = 'pending'
    AND NOT EXISTS (
        SELECT FROM api_key_tokens AS t
        WHERE t.api_key_id = o.api_key_id AND t.state = 'retiring' AND t.valid_until <= now()
        AND t.hash <> ALL (%(gone_hashes)s::text[])
    )
    RETURNING o.*
),
tokens_dead AS (
    UPDATE api_key_tokens AS t SET state = 'dead', unsafe_until = NULL, updated_at = now()
    FROM gate
    WHERE t.api_key_id = gate.api_key_id AND t.state = 'retiring' AND t.hash = ANY (%(gone_hashes)s::text[])
),
audited AS (
    """
    + record_of("gate")
    + """
)
SELECT finished_at AS ended_at FROM gate
UNION ALL
SELECT finished_at FROM api_key_operations
WHERE id = %(operation_id)s AND epoch = %(epoch)s AND state = 'done' AND NOT EXISTS (SELECT FROM gate)"""
)


def finish_retirement(
    database: Database, *, operation_id: UUID, epoch: int, api_key_id: UUID, gone_hashes: Sequence[str]
) -> datetime | None:
    """T2 of a retirement, one round trip, after LiteLLM said that these tokens are gone: they are dead, and the audit record
    is written. The moment of it, also when an earlier try did it; None when it may not be done yet or somebody else has
    taken the operation over."""
    parameters = {"operation_id": operation_id, "epoch": epoch, "gone_hashes": list(gone_hashes)}
    _, rows = repeated_once(
        database, Statement(LOCK_KEY, {"api_key_id": api_key_id}), Statement(_FINISH_RETIREMENT, parameters)
    )
    return rows[0]["ended_at"] if rows else None
