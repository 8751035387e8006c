"""The SQL of a list."""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from keyservice.database import Database, Statement
from keyservice.journal import identity, reading, registering, require_known
from keyservice.models import Caller, ListQuery, ModelDetails


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the list, in the database's own types."""

    id: UUID
    user_id: UUID
    key_prefix: str
    created_at: datetime
    is_active: bool
    status: str
    name: str | None
    model_details: list[ModelDetails]
    current_spend: float
    budget_duration: str | None
    model_max_budget: dict[str, Any] | None
    model_rpm_limit: dict[str, Any] | None
    model_tpm_limit: dict[str, Any] | None
    metadata: dict[str, Any] | None
    subscription_id: UUID | None
    last_used_at: datetime | None
    expires_at: datetime | None
    max_budget: float | None
    soft_budget: float | None
    tpm_limit: int | None
    rpm_limit: int | None
    max_parallel_requests: int | None
    last_sync_at: datetime | None


class StoredPage(msgspec.Struct, frozen=True, kw_only=True):
    """At most `limit` + 1 keys, newest first: one more than asked for tells that another page follows."""

    user_id: UUID | None
    is_caller_active: bool
    total: int
    keys: list[StoredKey]


_LIST_KEYS = """/* list_keys */
WITH known AS (
    SELECT id, is_active FROM users WHERE id = %(caller_id)s OR (oauth_provider = %(provider)s AND oauth_id = %(subject)s)
),
registered AS (
    INSERT INTO users (username, email, full_name, oauth_provider, oauth_id, last_login_at)
    SELECT %(username)s, %(email)s, %(full_name)s, %(provider)s, %(subject)s, now()
    WHERE %(caller_id)s::uuid IS NULL AND NOT EXISTS (SELECT FROM known)
    ON CONFLICT (oauth_provider, oauth_id) DO NOTHING
    RETURNING id, is_active
),
caller AS (
    SELECT * FROM known UNION ALL SELECT * FROM registered
),
filtered AS NOT MATERIALIZED (
    SELECT
        k.*,
        CASE
            WHEN o.kind = 'create' THEN 'pending'
            WHEN o.request ->> 'reason' = 'expired' THEN 'expired'
            WHEN o.kind = 'delete' THEN 'deleting'
            WHEN k.revoked_at IS NOT NULL THEN 'revoked'
            WHEN k.sync_status = 'error' THEN 'error'
            WHEN k.expires_at <= now() THEN 'expired'
            WHEN coalesce(k.is_active, true) THEN 'active'
            ELSE 'revoked'
        END AS status
    FROM known
    JOIN api_keys AS k ON k.user_id = known.id
    LEFT JOIN api_key_operations AS o ON o.api_key_id = k.id AND o.state = 'pending'
    WHERE (%(subscription_id)s::uuid IS NULL OR k.subscription_id = %(subscription_id)s)
    AND (
        %(model_ids)s::text[] IS NULL
        OR EXISTS (
            SELECT FROM api_key_models AS m WHERE m.api_key_id = k.id AND m.model_id = ANY (%(model_ids)s::text[])
        )
    )
    AND (
        %(is_active)s::boolean IS NULL
        OR %(is_active)s = (
            coalesce(k.is_active, true) AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
        )
    )
),
page AS (
    SELECT * FROM filtered
    WHERE %(after_id)s::uuid IS NULL OR (created_at, id) < (%(after_created_at)s, %(after_id)s)
    ORDER BY created_at DESC, id DESC
    LIMIT %(limit)s + 1 OFFSET %(offset)s
)
SELECT
    caller.id AS caller_id,
    coalesce(caller.is_active, false) AS is_caller_active,
    coalesce(%(total)s::bigint, (SELECT count(*) FROM filtered)) AS total,
    page.id, page.user_id, page.key_prefix, page.status, page.name, page.subscription_id,
    coalesce(page.created_at, to_timestamp(0)) AS created_at,
    coalesce(page.is_active, true) AND page.revoked_at IS NULL
        AND (page.expires_at IS NULL OR page.expires_at > now()) AS is_active,
    coalesce(page.current_spend, 0)::float8 AS current_spend, page.budget_duration,
    -- Columns that others write may hold what we never would; one odd row must not hide the others.
    CASE WHEN jsonb_typeof(page.model_max_budget) = 'object' THEN page.model_max_budget END AS model_max_budget,
    CASE WHEN jsonb_typeof(page.model_rpm_limit) = 'object' THEN page.model_rpm_limit END AS model_rpm_limit,
    CASE WHEN jsonb_typeof(page.model_tpm_limit) = 'object' THEN page.model_tpm_limit END AS model_tpm_limit,
    CASE WHEN jsonb_typeof(page.metadata) = 'object' THEN page.metadata END AS metadata,
    CASE WHEN isfinite(page.last_used_at) THEN page.last_used_at END AS last_used_at,
    CASE WHEN isfinite(page.expires_at) THEN page.expires_at END AS expires_at,
    page.max_budget::float8 AS max_budget, page.soft_budget::float8 AS soft_budget, page.tpm_limit, page.rpm_limit,
    page.max_parallel_requests,
    -- A row that has not changed is not written: all of them were found as they are by the last complete round.
    CASE WHEN page.last_sync_at IS NOT NULL AND page.is_active AND page.revoked_at IS NULL
        THEN greatest(page.last_sync_at, (SELECT complete_as_of FROM keyservice_spend_sync))
        ELSE page.last_sync_at
    END AS last_sync_at,
    (
        SELECT coalesce(jsonb_agg(jsonb_build_object('id', m.id, 'name', m.name, 'provider', m.provider) ORDER BY m.id), '[]')
        FROM api_key_models AS akm
        JOIN models AS m ON m.id = akm.model_id
        WHERE akm.api_key_id = page.id
    ) AS model_details
FROM caller
LEFT JOIN page ON true
ORDER BY page.created_at DESC, page.id DESC"""


def list_keys(database: Database, caller: Caller, query: ListQuery) -> StoredPage:
    """A page of the caller's keys, newest first, in one round trip; registers a caller seen for the first time.

    The total is counted for a page that is asked for by number; a cursor brings along the one counted before.
    """
    after = query.cursor
    parameters: dict[str, Any] = {
        **identity(caller),
        "limit": query.limit,
        "offset": (query.page - 1) * query.limit,
        "after_created_at": after.created_at if after else None,
        "after_id": after.id if after else None,
        "total": after.total if after else None,
        "is_active": query.is_active,
        "model_ids": query.model_ids,
        "subscription_id": query.subscription_id,
    }
    [rows] = reading(lambda: registering(database, Statement(_LIST_KEYS, parameters)))
    require_known(caller, rows)
    return StoredPage(
        user_id=rows[0]["caller_id"] if rows else None,
        is_caller_active=all(row["is_caller_active"] for row in rows),
        total=rows[0]["total"] if rows else 0,
        keys=[msgspec.convert(row, StoredKey) for row in rows if row["id"] is not None],
    )
