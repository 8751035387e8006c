"""The SQL of a delete: T1 and T2."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec

from keyservice.audit import record_of
from keyservice.database import Database, Statement
from keyservice.journal import LOCK_KEY, LOCK_OWN_KEY, audited, identity, repeated_once, require_known
from keyservice.models import Caller, PendingEnding
from keyservice.standing import CALLER, OWNER, STANDING, Standing, require_may_change, user_not_found

# For administrators, whose first request this may be; the same as LOCK_OWN_KEY is for owners.
_LOCK_USERS_KEY: LiteralString = (
    """/* lock_users_key */
WITH """
    + CALLER
    + ",\n"
    + OWNER
    + """
SELECT k.id
FROM api_keys AS k
JOIN owner ON owner.id = k.user_id
WHERE k.id = %(api_key_id)s
FOR UPDATE OF k"""
)

_BEGIN_DELETE: LiteralString = (
    """/* begin_delete */
WITH caller AS (
    SELECT id, is_active, roles FROM users
    WHERE id = %(caller_id)s OR (oauth_provider = %(provider)s AND oauth_id = %(subject)s)
),
"""
    + STANDING
    + ",\n"
    + OWNER
    + """,
owned AS (
    SELECT
        k.id, k.user_id, k.name, k.key_hash, k.key_prefix, k.litellm_key_alias,
        ARRAY(SELECT m.model_id::text FROM api_key_models AS m WHERE m.api_key_id = k.id ORDER BY m.model_id) AS models
    FROM api_keys AS k
    JOIN owner ON owner.id = k.user_id
    -- What is revoked is not revoked again; it can still be deleted.
    WHERE k.id = %(api_key_id)s AND (k.revoked_at IS NULL OR NOT %(keeps_row)s)
),
wanted AS (
    SELECT CASE WHEN %(keeps_row)s THEN '{"reason": "revoked", "keepRow": true}' ELSE '{}' END::jsonb AS request
),
running AS (
    SELECT o.id, o.epoch, o.lease_until, coalesce(o.request ->> 'reason', '') AS reason FROM api_key_operations AS o
    JOIN owned ON owned.id = o.api_key_id
    WHERE o.state = 'pending' AND o.kind = 'delete'
),
superseded AS (
    UPDATE api_key_operations AS o
    SET state = 'superseded', finished_at = now(), last_error = 'superseded by a delete', updated_at = now()
    FROM owned
    WHERE o.api_key_id = owned.id AND o.state = 'pending' AND o.kind <> 'delete'
    RETURNING o.*
),
superseded_audited AS (
    """
    + record_of("superseded")
    + """
),
taken AS (
    -- An expiry under way becomes what is wanted now, and a revocation becomes a delete, with the caller as its actor; a
    -- delete stays one. Another's lease is left alone, but not our own of a first try whose answer was lost.
    UPDATE api_key_operations AS o
    SET request = CASE WHEN becomes_another THEN o.request - 'keepRow' - 'reason' || wanted.request ELSE o.request END,
        actor = CASE
            WHEN becomes_another
            THEN %(actor)s::jsonb || jsonb_build_object('user_id', standing.user_id) ELSE o.actor
        END,
        epoch = CASE WHEN is_free THEN o.epoch + 1 ELSE o.epoch END,
        attempts = CASE WHEN is_free THEN o.attempts + 1 ELSE o.attempts END,
        lease_until = CASE WHEN is_free THEN now() + make_interval(secs => %(lease_seconds)s) ELSE o.lease_until END,
        updated_at = now()
    FROM running
    CROSS JOIN standing
    CROSS JOIN wanted
    CROSS JOIN LATERAL (SELECT running.lease_until <= now() OR running.id = %(operation_id)s AS is_free) AS lease
    CROSS JOIN LATERAL (
        SELECT running.reason = 'expired' OR (running.reason = 'revoked' AND NOT %(keeps_row)s) IS TRUE AS becomes_another
    ) AS change
    WHERE o.id = running.id AND o.epoch = running.epoch AND o.state = 'pending'
    RETURNING o.id, o.epoch, lease.is_free
),
resumed AS (
    SELECT id, epoch FROM taken WHERE is_free
),
hidden AS (
    UPDATE api_keys AS k SET is_active = false, sync_status = 'pending', updated_at = now()
    FROM owned
    WHERE k.id = owned.id AND NOT EXISTS (SELECT FROM running)
),
condemned AS (
    UPDATE api_key_tokens AS t SET state = 'condemned', updated_at = now()
    FROM owned
    WHERE t.api_key_id = owned.id AND t.state <> 'dead'
    RETURNING t.hash, coalesce(t.unsafe_until <= now(), true) AS is_safe
),
adopted AS (
    -- A key that LiteMaaS made, or gave another secret, has no token of ours; its hash is LiteLLM's token id all the same.
    INSERT INTO api_key_tokens (hash, api_key_id, user_id, alias, state)
    SELECT owned.key_hash, owned.id, owned.user_id, owned.litellm_key_alias, 'condemned'
    FROM owned
    WHERE NOT EXISTS (SELECT FROM api_key_tokens AS t WHERE t.api_key_id = owned.id AND t.hash = owned.key_hash)
    ON CONFLICT (hash) DO UPDATE SET api_key_id = EXCLUDED.api_key_id, state = 'condemned', updated_at = now()
    RETURNING hash
),
begun AS (
    -- Reads `superseded` so that the one pending operation of the key has left before this one comes.
    INSERT INTO api_key_operations (
        id, api_key_id, user_id, actor, kind, lease_until, next_attempt_at, request, key_name, key_prefix, models
    )
    SELECT
        %(operation_id)s, owned.id, owned.user_id,
        %(actor)s::jsonb || jsonb_build_object('user_id', standing.user_id), 'delete',
        now() + make_interval(secs => %(lease_seconds)s), now() + make_interval(secs => %(lease_seconds)s),
        wanted.request, owned.name, owned.key_prefix, owned.models
    FROM owned
    CROSS JOIN standing
    CROSS JOIN wanted
    CROSS JOIN (SELECT count(*) FROM superseded) AS gone
    WHERE NOT EXISTS (SELECT FROM running)
    RETURNING id, epoch
)
SELECT
    to_jsonb(standing) AS standing,
    EXISTS (SELECT FROM users AS u WHERE u.id = %(owner_id)s) AS is_owner_known,
    owned.id AS api_key_id,
    owned.user_id,
    coalesce(begun.id, resumed.id) AS operation_id,
    coalesce(begun.epoch, resumed.epoch) AS epoch,
    (
        SELECT jsonb_agg(jsonb_build_object('hash', t.hash, 'is_safe', t.is_safe))
        FROM (SELECT * FROM condemned UNION ALL SELECT hash, true FROM adopted) AS t
    ) AS tokens
FROM standing
LEFT JOIN owned ON true
LEFT JOIN begun ON true
LEFT JOIN resumed ON true"""
)


def begin_delete(
    database: Database,
    caller: Caller,
    *,
    owner_id: UUID | None,
    operation_id: UUID,
    api_key_id: UUID,
    keeps_row: bool,
    lease_seconds: float,
) -> PendingEnding | Literal["not found", "running"]:
    """T1 of a delete of the caller's own key, or `owner_id`'s, one round trip: the row is off, all its tokens are
    condemned, and the operation, which supersedes a create or change still pending, will be finished whatever happens;
    the row is then deleted, or with `keeps_row` marked as revoked. Takes a delete over whose holder's lease has run out;
    "running" while it has not. Raises Forbidden for a caller who may not change it, NotFound for an unknown owner."""
    parameters: dict[str, Any] = {
        **identity(caller),
        **audited(caller.actor),
        "owner_id": owner_id,
        "keeps_row": keeps_row,
        "operation_id": operation_id,
        "api_key_id": api_key_id,
        "lease_seconds": lease_seconds,
    }
    lock = Statement(LOCK_OWN_KEY if owner_id is None else _LOCK_USERS_KEY, parameters)
    _, rows = repeated_once(database, lock, Statement(_BEGIN_DELETE, parameters))
    require_known(caller, rows)
    if not rows:
        return "not found"
    require_may_change(msgspec.convert(rows[0]["standing"], Standing), owner_id=owner_id)
    if owner_id is not None and not rows[0]["is_owner_known"]:
        raise user_not_found()
    if rows[0]["api_key_id"] is None:
        return "not found"
    if rows[0]["operation_id"] is None:
        return "running"
    return msgspec.convert({**rows[0], "tokens": rows[0]["tokens"] or []}, PendingEnding)


# Passes only when every token of the key has been confirmed gone for ever. Whether a token was safe is not asked here but
# was when LiteLLM was told: between the two it may have become so, and with it come to life (its create's T2 ran).
_FINISH_DELETE: LiteralString = (
    """/* finish_delete */
WITH gate AS (
    UPDATE api_key_operations AS o
    SET state = 'done', finished_at = now(), last_error = NULL, updated_at = now()
    WHERE o.id = %(operation_id)s AND o.epoch = %(epoch)s AND o.state = 'pending'
    AND NOT EXISTS (
        SELECT FROM api_key_tokens AS t
        WHERE t.api_key_id = o.api_key_id AND t.state <> 'dead'
        AND t.hash <> ALL (%(gone_hashes)s::text[])
    )
    RETURNING o.*
),
removed AS (
    DELETE FROM api_keys AS k USING gate WHERE k.id = gate.api_key_id AND gate.request -> 'keepRow' IS NULL
),
kept AS (
    UPDATE api_keys AS k
    SET is_active = false, sync_status = 'synced', last_sync_at = now(), updated_at = now(),
        revoked_at = CASE WHEN gate.request ->> 'reason' = 'revoked' THEN now() ELSE k.revoked_at END
    FROM gate
    WHERE k.id = gate.api_key_id AND gate.request -> 'keepRow' IS NOT NULL
),
tokens_dead AS (
    UPDATE api_key_tokens AS t SET state = 'dead', unsafe_until = NULL, updated_at = now()
    FROM gate
    WHERE t.api_key_id = gate.api_key_id AND t.state <> 'dead'
),
audited AS (
    """
    + record_of("gate")
    + """
)
SELECT finished_at AS deleted_at FROM gate
UNION ALL
SELECT finished_at FROM api_key_operations
WHERE id = %(operation_id)s AND epoch = %(epoch)s AND state = 'done' AND NOT EXISTS (SELECT FROM gate)"""
)


def finish_delete(
    database: Database, *, operation_id: UUID, epoch: int, api_key_id: UUID, gone_hashes: Sequence[str]
) -> datetime | None:
    """T2 of a delete, one round trip, after LiteLLM said that every token is gone: the row and its tokens end and the
    audit record is written. The moment of it, also when an earlier try did it; None when it may not be done yet or
    somebody else has taken the operation over."""
    parameters = {"operation_id": operation_id, "epoch": epoch, "gone_hashes": list(gone_hashes)}
    _, rows = repeated_once(
        database, Statement(LOCK_KEY, {"api_key_id": api_key_id}), Statement(_FINISH_DELETE, parameters)
    )
    return rows[0]["deleted_at"] if rows else None
