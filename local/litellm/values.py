"""The values of a request: read as pydantic does in lax mode, and refused where LiteLLM refuses them."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from local.litellm.refusals import Row, not_storable, refused, refused_as_repr, refused_with_detail

type Reader = Callable[[Any], Any]

ROUTES_OF_KEY_TYPE: dict[str, list[str]] = {
    "default": [],
    "llm_api": ["llm_api_routes"],
    "management": ["management_routes"],
    "read_only": ["info_routes"],
}
USER_ROLES = ("proxy_admin", "proxy_admin_viewer", "internal_user", "internal_user_viewer")
NEEDS_LICENCE = ("guardrails", "policies", "prompts", "tags", "allowed_passthrough_routes")


class Unreadable(Exception):
    """A value of the wrong type; carries pydantic's name for the failure."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind)
        self.kind = kind
        self.message = message


def read_string(value: Any) -> str:
    if not isinstance(value, str):
        raise Unreadable("string_type", "not a string")
    return value


def read_float(value: Any) -> float:
    try:
        return float(value)
    except TypeError:
        raise Unreadable("float_type", "not a number") from None
    except ValueError:
        raise Unreadable("float_parsing", "not a number") from None


def read_budget(value: Any) -> float | None:
    return None if value == "" else read_float(value)


def read_int(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise Unreadable("int_from_float", "not a whole number")
    try:
        return int(value)
    except TypeError:
        raise Unreadable("int_type", "not a whole number") from None
    except ValueError:
        raise Unreadable("int_parsing", "not a whole number") from None


def read_bool(value: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if (text := str(value).lower()) not in words:
        raise Unreadable("bool_parsing", "neither true nor false")
    return words[text]


def read_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Unreadable("list_type", "not a list")
    return cast("list[Any]", value)


def read_dict(value: Any) -> Row:
    if not isinstance(value, dict):
        raise Unreadable("dict_type", "not an object")
    return cast(Row, value)


def read_key_type(value: Any) -> str:
    if value not in ROUTES_OF_KEY_TYPE:
        raise Unreadable("enum", "not a type of key")
    return str(value)


def read_role(value: Any) -> str:
    if value not in USER_ROLES:
        raise Unreadable("literal_error", "not a role")
    return str(value)


# In the order in which LiteLLM declares them, which is the order of the errors in a 422.
KEY_FIELDS: dict[str, Reader] = {
    "key_alias": read_string,
    "duration": read_string,
    "models": read_list,
    "spend": read_float,
    "max_budget": read_budget,
    "user_id": read_string,
    "team_id": read_string,
    "max_parallel_requests": read_int,
    "metadata": read_dict,
    "tpm_limit": read_int,
    "rpm_limit": read_int,
    "budget_duration": read_string,
    "allowed_cache_controls": read_list,
    "config": read_dict,
    "permissions": read_dict,
    "model_max_budget": read_dict,
    "model_rpm_limit": read_dict,
    "model_tpm_limit": read_dict,
    "guardrails": read_list,
    "policies": read_list,
    "prompts": read_list,
    "blocked": read_bool,
    "aliases": read_dict,
    "key": read_string,
    "tags": read_list,
    "enforced_params": read_list,
    "allowed_routes": read_list,
    "allowed_passthrough_routes": read_list,
    "soft_budget": read_float,
}
NEW_KEY_FIELDS = KEY_FIELDS | {"key_type": read_key_type}
NEW_USER_FIELDS = NEW_KEY_FIELDS | {"user_email": read_string, "user_role": read_role, "auto_create_key": read_bool}


def read_fields(body: Mapping[str, Any], fields: dict[str, Reader], *, within: str = "body") -> Row:
    """The known fields that were sent, null included; unknown ones are ignored, as at LiteLLM."""
    values: Row = {}
    errors: list[Row] = []
    for name, read in fields.items():
        if name not in body:
            continue
        try:
            values[name] = None if body[name] is None else read(body[name])
        except Unreadable as error:
            errors.append({"type": error.kind, "loc": [within, name], "msg": error.message})
    if errors:
        raise refused_with_detail(422, errors)
    return values


def check_budgets(values: Row, **shape: str) -> None:
    for name in ("max_budget", "soft_budget"):
        value = values.get(name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise refused_as_repr(400, f"{name} is not a finite number from 0 up", **shape)


def check_licence(values: Row, *, model_budget_status: int, **shape: str) -> None:
    for name in NEEDS_LICENCE:
        if values.get(name):
            raise refused_as_repr(403, f"{name} needs an enterprise licence", **shape)
    if values.get("model_max_budget"):
        raise refused(model_budget_status, "model_max_budget needs an enterprise licence", **shape)


def check_alias_format(alias: str) -> None:
    has_control_character = any(ord(character) < 32 or ord(character) == 127 for character in alias)
    if has_control_character or ".." in alias.split("/"):
        raise refused(400, "key_alias has a control character or a way up in it", "bad_request_error", "key_alias")


def check_storable(values: Row) -> None:
    """The column types of LiteLLM's database: 64 and 32 bit numbers, texts without NUL, a list of texts."""
    for name, bits in (("tpm_limit", 63), ("rpm_limit", 63), ("max_parallel_requests", 31)):
        value = values.get(name)
        if value is not None and not -(2**bits) <= value < 2**bits:
            raise not_storable()
    models: list[Any] = values.get("models") or []
    if not all(isinstance(model, str) for model in models):
        raise not_storable()
    if "\\u0000" in json.dumps([values.get(name) for name in ("user_id", "metadata", "models")]):
        raise not_storable()
