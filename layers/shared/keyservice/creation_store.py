"""The SQL of a create: T1, T2, and the end of one that did not work."""

from collections.abc import Sequence
from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec
from psycopg import errors as pg
from psycopg.types.json import Jsonb

from keyservice.database import Database, Statement
from keyservice.errors import OutcomeUnknown
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
from keyservice.journal import LOCK_KEY, LOCK_USER, audited, identity, registering, repeated_once, require_known
from keyservice.key_rules import CONFIGURED, DISCOVERED, Refusal
from keyservice.models import (
    Caller,
    Idempotency,
    ModelDetails,
    NewApiKey,
    PendingCreate,
    Permissions,
    Progress,
    parse_uuid,
)
from keyservice.standing import CALLER, OWNER, STANDING, Standing, require_may_change_all, user_not_found

# Registering sets no column of a unique index on conflict: that would take the stronger lock which collides with
# the audit rows' foreign keys (deadlocks within seconds). What it does take serialises the caller's own creates.
_REGISTER_CALLER = """/* register_caller */
INSERT INTO users AS u (username, email, full_name, oauth_provider, oauth_id, last_login_at)
VALUES (%(username)s, %(email)s, %(full_name)s, %(provider)s, %(subject)s, now())
ON CONFLICT (oauth_provider, oauth_id) DO UPDATE
SET full_name = coalesce(EXCLUDED.full_name, u.full_name), last_login_at = now()
RETURNING id"""

# For an administrator's create: their own row is not locked, or two who make keys for one another would deadlock.
_LOCK_OWNER: LiteralString = (
    """/* lock_owner */
WITH """
    + CALLER
    + ",\n"
    + OWNER
    + """
SELECT u.id FROM users AS u JOIN owner ON owner.id = u.id FOR NO KEY UPDATE OF u"""
)

# The last statement of the pipeline: its snapshot is taken after the lock on the user was won, so that it counts
# what the creates before it inserted. One statement that locks and counts let 30 of 30 through at a limit of 10.
_BEGIN_CREATE: LiteralString = (
    """/* begin_create */
WITH caller AS (
    SELECT id, is_active, roles FROM users
    WHERE id = %(caller_id)s OR (oauth_provider = %(provider)s AND oauth_id = %(subject)s)
),
"""
    + STANDING
    + ",\n"
    + OWNER
    + """,
holder AS (
    -- Whose key it is to be: `owner`, and a caller who may not change their own as well, to be told so.
    SELECT u.id, u.is_active, u.sync_status, u.max_budget, u.tpm_limit, u.rpm_limit, u.budget_duration
    FROM standing
    JOIN users AS u ON u.id = coalesce(%(owner_id)s::uuid, standing.user_id)
    WHERE %(owner_id)s::uuid IS NULL OR standing.may_change_all
),
"""
    + CONFIGURED
    + """,
subscribed AS (
    SELECT s.id, s.model_id, s.status, s.status = 'active' AND (s.expires_at IS NULL OR s.expires_at > now()) AS is_active
    FROM subscriptions AS s
    JOIN holder ON s.user_id = holder.id
    WHERE s.id = %(subscription_id)s OR s.model_id = ANY (%(model_ids)s::text[])
),
legacy AS (
    SELECT * FROM subscribed WHERE id = %(subscription_id)s
),
wanted AS (
    SELECT
        coalesce(%(model_ids)s::text[], (SELECT array_agg(model_id) FROM legacy), '{}') AS models,
        coalesce(
            %(max_budget)s::numeric, (defaults ->> 'maxBudget')::numeric, (maximums ->> 'maxBudget')::numeric
        ) AS max_budget,
        coalesce(%(soft_budget)s::numeric, (defaults ->> 'softBudget')::numeric) AS soft_budget,
        coalesce(%(budget_duration)s::text, defaults ->> 'budgetDuration') AS budget_duration,
        coalesce(
            %(tpm_limit)s::integer, (defaults ->> 'tpmLimit')::integer, (maximums ->> 'tpmLimit')::integer
        ) AS tpm_limit,
        coalesce(
            %(rpm_limit)s::integer, (defaults ->> 'rpmLimit')::integer, (maximums ->> 'rpmLimit')::integer
        ) AS rpm_limit,
        coalesce(
            %(expires_at)s::timestamptz, now() + make_interval(days => (defaults ->> 'expirationDays')::integer)
        ) AS expires_at,
        maximums
    FROM configured
),
"""
    + DISCOVERED
    + """,
entitled AS (
    SELECT model_id FROM subscribed WHERE is_active AND %(model_access)s = 'subscription'
    UNION
    SELECT d.id FROM jsonb_to_recordset(%(gateway_models)s::jsonb) AS d (id text) WHERE %(model_access)s = 'any'
    UNION
    SELECT model_id FROM legacy WHERE is_active
),
not_entitled AS (
    SELECT array_agg(m.model_id ORDER BY m.position) AS models
    FROM wanted, unnest(wanted.models) WITH ORDINALITY AS m (model_id, position)
    WHERE m.model_id NOT IN (SELECT model_id FROM entitled)
),
team AS (
    -- By LiteMaaS's id or by LiteLLM's; only one whose money the holder may spend.
    SELECT t.id, nullif(t.lite_llm_team_id, '') AS lite_llm_team_id
    FROM teams AS t
    JOIN team_members AS m ON m.team_id = t.id AND m.role <> 'viewer'
    JOIN holder ON holder.id = m.user_id
    WHERE t.is_active IS NOT FALSE AND (t.id = %(team_uuid)s::uuid OR t.lite_llm_team_id = %(team_id)s)
    ORDER BY t.id
    LIMIT 1
),
per_model AS (
    SELECT 'modelRpmLimit' AS field, l.model_id, l.bound::integer
    FROM jsonb_each_text(%(model_rpm_limit)s::jsonb) AS l (model_id, bound)
    UNION ALL
    SELECT 'modelTpmLimit', l.model_id, l.bound::integer
    FROM jsonb_each_text(%(model_tpm_limit)s::jsonb) AS l (model_id, bound)
),
counted AS (
    SELECT count(*) AS keys
    FROM api_keys AS k
    JOIN holder ON k.user_id = holder.id
    WHERE k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
),
broken AS (
    SELECT jsonb_agg(jsonb_build_object('field', field, 'code', code, 'bound', bound) ORDER BY position) AS rules
    FROM standing, holder, wanted, configured, not_entitled, counted
    CROSS JOIN LATERAL (VALUES
        (1, 'user', 'inactiveUser', NULL::jsonb, NOT standing.is_active),
        (1, 'user', 'readOnly', NULL, standing.is_active AND NOT standing.may_change_own),
        (1, 'userId', 'inactiveOwner', NULL, standing.is_active AND holder.is_active IS NOT TRUE),
        (2, 'subscriptionId', 'notFound', NULL,
            %(subscription_id)s::uuid IS NOT NULL AND NOT EXISTS (SELECT FROM legacy)),
        (3, 'subscriptionId', 'notActive', (SELECT to_jsonb(status) FROM legacy),
            EXISTS (SELECT FROM legacy WHERE NOT is_active)),
        (4, 'modelIds', 'notEntitled', to_jsonb(not_entitled.models),
            not_entitled.models IS NOT NULL AND NOT EXISTS (SELECT FROM legacy)),
        (5, 'maxBudget', 'maximum', configured.maximums -> 'maxBudget',
            wanted.max_budget > (configured.maximums ->> 'maxBudget')::numeric),
        (6, 'tpmLimit', 'maximum', configured.maximums -> 'tpmLimit',
            wanted.tpm_limit > (configured.maximums ->> 'tpmLimit')::integer),
        (7, 'rpmLimit', 'maximum', configured.maximums -> 'rpmLimit',
            wanted.rpm_limit > (configured.maximums ->> 'rpmLimit')::integer),
        (8, 'expiresAt', 'past', NULL, wanted.expires_at < now() + interval '1 second'),
        (9, 'expiresAt', 'tooFar', NULL, wanted.expires_at > now() + interval '10 years'),
        (10, 'expiresAt', 'maximum', configured.maximums -> 'expirationDays',
            wanted.expires_at > now() + make_interval(days => (configured.maximums ->> 'expirationDays')::integer)),
        (11, 'expiresAt', 'required', configured.maximums -> 'expirationDays',
            wanted.expires_at IS NULL AND (configured.maximums ->> 'expirationDays') IS NOT NULL),
        (12, 'activeKeysCount', 'keyLimit', to_jsonb(%(max_active_keys)s::integer),
            counted.keys >= %(max_active_keys)s::integer),
        (13, 'teamId', 'notMember', NULL, %(team_id)s::text IS NOT NULL AND NOT EXISTS (SELECT FROM team)),
        (14, 'teamId', 'notLinked', NULL, EXISTS (SELECT FROM team WHERE lite_llm_team_id IS NULL)),
        (15, 'modelRpmLimit', 'maximum', configured.maximums -> 'rpmLimit', EXISTS (
            SELECT FROM per_model AS p
            WHERE p.field = 'modelRpmLimit' AND p.bound > (configured.maximums ->> 'rpmLimit')::integer)),
        (16, 'modelTpmLimit', 'maximum', configured.maximums -> 'tpmLimit', EXISTS (
            SELECT FROM per_model AS p
            WHERE p.field = 'modelTpmLimit' AND p.bound > (configured.maximums ->> 'tpmLimit')::integer)),
        (17, 'modelRpmLimit', 'notSelected', NULL, EXISTS (
            SELECT FROM per_model AS p WHERE p.field = 'modelRpmLimit' AND p.model_id <> ALL (wanted.models))),
        (18, 'modelTpmLimit', 'notSelected', NULL, EXISTS (
            SELECT FROM per_model AS p WHERE p.field = 'modelTpmLimit' AND p.model_id <> ALL (wanted.models)))
    ) AS rule (position, field, code, bound, is_broken)
    WHERE is_broken
),
"""
    + REPEATED
    + """,
refused AS (
    -- The operation's id, chosen before: asked a second time after a lost answer, this is recorded once.
    INSERT INTO audit_logs (
        id, user_id, action, resource_type, ip_address, user_agent, success, error_message, metadata
    )
    SELECT
        %(operation_id)s, caller.id, 'API_KEY_CREATE', 'API_KEY', %(ip_address)s::inet, %(user_agent)s, false,
        (SELECT string_agg((r ->> 'field') || ': ' || (r ->> 'code'), '; ') FROM jsonb_array_elements(broken.rules) AS r),
        jsonb_build_object(
            'requestId', %(request_id)s::text, 'userId', holder.id, 'name', %(name)s::text,
            'models', wanted.models, 'modelCount', cardinality(wanted.models)
        )
    FROM caller, holder, wanted, broken
    WHERE broken.rules IS NOT NULL AND NOT EXISTS (SELECT FROM earlier WHERE verdict <> 'free')
    ON CONFLICT (id) DO NOTHING
),
allowed AS (
    SELECT owner.id AS user_id, wanted.*
    FROM owner, wanted, broken
    WHERE broken.rules IS NULL AND NOT EXISTS (SELECT FROM earlier WHERE verdict <> 'free')
),
new_key AS (
    INSERT INTO api_keys (
        id, user_id, subscription_id, name, key_hash, key_prefix, lite_llm_key_id, litellm_key_alias, max_budget,
        soft_budget, budget_duration, tpm_limit, rpm_limit, max_parallel_requests, expires_at, metadata, is_active,
        sync_status, team_id, lite_llm_team_id, permissions, tags, model_rpm_limit, model_tpm_limit
    )
    SELECT
        %(api_key_id)s::uuid, allowed.user_id, %(subscription_id)s, %(name)s, %(token_hash)s, %(key_prefix)s,
        %(token_hash)s, (SELECT mark FROM keyservice_installation) || ':' || %(api_key_id)s::uuid::text || ':1',
        allowed.max_budget, allowed.soft_budget, allowed.budget_duration, allowed.tpm_limit, allowed.rpm_limit,
        %(max_parallel_requests)s, allowed.expires_at, %(metadata)s, false,
        'pending', team.id, team.lite_llm_team_id, %(permissions)s, %(tags)s, %(model_rpm_limit)s, %(model_tpm_limit)s
    FROM allowed
    LEFT JOIN team ON true
    RETURNING id, user_id, name, max_budget, soft_budget, budget_duration, tpm_limit, rpm_limit,
        max_parallel_requests, expires_at, metadata, created_at, litellm_key_alias, key_prefix, team_id,
        lite_llm_team_id, permissions, tags, model_rpm_limit, model_tpm_limit
),
new_models AS (
    INSERT INTO api_key_models (api_key_id, model_id)
    SELECT new_key.id, model_id FROM new_key, allowed, unnest(allowed.models) AS model_id
),
new_token AS (
    INSERT INTO api_key_tokens (hash, api_key_id, user_id, nonce, mac_key_arn, alias, state, unsafe_until)
    SELECT
        %(token_hash)s, new_key.id, new_key.user_id, %(nonce)s, %(mac_key_arn)s, new_key.litellm_key_alias, 'intended',
        -- Should this process die, its request may still be carried out until then. T2 takes it back.
        now() + make_interval(secs => %(lease_seconds)s + %(drain_seconds)s)
    FROM new_key
),
new_operation AS (
    INSERT INTO api_key_operations (
        id, api_key_id, user_id, actor, kind, lease_until, next_attempt_at, idempotency_hash, body_fingerprint,
        request, token_hash, key_name, key_prefix, models
    )
    SELECT
        %(operation_id)s, new_key.id, new_key.user_id,
        %(actor)s::jsonb || jsonb_build_object('user_id', caller.id), 'create',
        now() + make_interval(secs => %(lease_seconds)s),
        now() + make_interval(secs => greatest(%(lease_seconds)s, %(resume_seconds)s)),
        %(idempotency_hash)s, %(body_fingerprint)s,
        jsonb_strip_nulls(jsonb_build_object(
            'name', new_key.name, 'expires_at', new_key.expires_at, 'max_budget', new_key.max_budget,
            'soft_budget', new_key.soft_budget, 'budget_duration', new_key.budget_duration,
            'tpm_limit', new_key.tpm_limit, 'rpm_limit', new_key.rpm_limit,
            'max_parallel_requests', new_key.max_parallel_requests, 'team_id', new_key.team_id,
            'lite_llm_team_id', new_key.lite_llm_team_id, 'permissions', new_key.permissions, 'tags', new_key.tags,
            'model_rpm_limit', new_key.model_rpm_limit, 'model_tpm_limit', new_key.model_tpm_limit
        )) || jsonb_build_object('models', allowed.models, 'metadata', new_key.metadata,
            'subscription_id', %(subscription_id)s::uuid, 'is_checked', %(model_access)s = 'subscription'),
        %(token_hash)s, new_key.name, new_key.key_prefix, allowed.models
    FROM new_key, allowed, caller
    -- Read, so that an earlier operation has let go of the Idempotency-Key before this one takes it.
    CROSS JOIN (SELECT count(*) FROM freed) AS let_go
    RETURNING id, epoch, request, token_hash
)
SELECT
    to_jsonb(standing) AS standing,
    broken.rules AS broken_rules,
    """
    + VERDICT
    + """,
    holder.id AS user_id,
    holder.sync_status = 'synced' AS is_known,
    holder.max_budget::float8 AS user_max_budget,
    holder.tpm_limit AS user_tpm_limit,
    holder.rpm_limit AS user_rpm_limit,
    holder.budget_duration AS user_budget_duration,
    coalesce(new_operation.id, earlier.id) AS operation_id,
    coalesce(new_operation.epoch, resumed.epoch, earlier.epoch) AS epoch,
    coalesce(new_operation.request, earlier.request) AS request,
    coalesce(new_operation.token_hash, earlier.token_hash) AS token_hash,
    CASE WHEN new_operation.id IS NULL THEN earlier.nonce ELSE %(nonce)s END AS nonce,
    coalesce(new_key.id, earlier.api_key_id) AS api_key_id,
    coalesce(new_key.litellm_key_alias, earlier.alias) AS alias,
    coalesce(new_key.created_at, earlier_key.created_at) AS created_at,
    coalesce(new_key.key_prefix, earlier.key_prefix) AS key_prefix,
    floor(extract(epoch FROM coalesce(new_key.expires_at, earlier_key.expires_at) - now()))::bigint AS remaining_seconds,
    (SELECT mark FROM keyservice_installation) AS mark,
    (
        -- Another transaction may be inserting a model this very moment, and an earlier key's may be gone.
        SELECT coalesce(jsonb_agg(jsonb_build_object(
            'id', w.model_id, 'name', coalesce(m.name, g.name, w.model_id),
            'provider', coalesce(m.provider, g.provider, 'unknown')
        ) ORDER BY w.position), '[]')
        FROM unnest(coalesce(earlier.models, wanted.models)) WITH ORDINALITY AS w (model_id, position)
        LEFT JOIN models AS m ON m.id = w.model_id
        LEFT JOIN jsonb_to_recordset(%(gateway_models)s::jsonb) AS g (id text, name text, provider text)
            ON g.id = w.model_id
    ) AS model_details
FROM wanted
CROSS JOIN broken
CROSS JOIN standing
LEFT JOIN holder ON true
LEFT JOIN new_key ON true
LEFT JOIN new_operation ON true
LEFT JOIN earlier ON earlier.verdict <> 'free'
LEFT JOIN api_keys AS earlier_key ON earlier_key.id = earlier.api_key_id
LEFT JOIN resumed ON true"""
)


def begin_create(
    database: Database,
    caller: Caller,
    wanted: NewApiKey,
    *,
    owner_id: UUID | None,
    operation_id: UUID,
    api_key_id: UUID,
    token: NewToken,
    model_access: Literal["subscription", "any"],
    gateway_models: Sequence[ModelDetails],
    max_active_keys: int,
    idempotency: Idempotency | None,
    lease_seconds: float,
    drain_seconds: float,
    resume_seconds: float,
) -> PendingCreate | Repeated[PendingCreate] | Refusal:
    """T1 of a create for the user `owner_id`, or with None for the caller, one round trip: the user, the rules, and when
    none is broken the row (not active), its models, the token (intended) and the operation; when one is broken, an
    audit record and a Refusal that names all.

    Raises IdentityConflict when the username or email belongs to another identity, Unauthorized when the caller's row
    has to be there and is not, Forbidden for a caller who may not make keys for others, NotFound for an unknown owner.
    """
    parameters: dict[str, Any] = {
        **identity(caller),
        **audited(caller.actor),
        "owner_id": owner_id,
        "operation_id": operation_id,
        "api_key_id": api_key_id,
        "token_hash": token.hash,
        "nonce": token.nonce,
        "mac_key_arn": token.mac_key_arn,
        "key_prefix": token.prefix,
        "model_ids": wanted.model_ids,
        "subscription_id": wanted.subscription_id,
        "name": wanted.name,
        "expires_at": wanted.expires_at,
        "max_budget": wanted.max_budget,
        "soft_budget": wanted.soft_budget,
        "budget_duration": wanted.budget_duration,
        "tpm_limit": wanted.tpm_limit,
        "rpm_limit": wanted.rpm_limit,
        "max_parallel_requests": wanted.max_parallel_requests,
        "metadata": Jsonb(wanted.metadata or {}),
        "team_id": wanted.team_id,
        "team_uuid": wanted.team_id and parse_uuid(wanted.team_id),
        "permissions": Jsonb(msgspec.to_builtins(wanted.permissions or Permissions())),
        "tags": wanted.tags,
        "model_rpm_limit": Jsonb(wanted.model_rpm_limit) if wanted.model_rpm_limit else None,
        "model_tpm_limit": Jsonb(wanted.model_tpm_limit) if wanted.model_tpm_limit else None,
        "model_access": model_access,
        "gateway_models": Jsonb([msgspec.structs.asdict(model) for model in gateway_models]),
        "max_active_keys": max_active_keys,
        "kind": "create",
        "idempotency_hash": idempotency and idempotency.key_hash,
        "body_fingerprint": idempotency and idempotency.body_fingerprint,
        "lease_seconds": lease_seconds,
        "drain_seconds": drain_seconds,
        "resume_seconds": resume_seconds,
    }
    if owner_id is not None:
        lock = Statement(_LOCK_OWNER, parameters)
    elif caller.user_id is None:
        lock = Statement(_REGISTER_CALLER, identity(caller))
    else:
        lock = Statement(LOCK_USER, {"user_id": caller.user_id})
    try:
        *_, rows = registering(database, lock, Statement(_BEGIN_CREATE, parameters))
    except pg.UniqueViolation as error:
        if error.diag.constraint_name not in _OF_A_CREATE:
            raise
        # The same ids are there already: a first try, given up for lost, has committed after all.
        raise OutcomeUnknown from error
    require_known(caller, rows)
    row = rows[0]
    if owner_id is not None:
        require_may_change_all(msgspec.convert(row["standing"], Standing))
        if row["user_id"] is None:
            raise user_not_found()
    match row["verdict"]:
        case "otherBody" | "gone" | "undoing" | "running" as hindrance:
            return Repeated(user_id=row["user_id"], hindrance=hindrance, original=None)
        case "replay":
            return Repeated(user_id=row["user_id"], hindrance=None, original=_pending_create(row))
        case "resume":
            return _pending_create(row)
        case _:
            pass
    if row["broken_rules"]:
        return msgspec.convert({"user_id": row["user_id"], "rules": row["broken_rules"]}, Refusal)
    return _pending_create(row)


def _pending_create(row: dict[str, Any]) -> PendingCreate:
    return msgspec.convert(
        {**secret_fields(row), "subscription_id": row["request"].get("subscription_id")}, PendingCreate
    )


# Each holds an id or a hash that was chosen before T1.
_OF_A_CREATE = ("api_keys_pkey", "api_keys_key_hash_key", "api_key_tokens_pkey", "api_key_operations_pkey")

_READ_CREATE: LiteralString = (
    """/* read_create */
SELECT
    o.id AS operation_id, o.epoch, o.request, o.api_key_id, o.token_hash, t.nonce, t.alias, k.created_at, o.key_prefix,
    """
    + GATEWAY_USER
    + """,
    floor(extract(epoch FROM k.expires_at - now()))::bigint AS remaining_seconds,
    (SELECT mark FROM keyservice_installation) AS mark,
    (
        SELECT coalesce(jsonb_agg(jsonb_build_object(
            'id', w.model_id, 'name', coalesce(m.name, w.model_id), 'provider', coalesce(m.provider, 'unknown')
        ) ORDER BY w.position), '[]')
        FROM unnest(o.models) WITH ORDINALITY AS w (model_id, position)
        LEFT JOIN models AS m ON m.id = w.model_id
    ) AS model_details
FROM api_key_operations AS o
JOIN api_key_tokens AS t ON t.hash = o.token_hash
JOIN api_keys AS k ON k.id = o.api_key_id
JOIN users AS u ON u.id = o.user_id
WHERE o.id = %(operation_id)s AND o.state = 'pending' AND o.phase = 'forward'"""
)


def read_create(database: Database, operation_id: UUID) -> PendingCreate | None:
    """The create as T1 left it, after the answer to T1 was lost; None when T1 did not commit."""
    [rows] = database.round_trip(Statement(_READ_CREATE, {"operation_id": operation_id}))
    return _pending_create(rows[0]) if rows else None


_FINISH_CREATE: LiteralString = (
    """/* finish_create */
WITH held AS (
    SELECT * FROM api_key_operations
    WHERE id = %(operation_id)s AND epoch = %(epoch)s
),
checked AS (
    SELECT CASE
        WHEN NOT EXISTS (SELECT FROM api_keys AS k WHERE k.id = held.api_key_id) THEN 'keyRemoved'
        WHEN NOT EXISTS (SELECT FROM users AS u WHERE u.id = held.user_id AND u.is_active) THEN 'inactiveUser'
        WHEN EXISTS (SELECT FROM api_keys AS k WHERE k.id = held.api_key_id AND k.expires_at <= now()) THEN 'past'
        WHEN (held.request ->> 'is_checked')::boolean AND EXISTS (
            SELECT FROM unnest(held.models) AS wanted (model_id)
            WHERE NOT EXISTS (
                SELECT FROM subscriptions AS s
                WHERE s.user_id = held.user_id AND s.model_id = wanted.model_id
                AND s.status = 'active' AND (s.expires_at IS NULL OR s.expires_at > now())
            )
        ) THEN 'notEntitled'
        WHEN held.request ->> 'team_id' IS NOT NULL AND NOT EXISTS (
            SELECT FROM team_members AS m
            WHERE m.team_id = (held.request ->> 'team_id')::uuid AND m.user_id = held.user_id AND m.role <> 'viewer'
        ) THEN 'notMember'
    END AS reason
    FROM held
),
"""
    + THROUGH_THE_GATE
    + """,
activated AS (
    UPDATE api_keys AS k
    SET is_active = true, sync_status = 'synced', sync_error = NULL, last_sync_at = now(), updated_at = now()
    FROM passed
    WHERE k.id = passed.api_key_id
)
SELECT
    """
    + PROGRESS
)


def finish_create(database: Database, pending: PendingCreate) -> Progress:
    """T2 of a create, one round trip, after LiteLLM answered 200: the key goes live and the audit record is written,
    unless meanwhile the user, a subscription or the expiry no longer allows it: then the operation is to be undone.

    Repeating it, also after its answer was lost, changes nothing and tells what became of the operation.
    """
    parameters = {"operation_id": pending.operation_id, "epoch": pending.epoch}
    *_, rows = repeated_once(
        database,
        Statement(LOCK_USER, {"user_id": pending.user.id}),
        Statement(LOCK_KEY, {"api_key_id": pending.api_key_id}),
        Statement(_FINISH_CREATE, parameters),
    )
    return msgspec.convert(rows[0], Progress)
