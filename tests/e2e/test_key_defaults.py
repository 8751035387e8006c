"""What an administrator sets for all keys, over HTTP: read by everybody, set by the role admin, audited."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.service import USER_AGENT, Person, Service, error_of, violations_of

ADMINS_PATH = "/api/v1/admin/settings/api-key-defaults"
EVERYBODYS_PATH = "/api/v1/config/api-key-defaults"
UNSET: dict[str, Any] = {
    "defaults": {
        "maxBudget": None,
        "tpmLimit": None,
        "rpmLimit": None,
        "budgetDuration": None,
        "softBudget": None,
        "expirationDays": None,
    },
    "maximums": {"maxBudget": None, "tpmLimit": None, "rpmLimit": None, "expirationDays": None},
}
FULL: dict[str, Any] = {
    "defaults": {
        "maxBudget": 5.5,
        "tpmLimit": 500,
        "rpmLimit": 10,
        "budgetDuration": "monthly",
        "softBudget": 4,
        "expirationDays": 10,
    },
    "maximums": {"maxBudget": 50, "tpmLimit": 5000, "rpmLimit": 100, "expirationDays": 30},
}


@pytest.fixture(autouse=True)
def unset(service: Service) -> Iterator[None]:
    yield
    service.rows("DELETE FROM system_settings")


@pytest.fixture
def admin(service: Service) -> Person:
    return service.person(roles=["admin"])


def put(admin: Person, body: Any) -> httpx.Response:
    return admin.service.call("PUT", ADMINS_PATH, token=admin.token, json=body)


def read(person: Person, path: str = EVERYBODYS_PATH) -> Any:
    answer = person.service.call("GET", path, token=person.token)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", [ADMINS_PATH, EVERYBODYS_PATH])
def test_nothing_is_set_at_first(admin: Person, path: str):
    assert read(admin, path) == UNSET


@pytest.mark.parametrize("path", [ADMINS_PATH, EVERYBODYS_PATH])
def test_what_was_set_is_read_again(admin: Person, path: str):
    answer = put(admin, FULL)

    assert answer.status_code == 200
    assert answer.json() == FULL
    assert read(admin, path) == FULL


def test_what_is_set_holds_for_the_next_key(service: Service, admin: Person, alice: Person):
    assert put(admin, FULL).status_code == 200

    key = alice.has_key()

    row = service.key_row(key["id"])
    assert row is not None
    assert (float(row["max_budget"]), row["tpm_limit"], row["rpm_limit"]) == (5.5, 500, 10)


def test_a_change_replaces_everything(admin: Person):
    put(admin, FULL)

    answer = put(admin, {"defaults": {"maxBudget": None}, "maximums": {"rpmLimit": 7}})

    assert answer.json() == UNSET | {"maximums": UNSET["maximums"] | {"rpmLimit": 7}}
    assert read(admin) == answer.json()


def test_a_change_is_audited_with_what_was_and_what_is(service: Service, admin: Person):
    put(admin, UNSET | {"maximums": {"rpmLimit": 7}})
    put(admin, FULL)

    first, second = admin.audit()
    expected = UNSET | {"maximums": UNSET["maximums"] | {"rpmLimit": 7}}
    assert (first["old_values"], first["new_values"]) == ({}, expected)
    assert (second["old_values"], second["new_values"]) == (expected, FULL)
    assert (second["action"], second["resource_type"], second["resource_id"], second["success"]) == (
        "UPDATE_API_KEY_DEFAULTS",
        "SYSTEM_SETTINGS",
        "api_key_defaults",
        True,
    )
    assert (str(second["ip_address"]), second["user_agent"]) == ("127.0.0.1", USER_AGENT)
    assert second["metadata"]["settings"] == FULL
    [row] = service.rows("SELECT updated_by FROM system_settings WHERE key = 'api_key_defaults'")
    assert row["updated_by"] == admin.user_id


def test_of_changes_at_once_each_records_the_one_before_it(admin: Person):
    bodies = [UNSET | {"maximums": UNSET["maximums"] | {"rpmLimit": number}} for number in range(8)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: put(admin, body), bodies))

    assert [answer.status_code for answer in answers] == [200] * 8
    records = admin.audit()
    # A chain: what one found is what another left, and only the first found nothing.
    found = sorted(record["old_values"].get("maximums", {}).get("rpmLimit", -1) for record in records)
    left = [record["new_values"]["maximums"]["rpmLimit"] for record in records]
    [last] = set(left) - set(found)
    assert found == sorted([-1, *(set(range(8)) - {last})])
    assert read(admin)["maximums"]["rpmLimit"] == last


@pytest.mark.parametrize("roles", [["admin-readonly"], ["user"]])
def test_nobody_else_changes_them(service: Service, roles: list[str]):
    person = service.person(roles=roles)

    answer = put(person, FULL)

    error_of(answer, status=403, code="FORBIDDEN")
    assert service.rows("SELECT * FROM system_settings") == []
    assert person.audit() == []


def test_what_litemaas_stored_is_read_however_it_stands_there(service: Service, alice: Person):
    stored = '{"defaults": {"maxBudget": "5.50", "tpmLimit": null, "theme": "dark"}, "maximums": null, "version": 2}'
    service.rows("INSERT INTO system_settings (key, value) VALUES ('api_key_defaults', %(value)s)", value=stored)

    assert read(alice) == UNSET | {"defaults": UNSET["defaults"] | {"maxBudget": 5.5}}


@pytest.mark.parametrize(
    ("body", "violations"),
    [
        pytest.param({}, [("defaults", "required"), ("maximums", "required")], id="nothing"),
        pytest.param({"defaults": {}, "maximums": []}, [("maximums", "type")], id="a list"),
        pytest.param(
            {"defaults": {"maxBudget": "5", "rpmLimit": -1}, "maximums": {"tpmLimit": 1.5}},
            [("defaults.maxBudget", "type"), ("defaults.rpmLimit", "minimum"), ("maximums.tpmLimit", "type")],
            id="types",
        ),
        pytest.param(
            {"defaults": {"color": 1}, "maximums": {"softBudget": 1}, "teams": {}},
            [
                ("defaults.color", "additionalProperties"),
                ("maximums.softBudget", "additionalProperties"),
                ("teams", "additionalProperties"),
            ],
            id="unknown fields",
        ),
        pytest.param(
            {"defaults": {"budgetDuration": "fortnight", "expirationDays": 0}, "maximums": {"expirationDays": 3651}},
            [
                ("defaults.budgetDuration", "pattern"),
                ("defaults.expirationDays", "minimum"),
                ("maximums.expirationDays", "maximum"),
            ],
            id="ranges",
        ),
        pytest.param(
            {
                "defaults": {"maxBudget": 51, "tpmLimit": 2, "rpmLimit": 3, "expirationDays": 4},
                "maximums": {"maxBudget": 50, "tpmLimit": 1, "rpmLimit": 2, "expirationDays": 3},
            },
            [
                ("defaults.maxBudget", "maximum"),
                ("defaults.tpmLimit", "maximum"),
                ("defaults.rpmLimit", "maximum"),
                ("defaults.expirationDays", "maximum"),
            ],
            id="defaults above their maximums",
        ),
        pytest.param(
            {"defaults": {"softBudget": 1.234}, "maximums": {}}, [("defaults.softBudget", "multipleOf")], id="decimals"
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    service: Service, admin: Person, body: Any, violations: list[tuple[str, str]]
):
    answer = put(admin, body)

    assert violations_of(answer) == violations
    assert service.rows("SELECT * FROM system_settings") == []
