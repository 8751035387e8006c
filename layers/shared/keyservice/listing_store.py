"""The SQL of showing keys: one, the caller's, a user's, everybody's."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import combinations
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import msgspec

from keyservice.database import Database, Rows, Statement
from keyservice.journal import identity
from keyservice.key_settings import ENTITY_TAG
from keyservice.key_status import PENDING_OPERATION, STATUS
from keyservice.models import Caller, FoundKey, ListedKey, ListQuery, ModelDetails, or_unset, timestamp
from keyservice.standing import CALLER, Standing, ask_as_caller


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is shown, in the database's own types."""

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
    team_id: UUID | None
    permissions: dict[str, Any] | None
    tags: list[str] | None
    last_sync_at: datetime | None
    entity_tag: str = ""
    """Only of a key that is shown alone."""


class StoredPage(msgspec.Struct, frozen=True, kw_only=True):
    """At most `limit` + 1 keys, newest first: one more than asked for tells that another page follows."""

    total: int
    keys: list[StoredKey]


# All of a key but LiteMaaS's plaintext secret, which this role may not read: `k.*` would ask for it.
_ROW: LiteralString = """k.id, k.subscription_id, k.user_id, k.name, k.key_hash, k.key_prefix, k.litellm_key_alias,
        k.permissions, k.max_budget, k.current_spend, k.tpm_limit, k.rpm_limit, k.max_parallel_requests,
        k.budget_duration, k.soft_budget, k.budget_reset_at, k.model_max_budget, k.model_rpm_limit, k.model_tpm_limit,
        k.tags, k.metadata, k.last_used_at, k.expires_at, k.created_at, k.updated_at, k.revoked_at, k.last_sync_at,
        k.is_active, k.sync_status, k.sync_error, k.team_id, k.lite_llm_team_id"""

# Every list is made of the same parts; each has a `scope` of its own, the rows it is about, and only those filters that are
# given: beside `%(...)s IS NULL OR` PostgreSQL would make a new plan for each page by number, and could not start from the
# keys of a model that few have, but would look up a million of them to find that there are none.
_FILTERS: Mapping[str, LiteralString] = {
    "subscription_id": "k.subscription_id = %(subscription_id)s",
    "model_ids": """EXISTS (
        SELECT FROM api_key_models AS m WHERE m.api_key_id = k.id AND m.model_id = ANY (%(model_ids)s::text[])
    )""",
    "is_active": """%(is_active)s = (
        coalesce(k.is_active, true) AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
    )""",
}

# A statement of its own for pages by cursor, so that one plan for all cursors goes straight to where the cursor is.
_NUMBERED_PAGE: LiteralString = """page AS (
    SELECT * FROM filtered
    ORDER BY created_at DESC, id DESC
    LIMIT %(limit)s + 1 OFFSET %(offset)s
)"""

_PAGE_AFTER_CURSOR: LiteralString = """page AS (
    SELECT * FROM filtered
    WHERE (created_at, id) < (%(after_created_at)s, %(after_id)s)
    ORDER BY created_at DESC, id DESC
    LIMIT %(limit)s + 1
)"""


class _Kind(NamedTuple):
    by_cursor: bool
    filters: Sequence[str]


_KINDS = [
    _Kind(by_cursor, filters)
    for by_cursor in (False, True)
    for count in range(len(_FILTERS) + 1)
    for filters in combinations(_FILTERS, count)
]


def _shown(rows: LiteralString) -> LiteralString:
    """The rows of that CTE with what their status is."""
    return (
        """shown AS NOT MATERIALIZED (
    SELECT
        k.*,
        """
        + STATUS
        + """ AS status
    FROM """
        + rows
        + """ AS k
    """
        + PENDING_OPERATION
        + """
)"""
    )


# Of a row `k` of `shown`.
_COLUMNS: LiteralString = """k.id, k.user_id, k.key_prefix, k.status, k.name, k.subscription_id,
    coalesce(k.created_at, to_timestamp(0)) AS created_at,
    coalesce(k.is_active, true) AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AS is_active,
    coalesce(k.current_spend, 0)::float8 AS current_spend, k.budget_duration,
    -- Columns that others write may hold what we never would; one odd row must not hide the others.
    CASE WHEN jsonb_typeof(k.model_max_budget) = 'object' THEN k.model_max_budget END AS model_max_budget,
    CASE WHEN jsonb_typeof(k.model_rpm_limit) = 'object' THEN k.model_rpm_limit END AS model_rpm_limit,
    CASE WHEN jsonb_typeof(k.model_tpm_limit) = 'object' THEN k.model_tpm_limit END AS model_tpm_limit,
    CASE WHEN jsonb_typeof(k.metadata) = 'object' THEN k.metadata END AS metadata,
    CASE WHEN isfinite(k.last_used_at) THEN k.last_used_at END AS last_used_at,
    CASE WHEN isfinite(k.expires_at) THEN k.expires_at END AS expires_at,
    k.max_budget::float8 AS max_budget, k.soft_budget::float8 AS soft_budget, k.tpm_limit, k.rpm_limit,
    k.max_parallel_requests, k.team_id, array_remove(k.tags, NULL) AS tags,
    CASE WHEN jsonb_typeof(k.permissions) = 'object' THEN k.permissions END AS permissions,
    -- A row that has not changed is not written: all of them were found as they are by the last complete round.
    CASE WHEN k.last_sync_at IS NOT NULL AND k.is_active AND k.revoked_at IS NULL
        THEN greatest(k.last_sync_at, (SELECT complete_as_of FROM keyservice_spend_sync))
        ELSE k.last_sync_at
    END AS last_sync_at,
    (
        SELECT coalesce(jsonb_agg(jsonb_build_object('id', m.id, 'name', m.name, 'provider', m.provider) ORDER BY m.id), '[]')
        FROM api_key_models AS akm
        JOIN models AS m ON m.id = akm.model_id
        WHERE akm.api_key_id = k.id
    ) AS model_details"""

_OWN_KEYS: LiteralString = (
    """scope AS NOT MATERIALIZED (
    SELECT """
    + _ROW
    + """ FROM api_keys AS k WHERE k.user_id = (SELECT id FROM known)
)"""
)


def _list(name: LiteralString, kind: _Kind, *, scope: LiteralString, columns: LiteralString) -> LiteralString:
    conditions = "\n    AND ".join(("true", *(_FILTERS[name] for name in kind.filters)))
    filtered = "filtered AS NOT MATERIALIZED (\n    SELECT * FROM scope AS k\n    WHERE " + conditions + "\n)"
    page = _PAGE_AFTER_CURSOR if kind.by_cursor else _NUMBERED_PAGE
    total = "%(total)s::bigint" if kind.by_cursor else "(SELECT count(*) FROM filtered)"
    return (
        "/* "
        + name
        + """ */
WITH """
        + ",\n".join((CALLER, scope, filtered, page, _shown("page")))
        + """
SELECT
    to_jsonb(standing) AS standing,
    """
        + total
        + """ AS total,
    """
        + columns
        + """
FROM standing
LEFT JOIN shown AS k ON true
ORDER BY k.created_at DESC, k.id DESC"""
    )


_LIST_KEYS: Mapping[_Kind, LiteralString] = {
    kind: _list("list_keys_after" if kind.by_cursor else "list_keys", kind, scope=_OWN_KEYS, columns=_COLUMNS)
    for kind in _KINDS
}


def list_keys(database: Database, caller: Caller, query: ListQuery) -> tuple[Standing, StoredPage]:
    """A page of the caller's keys, newest first, in one round trip; registers a caller seen for the first time.

    The total is counted for a page that is asked for by number; a cursor brings along the one counted before.
    """
    listing = Statement(_LIST_KEYS[_kind_of(query)], {**identity(caller), **_page_parameters(query)})
    standing, rows = ask_as_caller(database, caller, listing)
    return standing, _stored_page(rows)


_ALL_KEYS: LiteralString = (
    """scope AS NOT MATERIALIZED (
    SELECT """
    + _ROW
    + """ FROM api_keys AS k
    WHERE EXISTS (SELECT FROM standing WHERE may_see_all)
    AND (%(user_id)s::uuid IS NULL OR k.user_id = %(user_id)s)
)"""
)

_LIST_ALL_KEYS: Mapping[_Kind, LiteralString] = {
    kind: _list(
        "list_all_keys_after" if kind.by_cursor else "list_all_keys",
        kind,
        scope=_ALL_KEYS,
        columns="EXISTS (SELECT FROM users WHERE id = %(user_id)s) AS is_user_known,\n    " + _COLUMNS,
    )
    for kind in _KINDS
}


def list_all_keys(database: Database, caller: Caller, query: ListQuery) -> tuple[Standing, StoredPage, bool]:
    """A page of everybody's keys, or of those of the user the query names, and whether there is such a user; nothing
    for a caller who may not see them."""
    listing = Statement(
        _LIST_ALL_KEYS[_kind_of(query)],
        {**identity(caller), **_page_parameters(query), "user_id": query.user_id},
        is_prepared=False,
    )
    standing, rows = ask_as_caller(database, caller, listing)
    return standing, _stored_page(rows), rows[0]["is_user_known"]


_FIND_KEY: LiteralString = (
    """/* find_key */
WITH """
    + CALLER
    + """,
scope AS NOT MATERIALIZED (
    SELECT """
    + _ROW
    + """ FROM known JOIN api_keys AS k ON k.user_id = known.id AND k.id = %(api_key_id)s
),
"""
    + _shown("scope")
    + """
SELECT
    to_jsonb(standing) AS standing,
    """
    + ENTITY_TAG
    + """ AS entity_tag,
    """
    + _COLUMNS
    + """
FROM standing
LEFT JOIN shown AS k ON true"""
)


def find_key(database: Database, caller: Caller, api_key_id: UUID) -> tuple[Standing, FoundKey | None]:
    """A key of the caller's own."""
    standing, rows = ask_as_caller(
        database, caller, Statement(_FIND_KEY, {**identity(caller), "api_key_id": api_key_id})
    )
    return standing, found_key(rows[0]) if rows[0]["id"] is not None else None


_SHOW_KEY: LiteralString = (
    """/* show_key */
WITH scope AS NOT MATERIALIZED (
    SELECT """
    + _ROW
    + """ FROM api_keys AS k WHERE k.id = %(api_key_id)s
),
"""
    + _shown("scope")
    + """
SELECT
    """
    + ENTITY_TAG
    + """ AS entity_tag,
    """
    + _COLUMNS
    + """
FROM shown AS k"""
)


def show_key(api_key_id: UUID) -> Statement:
    """Any key, for those who have just been found to be allowed to see it: its row goes to `found_key`."""
    return Statement(_SHOW_KEY, {"api_key_id": api_key_id})


def found_key(row: dict[str, Any]) -> FoundKey:
    stored = msgspec.convert(row, StoredKey)
    return FoundKey(key=listed(stored), entity_tag=stored.entity_tag)


def _kind_of(query: ListQuery) -> _Kind:
    filters = tuple(name for name in _FILTERS if getattr(query, name) is not None)
    return _Kind(by_cursor=query.cursor is not None, filters=filters)


def _page_parameters(query: ListQuery) -> dict[str, Any]:
    after = query.cursor
    return {
        "limit": query.limit,
        "offset": (query.page - 1) * query.limit,
        "after_created_at": after.created_at if after else None,
        "after_id": after.id if after else None,
        "total": after.total if after else None,
        "is_active": query.is_active,
        "model_ids": query.model_ids,
        "subscription_id": query.subscription_id,
    }


def _stored_page(rows: Rows) -> StoredPage:
    return StoredPage(
        total=rows[0]["total"], keys=[msgspec.convert(row, StoredKey) for row in rows if row["id"] is not None]
    )


def listed(key: StoredKey) -> ListedKey:
    return ListedKey(
        id=key.id,
        user_id=key.user_id,
        key_prefix=key.key_prefix,
        models=[model.id for model in key.model_details],
        created_at=timestamp(key.created_at),
        is_active=key.is_active,
        status=key.status,
        name=key.name or "",
        model_details=key.model_details,
        current_spend=key.current_spend,
        budget_duration=key.budget_duration or "",
        model_max_budget=key.model_max_budget or {},
        model_rpm_limit=key.model_rpm_limit or {},
        model_tpm_limit=key.model_tpm_limit or {},
        metadata=key.metadata or {},
        subscription_id=or_unset(key.subscription_id),
        last_used_at=or_unset(key.last_used_at and timestamp(key.last_used_at)),
        expires_at=or_unset(key.expires_at and timestamp(key.expires_at)),
        max_budget=or_unset(key.max_budget),
        soft_budget=or_unset(key.soft_budget),
        tpm_limit=or_unset(key.tpm_limit),
        rpm_limit=or_unset(key.rpm_limit),
        max_parallel_requests=or_unset(key.max_parallel_requests),
        team_id=or_unset(key.team_id),
        permissions=or_unset(key.permissions or None),
        tags=or_unset(key.tags or None),
        spend_as_of=or_unset(key.last_sync_at and timestamp(key.last_sync_at)),
    )
