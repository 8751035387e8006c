"""The SQL of a rotation: T1 and T2."""

from datetime import datetime
from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec

from keyservice.database import Database, Statement
from keyservice.issuing_store import (
    GATEWAY_USER,
    PROGRESS,
    REPEATED,
    THROUGH_THE_GATE,
    VERDICT,
    NewToken,
    Repeated,
    secret_fields,
)
from keyservice.journal import (
    LOCK_CALLER,
    LOCK_KEY,
    LOCK_OWN_KEY,
    LOCK_USER,
    audited,
    identity,
    repeated_once,
    require_known,
)
from keyservice.key_settings import SETTINGS
from keyservice.models import Caller, Idempotency, PendingEnding, PendingRotation, Progress
from keyservice.retirement_store import retirement_of
from keyservice.standing import OWNER, STANDING, Standing, require_may_change_own

type Refusal = Literal["not found", "busy", "inactive", "expired", "noModels"]


class DoneRotation(msgspec.Struct, frozen=True, kw_only=True):
    """A rotation that was done, and what has become of the secrets before since."""

    pending: PendingRotation
    rotated_at: datetime
    asked_at: datetime
    old_valid_until: datetime | None
    old_ended_at: datetime | None


class Rotated(msgspec.Struct, frozen=True, kw_only=True):
    """What T2 made of the operation; `retirement` when the earlier secrets are to end at once, and by us."""

    progress: Progress
    rotated_at: datetime | None
    grace_seconds: int
    retirement: PendingEnding | None


_BEGIN_ROTATE: LiteralString = (
    """/* begin_rotate */
WITH caller AS (
    SELECT id, is_active, roles FROM users
    WHERE id = %(caller_id)s OR (oauth_provider = %(provider)s AND oauth_id = %(subject)s)
),
"""
    + STANDING
    + ",\n"
    + OWNER
    + ",\n"
    + REPEATED
    + """,
asked AS (
    SELECT
        k.id, k.user_id, k.name, k.key_hash, k.key_prefix, k.expires_at,
        """
    + SETTINGS
    + """ AS settings,
        k.is_active IS NOT false AND k.revoked_at IS NULL AS is_active, owner.id IS NOT NULL AS is_allowed,
        ARRAY(SELECT m.model_id::text FROM api_key_models AS m WHERE m.api_key_id = k.id ORDER BY m.model_id) AS models,
        -- A key that LiteMaaS made may have no token yet: its secret counts as the first.
        1 + coalesce((SELECT max(t.number) FROM api_key_tokens AS t WHERE t.api_key_id = k.id), 1) AS number
    FROM standing
    JOIN api_keys AS k ON k.id = %(api_key_id)s AND k.user_id = coalesce(%(owner_id)s::uuid, standing.user_id)
    LEFT JOIN owner ON owner.id = k.user_id
),
ours AS (
    -- Begun by a first try of this very request, whose answer was lost.
    SELECT o.*, t.nonce, t.alias
    FROM api_key_operations AS o
    JOIN asked ON asked.id = o.api_key_id AND asked.is_allowed
    JOIN api_key_tokens AS t ON t.hash = o.token_hash
    WHERE o.id = %(operation_id)s AND o.state = 'pending' AND o.phase = 'forward'
),
hindered AS (
    SELECT CASE
        WHEN NOT asked.is_allowed THEN 'forbidden'
        WHEN EXISTS (
            SELECT FROM api_key_operations AS o WHERE o.api_key_id = asked.id AND o.state = 'pending'
        ) THEN 'busy'
        WHEN NOT asked.is_active THEN 'inactive'
        WHEN asked.expires_at < now() + interval '1 second' THEN 'expired'
        -- To LiteLLM no models are all models.
        WHEN asked.models = '{}' THEN 'noModels'
    END AS reason
    FROM asked
),
refused AS (
    -- The operation's id, chosen before: asked a second time after a lost answer, this is recorded once.
    INSERT INTO audit_logs (
        id, user_id, action, resource_type, resource_id, ip_address, user_agent, success, error_message, metadata
    )
    SELECT
        %(operation_id)s, standing.user_id, 'API_KEY_ROTATE', 'API_KEY', asked.id, %(ip_address)s::inet, %(user_agent)s,
        false, hindered.reason,
        jsonb_build_object(
            'requestId', %(request_id)s::text, 'userId', asked.user_id, 'name', asked.name,
            'keyPrefix', asked.key_prefix, 'models', asked.models, 'modelCount', cardinality(asked.models)
        )
    FROM standing, asked, hindered
    WHERE hindered.reason <> 'busy' AND NOT EXISTS (SELECT FROM earlier WHERE verdict <> 'free')
    ON CONFLICT (id) DO NOTHING
),
allowed AS (
    SELECT asked.*
    FROM asked, hindered
    WHERE hindered.reason IS NULL AND NOT EXISTS (SELECT FROM earlier WHERE verdict <> 'free')
),
new_token AS (
    INSERT INTO api_key_tokens (hash, api_key_id, user_id, number, nonce, mac_key_arn, alias, state, unsafe_until)
    SELECT
        %(token_hash)s, allowed.id, allowed.user_id, allowed.number, %(nonce)s, %(mac_key_arn)s,
        (SELECT mark FROM keyservice_installation) || ':' || allowed.id || ':' || allowed.number, 'intended',
        -- Should this process die, its request may still be carried out until then. T2 takes it back.
        now() + make_interval(secs => %(lease_seconds)s + %(drain_seconds)s)
    FROM allowed
    RETURNING hash, nonce, alias
),
new_operation AS (
    INSERT INTO api_key_operations (
        id, api_key_id, user_id, actor, kind, lease_until, next_attempt_at, idempotency_hash, body_fingerprint,
        request, token_hash, key_name, key_prefix, models
    )
    SELECT
        %(operation_id)s, allowed.id, allowed.user_id,
        %(actor)s::jsonb || jsonb_build_object('user_id', standing.user_id), %(kind)s,
        now() + make_interval(secs => %(lease_seconds)s),
        now() + make_interval(secs => greatest(%(lease_seconds)s, %(resume_seconds)s)),
        %(idempotency_hash)s, %(body_fingerprint)s,
        allowed.settings || jsonb_build_object(
            'old_hash', allowed.key_hash, 'old_prefix', allowed.key_prefix, 'grace_seconds', %(grace_seconds)s::integer
        ),
        %(token_hash)s, allowed.name, %(key_prefix)s, allowed.models
    FROM allowed
    CROSS JOIN standing
    -- Read, so that an earlier operation has let go of the Idempotency-Key before this one takes it.
    CROSS JOIN (SELECT count(*) FROM freed) AS let_go
    RETURNING *
),
begun AS (
    SELECT o.id, o.epoch, o.api_key_id, o.user_id, o.request, o.token_hash, o.key_prefix, o.finished_at, t.nonce, t.alias
    FROM new_operation AS o CROSS JOIN new_token AS t
    UNION ALL
    SELECT id, epoch, api_key_id, user_id, request, token_hash, key_prefix, finished_at, nonce, alias FROM ours
    UNION ALL
    SELECT
        e.id, coalesce(resumed.epoch, e.epoch), e.api_key_id, e.user_id, e.request, e.token_hash, e.key_prefix,
        e.finished_at, e.nonce, e.alias
    FROM earlier AS e
    LEFT JOIN resumed ON true
    WHERE e.verdict <> 'free' AND NOT EXISTS (SELECT FROM ours)
)
SELECT
    to_jsonb(standing) AS standing,
    asked.id IS NULL AS is_missing,
    hindered.reason AS refusal,
    begun.id IN (SELECT id FROM ours) AS is_ours,
    """
    + VERDICT
    + """,
    """
    + GATEWAY_USER
    + """,
    begun.id AS operation_id, begun.epoch, begun.request, begun.token_hash, begun.nonce, begun.api_key_id, begun.alias,
    begun.key_prefix, begun.request ->> 'old_hash' AS old_hash, begun.request ->> 'old_prefix' AS old_prefix,
    floor(extract(epoch FROM asked.expires_at - now()))::bigint AS remaining_seconds,
    (SELECT mark FROM keyservice_installation) AS mark,
    begun.finished_at AS rotated_at,
    now() AS asked_at,
    (
        SELECT max(t.valid_until) FROM api_key_tokens AS t WHERE t.api_key_id = begun.api_key_id AND t.state = 'retiring'
    ) AS old_valid_until,
    (
        SELECT max(t.updated_at) FROM api_key_tokens AS t
        WHERE t.api_key_id = begun.api_key_id AND t.state = 'dead' AND t.hash <> begun.token_hash
    ) AS old_ended_at
FROM standing
LEFT JOIN asked ON true
LEFT JOIN hindered ON true
LEFT JOIN earlier ON true
LEFT JOIN resumed ON true
LEFT JOIN begun ON true
-- One row by its id, however many the planner takes `begun` for.
LEFT JOIN LATERAL (SELECT * FROM users WHERE users.id = begun.user_id LIMIT 1) AS u ON true"""
)


def begin_rotate(
    database: Database,
    caller: Caller,
    *,
    operation_id: UUID,
    api_key_id: UUID,
    token: NewToken,
    grace_seconds: int,
    idempotency: Idempotency | None,
    lease_seconds: float,
    drain_seconds: float,
    resume_seconds: float,
) -> PendingRotation | Repeated[DoneRotation] | Refusal:
    """T1 of a rotation, one round trip: the new token (intended) and the operation, nothing of the key itself. A refusal of
    a key that is there is audited. Takes up what an earlier request with the same Idempotency-Key left unfinished, and is
    safe to repeat with the same ids. Raises Forbidden for a caller who may change nothing."""
    parameters: dict[str, Any] = {
        **identity(caller),
        **audited(caller.actor),
        "owner_id": None,
        "operation_id": operation_id,
        "api_key_id": api_key_id,
        "token_hash": token.hash,
        "nonce": token.nonce,
        "mac_key_arn": token.mac_key_arn,
        "key_prefix": token.prefix,
        "grace_seconds": grace_seconds,
        "kind": "rotate",
        "idempotency_hash": idempotency and idempotency.key_hash,
        "body_fingerprint": idempotency and idempotency.body_fingerprint,
        "lease_seconds": lease_seconds,
        "drain_seconds": drain_seconds,
        "resume_seconds": resume_seconds,
    }
    *_, rows = repeated_once(
        database,
        Statement(LOCK_CALLER, parameters),
        Statement(LOCK_OWN_KEY, parameters),
        Statement(_BEGIN_ROTATE, parameters),
    )
    require_known(caller, rows)
    if not rows:
        return "not found"
    [row] = rows
    require_may_change_own(msgspec.convert(row["standing"], Standing))
    if row["is_ours"]:
        return _pending_rotation(row)
    match row["verdict"]:
        case "otherBody" | "gone" | "undoing" | "running" as hindrance:
            return Repeated(user_id=row["user_id"], hindrance=hindrance, original=None)
        case "replay":
            done = msgspec.convert({**row, "pending": _pending_rotation(row)}, DoneRotation)
            return Repeated(user_id=row["user_id"], hindrance=None, original=done)
        case "resume":
            return _pending_rotation(row)
        case _:
            pass
    if row["is_missing"]:
        return "not found"
    return row["refusal"] or _pending_rotation(row)


def _pending_rotation(row: dict[str, Any]) -> PendingRotation:
    return msgspec.convert(secret_fields(row), PendingRotation)


_FINISH_ROTATE: LiteralString = (
    """/* finish_rotate */
WITH held AS (
    SELECT * FROM api_key_operations
    WHERE id = %(operation_id)s AND epoch = %(epoch)s
),
checked AS (
    SELECT CASE
        WHEN k.id IS NULL THEN 'keyRemoved'
        WHEN NOT EXISTS (SELECT FROM users AS u WHERE u.id = held.user_id AND u.is_active) THEN 'inactiveUser'
        WHEN k.is_active IS false OR k.revoked_at IS NOT NULL THEN 'inactive'
        WHEN k.expires_at <= now() THEN 'expired'
    END AS reason
    FROM held
    LEFT JOIN api_keys AS k ON k.id = held.api_key_id
),
"""
    + THROUGH_THE_GATE
    + """,
rotated AS (
    UPDATE api_keys AS k
    SET key_hash = passed.token_hash, lite_llm_key_id = passed.token_hash, key_prefix = passed.key_prefix,
        litellm_key_alias = t.alias, sync_status = 'synced', sync_error = NULL,
        current_spend = least(round(%(spend_usd)s::numeric, 2), 99999999.99), last_sync_at = now(), updated_at = now()
    FROM passed
    JOIN api_key_tokens AS t ON t.hash = passed.token_hash
    WHERE k.id = passed.api_key_id
),
ending AS (
    SELECT passed.*, now() + make_interval(secs => (passed.request ->> 'grace_seconds')::integer) AS valid_until FROM passed
),
retired AS (
    -- No earlier secret outlives the grace of the latest rotation.
    UPDATE api_key_tokens AS t
    SET state = 'retiring', valid_until = least(t.valid_until, ending.valid_until), updated_at = now()
    FROM ending
    WHERE t.api_key_id = ending.api_key_id AND t.hash <> ending.token_hash AND t.state IN ('live', 'retiring')
    RETURNING t.hash, t.valid_until, coalesce(t.unsafe_until <= now(), true) AS is_safe
),
adopted AS (
    -- A key that LiteMaaS made, or gave another secret, has no token of ours; its hash is LiteLLM's token id all the same.
    INSERT INTO api_key_tokens (hash, api_key_id, user_id, alias, state, valid_until)
    SELECT k.key_hash, k.id, k.user_id, k.litellm_key_alias, 'retiring', ending.valid_until
    FROM ending
    JOIN api_keys AS k ON k.id = ending.api_key_id
    WHERE NOT EXISTS (SELECT FROM api_key_tokens AS t WHERE t.api_key_id = k.id AND t.hash = k.key_hash)
    ON CONFLICT (hash) DO UPDATE
    SET api_key_id = EXCLUDED.api_key_id, state = 'retiring', valid_until = EXCLUDED.valid_until, updated_at = now()
    RETURNING hash, valid_until, true AS is_safe
),
old AS (
    SELECT hash, is_safe FROM (SELECT * FROM retired UNION ALL SELECT * FROM adopted) AS t WHERE valid_until <= now()
),
to_retire AS (
    SELECT
        %(retirement_id)s::uuid AS operation_id, api_key_id, user_id, actor, %(lease_seconds)s::float8 AS lease_seconds, key_name,
        key_prefix, models
    FROM ending
    WHERE EXISTS (SELECT FROM old)
),
retirement AS (
    """
    + retirement_of("to_retire")
    + """
),
told AS (
    SELECT """
    + PROGRESS
    + """
)
SELECT
    to_jsonb(told) AS progress,
    o.finished_at AS rotated_at,
    o.user_id,
    o.api_key_id,
    (o.request ->> 'grace_seconds')::integer AS grace_seconds,
    r.id AS retirement_id,
    r.epoch AS retirement_epoch,
    (
        SELECT jsonb_agg(jsonb_build_object('hash', t.hash, 'is_safe', t.is_safe))
        FROM (
            SELECT * FROM old
            UNION
            -- Of a first try whose answer was lost.
            SELECT t.hash, coalesce(t.unsafe_until <= now(), true) FROM api_key_tokens AS t
            WHERE t.api_key_id = o.api_key_id AND t.state = 'retiring' AND t.valid_until <= now()
        ) AS t
    ) AS tokens
FROM told
CROSS JOIN (
    SELECT finished_at, user_id, api_key_id, request FROM passed
    UNION ALL
    SELECT finished_at, user_id, api_key_id, request FROM api_key_operations
    WHERE id = %(operation_id)s AND NOT EXISTS (SELECT FROM passed)
) AS o
LEFT JOIN (
    SELECT id, epoch FROM retirement
    UNION ALL
    SELECT id, epoch FROM api_key_operations WHERE id = %(retirement_id)s AND epoch = 1 AND state = 'pending'
) AS r ON true"""
)


def finish_rotate(
    database: Database, pending: PendingRotation, *, spend_usd: float, retirement_id: UUID, lease_seconds: float
) -> Rotated:
    """T2 of a rotation, one round trip, after LiteLLM answered 200: the new secret is the key's, the earlier ones have
    their grace, and the audit record is written; unless meanwhile the user, the key or its expiry no longer allows it: then
    the operation is to be undone. Without a grace their retirement is begun as well, and ours.

    Repeating it, also after its answer was lost, changes nothing and tells what became of the operation.
    """
    parameters = {
        "operation_id": pending.operation_id,
        "epoch": pending.epoch,
        "spend_usd": spend_usd,
        "retirement_id": retirement_id,
        "lease_seconds": lease_seconds,
    }
    *_, rows = repeated_once(
        database,
        Statement(LOCK_USER, {"user_id": pending.user.id}),
        Statement(LOCK_KEY, {"api_key_id": pending.api_key_id}),
        Statement(_FINISH_ROTATE, parameters),
    )
    [row] = rows
    fields: dict[str, Any] = {**row, "retirement": None}
    if row["retirement_id"] is not None:
        fields["retirement"] = {
            **row,
            "operation_id": row["retirement_id"],
            "epoch": row["retirement_epoch"],
            "tokens": row["tokens"] or [],
        }
    return msgspec.convert(fields, Rotated)
