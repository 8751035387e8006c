"""POST /api/v1/api-keys/{id}/reset-spend."""

import pytest

from tests.e2e.conftest import FragileService
from tests.e2e.service import Person, Service, assert_asks_to_retry, error_of, hash_of


@pytest.fixture
def admin(service: Service) -> Person:
    return service.person(roles=["admin"])


def spend_of(service: Service, secret: str) -> float:
    known = service.gateway_key(hash_of(secret))
    assert known is not None
    return known["spend"]


def has_spent(person: Person, usd: float) -> tuple[str, str]:
    """The id and the secret of a key that LiteLLM and the row say has spent so much."""
    key = person.has_key(maxBudget=10)
    answer = person.service.gateway("POST", "/key/update", json={"key": hash_of(key["key"]), "spend": usd})
    assert answer.status_code == 200, answer.text
    person.service.rows("UPDATE api_keys SET current_spend = %(usd)s WHERE id = %(id)s", usd=usd, id=key["id"])
    return key["id"], key["key"]


def test_makes_a_key_over_its_budget_work_again(service: Service, alice: Person, admin: Person):
    key_id, secret = has_spent(alice, 12)
    assert service.use(secret) != 200

    answer = admin.reset_spend(key_id)

    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["id", "currentSpend", "resetAt"]
    assert (answer.json()["id"], answer.json()["currentSpend"]) == (key_id, 0)
    assert service.use(secret) == 200
    row = service.key_row(key_id)
    assert row is not None
    assert row["current_spend"] == 0
    assert row["max_budget"] == 10


def test_is_audited_with_what_was_spent(service: Service, alice: Person, admin: Person):
    key_id, _ = has_spent(alice, 2.5)

    admin.reset_spend(key_id)

    [record] = service.rows(
        "SELECT * FROM audit_logs WHERE resource_id = %(id)s AND action = 'API_KEY_RESET_SPEND'", id=key_id
    )
    assert (record["user_id"], record["metadata"]["userId"]) == (admin.user_id, str(alice.user_id))
    assert (record["success"], record["old_values"], record["new_values"]) == (
        True,
        {"current_spend": 2.5},
        {"current_spend": 0},
    )


def test_is_not_for_owners_unless_the_stack_says_so(service: Service, alice: Person, bob: Person):
    key_id, secret = has_spent(alice, 2.5)

    error = error_of(alice.reset_spend(key_id), status=403, code="FORBIDDEN")

    assert error["message"] == "Only administrators may reset the spend of a key."
    error_of(bob.reset_spend(key_id), status=404, code="NOT_FOUND")
    assert spend_of(service, secret) == 2.5


def test_of_an_inactive_key_is_400_as_in_litemaas(service: Service, alice: Person, admin: Person):
    key_id, _ = has_spent(alice, 2.5)
    service.rows("UPDATE api_keys SET is_active = false WHERE id = %(id)s", id=key_id)

    error = error_of(admin.reset_spend(key_id), status=400, code="VALIDATION_ERROR")

    assert error["message"] == "Cannot reset spend for inactive API key"
    assert error["details"]["suggestion"] == "A key that is inactive, revoked or expired stays so. Create a new API key"


class TestWhereOwnersMay:
    @pytest.fixture
    def grace(self, fragile_service: FragileService) -> Person:
        """The fragile stack has OwnersMayResetSpend."""
        return fragile_service.person()

    def test_they_may_reset_their_own(self, fragile_service: FragileService, grace: Person):
        key_id, secret = has_spent(grace, 2.5)

        assert grace.reset_spend(key_id).status_code == 200

        assert spend_of(fragile_service, secret) == 0
        other = fragile_service.person()
        error_of(other.reset_spend(key_id), status=404, code="NOT_FOUND")

    def test_what_litellm_did_not_answer_is_settled(self, settling_service: FragileService, grace: Person):
        key_id, secret = has_spent(grace, 2.5)
        settling_service.gateway_faults.inject("/key/update", "reset_before")

        assert_asks_to_retry(grace.reset_spend(key_id))
        error_of(grace.update(key_id, {"tpmLimit": 1}), status=409, code="OPERATION_IN_PROGRESS")

        settling_service.make_due(key_id)
        assert settling_service.settle()["settled"] == 1
        assert spend_of(settling_service, secret) == 0
        row = settling_service.key_row(key_id)
        assert row is not None
        assert row["current_spend"] == 0

    def test_asking_again_takes_it_over(self, fragile_service: FragileService, grace: Person):
        key_id, secret = has_spent(grace, 2.5)
        fragile_service.gateway_faults.inject("/key/update", "reset_before")
        assert_asks_to_retry(grace.reset_spend(key_id))
        fragile_service.make_due(key_id)

        assert grace.reset_spend(key_id).status_code == 200

        assert spend_of(fragile_service, secret) == 0
        assert fragile_service.audit_of_key(key_id)[1:] == [
            ("API_KEY_RESET_SPEND", False),
            ("API_KEY_RESET_SPEND", True),
        ]
