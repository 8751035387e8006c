"""GET /api/v1/api-keys/{id}: a key of one's own, with the version it has."""

import re

import pytest

from tests.e2e.service import KEYS, Person, Service, error_of

MISSING = "99999999-9999-4999-8999-999999999999"


def test_an_own_key_looks_as_in_the_list(service: Service, alice: Person):
    key = alice.has_key(name="one", maxBudget=5, metadata={"env": "prod"})
    [listed] = alice.listed()

    answer = service.call("GET", f"{KEYS}/{key['id']}", token=alice.token)

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == listed
    assert list(answer.json()) == [
        *("id", "keyPrefix", "models", "createdAt", "isActive", "name", "modelDetails", "maxBudget", "currentSpend"),
        *("budgetDuration", "modelMaxBudget", "modelRpmLimit", "modelTpmLimit", "metadata"),
        *("userId", "status", "spendAsOf"),
    ]


def test_the_entity_tag_is_strong_and_changes_with_the_row(service: Service, alice: Person):
    key = alice.has_key()
    path = f"{KEYS}/{key['id']}"

    first = service.call("GET", path, token=alice.token).headers["etag"]
    again = service.call("GET", path, token=alice.token).headers["etag"]
    service.rows("UPDATE api_keys SET name = 'other', updated_at = now() WHERE id = %(id)s", id=key["id"])
    changed = service.call("GET", path, token=alice.token).headers["etag"]

    assert re.fullmatch(r'"[0-9a-f]+"', first)
    assert again == first
    assert changed != first


@pytest.mark.parametrize("roles", [[], ["admin"]], ids=["another user", "an administrator"])
def test_the_key_of_somebody_else_is_not_there(service: Service, alice: Person, roles: list[str]):
    key = alice.has_key()
    other = service.person(roles=roles)

    answer = service.call("GET", f"{KEYS}/{key['id']}", token=other.token)

    error = error_of(answer, status=404, code="NOT_FOUND")
    assert error["message"] == "API key not found"
    assert error["details"] == {"resource": "API key", "suggestion": "Verify the API key identifier and try again"}


@pytest.mark.parametrize(
    "key_id", [MISSING, "not-a-uuid", "%00", MISSING.replace("-", "")], ids=["missing", "text", "NUL", "no hyphens"]
)
def test_a_key_that_is_not_there_is_not_found(service: Service, alice: Person, key_id: str):
    answer = service.call("GET", f"{KEYS}/{key_id}", token=alice.token)

    error_of(answer, status=404, code="NOT_FOUND")


def test_a_deleted_key_is_not_found(service: Service, alice: Person):
    key = alice.has_key()
    assert alice.delete(key["id"]).status_code == 200

    answer = service.call("GET", f"{KEYS}/{key['id']}", token=alice.token)

    error_of(answer, status=404, code="NOT_FOUND")
