"""The SQL of settling: claiming what is due, and turning expired keys into operations."""

from datetime import UTC, datetime
from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec

from keyservice.database import Database, Statement
from keyservice.journal import audited, identity
from keyservice.key_settings import IN_DOUBT, SETTINGS
from keyservice.models import Caller, KeySettings, PendingUpdate, Token
from keyservice.standing import CALLER, Standing, ask_as_caller, change_as_caller, require_may_change_all

SYSTEM_USER = "00000000-0000-0000-0000-000000000001"


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that is ours until its lease ends, and the tokens that LiteLLM has to forget for it, or of an update to
    change, the current one last. `request` as it was written, by whatever release; of an update with the row's settings."""

    operation_id: UUID
    epoch: int
    kind: Literal["create", "update", "rotate", "retire", "delete"]
    api_key_id: UUID
    attempts: int
    tokens: list[Token]
    request: dict[str, Any]

    def update(self) -> PendingUpdate:
        """Raises msgspec.ValidationError for a request that is none."""
        settings = msgspec.convert(self.request, KeySettings)
        return PendingUpdate(
            operation_id=self.operation_id,
            epoch=self.epoch,
            api_key_id=self.api_key_id,
            settings=settings,
            remaining_seconds=settings.expires_at and int((settings.expires_at - datetime.now(UTC)).total_seconds()),
            tokens=[token.hash for token in self.tokens],
            resets_spend=self.request.get("reason") == "resetSpend",
            changed=list(self.request.get("new", ())),
            in_doubt=self.request["in_doubt"],
        )


class JournalState(msgspec.Struct, frozen=True, kw_only=True):
    """What is pending now; ages in seconds."""

    pending_creates: int
    pending_deletes: int
    pending_updates: int
    pending_rotates: int
    pending_retires: int
    oldest_pending_seconds: float


# A create or a rotation that nobody came back for is undone, and committed to it from here on: its own token goes. A change
# goes on, unless its row has vanished: then it becomes the end of the key. Of a retirement the tokens go whose time is over,
# of a delete all of them. The next attempt is set before this one begins, so that an operation that kills its settler cannot
# hold up the others.
_CLAIM_DUE: LiteralString = (
    """/* claim_due */
WITH due AS (
    SELECT
        id,
        CASE WHEN kind = 'update' AND NOT EXISTS (SELECT FROM api_keys AS k WHERE k.id = api_key_id) THEN 'delete'
            ELSE kind END AS kind
    FROM api_key_operations
    WHERE state = 'pending' AND next_attempt_at <= now() AND lease_until <= now()
    -- A kind that only a later release knows is left to its settler: both run on one journal while a release goes out.
    AND kind IN ('create', 'update', 'rotate', 'retire', 'delete')
    AND (kind IN ('retire', 'delete') OR NOT %(only_deletes)s)
    ORDER BY next_attempt_at
    FOR UPDATE SKIP LOCKED
    LIMIT 1
),
claimed AS (
    UPDATE api_key_operations AS o
    SET epoch = o.epoch + 1, attempts = o.attempts + 1, updated_at = now(),
        lease_until = now() + make_interval(secs => %(lease_seconds)s),
        phase = CASE WHEN o.kind IN ('create', 'rotate') THEN 'undo' ELSE o.phase END,
        kind = due.kind,
        request = CASE
            WHEN due.kind <> o.kind THEN jsonb_build_object('reason', 'rowRemoved')
            -- As when it was begun; its own earlier attempt may be carried out, too.
            WHEN o.kind = 'update' THEN o.request || jsonb_build_object('earlier_unsafe_until', (
                SELECT max(u.at)
                FROM api_key_tokens AS t, greatest(t.settings_unsafe_until, t.unsafe_until) AS u (at)
                WHERE t.api_key_id = o.api_key_id AND t.state IN ('live', 'retiring')
                AND (u.at > now() OR (t.settings_unsafe_until IS NOT NULL AND o.request ->> 'reason' = 'resetSpend'))
            ))
            ELSE o.request
        END,
        next_attempt_at = now() + make_interval(
            secs => least(%(longest_wait_seconds)s, %(first_wait_seconds)s * 2 ^ least(o.attempts - 1, 20))
                * (0.5 + random())
        )
    FROM due
    WHERE o.id = due.id
    RETURNING o.id, o.epoch, o.kind, o.api_key_id, o.attempts, o.token_hash, o.request
),
marked AS (
    UPDATE api_key_tokens AS t
    SET settings_unsafe_until = now() + make_interval(secs => %(lease_seconds)s + %(drain_seconds)s), updated_at = now()
    FROM claimed
    WHERE claimed.kind = 'update' AND t.api_key_id = claimed.api_key_id AND t.state IN ('live', 'retiring')
)
SELECT
    claimed.id AS operation_id, claimed.epoch, claimed.kind, claimed.api_key_id, claimed.attempts,
    -- What an update leaves alone is as the row is by now. An earlier release did not say what is in doubt.
    CASE WHEN claimed.kind = 'update' THEN
        claimed.request || """
    + SETTINGS
    + """ || coalesce(claimed.request -> 'new', '{}')
        || jsonb_build_object('in_doubt', coalesce(claimed.request -> 'in_doubt', """
    + IN_DOUBT
    + """))
    ELSE claimed.request END AS request,
    (
        SELECT coalesce(jsonb_agg(to_jsonb(t) ORDER BY t.hash = k.key_hash), '[]')
        FROM (
            SELECT t.hash, coalesce(t.unsafe_until <= now(), true) AS is_safe
            FROM api_key_tokens AS t
            WHERE t.api_key_id = claimed.api_key_id AND t.state <> 'dead'
            AND CASE claimed.kind
                WHEN 'delete' THEN true
                WHEN 'update' THEN t.state IN ('live', 'retiring')
                WHEN 'retire' THEN t.state = 'retiring' AND t.valid_until <= now()
                ELSE t.hash = claimed.token_hash
            END
            UNION ALL
            -- LiteMaaS may have given the key another secret since.
            SELECT k.key_hash, true
            WHERE claimed.kind = 'update' AND k.key_hash ~ '^[0-9a-f]{64}$'
            AND NOT EXISTS (SELECT FROM api_key_tokens AS t WHERE t.hash = k.key_hash)
        ) AS t
    ) AS tokens
FROM claimed
LEFT JOIN api_keys AS k ON k.id = claimed.api_key_id"""
)


def claim_due(
    database: Database,
    *,
    lease_seconds: float,
    drain_seconds: float,
    first_wait_seconds: float,
    longest_wait_seconds: float,
    only_deletes: bool,
) -> Claimed | None:
    """The operation that is due longest, with a new epoch and lease; None when none is."""
    parameters = {
        "lease_seconds": lease_seconds,
        "drain_seconds": drain_seconds,
        "first_wait_seconds": first_wait_seconds,
        "longest_wait_seconds": longest_wait_seconds,
        "only_deletes": only_deletes,
    }
    [rows] = database.round_trip(Statement(_CLAIM_DUE, parameters))
    return msgspec.convert(rows[0], Claimed) if rows else None


# Of a CTE `acting` with the actor of each operation and audit record; where it is empty nothing expires.
_EXPIRY: LiteralString = """expired AS (
    SELECT
        k.id, k.user_id, k.name, k.key_hash, k.key_prefix, k.litellm_key_alias,
        ARRAY(SELECT m.model_id::text FROM api_key_models AS m WHERE m.api_key_id = k.id ORDER BY m.model_id) AS models
    FROM api_keys AS k
    CROSS JOIN acting
    WHERE k.is_active AND k.revoked_at IS NULL AND k.expires_at <= now()
    AND NOT EXISTS (SELECT FROM api_key_operations AS o WHERE o.api_key_id = k.id AND o.state = 'pending')
    ORDER BY k.expires_at
    LIMIT %(at_most)s
    FOR UPDATE OF k SKIP LOCKED
),
begun AS (
    INSERT INTO api_key_operations (
        id, api_key_id, user_id, actor, kind, lease_until, next_attempt_at, request, key_name, key_prefix, models
    )
    SELECT
        gen_random_uuid(), expired.id, expired.user_id, acting.actor, 'delete',
        now() + make_interval(secs => %(lease_seconds)s), now() + make_interval(secs => %(lease_seconds)s),
        jsonb_build_object('reason', 'expired')
            || CASE WHEN %(keep_row)s THEN jsonb_build_object('keepRow', true) ELSE '{}' END,
        expired.name, expired.key_prefix, expired.models
    FROM expired
    CROSS JOIN acting
    ON CONFLICT (api_key_id) WHERE state = 'pending' DO NOTHING
    RETURNING id, epoch, kind, api_key_id, attempts, request
),
hidden AS (
    UPDATE api_keys AS k SET is_active = false, sync_status = 'pending', updated_at = now()
    FROM begun
    WHERE k.id = begun.api_key_id
),
condemned AS (
    UPDATE api_key_tokens AS t SET state = 'condemned', updated_at = now()
    FROM begun
    WHERE t.api_key_id = begun.api_key_id AND t.state <> 'dead'
    RETURNING t.api_key_id, t.hash, coalesce(t.unsafe_until <= now(), true) AS is_safe
),
adopted AS (
    INSERT INTO api_key_tokens (hash, api_key_id, user_id, alias, state)
    SELECT expired.key_hash, expired.id, expired.user_id, expired.litellm_key_alias, 'condemned'
    FROM expired
    JOIN begun ON begun.api_key_id = expired.id
    WHERE NOT EXISTS (
        SELECT FROM api_key_tokens AS t WHERE t.api_key_id = expired.id AND t.hash = expired.key_hash
    )
    ON CONFLICT (hash) DO UPDATE SET api_key_id = EXCLUDED.api_key_id, state = 'condemned', updated_at = now()
    RETURNING api_key_id, hash
),
beginning AS (
    SELECT
        begun.id AS operation_id, begun.epoch, begun.kind, begun.api_key_id, begun.attempts, begun.request,
        (
            SELECT coalesce(jsonb_agg(jsonb_build_object('hash', t.hash, 'is_safe', t.is_safe)), '[]')
            FROM (SELECT * FROM condemned UNION ALL SELECT api_key_id, hash, true FROM adopted) AS t
            WHERE t.api_key_id = begun.api_key_id
        ) AS tokens
    FROM begun
)"""

_BEGIN_EXPIRY: LiteralString = (
    """/* begin_expiry */
WITH acting AS (
    SELECT jsonb_build_object('user_id', %(system_user)s::text) AS actor
),
"""
    + _EXPIRY
    + """
SELECT * FROM beginning"""
)


def begin_expiry(database: Database, *, keep_row: bool, at_most: int) -> int:
    """Turns at most so many keys past their expiry into pending deletes, due at once; how many it were."""
    parameters: dict[str, Any] = {
        "keep_row": keep_row,
        "at_most": at_most,
        "lease_seconds": 0,
        "system_user": SYSTEM_USER,
    }
    [rows] = database.round_trip(Statement(_BEGIN_EXPIRY, parameters))
    return len(rows)


_BEGIN_CLEANUP: LiteralString = (
    """/* begin_cleanup */
WITH """
    + CALLER
    + """,
acting AS (
    SELECT %(actor)s::jsonb || jsonb_build_object('user_id', user_id) AS actor FROM standing WHERE may_change_all
),
"""
    + _EXPIRY
    + """
SELECT to_jsonb(standing) AS standing, beginning.*
FROM standing
LEFT JOIN beginning ON true"""
)


def begin_cleanup(
    database: Database, caller: Caller, *, keep_row: bool, at_most: int, lease_seconds: float
) -> list[Claimed]:
    """The same for an administrator, who then has them for the length of the lease. Raises Forbidden for anyone else."""
    parameters: dict[str, Any] = {
        **identity(caller),
        **audited(caller.actor),
        "keep_row": keep_row,
        "at_most": at_most,
        "lease_seconds": lease_seconds,
    }
    standing, rows = change_as_caller(database, caller, Statement(_BEGIN_CLEANUP, parameters))
    require_may_change_all(standing)
    return [msgspec.convert(row, Claimed) for row in rows if row["operation_id"] is not None]


_READ_EXPIRED: LiteralString = (
    """/* read_expired */
WITH """
    + CALLER
    + """
SELECT
    to_jsonb(standing) AS standing,
    (
        SELECT count(*) FROM api_keys AS k
        WHERE standing.may_see_all AND k.is_active AND k.revoked_at IS NULL AND k.expires_at <= now()
    ) + (
        SELECT count(*) FROM api_key_operations AS o
        WHERE standing.may_see_all AND o.state = 'pending' AND o.request ->> 'reason' = 'expired'
    ) AS keys
FROM standing"""
)


def count_expired(database: Database, caller: Caller) -> tuple[Standing, int]:
    """How many keys are past their expiry and not gone yet."""
    standing, [row] = ask_as_caller(database, caller, Statement(_READ_EXPIRED, identity(caller)))
    return standing, row["keys"]


# What was sent and never answered can be carried out no more: from here on LiteLLM keeps what it is told. The operation
# takes the mark's place, and compares.
_BEGIN_CORRECTION: LiteralString = (
    """/* begin_correction */
WITH due AS (
    SELECT DISTINCT t.api_key_id
    FROM api_key_tokens AS t
    JOIN api_keys AS k ON k.id = t.api_key_id
    WHERE t.settings_unsafe_until <= now() AND t.state IN ('live', 'retiring')
    AND coalesce(k.is_active, true) AND k.revoked_at IS NULL
    AND NOT EXISTS (SELECT FROM api_key_operations AS o WHERE o.api_key_id = k.id AND o.state = 'pending')
    LIMIT %(at_most)s
),
locked AS (
    SELECT k.id, k.user_id, k.name, k.key_prefix, """
    + SETTINGS
    + """ AS settings,
        """
    + IN_DOUBT
    + """ AS in_doubt
    FROM api_keys AS k
    JOIN due ON due.api_key_id = k.id
    FOR UPDATE OF k SKIP LOCKED
),
begun AS (
    INSERT INTO api_key_operations (
        id, api_key_id, user_id, actor, kind, lease_until, next_attempt_at, request, key_name, key_prefix, models
    )
    SELECT
        gen_random_uuid(), locked.id, locked.user_id, jsonb_build_object('user_id', %(system_user)s::text), 'update',
        now(), now(), locked.settings || jsonb_build_object('reason', 'lateUpdate', 'in_doubt', locked.in_doubt),
        locked.name, locked.key_prefix, ARRAY(SELECT jsonb_array_elements_text(locked.settings -> 'models'))
    FROM locked
    ON CONFLICT (api_key_id) WHERE state = 'pending' DO NOTHING
    RETURNING api_key_id
),
taken AS (
    UPDATE api_key_tokens AS t SET settings_unsafe_until = NULL, updated_at = now()
    FROM begun
    WHERE t.api_key_id = begun.api_key_id AND t.settings_unsafe_until IS NOT NULL
)
SELECT count(*) AS keys FROM begun"""
)


def begin_correction(database: Database, *, at_most: int) -> int:
    """Turns at most so many keys, of which LiteLLM may have made something else by an unanswered change that can come
    no more, into pending updates, due at once; how many it were."""
    [rows] = database.round_trip(Statement(_BEGIN_CORRECTION, {"at_most": at_most, "system_user": SYSTEM_USER}))
    return rows[0]["keys"]


_READ_JOURNAL_STATE = """/* read_journal_state */
SELECT
    count(*) FILTER (WHERE kind = 'create') AS pending_creates,
    count(*) FILTER (WHERE kind = 'delete') AS pending_deletes,
    count(*) FILTER (WHERE kind = 'update') AS pending_updates,
    count(*) FILTER (WHERE kind = 'rotate') AS pending_rotates,
    count(*) FILTER (WHERE kind = 'retire') AS pending_retires,
    coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS oldest_pending_seconds
FROM api_key_operations
WHERE state = 'pending'"""


def read_journal_state(database: Database) -> JournalState:
    [rows] = database.round_trip(Statement(_READ_JOURNAL_STATE))
    return msgspec.convert(rows[0], JournalState)
