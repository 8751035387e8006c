"""Who calls, and what they may call."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from starlette.requests import Request

from local.litellm.refusals import Row, Unhandled, refused, refused_as_invalid, refused_as_repr, refused_with_detail
from local.litellm.rows import is_expired, token_of
from local.litellm.tables import Tables

ADMIN_USER_ID = "default_user_id"

COMPLETION_PATHS = ("/chat/completions", "/v1/chat/completions")
MODEL_LIST_PATHS = ("/models", "/v1/models")
MODEL_INFO_PATHS = ("/model/info", "/v1/model/info")
INFO_PATHS = ("/key/info", "/v2/key/info", "/key/list", "/user/info", *MODEL_INFO_PATHS)
# Only these ask whether the key has money left; /model/info does not.
SPENDING_PATHS = (*COMPLETION_PATHS, *MODEL_LIST_PATHS)
# Open to a key whose user exists, besides the above; every other route is the administrator's.
USER_PATHS = ("/key/generate", "/key/delete", "/key/update", "/key/block", "/key/unblock")


def _is_llm_api(path: str) -> bool:
    return path in (*SPENDING_PATHS, *MODEL_INFO_PATHS)


def _is_info(path: str) -> bool:
    return path in (*INFO_PATHS, *MODEL_LIST_PATHS)


def _is_management(path: str) -> bool:
    return path not in SPENDING_PATHS


ROUTE_GROUPS: dict[str, Callable[[str], bool]] = {
    "llm_api_routes": _is_llm_api,
    "info_routes": _is_info,
    "management_routes": _is_management,
}


@dataclass(frozen=True)
class Call:
    """One request: by the administrator (`key` is None) or by the holder of a virtual key; `user` is the key's, if any."""

    request: Request
    key: Row | None = None
    user: Row | None = None

    @property
    def path(self) -> str:
        return self.request.url.path

    @property
    def user_id(self) -> str | None:
        return self.key["user_id"] if self.key else ADMIN_USER_ID

    @property
    def role(self) -> str:
        if self.key is None:
            return "proxy_admin"
        return (self.user["user_role"] or "internal_user") if self.user else "unknown"

    async def body(self) -> Row:
        if not await self.request.body():
            raise refused_as_invalid("missing", ["body"], "a body is needed")
        if not self.request.headers.get("content-type", "application/json").startswith("application/json"):
            raise refused_as_invalid("model_attributes_type", ["body"], "not an object")
        try:
            body: Any = await self.request.json()
        except ValueError:
            raise refused_as_invalid("json_invalid", ["body", 1], "not JSON") from None
        if not isinstance(body, dict):
            raise Unhandled
        return cast(Row, body)

    def check_is_admin(self) -> None:
        if self.key is None:
            return
        reason = f"{self.path} is for administrators, not for {self.role}"
        if self.path == "/key/update":
            raise refused_as_repr(403, reason, kind="auth_error", param="None")
        raise refused_with_detail(403, {"error": reason})


def authenticate(request: Request, *, master_key: str, tables: Tables) -> Call:
    presented = _presented_key(request)
    if secrets.compare_digest(presented.encode(), master_key.encode()):
        return Call(request)
    if not presented.startswith("sk-"):
        raise refused(401, "a virtual key starts with sk-", "auth_error", "None")
    key = tables.keys.get(token_of(presented))
    if key is None:
        # LiteLLM names the hash too: a caller that logs its answers must know.
        message = f"there is no key with the hash {token_of(presented)}"
        raise refused(401, message, "token_not_found_in_db", "key")
    call = Call(request, key=key, user=tables.users.get(key["user_id"] or ""))
    _check_key_is_usable(key, path=call.path)
    _check_route_is_allowed(call, allowed=key["allowed_routes"])
    return call


def _presented_key(request: Request) -> str:
    authorization = request.headers.get("authorization")
    if authorization is not None:
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() not in ("bearer", "basic"):
            raise refused(401, "the key needs `Bearer ` before it", "auth_error", "None")
        return key.strip()
    for header in ("x-litellm-api-key", "x-api-key", "api-key"):
        if key := request.headers.get(header):
            return key.removeprefix("Bearer ")
    raise refused(401, "no key was sent", "auth_error", "None")


def _check_key_is_usable(key: Row, *, path: str) -> None:
    if key["blocked"]:
        raise refused(401, "the key is blocked", "auth_error", "None")
    if is_expired(key):
        raise refused(401, f"the key expired at {key['expires']}", "expired_key", key["key_name"])
    if path in SPENDING_PATHS and key["max_budget"] is not None and key["spend"] >= key["max_budget"]:
        message = f"the key has spent {key['spend']} of {key['max_budget']}"
        raise refused(422, message, "budget_exceeded")


def _check_route_is_allowed(call: Call, *, allowed: list[str]) -> None:
    if allowed and not any(entry == call.path or _is_in_group(call.path, entry) for entry in allowed):
        raise refused_with_detail(403, f"the key may only call {allowed}, not {call.path}")
    if call.path in (*SPENDING_PATHS, *INFO_PATHS):
        return
    # The trap: a key of the default type may manage keys as soon as its user exists, even one without a role.
    if call.user is None or call.path not in USER_PATHS:
        raise refused(401, f"{call.path} is for administrators, not for {call.role}", "auth_error", "None")


def _is_in_group(path: str, group: str) -> bool:
    return group in ROUTE_GROUPS and ROUTE_GROUPS[group](path)
