"""How often what only looks, and what sets the defaults, waits for PostgreSQL and for LiteLLM: once and never."""

from typing import Any

import pytest

from tests.e2e.conftest import FragileService
from tests.e2e.service import KEYS

ADMIN = "/api/v1/admin"


@pytest.mark.parametrize(
    ("method", "path", "body", "statements"),
    [
        pytest.param("GET", f"{KEYS}/{{id}}", None, ("find_key",), id="get"),
        pytest.param("GET", f"{KEYS}/stats", None, ("count_keys",), id="stats"),
        pytest.param("GET", f"{KEYS}/admin/all", None, ("list_all_keys",), id="list all"),
        pytest.param("GET", f"{ADMIN}/users/{{userId}}/api-keys", None, ("list_all_keys",), id="list of a user"),
        pytest.param("POST", f"{KEYS}/validate", {"key": "x"}, ("find_secret",), id="validate"),
        pytest.param("GET", "/api/v1/config/api-key-defaults", None, ("read_key_defaults",), id="defaults"),
        pytest.param(
            "PUT",
            f"{ADMIN}/settings/api-key-defaults",
            {"defaults": {}, "maximums": {}},
            ("lock_key_defaults", "replace_key_defaults"),
            id="set defaults",
        ),
        pytest.param("GET", f"{ADMIN}/audit", None, ("list_audit_records",), id="audit"),
        pytest.param("GET", f"{ADMIN}/operations", None, ("list_operations",), id="operations"),
    ],
)
@pytest.mark.parametrize("is_known", [True, False], ids=["somebody known", "a newcomer"])
def test_it_is_one_round_trip_and_no_call(
    fragile_service: FragileService, method: str, path: str, body: Any, statements: tuple[str, ...], *, is_known: bool
):
    owner = fragile_service.person()
    key = owner.has_key()
    admin = fragile_service.person(is_known=is_known, roles=["admin"])
    path = path.replace("{id}", key["id"]).replace("{userId}", key["userId"])
    fragile_service.database_faults.reset_counts()
    fragile_service.gateway_faults.forget_calls()

    answer = fragile_service.call(method, path, token=admin.token, **({} if body is None else {"json": body}))

    assert answer.status_code == (404 if statements == ("find_key",) else 200)
    assert [trip.steps for trip in fragile_service.database_faults.trips] == [statements]
    assert fragile_service.gateway_faults.calls == []
    assert admin.user is not None
    fragile_service.rows("DELETE FROM system_settings")
