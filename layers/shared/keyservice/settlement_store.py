"""The SQL of settling: claiming what is due, and turning expired keys into operations."""

from typing import Any, Literal
from uuid import UUID

import msgspec

from keyservice.database import Database, Statement
from keyservice.models import Token

SYSTEM_USER = "00000000-0000-0000-0000-000000000001"


class Claimed(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that is ours until its lease ends, and the tokens that LiteLLM has to forget for it."""

    operation_id: UUID
    epoch: int
    kind: Literal["create", "rotate", "retire", "delete"]
    api_key_id: UUID
    attempts: int
    tokens: list[Token]


class JournalState(msgspec.Struct, frozen=True, kw_only=True):
    """What is pending now; ages in seconds."""

    pending_creates: int
    pending_deletes: int
    pending_rotates: int
    pending_retires: int
    oldest_pending_seconds: float


# A create or a rotation that nobody came back for is undone, and committed to it from here on: its own token goes. Of a
# retirement the tokens go whose time is over, of a delete all of them. The next attempt is set before this one begins, so
# that an operation that kills its settler cannot hold up the others.
_CLAIM_DUE = """/* claim_due */
WITH due AS (
    SELECT id FROM api_key_operations
    WHERE state = 'pending' AND next_attempt_at <= now() AND lease_until <= now()
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
        next_attempt_at = now() + make_interval(
            secs => least(%(longest_wait_seconds)s, %(first_wait_seconds)s * 2 ^ least(o.attempts - 1, 20))
                * (0.5 + random())
        )
    FROM due
    WHERE o.id = due.id
    RETURNING o.id, o.epoch, o.kind, o.api_key_id, o.attempts, o.token_hash
)
SELECT
    claimed.id AS operation_id, claimed.epoch, claimed.kind, claimed.api_key_id, claimed.attempts,
    (
        SELECT coalesce(
            jsonb_agg(jsonb_build_object('hash', t.hash, 'is_safe', coalesce(t.unsafe_until <= now(), true))), '[]'
        )
        FROM api_key_tokens AS t
        WHERE t.api_key_id = claimed.api_key_id AND t.state <> 'dead'
        AND CASE claimed.kind
            WHEN 'delete' THEN true
            WHEN 'retire' THEN t.state = 'retiring' AND t.valid_until <= now()
            ELSE t.hash = claimed.token_hash
        END
    ) AS tokens
FROM claimed"""


def claim_due(
    database: Database,
    *,
    lease_seconds: float,
    first_wait_seconds: float,
    longest_wait_seconds: float,
    only_deletes: bool,
) -> Claimed | None:
    """The operation that is due longest, with a new epoch and lease; None when none is."""
    parameters = {
        "lease_seconds": lease_seconds,
        "first_wait_seconds": first_wait_seconds,
        "longest_wait_seconds": longest_wait_seconds,
        "only_deletes": only_deletes,
    }
    [rows] = database.round_trip(Statement(_CLAIM_DUE, parameters))
    return msgspec.convert(rows[0], Claimed) if rows else None


_BEGIN_EXPIRY = """/* begin_expiry */
WITH expired AS (
    SELECT
        k.id, k.user_id, k.name, k.key_hash, k.key_prefix, k.litellm_key_alias,
        ARRAY(SELECT m.model_id::text FROM api_key_models AS m WHERE m.api_key_id = k.id ORDER BY m.model_id) AS models
    FROM api_keys AS k
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
        gen_random_uuid(), expired.id, expired.user_id, jsonb_build_object('user_id', %(system_user)s::text), 'delete',
        now(), now(),
        jsonb_build_object('reason', 'expired')
            || CASE WHEN %(keep_row)s THEN jsonb_build_object('keepRow', true) ELSE '{}' END,
        expired.name, expired.key_prefix, expired.models
    FROM expired
    ON CONFLICT (api_key_id) WHERE state = 'pending' DO NOTHING
    RETURNING api_key_id
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
)
SELECT count(*) AS keys FROM begun"""


def begin_expiry(database: Database, *, keep_row: bool, at_most: int) -> int:
    """Turns at most so many keys past their expiry into pending deletes, due at once; how many it were."""
    parameters: dict[str, Any] = {"keep_row": keep_row, "at_most": at_most, "system_user": SYSTEM_USER}
    [rows] = database.round_trip(Statement(_BEGIN_EXPIRY, parameters))
    return rows[0]["keys"]


_READ_JOURNAL_STATE = """/* read_journal_state */
SELECT
    count(*) FILTER (WHERE kind = 'create') AS pending_creates,
    count(*) FILTER (WHERE kind = 'delete') AS pending_deletes,
    count(*) FILTER (WHERE kind = 'rotate') AS pending_rotates,
    count(*) FILTER (WHERE kind = 'retire') AS pending_retires,
    coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS oldest_pending_seconds
FROM api_key_operations
WHERE state = 'pending'"""


def read_journal_state(database: Database) -> JournalState:
    [rows] = database.round_trip(Statement(_READ_JOURNAL_STATE))
    return msgspec.convert(rows[0], JournalState)
