"""GET /api/v1/api-keys/admin/all and /api/v1/admin/users/{userId}/api-keys: the keys of others, for administrators."""

from uuid import UUID

import httpx
import pytest

from tests.e2e.service import KEYS, Person, Row, Service, error_of, violations_of

NOBODY = "99999999-9999-4999-8999-999999999999"


@pytest.fixture
def admin(service: Service) -> Person:
    return service.person(roles=["admin-readonly"])


def all_keys(admin: Person, query: str) -> httpx.Response:
    return admin.service.call("GET", f"{KEYS}/admin/all?{query}", token=admin.token)


def keys_of(admin: Person, user_id: UUID | str, query: str = "") -> httpx.Response:
    return admin.service.call("GET", f"/api/v1/admin/users/{user_id}/api-keys?{query}", token=admin.token)


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [key["id"] for key in answer.json()["data"]]


def test_the_keys_of_everybody_are_listed_newest_first(alice: Person, bob: Person, admin: Person):
    keys = [alice.has_key(), bob.has_key(), alice.has_key()]

    answer = all_keys(admin, "limit=3")

    assert ids(answer) == [key["id"] for key in reversed(keys)]
    assert [key["userId"] for key in answer.json()["data"]] == [str(p.user_id) for p in (alice, bob, alice)]
    assert answer.json()["pagination"]["page"] == 1
    assert answer.json()["pagination"]["total"] >= 3


@pytest.mark.parametrize("route", ["everybody's", "a user's"])
def test_a_key_looks_as_in_its_owners_list(alice: Person, admin: Person, route: str):
    alice.has_key(name="seen", maxBudget=5)

    answer = all_keys(admin, f"userId={alice.user_id}") if route == "everybody's" else keys_of(admin, alice.user_id)

    assert answer.json() == {
        "data": alice.listed(),
        "pagination": {"page": 1, "limit": 20, "total": 1, "totalPages": 1},
    }


def test_a_cursor_goes_through_the_keys_of_a_user(alice: Person, bob: Person, admin: Person):
    keys: list[Row] = []
    for _ in range(3):
        keys.append(alice.has_key())
        bob.has_key()

    first = keys_of(admin, alice.user_id, "limit=2")
    cursor = first.json()["pagination"]["nextCursor"]
    second = all_keys(admin, f"limit=2&userId={alice.user_id}&cursor={cursor}")

    assert ids(first) + ids(second) == [key["id"] for key in reversed(keys)]
    assert second.json()["pagination"] == {"limit": 2, "total": 3, "totalPages": 2}


def test_filters_hold_for_administrators_too(service: Service, alice: Person, admin: Person):
    mini, other = alice.has_key(modelIds=["gpt-4o-mini"]), alice.has_key()
    service.rows("UPDATE api_keys SET is_active = false WHERE id = %(id)s", id=other["id"])
    user = f"userId={alice.user_id}"

    assert ids(all_keys(admin, f"{user}&modelIds=gpt-4o-mini")) == [mini["id"]]
    assert ids(all_keys(admin, f"{user}&isActive=false")) == [other["id"]]
    assert ids(all_keys(admin, f"{user}&subscriptionId={NOBODY}")) == []
    assert ids(keys_of(admin, alice.user_id, "isActive=true")) == [mini["id"]]


def test_the_user_of_the_path_wins_over_one_of_the_query(alice: Person, bob: Person, admin: Person):
    key = alice.has_key()
    bob.has_key()

    assert ids(keys_of(admin, alice.user_id, f"userId={bob.user_id}")) == [key["id"]]


def test_a_user_without_keys_has_an_empty_list(bob: Person, admin: Person):
    answer = keys_of(admin, bob.user_id)

    assert answer.json() == {"data": [], "pagination": {"page": 1, "limit": 20, "total": 0, "totalPages": 0}}


@pytest.mark.parametrize("user_id", [NOBODY, "not-a-uuid", "%00"], ids=["missing", "text", "NUL"])
def test_a_user_who_is_not_there_is_not_found(admin: Person, user_id: str):
    error = error_of(keys_of(admin, user_id), status=404, code="NOT_FOUND")

    assert (error["message"], error["details"]) == ("User not found", {"resource": "User"})


@pytest.mark.parametrize("user_id", [NOBODY, "not-a-uuid"])
def test_who_may_not_see_is_not_told_whether_a_user_exists(alice: Person, user_id: str):
    error_of(keys_of(alice, user_id), status=403, code="FORBIDDEN")


def test_everything_wrong_with_the_query_is_named_at_once(admin: Person):
    answer = all_keys(admin, "limit=0&isActive=maybe&userId=me&cursor=x&page=1")

    assert violations_of(answer) == [
        ("limit", "range"),
        ("isActive", "type"),
        ("userId", "format"),
        ("cursor", "format"),
        ("page", "not"),
    ]
