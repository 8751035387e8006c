"""Every route that asks for a token, with what it takes to call it."""

from dataclasses import dataclass
from typing import Any

from tests.e2e.service import KEYS

ADMIN = "/api/v1/admin"


@dataclass(frozen=True)
class Route:
    method: str
    path: str
    """As in the template: `{id}` is a key of the caller's, `{userId}` their id."""
    body: dict[str, Any] | None = None


ROUTES = {
    "create": Route("POST", KEYS, {"modelIds": ["gpt-4o"]}),
    "list": Route("GET", KEYS),
    "get": Route("GET", f"{KEYS}/{{id}}"),
    "stats": Route("GET", f"{KEYS}/stats"),
    "delete": Route("DELETE", f"{KEYS}/{{id}}"),
    "update": Route("PATCH", f"{KEYS}/{{id}}", {"name": "renamed"}),
    "update of a user": Route("PATCH", f"{ADMIN}/users/{{userId}}/api-keys/{{id}}", {"name": "renamed"}),
    "reset spend": Route("POST", f"{KEYS}/{{id}}/reset-spend"),
    "rotate": Route("POST", f"{KEYS}/{{id}}/rotate"),
    "complete": Route("POST", f"{KEYS}/{{id}}/rotate/complete"),
    "reveal": Route("POST", f"{KEYS}/{{id}}/reveal"),
    "list all": Route("GET", f"{KEYS}/admin/all"),
    "list of a user": Route("GET", f"{ADMIN}/users/{{userId}}/api-keys"),
    "create for a user": Route("POST", f"{ADMIN}/users/{{userId}}/api-keys", {"modelIds": ["gpt-4o"]}),
    "delete of a user": Route("DELETE", f"{ADMIN}/users/{{userId}}/api-keys/{{id}}"),
    "clean up": Route("POST", f"{KEYS}/admin/cleanup-expired"),
    "validate": Route("POST", f"{KEYS}/validate", {"key": "x"}),
    "read defaults": Route("GET", "/api/v1/config/api-key-defaults"),
    "read defaults as admin": Route("GET", f"{ADMIN}/settings/api-key-defaults"),
    "set defaults": Route("PUT", f"{ADMIN}/settings/api-key-defaults", {"defaults": {}, "maximums": {}}),
    "audit": Route("GET", f"{ADMIN}/audit"),
    "operations": Route("GET", f"{ADMIN}/operations"),
    "retry": Route("POST", f"{ADMIN}/operations/{{id}}/retry"),
}
