"""The SQL of revealing a key's secret: whether it may be, and the record that it was."""

from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec

from keyservice.database import Database, Statement
from keyservice.journal import LOCK_CALLER, audited, identity, repeated_once, require_known
from keyservice.models import Caller
from keyservice.standing import STANDING, Standing, require_may_change_own

REVEALS_IN_A_WINDOW = 10
WINDOW_SECONDS = 300


class Derivable(msgspec.Struct, frozen=True, kw_only=True):
    """What a secret is derived from, and the hash that it has to have."""

    user_id: UUID
    api_key_id: UUID
    nonce: str
    token_hash: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """`retry_after_seconds` when there were too many."""

    user_id: UUID
    reason: Literal["notFound", "never", "oldLogin", "unknownLogin", "inactive", "expired", "notDerivable", "tooMany"]
    retry_after_seconds: int | None


# The lock on the caller comes first: the count is of all that were revealed before, however many ask at once.
_BEGIN_REVEAL: LiteralString = (
    """/* begin_reveal */
WITH caller AS (
    SELECT id, is_active, roles FROM users
    WHERE id = %(caller_id)s OR (oauth_provider = %(provider)s AND oauth_id = %(subject)s)
),
"""
    + STANDING
    + """,
asked AS (
    SELECT
        k.id, k.name, k.key_prefix, k.key_hash, k.expires_at, t.nonce,
        k.is_active IS NOT false AND k.revoked_at IS NULL AS is_active
    FROM standing
    JOIN api_keys AS k ON k.id = %(api_key_id)s AND k.user_id = standing.user_id
    LEFT JOIN api_key_tokens AS t ON t.hash = k.key_hash AND t.api_key_id = k.id AND t.state = 'live'
),
revealed AS (
    -- The latest, as many as there may be: the oldest of them says when there may be another.
    SELECT count(*) AS times, min(latest.created_at) AS oldest
    FROM (
        SELECT a.created_at
        FROM audit_logs AS a
        JOIN standing ON standing.user_id = a.user_id
        WHERE a.action = 'API_KEY_REVEAL' AND a.success
        AND a.created_at > now() - make_interval(secs => %(window_seconds)s)
        ORDER BY a.created_at DESC
        LIMIT %(at_most)s
    ) AS latest
),
judged AS (
    SELECT standing.user_id, CASE
        WHEN NOT standing.may_change_own THEN 'forbidden'
        WHEN asked.id IS NULL THEN 'notFound'
        WHEN %(hindrance)s::text IS NOT NULL THEN %(hindrance)s
        WHEN NOT asked.is_active THEN 'inactive'
        WHEN asked.expires_at <= now() THEN 'expired'
        WHEN asked.nonce IS NULL THEN 'notDerivable'
        WHEN revealed.times >= %(at_most)s THEN 'tooMany'
    END AS reason
    FROM standing
    CROSS JOIN revealed
    LEFT JOIN asked ON true
),
recorded AS (
    -- Asked a second time after a lost answer, this is recorded once.
    INSERT INTO audit_logs (
        id, user_id, action, resource_type, resource_id, ip_address, user_agent, success, error_message, metadata
    )
    SELECT
        %(audit_id)s, judged.user_id, 'API_KEY_REVEAL', 'API_KEY', asked.id, %(ip_address)s::inet, %(user_agent)s,
        judged.reason IS NULL, judged.reason,
        jsonb_build_object(
            'requestId', %(request_id)s::text, 'userId', judged.user_id, 'name', asked.name, 'keyPrefix', asked.key_prefix
        )
    FROM judged
    JOIN asked ON true
    ON CONFLICT (id) DO NOTHING
)
SELECT
    to_jsonb(standing) AS standing,
    judged.user_id,
    judged.reason,
    ceil(extract(epoch FROM revealed.oldest + make_interval(secs => %(window_seconds)s) - now()))::integer
        AS retry_after_seconds,
    asked.id AS api_key_id, asked.nonce, asked.key_hash AS token_hash
FROM standing
CROSS JOIN judged
CROSS JOIN revealed
LEFT JOIN asked ON true"""
)


def begin_reveal(
    database: Database,
    caller: Caller,
    *,
    api_key_id: UUID,
    audit_id: UUID,
    hindrance: Literal["never", "oldLogin", "unknownLogin"] | None,
) -> Derivable | Refusal:
    """One round trip: whether this caller may be shown the secret of this key of theirs, of which there is then an audit
    record, or the reason why not, which is recorded for a key that is there. `hindrance` is what the caller of this
    knows already. Raises Forbidden for a caller who may change nothing."""
    parameters: dict[str, Any] = {
        **identity(caller),
        **audited(caller.actor),
        "api_key_id": api_key_id,
        "audit_id": audit_id,
        "hindrance": hindrance,
        "at_most": REVEALS_IN_A_WINDOW,
        "window_seconds": WINDOW_SECONDS,
    }
    _, rows = repeated_once(database, Statement(LOCK_CALLER, parameters), Statement(_BEGIN_REVEAL, parameters))
    require_known(caller, rows)
    if not rows:
        return Refusal(user_id=UUID(int=0), reason="notFound", retry_after_seconds=None)
    [row] = rows
    require_may_change_own(msgspec.convert(row["standing"], Standing))
    return msgspec.convert(row, Derivable if row["reason"] is None else Refusal)
