"""The SQL that creating and rotating a key have in common: repeated requests, T2's gate, and the end of what did not work."""

from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec

from keyservice.audit import record_of
from keyservice.database import Database, Statement
from keyservice.journal import LOCK_KEY, repeated_once
from keyservice.models import GatewayUser


class Repeated[T](msgspec.Struct, frozen=True, kw_only=True):
    """A request whose Idempotency-Key was used before: what it made, or what stands in the way."""

    user_id: UUID
    hindrance: Literal["otherBody", "gone", "undoing", "running"] | None
    original: T | None


class NewToken(msgspec.Struct, frozen=True, kw_only=True):
    hash: str
    nonce: str
    mac_key_arn: str
    prefix: str


# Reads `owner`. The operation that the same Idempotency-Key began, what it means for this request, and its resumption.
REPEATED: LiteralString = """earlier AS (
    -- The operation of an earlier request with the same Idempotency-Key, and what it means for this one.
    SELECT
        o.*, t.nonce, t.alias, t.unsafe_until IS NULL AS is_safe,
        CASE
            WHEN o.state = 'failed' OR (o.state <> 'pending' AND o.created_at <= now() - interval '24 hours') THEN 'free'
            WHEN o.body_fingerprint <> %(body_fingerprint)s THEN 'otherBody'
            WHEN o.state = 'superseded' THEN 'gone'
            WHEN o.state = 'done' AND t.state = 'live' AND k.is_active AND k.revoked_at IS NULL
                AND (k.expires_at IS NULL OR k.expires_at > now()) THEN 'replay'
            WHEN o.state = 'done' THEN 'gone'
            WHEN o.phase = 'undo' OR k.id IS NULL THEN 'undoing'
            WHEN o.lease_until > now() THEN 'running'
            ELSE 'resume'
        END AS verdict
    FROM api_key_operations AS o
    JOIN owner ON owner.id = o.user_id
    JOIN api_key_tokens AS t ON t.hash = o.token_hash
    LEFT JOIN api_keys AS k ON k.id = o.api_key_id
    WHERE o.kind = %(kind)s AND o.idempotency_hash = %(idempotency_hash)s
),
freed AS (
    UPDATE api_key_operations AS o SET idempotency_hash = NULL, body_fingerprint = NULL, updated_at = now()
    FROM earlier
    WHERE o.id = earlier.id AND earlier.verdict = 'free'
    RETURNING o.id
),
resumed AS (
    UPDATE api_key_operations AS o
    SET epoch = o.epoch + 1, attempts = o.attempts + 1, updated_at = now(), earlier_answered = earlier.is_safe,
        lease_until = now() + make_interval(secs => %(lease_seconds)s),
        next_attempt_at = now() + make_interval(secs => greatest(%(lease_seconds)s, %(resume_seconds)s))
    FROM earlier
    WHERE o.id = earlier.id AND earlier.verdict = 'resume'
    AND o.epoch = earlier.epoch AND o.state = 'pending' AND o.phase = 'forward' AND o.lease_until <= now()
    RETURNING o.id, o.epoch, o.token_hash
),
unsafe_again AS (
    UPDATE api_key_tokens AS t
    SET unsafe_until = now() + make_interval(secs => %(lease_seconds)s + %(drain_seconds)s), updated_at = now()
    FROM resumed
    WHERE t.hash = resumed.token_hash
)"""

# One word for a request whose Idempotency-Key was used before; null or `free` when it was not.
VERDICT: LiteralString = (
    "CASE WHEN earlier.verdict = 'resume' AND resumed.id IS NULL THEN 'running' ELSE earlier.verdict END AS verdict"
)

# Of `u`, a row of users: the user as LiteLLM has to know it.
GATEWAY_USER: LiteralString = """u.id AS user_id,
    u.sync_status = 'synced' AS is_known,
    u.max_budget::float8 AS user_max_budget,
    u.tpm_limit AS user_tpm_limit,
    u.rpm_limit AS user_rpm_limit,
    u.budget_duration AS user_budget_duration"""

# Reads `held`, the operation of this epoch, and `checked`, why it must not be done. Everything else of a T2 selects from
# `passed`, so that of several T2s of one operation exactly one does it all.
THROUGH_THE_GATE: LiteralString = (
    """gate AS (
    UPDATE api_key_operations AS o
    SET state = CASE WHEN checked.reason IS NULL THEN 'done' ELSE 'pending' END,
        phase = CASE WHEN checked.reason IS NULL THEN 'forward' ELSE 'undo' END,
        finished_at = CASE WHEN checked.reason IS NULL THEN now() END,
        next_attempt_at = now(),
        last_error = checked.reason,
        updated_at = now()
    FROM checked
    WHERE o.id = %(operation_id)s AND o.epoch = %(epoch)s AND o.state = 'pending' AND o.phase = 'forward'
    RETURNING o.*, checked.reason
),
passed AS (
    SELECT * FROM gate WHERE state = 'done'
),
token_answered AS (
    -- The generate of this epoch was answered, whatever has become of the operation meanwhile. An earlier epoch's
    -- may not have been: then the token stays unsafe.
    UPDATE api_key_tokens AS t
    SET state = CASE WHEN EXISTS (SELECT FROM passed) THEN 'live' ELSE t.state END,
        unsafe_until = CASE WHEN held.earlier_answered THEN NULL ELSE t.unsafe_until END,
        updated_at = now()
    FROM held
    WHERE t.hash = held.token_hash
),
user_known AS (
    UPDATE users AS u SET sync_status = 'synced'
    FROM passed
    WHERE u.id = passed.user_id AND u.sync_status IS DISTINCT FROM 'synced'
),
audited AS (
    """
    + record_of("passed")
    + """
)"""
)

# What is selected last, and from what: what became of the operation.
PROGRESS: LiteralString = """coalesce(gate.state, o.state) AS state,
    coalesce(gate.phase, o.phase) AS phase,
    coalesce(gate.reason, o.last_error) AS reason,
    o.earlier_answered AS is_safe
FROM api_key_operations AS o
LEFT JOIN gate ON gate.id = o.id
WHERE o.id = %(operation_id)s"""


def secret_fields(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a T1, with what GATEWAY_USER names, as a PendingSecret's fields."""
    return {
        **row,
        "settings": row["request"],
        "user": GatewayUser(
            id=row["user_id"],
            is_known=row["is_known"],
            max_budget=row["user_max_budget"],
            tpm_limit=row["user_tpm_limit"],
            rpm_limit=row["user_rpm_limit"],
            budget_duration=row["user_budget_duration"],
        ),
    }


_FINISH_UNDO: LiteralString = (
    """/* finish_undo */
WITH gate AS (
    UPDATE api_key_operations AS o
    SET state = 'failed', phase = 'undo', finished_at = now(), last_error = %(reason)s, updated_at = now()
    WHERE o.id = %(operation_id)s AND o.epoch = %(epoch)s AND o.state = 'pending'
    RETURNING o.*
),
removed AS (
    -- Only a create has made a row; a key whose rotation is undone stays as it is.
    DELETE FROM api_keys AS k USING gate WHERE k.id = gate.api_key_id AND gate.kind = 'create'
),
token_dead AS (
    UPDATE api_key_tokens AS t SET state = 'dead', unsafe_until = NULL, updated_at = now()
    FROM gate
    WHERE t.hash = gate.token_hash
),
audited AS (
    """
    + record_of("gate")
    + """
)
SELECT state FROM gate"""
)


def finish_undo(database: Database, *, operation_id: UUID, epoch: int, api_key_id: UUID, reason: str) -> bool:
    """The end of a create or a rotation that did not work, once LiteLLM has said that the new secret is not there: its
    token is dead, the operation failed and audited, and of a create the row is gone. Only for a token that was safe when
    LiteLLM was asked. False when another has taken the operation over."""
    _, rows = repeated_once(
        database,
        Statement(LOCK_KEY, {"api_key_id": api_key_id}),
        Statement(_FINISH_UNDO, {"operation_id": operation_id, "epoch": epoch, "reason": reason}),
    )
    return bool(rows)
