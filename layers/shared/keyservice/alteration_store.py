"""The SQL of changing a key and of resetting its spend: T1, T2, and the end of one that LiteLLM will not take."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb

from keyservice.audit import record_of
from keyservice.database import Database, Statement
from keyservice.journal import LOCK_KEY, audited, identity, repeated_once, require_known
from keyservice.key_rules import CONFIGURED, DISCOVERED, Refusal
from keyservice.key_settings import ENTITY_TAG, IN_DOUBT, SETTINGS
from keyservice.models import Caller, ModelDetails, PendingUpdate
from keyservice.standing import OWNER, STANDING, Standing

# Why a change cannot be made although LiteLLM answers.
MISSING = "LiteLLM has no such key"


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """What T1 made of the request. `standing` None: the caller is not registered. `pending` is there when the verdict is
    `begun`, `entity_tag` of the key as it is when there is one; `refusal` when rules are broken, which is recorded."""

    standing: Standing | None
    verdict: Literal["notFound", "forbidden", "changed", "unchanged", "running", "broken", "superseded", "begun"]
    entity_tag: str | None = None
    refusal: Refusal | None = None
    pending: PendingUpdate | None = None


class Updated(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the operation, and when."""

    state: Literal["done", "failed", "superseded", "pending"]
    finished_at: datetime | None


_CALLER: LiteralString = (
    """caller AS (
    SELECT id, is_active, roles FROM users
    WHERE id = %(caller_id)s OR (oauth_provider = %(provider)s AND oauth_id = %(subject)s)
),
"""
    + STANDING
)

# Whose spend may be reset: the caller's own keys', and everybody's by whoever may change everything.
_OWNER_OF_SPEND: LiteralString = """owner AS (
    SELECT k.user_id AS id FROM api_keys AS k
    JOIN standing ON standing.may_change_all OR (standing.may_change_own AND standing.user_id = k.user_id)
    WHERE k.id = %(api_key_id)s
)"""

# Locks the key before the next statement takes its snapshot, and only for who may change it.
_LOCK: LiteralString = """,
locked AS (
    SELECT k.id FROM api_keys AS k
    JOIN owner ON owner.id = k.user_id
    WHERE k.id = %(api_key_id)s
    FOR UPDATE OF k
),
held AS (
    -- A settler that is just claiming it is waited for: the next statement has to see what it has marked.
    SELECT o.id FROM api_key_operations AS o
    JOIN locked ON locked.id = o.api_key_id
    WHERE o.state = 'pending'
    FOR UPDATE OF o
)
SELECT locked.id FROM locked LEFT JOIN held ON true"""

_LOCK_KEY_TO_UPDATE: LiteralString = (
    """/* lock_key_to_update */
WITH """
    + _CALLER
    + ",\n"
    + OWNER
    + _LOCK
)

_LOCK_KEY_TO_RESET: LiteralString = (
    """/* lock_key_to_reset */
WITH """
    + _CALLER
    + ",\n"
    + _OWNER_OF_SPEND
    + _LOCK
)

_TARGET: LiteralString = (
    """target AS (
    SELECT
        k.id, k.user_id, k.name, k.key_hash, k.key_prefix, k.litellm_key_alias, k.current_spend,
        coalesce(k.is_active, true) AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AS is_active,
        """
    + SETTINGS
    + """ AS settings,
        """
    + ENTITY_TAG
    + """ AS entity_tag
    FROM api_keys AS k
    JOIN owner ON owner.id = k.user_id
    WHERE k.id = %(api_key_id)s
),
running AS (
    SELECT o.id, o.kind, o.request, o.lease_until FROM api_key_operations AS o
    JOIN target ON target.id = o.api_key_id
    WHERE o.state = 'pending'
),
again AS (
    -- A first try of this very T1 whose answer was lost.
    SELECT o.* FROM api_key_operations AS o WHERE o.id = %(operation_id)s
),
told AS (
    SELECT
        t.hash,
        -- A change that was never answered. A mark whose time is over stands for what has to be compared.
        t.settings_unsafe_until IS NOT NULL AS is_in_doubt,
        -- Until then it may be carried out, or the correction of a resumed create.
        greatest(t.settings_unsafe_until, t.unsafe_until) AS unsafe_until
    FROM api_key_tokens AS t
    JOIN target ON target.id = t.api_key_id
    WHERE t.state IN ('live', 'retiring')
)"""
)

# Reads `allowed` (what the operation is to be) and `broken` (rules), after `verdict`.
_BEGUN: LiteralString = (
    """refused AS (
    -- The operation's id, chosen before: asked a second time after a lost answer, this is recorded once.
    INSERT INTO audit_logs (
        id, user_id, action, resource_type, resource_id, ip_address, user_agent, success, error_message, metadata
    )
    SELECT
        %(operation_id)s, standing.user_id, %(action)s, 'API_KEY', target.id, %(ip_address)s::inet, %(user_agent)s, false,
        (SELECT string_agg((r ->> 'field') || ': ' || (r ->> 'code'), '; ') FROM jsonb_array_elements(broken.rules) AS r),
        jsonb_build_object(
            'requestId', %(request_id)s::text, 'userId', target.user_id, 'name', target.name,
            'keyPrefix', target.key_prefix
        )
    FROM standing, target, broken, verdict
    WHERE verdict.word = 'broken'
    ON CONFLICT (id) DO NOTHING
),
superseded AS (
    UPDATE api_key_operations AS o
    SET state = 'superseded', finished_at = now(), last_error = 'superseded by a later change', updated_at = now()
    FROM allowed, running
    WHERE o.id = running.id AND o.state = 'pending'
    RETURNING o.*
),
superseded_audited AS (
    """
    + record_of("superseded")
    + """
),
begun AS (
    -- Reads `superseded` so that the one pending operation of the key has left before this one comes.
    INSERT INTO api_key_operations (
        id, api_key_id, user_id, actor, kind, lease_until, next_attempt_at, request, key_name, key_prefix, models,
        earlier_answered
    )
    SELECT
        %(operation_id)s, k.id, k.user_id,
        %(actor)s::jsonb || jsonb_build_object('user_id', standing.user_id), 'update',
        now() + make_interval(secs => %(lease_seconds)s), now() + make_interval(secs => %(lease_seconds)s),
        allowed.request || jsonb_build_object(
            'in_doubt', CASE WHEN earlier.are_answered THEN '[]' ELSE """
    + IN_DOUBT
    + """ END,
            -- One whose time is over is compared now, except by a reset of spend.
            'earlier_unsafe_until', (
                SELECT max(unsafe_until) FROM told
                WHERE unsafe_until > now() OR (is_in_doubt AND allowed.request ->> 'reason' = 'resetSpend')
            )
        ),
        allowed.request ->> 'name', k.key_prefix, ARRAY(SELECT jsonb_array_elements_text(allowed.request -> 'models')),
        earlier.are_answered
    FROM allowed, target AS k, standing
    CROSS JOIN (
        SELECT count(*) = 0 AND NOT EXISTS (SELECT FROM told WHERE is_in_doubt) AS are_answered FROM superseded
    ) AS earlier
    RETURNING *
),
marked AS (
    -- Should this process die, its request may still be carried out until then. T2 takes it back.
    UPDATE api_key_tokens AS t
    SET settings_unsafe_until = now() + make_interval(secs => %(lease_seconds)s + %(drain_seconds)s), updated_at = now()
    FROM begun
    WHERE t.api_key_id = begun.api_key_id AND t.state IN ('live', 'retiring')
),
adopted AS (
    -- A key that LiteMaaS made, or gave another secret, has no token of ours; its hash is LiteLLM's token id all the same.
    INSERT INTO api_key_tokens (hash, api_key_id, user_id, alias, state, settings_unsafe_until)
    SELECT
        target.key_hash, target.id, target.user_id, target.litellm_key_alias, 'live',
        now() + make_interval(secs => %(lease_seconds)s + %(drain_seconds)s)
    FROM begun
    JOIN target ON target.id = begun.api_key_id
    WHERE target.key_hash ~ '^[0-9a-f]{64}$'
    AND NOT EXISTS (SELECT FROM api_key_tokens AS t WHERE t.api_key_id = target.id AND t.hash = target.key_hash)
    ON CONFLICT (hash) DO NOTHING
    RETURNING hash
)
SELECT
    to_jsonb(standing) AS standing, verdict.word AS verdict, target.entity_tag, broken.rules AS broken_rules,
    operation.id AS operation_id, operation.epoch, operation.api_key_id, operation.request,
    floor(extract(epoch FROM (operation.request ->> 'expires_at')::timestamptz - now()))::bigint AS remaining_seconds,
    ARRAY(SELECT jsonb_object_keys(operation.request -> 'new')) AS changed,
    operation.request -> 'in_doubt' AS in_doubt,
    (
        SELECT coalesce(jsonb_agg(t.hash ORDER BY t.hash = target.key_hash), '[]')
        FROM (SELECT hash FROM told UNION SELECT hash FROM adopted) AS t
    ) AS tokens
FROM standing
LEFT JOIN target ON true
LEFT JOIN broken ON true
LEFT JOIN verdict ON true
LEFT JOIN (SELECT * FROM again UNION ALL SELECT * FROM begun) AS operation ON true"""
)

_BEGIN_UPDATE: LiteralString = (
    """/* begin_update */
WITH """
    + _CALLER
    + ",\n"
    + OWNER
    + ",\n"
    + CONFIGURED
    + ",\n"
    + _TARGET
    + ",\n"
    + DISCOVERED
    + """,
wanted AS (
    SELECT
        target.settings || given.changes || CASE WHEN given.changes ? 'models' THEN jsonb_build_object(
            'models', ARRAY(SELECT m FROM jsonb_array_elements_text(given.changes -> 'models') AS m ORDER BY m)
        ) ELSE '{}' END AS settings,
        given.changes
    FROM target, (SELECT %(changes)s::jsonb) AS given (changes)
),
changed AS (
    SELECT
        coalesce(jsonb_object_agg(c.name, wanted.settings -> c.name), '{}') AS new,
        coalesce(jsonb_object_agg(c.name, target.settings -> c.name), '{}') AS old
    FROM target, wanted, jsonb_object_keys(wanted.changes) AS c (name)
    WHERE wanted.settings -> c.name IS DISTINCT FROM target.settings -> c.name
),
entitled AS (
    SELECT s.model_id FROM subscriptions AS s
    JOIN target ON target.user_id = s.user_id
    WHERE s.status = 'active' AND (s.expires_at IS NULL OR s.expires_at > now()) AND %(model_access)s = 'subscription'
    UNION
    SELECT d.id FROM jsonb_to_recordset(%(gateway_models)s::jsonb) AS d (id text) WHERE %(model_access)s = 'any'
),
not_entitled AS (
    SELECT array_agg(m.model_id ORDER BY m.position) AS models
    FROM unnest(%(model_ids)s::text[]) WITH ORDINALITY AS m (model_id, position)
    WHERE m.model_id NOT IN (SELECT model_id FROM entitled)
),
limited AS (
    SELECT * FROM (VALUES
        (10, 'modelRpmLimit', 'model_rpm_limit', 'rpmLimit'), (11, 'modelTpmLimit', 'model_tpm_limit', 'tpmLimit')
    ) AS limited (position, field, name, bounding)
),
ends AS (
    SELECT
        wanted.changes ? 'expires_at' AS is_given, (wanted.settings ->> 'expires_at')::timestamptz AS at,
        make_interval(days => (configured.maximums ->> 'expirationDays')::integer) AS longest
    FROM wanted, configured
),
broken AS (
    SELECT jsonb_agg(jsonb_build_object('field', field, 'code', code, 'bound', bound) ORDER BY position) AS rules
    FROM (
        SELECT 1, 'isActive', 'inactive', NULL::jsonb, NOT target.is_active FROM target
        UNION ALL
        SELECT 2, 'modelIds', 'notEntitled', to_jsonb(models), models IS NOT NULL FROM not_entitled
        UNION ALL
        SELECT
            bounded.position, bounded.field,
            CASE WHEN wanted.settings ->> bounded.name IS NULL THEN 'required' ELSE 'maximum' END,
            configured.maximums -> bounded.field,
            wanted.changes ? bounded.name AND configured.maximums ->> bounded.field IS NOT NULL
            -- No limit at all is more than any.
            AND coalesce(
                (wanted.settings ->> bounded.name)::numeric > (configured.maximums ->> bounded.field)::numeric, true
            )
        FROM wanted, configured, (VALUES
            (3, 'maxBudget', 'max_budget'), (4, 'tpmLimit', 'tpm_limit'), (5, 'rpmLimit', 'rpm_limit')
        ) AS bounded (position, field, name)
        UNION ALL
        SELECT 6, 'expiresAt', 'past', NULL, ends.is_given AND ends.at < now() + interval '1 second' FROM ends
        UNION ALL
        SELECT 7, 'expiresAt', 'tooFar', NULL, ends.is_given AND ends.at > now() + interval '10 years' FROM ends
        UNION ALL
        SELECT 8, 'expiresAt', 'maximum', maximums -> 'expirationDays', ends.is_given AND ends.at > now() + ends.longest
        FROM ends, configured
        UNION ALL
        SELECT 9, 'expiresAt', 'required', maximums -> 'expirationDays',
            ends.is_given AND ends.at IS NULL AND ends.longest IS NOT NULL
        FROM ends, configured
        UNION ALL
        SELECT limited.position, limited.field, 'maximum', configured.maximums -> limited.bounding,
            wanted.changes ? limited.name AND EXISTS (
                SELECT FROM jsonb_each_text(wanted.settings -> limited.name) AS l
                WHERE l.value::numeric > (configured.maximums ->> limited.bounding)::numeric
            )
        FROM wanted, configured, limited
        UNION ALL
        SELECT limited.position + 2, limited.field, 'notSelected', NULL,
            wanted.changes ?| ARRAY['models', limited.name] AND EXISTS (
                SELECT FROM jsonb_object_keys(wanted.settings -> limited.name) AS m (model_id)
                WHERE NOT wanted.settings -> 'models' ? m.model_id
            )
        FROM wanted, limited
    ) AS rule (position, field, code, bound, is_broken)
    WHERE is_broken
),
verdict AS (
    SELECT CASE
        WHEN again.state IN ('superseded', 'failed') THEN 'superseded'
        WHEN again.id IS NOT NULL THEN 'begun'
        WHEN target.entity_tag <> ALL (%(entity_tags)s::text[]) THEN 'changed'
        WHEN NOT target.is_active THEN 'broken'
        WHEN wanted.changes = '{}' THEN 'unchanged'
        WHEN running.lease_until > now() OR running.kind <> 'update' OR running.request ->> 'reason' = 'resetSpend'
            THEN 'running'
        WHEN broken.rules IS NOT NULL THEN 'broken'
        -- What is pending would be undone by the same values again, and so would be what may still be carried out.
        WHEN changed.new = '{}' AND running.id IS NULL AND NOT EXISTS (SELECT FROM told WHERE is_in_doubt) THEN 'unchanged'
        ELSE 'begun'
    END AS word
    FROM target, wanted, changed, broken
    LEFT JOIN running ON true
    LEFT JOIN again ON true
),
allowed AS (
    SELECT wanted.settings || jsonb_build_object('new', changed.new, 'old', changed.old) AS request
    FROM wanted, changed, verdict
    WHERE verdict.word = 'begun' AND NOT EXISTS (SELECT FROM again)
),
"""
    + _BEGUN
)

_BEGIN_RESET: LiteralString = (
    """/* begin_reset */
WITH """
    + _CALLER
    + ",\n"
    + _OWNER_OF_SPEND
    + ",\n"
    + _TARGET
    + """,
broken AS (
    SELECT CASE
        WHEN NOT target.is_active THEN '[{"field": "isActive", "code": "inactive", "bound": null}]'::jsonb
    END AS rules
    FROM target
),
verdict AS (
    SELECT CASE
        WHEN again.state IN ('superseded', 'failed') THEN 'superseded'
        WHEN again.id IS NOT NULL THEN 'begun'
        WHEN NOT (standing.may_change_all OR %(owners_may_reset)s) THEN 'forbidden'
        WHEN broken.rules IS NOT NULL THEN 'broken'
        WHEN running.lease_until > now() OR running.request ->> 'reason' IS DISTINCT FROM 'resetSpend' AND running.id IS NOT NULL
            THEN 'running'
        ELSE 'begun'
    END AS word
    FROM standing, target, broken
    LEFT JOIN running ON true
    LEFT JOIN again ON true
),
allowed AS (
    SELECT target.settings || jsonb_build_object(
        'reason', 'resetSpend', 'new', jsonb_build_object('current_spend', 0),
        'old', jsonb_build_object('current_spend', target.current_spend)
    ) AS request
    FROM target, verdict
    WHERE verdict.word = 'begun' AND NOT EXISTS (SELECT FROM again)
),
"""
    + _BEGUN
)


def begin_update(
    database: Database,
    caller: Caller,
    *,
    operation_id: UUID,
    owner_id: UUID | None,
    api_key_id: UUID,
    changes: Mapping[str, Any],
    entity_tags: Sequence[str] | None,
    model_access: Literal["subscription", "any"],
    gateway_models: Sequence[ModelDetails],
    lease_seconds: float,
    drain_seconds: float,
) -> Begun:
    """T1 of a change, one round trip: who may, the rules, and when none is broken the operation and its tokens' mark;
    the row stays as it is. `changes` by the names of the columns, and `models`; `owner_id` None: the caller's own key;
    `entity_tags` None: whatever the key is now. Takes over from a change whose holder's lease has run out."""
    parameters: dict[str, Any] = {
        **_common(caller, operation_id, api_key_id, lease_seconds=lease_seconds, drain_seconds=drain_seconds),
        "action": "API_KEY_UPDATE",
        "owner_id": owner_id,
        "changes": Jsonb(dict(changes)),
        "model_ids": changes.get("models"),
        "entity_tags": None if entity_tags is None else list(entity_tags),
        "model_access": model_access,
        "gateway_models": Jsonb([msgspec.structs.asdict(model) for model in gateway_models]),
    }
    return _begun(database, caller, Statement(_LOCK_KEY_TO_UPDATE, parameters), Statement(_BEGIN_UPDATE, parameters))


def begin_reset(
    database: Database,
    caller: Caller,
    *,
    operation_id: UUID,
    api_key_id: UUID,
    owners_may_reset: bool,
    lease_seconds: float,
    drain_seconds: float,
) -> Begun:
    """The same for forgetting what a key has spent, by an administrator or, where they may, by its owner."""
    parameters: dict[str, Any] = {
        **_common(caller, operation_id, api_key_id, lease_seconds=lease_seconds, drain_seconds=drain_seconds),
        "action": "API_KEY_RESET_SPEND",
        "owners_may_reset": owners_may_reset,
    }
    return _begun(database, caller, Statement(_LOCK_KEY_TO_RESET, parameters), Statement(_BEGIN_RESET, parameters))


def _common(
    caller: Caller, operation_id: UUID, api_key_id: UUID, *, lease_seconds: float, drain_seconds: float
) -> dict[str, Any]:
    return {
        **identity(caller),
        **audited(caller.actor),
        "operation_id": operation_id,
        "api_key_id": api_key_id,
        "lease_seconds": lease_seconds,
        "drain_seconds": drain_seconds,
    }


def _begun(database: Database, caller: Caller, *statements: Statement) -> Begun:
    rows = repeated_once(database, *statements)[-1]
    require_known(caller, rows)
    if not rows:
        return Begun(standing=None, verdict="notFound")
    [row] = rows
    standing = msgspec.convert(row["standing"], Standing)
    verdict = row["verdict"] or "notFound"
    if verdict == "broken":
        refusal = msgspec.convert({"user_id": standing.user_id, "rules": row["broken_rules"]}, Refusal)
        return Begun(standing=standing, verdict=verdict, refusal=refusal)
    if verdict != "begun":
        return Begun(standing=standing, verdict=verdict, entity_tag=row["entity_tag"])
    pending = msgspec.convert(
        {**row, "settings": row["request"], "resets_spend": row["request"].get("reason") == "resetSpend"}, PendingUpdate
    )
    return Begun(standing=standing, verdict="begun", entity_tag=row["entity_tag"], pending=pending)


# The row gets what changes and nothing else: LiteMaaS may have changed the rest meanwhile. A row that has vanished
# leaves the operation for settling, which ends the key in LiteLLM.
_FINISH_UPDATE: LiteralString = (
    """/* finish_update */
WITH gate AS (
    UPDATE api_key_operations AS o
    SET state = 'done', finished_at = now(), last_error = NULL, updated_at = now()
    WHERE o.id = %(operation_id)s AND o.epoch = %(epoch)s AND o.state = 'pending' AND o.kind = 'update'
    AND EXISTS (SELECT FROM api_keys AS k WHERE k.id = o.api_key_id)
    RETURNING o.*
),
changed AS (
    UPDATE api_keys AS k
    SET (
            name, expires_at, max_budget, soft_budget, budget_duration, tpm_limit, rpm_limit, max_parallel_requests, metadata,
            permissions, tags, model_rpm_limit, model_tpm_limit, current_spend
        ) = (
            SELECT
                n.name, n.expires_at, n.max_budget, n.soft_budget, n.budget_duration, n.tpm_limit, n.rpm_limit,
                n.max_parallel_requests, n.metadata, n.permissions, n.tags, n.model_rpm_limit, n.model_tpm_limit,
                n.current_spend
            FROM (
                SELECT
                    k.name, k.expires_at, k.max_budget, k.soft_budget, k.budget_duration, k.tpm_limit, k.rpm_limit,
                    k.max_parallel_requests, k.metadata, k.permissions, k.tags, k.model_rpm_limit, k.model_tpm_limit,
                    k.current_spend
            ) AS old
            CROSS JOIN LATERAL jsonb_populate_record(
                NULL::api_keys, to_jsonb(old) || (gate.request -> 'new')
            ) AS n
        ),
        -- A page of spend that LiteLLM was asked for before is older than this.
        last_sync_at = CASE WHEN gate.request ->> 'reason' = 'resetSpend' THEN now() ELSE k.last_sync_at END,
        updated_at = now()
    FROM gate
    WHERE k.id = gate.api_key_id AND gate.request ? 'new'
),
models_removed AS (
    DELETE FROM api_key_models AS m USING gate
    WHERE m.api_key_id = gate.api_key_id AND gate.request -> 'new' ? 'models' AND m.model_id <> ALL (gate.models)
),
models_added AS (
    INSERT INTO api_key_models (api_key_id, model_id)
    SELECT gate.api_key_id, m.id FROM gate
    JOIN models AS m ON m.id = ANY (gate.models)
    WHERE gate.request -> 'new' ? 'models'
    ON CONFLICT DO NOTHING
),
answered AS (
    UPDATE api_key_tokens AS t
    SET settings_unsafe_until = (gate.request ->> 'earlier_unsafe_until')::timestamptz, updated_at = now()
    FROM gate
    WHERE t.api_key_id = gate.api_key_id AND t.settings_unsafe_until IS NOT NULL
),
audited AS (
    """
    + record_of("gate")
    + """
)
SELECT coalesce(gate.state, o.state) AS state, coalesce(gate.finished_at, o.finished_at) AS finished_at
FROM api_key_operations AS o
LEFT JOIN gate ON gate.id = o.id
WHERE o.id = %(operation_id)s"""
)


def finish_update(
    database: Database, pending: PendingUpdate, *, shown: Sequence[Statement] = ()
) -> tuple[Updated, list[dict[str, Any]]]:
    """T2 of a change, one round trip, after LiteLLM stored it: the row, the operation and the audit record. Repeating it
    changes nothing and tells what became of the operation. With the rows of the last of `shown`, asked afterwards."""
    rows = repeated_once(
        database,
        Statement(LOCK_KEY, {"api_key_id": pending.api_key_id}),
        Statement(_FINISH_UPDATE, {"operation_id": pending.operation_id, "epoch": pending.epoch}),
        *shown,
    )
    return msgspec.convert(rows[1][0], Updated), rows[-1] if shown else []


_FAIL_UPDATE: LiteralString = (
    """/* fail_update */
WITH gate AS (
    UPDATE api_key_operations AS o
    SET state = 'failed', finished_at = now(), last_error = %(reason)s, updated_at = now()
    WHERE o.id = %(operation_id)s AND o.epoch = %(epoch)s AND o.state = 'pending' AND o.kind = 'update'
    AND EXISTS (SELECT FROM api_keys AS k WHERE k.id = o.api_key_id)
    RETURNING o.*
),
answered AS (
    -- What is in doubt has not been made as the row says, and an earlier secret may have taken what the current one did not.
    UPDATE api_key_tokens AS t
    SET settings_unsafe_until = coalesce(
            (gate.request ->> 'earlier_unsafe_until')::timestamptz,
            CASE WHEN gate.request ->> 'reason' IS NULL
                AND (gate.request -> 'in_doubt' IS DISTINCT FROM '[]' OR t.hash <> k.key_hash) THEN now() END
        ),
        updated_at = now()
    FROM gate
    JOIN api_keys AS k ON k.id = gate.api_key_id
    WHERE t.api_key_id = gate.api_key_id AND t.settings_unsafe_until IS NOT NULL
),
audited AS (
    """
    + record_of("gate")
    + """
)
SELECT id FROM gate"""
)


def fail_update(database: Database, pending: PendingUpdate, *, reason: str) -> bool:
    """The end of a change that LiteLLM will not take, once it has shown the key as it was: the row stays as it is. False
    when somebody else has taken the operation over."""
    _, rows = repeated_once(
        database,
        Statement(LOCK_KEY, {"api_key_id": pending.api_key_id}),
        Statement(_FAIL_UPDATE, {"operation_id": pending.operation_id, "epoch": pending.epoch, "reason": reason}),
    )
    return bool(rows)
