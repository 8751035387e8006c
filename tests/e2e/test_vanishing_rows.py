"""LiteMaaS, a cascade or a hand at psql removes rows beside the service: their keys leave LiteLLM all the same."""

from typing import Any, LiteralString

import pytest

from tests.e2e.service import Person, Service, hash_of

SYSTEM_USER = "00000000-0000-0000-0000-000000000001"


def forget_audit_of(person: Person) -> None:
    """LiteMaaS's table lets nobody go whom it still names."""
    person.service.rows("UPDATE audit_logs SET user_id = NULL WHERE user_id = %(user)s", user=person.user_id)


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("DELETE FROM api_keys WHERE user_id = %(user)s", id="its row"),
        pytest.param("DELETE FROM subscriptions WHERE user_id = %(user)s", id="its subscription"),
        pytest.param("DELETE FROM users WHERE id = %(user)s", id="its user"),
    ],
)
def test_a_key_whose_row_is_deleted_by_sql_leaves_litellm(service: Service, alice: Person, statement: LiteralString):
    user_id = alice.user_id
    [subscription] = service.rows(
        "SELECT id::text FROM subscriptions WHERE user_id = %(user)s AND model_id = 'gpt-4o'", user=user_id
    )
    key = alice.create({"subscriptionId": subscription["id"], "name": "ci"}).json()
    token_hash = hash_of(key["key"])

    forget_audit_of(alice)
    service.rows(statement, user=user_id)
    condemned = service.token_of(key["id"])["state"]
    service.settle()

    [_, record] = service.rows("SELECT * FROM audit_logs WHERE resource_id = %(id)s ORDER BY created_at", id=key["id"])
    assert condemned == "condemned"
    assert service.use(key["key"]) == 401
    assert service.gateway_key(token_hash) is None
    assert service.token_of(key["id"])["state"] == "dead"
    assert service.operations_of(key["id"]) == [("create", "done"), ("delete", "done")]
    assert (record["action"], record["success"], str(record["user_id"])) == ("API_KEY_DELETE", True, SYSTEM_USER)
    facts = {name: record["metadata"][name] for name in ("userId", "name", "keyPrefix", "models", "reason")}
    assert facts == {
        "userId": str(user_id),
        "name": "ci",
        "keyPrefix": key["keyPrefix"],
        "models": ["gpt-4o"],
        "reason": "rowRemoved",
    }


def test_all_keys_of_a_user_leave_with_one_run(service: Service, alice: Person, bob: Person):
    keys, others = [alice.has_key() for _ in range(3)], bob.has_key()

    forget_audit_of(alice)
    service.rows("DELETE FROM users WHERE id = %(user)s", user=alice.user_id)
    service.settle()

    assert [service.use(key["key"]) for key in keys] == [401, 401, 401]
    assert service.use(others["key"]) == 200


def test_a_row_whose_key_litemaas_replaced_takes_both_with_it(service: Service, alice: Person):
    """LiteMaaS rotates keys in the same table: then the row's hash is of a key that we have no token for."""
    key = alice.has_key()
    secret = "sk-litemaas-rotated-this-one"
    service.ledger.secrets[secret] = "a key of LiteMaaS's"
    service.gateway("POST", "/key/generate", json={"key": secret, "key_alias": "rotated_1", "models": ["gpt-4o"]})
    service.rows("UPDATE api_keys SET key_hash = %(hash)s WHERE id = %(id)s", hash=hash_of(secret), id=key["id"])

    service.rows("DELETE FROM api_keys WHERE id = %(id)s", id=key["id"])
    service.settle()

    assert (service.use(key["key"]), service.use(secret)) == (401, 401)


def test_a_row_that_vanishes_while_litellm_is_away_is_settled_later(service: Service, alice: Person):
    key = alice.has_key()
    with service.litellm_down():
        service.rows("DELETE FROM api_keys WHERE id = %(id)s", id=key["id"])
        service.settle()
    still_used = service.use(key["key"])
    service.make_due(key["id"])

    service.settle()

    assert still_used == 200
    assert service.use(key["key"]) == 401
    assert service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


def test_a_row_that_vanishes_during_its_pending_delete_does_not_stop_it(service: Service, alice: Person):
    key = alice.has_key()
    with service.litellm_down():
        accepted = alice.delete(key["id"])
    service.rows("DELETE FROM api_keys WHERE id = %(id)s", id=key["id"])
    service.make_due(key["id"])

    service.settle()

    [record] = [record for record in alice.audit() if record["action"] == "API_KEY_DELETE"]
    assert accepted.status_code == 202
    assert service.use(key["key"]) == 401
    assert service.operations_of(key["id"]) == [("create", "done"), ("delete", "done")]
    assert "reason" not in record["metadata"]


def test_a_transaction_that_is_rolled_back_removes_nothing(service: Service, alice: Person):
    key = alice.has_key()

    forget_audit_of(alice)
    with service.transaction() as other:
        other.execute("DELETE FROM users WHERE id = %(user)s", {"user": alice.user_id})
    service.settle()

    assert service.use(key["key"]) == 200
    assert alice.status_of(key["id"]) == "active"


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"key_hash": "not-a-hash", "is_active": True}, id="no hash of LiteLLM's"),
        pytest.param({"key_hash": hash_of("sk-never-made"), "is_active": True}, id="a key LiteLLM does not know"),
    ],
)
def test_rows_that_litellm_never_knew_can_vanish_too(service: Service, alice: Person, row: dict[str, Any]):
    [key] = service.rows(
        "INSERT INTO api_keys (user_id, key_hash, key_prefix, is_active)"
        " VALUES (%(user)s, %(key_hash)s, 'sk-old', %(is_active)s) RETURNING id::text",
        user=alice.user_id,
        **row,
    )

    service.rows("DELETE FROM api_keys WHERE id = %(id)s", id=key["id"])
    service.settle()

    assert ("delete", "pending") not in service.operations_of(key["id"])
