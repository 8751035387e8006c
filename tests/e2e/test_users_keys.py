"""What administrators do to a user's keys, over HTTP."""

from datetime import datetime as moment
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import FragileService
from tests.e2e.service import AUDIT, KEYS, Person, Service, error_of, hash_of


@pytest.fixture
def admin(service: Service) -> Person:
    return service.person(roles=["admin"], is_known=False)


def keys_of(person: Person) -> str:
    return f"/api/v1/admin/users/{person.user_id}/api-keys"


def ask(admin: Person, method: str, path: str, **arguments: Any) -> httpx.Response:
    return admin.service.call(method, path, token=admin.token, **arguments)


def test_a_key_made_for_a_user_is_theirs(service: Service, alice: Person, admin: Person):
    answer = ask(admin, "POST", keys_of(alice), json={"modelIds": ["gpt-4o"], "name": "given"})

    assert answer.status_code == 201, answer.text
    key = answer.json()
    assert key["userId"] == str(alice.user_id)
    assert answer.headers["cache-control"] == "no-store"
    assert service.use(key["key"]) == 200
    assert [listed["id"] for listed in alice.listed()] == [key["id"]]
    assert admin.listed() == []
    [record] = admin.audit()
    assert (record["action"], record["resource_id"], record["metadata"]["userId"]) == (
        "API_KEY_CREATE",
        key["id"],
        str(alice.user_id),
    )
    assert alice.delete(key["id"]).status_code == 200


def test_a_repeated_create_for_a_user_is_the_same_answer(service: Service, alice: Person, admin: Person):
    once = f"once-{admin.subject}"
    service.ledger.secrets[once] = "an Idempotency-Key"

    first, again = (
        ask(admin, "POST", keys_of(alice), json={"modelIds": ["gpt-4o"]}, headers={"idempotency-key": once})
        for _ in range(2)
    )

    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    assert len(alice.key_rows()) == 1


def test_a_revoked_key_stays_to_be_seen_and_works_no_more(service: Service, alice: Person, admin: Person):
    key = alice.has_key()

    answer = ask(admin, "DELETE", f"{keys_of(alice)}/{key['id']}")

    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["message", "revokedAt", "effectiveBy"]
    assert answer.json()["message"] == "API key revoked successfully"
    effective = moment.fromisoformat(answer.json()["effectiveBy"]) - moment.fromisoformat(answer.json()["revokedAt"])
    assert effective == timedelta(seconds=60)
    assert service.use(key["key"]) == 401
    assert alice.status_of(key["id"]) == "revoked"
    assert service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_REVOKE", True)]
    error_of(ask(admin, "DELETE", f"{keys_of(alice)}/{key['id']}"), status=404, code="NOT_FOUND")


def test_a_permanent_delete_takes_the_row(service: Service, alice: Person, admin: Person):
    key = alice.has_key()

    answer = ask(admin, "DELETE", f"{keys_of(alice)}/{key['id']}?permanent=true")

    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["message", "deletedAt", "effectiveBy"]
    assert service.key_row(key["id"]) is None
    assert service.gateway_key(hash_of(key["key"])) is None


def test_the_audit_tells_a_users_records_whoever_made_them(alice: Person, admin: Person):
    own = alice.has_key()
    given = ask(admin, "POST", keys_of(alice), json={"modelIds": ["gpt-4o"]}).json()

    def found(query: str) -> list[str]:
        answer = ask(admin, "GET", f"{AUDIT}?{query}")
        assert answer.status_code == 200, answer.text
        return [record["resourceId"] for record in answer.json()["data"]]

    assert found(f"subjectId={alice.user_id}") == [given["id"], own["id"]]
    assert found(f"subjectId={alice.user_id}&userId={admin.user_id}") == [given["id"]]
    assert found(f"subjectId={alice.user_id}&resourceType=API_KEY") == [given["id"], own["id"]]
    assert found(f"subjectId={alice.user_id}&resourceType=TEAM") == []


def test_expired_keys_are_cleaned_up(service: Service, alice: Person, admin: Person):
    key = alice.has_key()
    service.rows("UPDATE api_keys SET expires_at = now() WHERE id = %(id)s", id=key["id"])

    answer = ask(admin, "POST", f"{KEYS}/admin/cleanup-expired")

    assert answer.status_code == 200, answer.text
    assert answer.json()["message"] == "Expired API keys cleaned up successfully"
    assert answer.json()["cleanedCount"] >= 1
    assert answer.json()["pendingCount"] == 0
    assert service.gateway_key(hash_of(key["key"])) is None
    assert alice.status_of(key["id"]) == "expired"


def test_what_administrators_change_takes_as_many_round_trips_as_the_owners_own(fragile_service: FragileService):
    alice, admin = fragile_service.person(), fragile_service.person(roles=["admin"])
    key = alice.has_key()
    fragile_service.database_faults.reset_counts()

    assert ask(admin, "POST", keys_of(alice), json={"modelIds": ["gpt-4o"]}).status_code == 201
    assert ask(admin, "DELETE", f"{keys_of(alice)}/{key['id']}").status_code == 200

    assert [trip.steps for trip in fragile_service.database_faults.trips] == [
        ("lock_owner", "begin_create"),
        ("lock_user", "lock_key", "finish_create"),
        ("lock_users_key", "begin_delete"),
        ("lock_key", "finish_delete"),
    ]
