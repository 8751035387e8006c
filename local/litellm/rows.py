"""A key as LiteLLM stores and shows it."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from local.litellm.durations import now
from local.litellm.refusals import Row
from local.litellm.values import ROUTES_OF_KEY_TYPE

KEPT_IN_METADATA = ("model_rpm_limit", "model_tpm_limit", "enforced_params", "tags", "guardrails")
NEVER_SET = (
    "agent_id",
    "project_id",
    "organization_id",
    "tpd_limit",
    "budget_limits",
    "object_permission",
    "last_active",
    "settings_updated_at",
)


def token_of(key_or_token: str) -> str:
    """LiteLLM takes the hash wherever it takes a key: what does not start with `sk-` is read as a hash."""
    if key_or_token.startswith("sk-"):
        return hashlib.sha256(key_or_token.encode()).hexdigest()
    return key_or_token


def is_expired(row: Row) -> bool:
    return row["expires"] is not None and datetime.fromisoformat(row["expires"]) < datetime.now(UTC)


def status_of(row: Row) -> str:
    if "deleted_at" in row:
        return "deleted"
    if row["blocked"]:
        return "revoked"
    return "expired" if is_expired(row) else "active"


def new_row(key: str, values: Row, *, created_by: str) -> Row:
    created_at = now().isoformat()
    key_type: str | None = values.get("key_type", "default")
    return {
        "token": token_of(key),
        "key_name": f"sk-...{key[-4:]}",
        "key_alias": values.get("key_alias"),
        "spend": values.get("spend") or 0.0,
        "total_spend": 0.0,
        "expires": values.get("expires"),
        "models": values.get("models") or [],
        "aliases": values.get("aliases") or {},
        "config": values.get("config") or {},
        "user_id": values.get("user_id"),
        "team_id": values.get("team_id"),
        "max_parallel_requests": values.get("max_parallel_requests"),
        "metadata": (values.get("metadata") or {}) | moved_into_metadata(values),
        "blocked": values.get("blocked"),
        "tpm_limit": values.get("tpm_limit"),
        "rpm_limit": values.get("rpm_limit"),
        "max_budget": values.get("max_budget"),
        "budget_duration": values.get("budget_duration"),
        "budget_reset_at": values.get("budget_reset_at"),
        "allowed_cache_controls": values.get("allowed_cache_controls") or [],
        "allowed_routes": values.get("allowed_routes") or ROUTES_OF_KEY_TYPE[key_type or "default"],
        "key_type": key_type,
        "permissions": values.get("permissions") or {},
        "litellm_budget_table": (
            None if values.get("soft_budget") is None else budget_table() | {"soft_budget": values["soft_budget"]}
        ),
        "model_max_budget": {},
        "model_spend": {},
        "created_at": created_at,
        "created_by": created_by,
        "updated_at": created_at,
        "updated_by": created_by,
        **dict.fromkeys(NEVER_SET),
    }


def moved_into_metadata(values: Row) -> Row:
    return {name: values[name] for name in KEPT_IN_METADATA if values.get(name) is not None}


def budget_table() -> Row:
    """Where LiteLLM keeps a key's soft budget; it shows it in /key/info, and after generate, alone."""
    return {"soft_budget": None, "max_budget": None}


def without_token(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "token"}


def with_z(row: Row) -> Row:
    """LiteLLM writes UTC as `+00:00` in /key/info and /key/update, and as `Z` everywhere else."""
    return {name: _with_z(value) for name, value in row.items()}


def _with_z(value: Any) -> Any:
    if isinstance(value, str) and value.endswith("+00:00"):
        return value.removesuffix("+00:00") + "Z"
    return value
