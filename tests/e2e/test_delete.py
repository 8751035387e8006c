"""DELETE /api/v1/api-keys/{id}."""

from datetime import datetime, timedelta

import pytest

from tests.e2e.service import Person, Service, error_of, hash_of


def test_a_delete_says_when_it_happened_and_when_no_replica_accepts_the_key_any_more(service: Service, alice: Person):
    key = alice.has_key()

    answer = alice.delete(key["id"])

    deleted_at = datetime.fromisoformat(answer.json()["deletedAt"])
    effective_by = datetime.fromisoformat(answer.json()["effectiveBy"])
    [operation] = service.rows(
        "SELECT finished_at FROM api_key_operations WHERE api_key_id = %(id)s AND kind = 'delete'", id=key["id"]
    )
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["deletedAt"].endswith("Z")
    assert effective_by - deleted_at == timedelta(seconds=60)
    assert abs(operation["finished_at"] - deleted_at) < timedelta(milliseconds=1)


def test_a_delete_ends_the_token_and_the_operation_for_good(service: Service, alice: Person):
    key = alice.has_key()

    alice.delete(key["id"])

    assert service.token_of(key["id"])["state"] == "dead"
    assert service.operations_of(key["id"]) == [("create", "done"), ("delete", "done")]
    assert service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]
    assert service.rows("SELECT * FROM api_key_models WHERE api_key_id = %(id)s", id=key["id"]) == []
    assert alice.gateway_keys() == []


@pytest.mark.parametrize(
    "key_id",
    [
        pytest.param("not-a-uuid", id="no UUID"),
        pytest.param("1", id="a number"),
        pytest.param("9999999999994999899999999999999", id="too short"),
        pytest.param("{99999999-9999-4999-8999-999999999999}", id="in braces"),
        pytest.param("urn:uuid:99999999-9999-4999-8999-999999999999", id="a URN"),
        pytest.param("99999999999949998999999999999999", id="without hyphens"),
        pytest.param("%00", id="NUL"),
        pytest.param("%FF%FE", id="not UTF-8"),
        pytest.param("%27%20OR%201=1--", id="SQL"),
        pytest.param("x" * 4000, id="4000 characters"),
    ],
)
def test_an_id_that_is_no_uuid_is_not_found(alice: Person, key_id: str):
    answer = alice.delete(key_id)

    error = error_of(answer, status=404, code="NOT_FOUND")
    assert error["message"] == "API key not found"
    assert "id" not in error["details"]


def test_a_key_nobody_has_is_not_found(alice: Person):
    answer = alice.delete("99999999-9999-4999-8999-999999999999")

    error = error_of(answer, status=404, code="NOT_FOUND")
    assert error["message"] == "API key with ID '99999999-9999-4999-8999-999999999999' not found"
    assert error["details"] == {
        "resource": "API key",
        "id": "99999999-9999-4999-8999-999999999999",
        "suggestion": "API key not found or you do not have permission to access it",
    }


def test_somebody_elses_key_is_not_found_and_stays(service: Service, alice: Person, bob: Person):
    key = alice.has_key()

    answer = bob.delete(key["id"])

    row = service.key_row(key["id"])
    error_of(answer, status=404, code="NOT_FOUND")
    assert service.use(key["key"]) == 200
    assert row is not None
    assert row["is_active"] is True
    assert service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True)]


def test_deleting_twice_is_not_found_and_audited_once(service: Service, alice: Person):
    key = alice.has_key()

    first, second = alice.delete(key["id"]), alice.delete(key["id"])

    assert first.status_code == 200
    error_of(second, status=404, code="NOT_FOUND")
    assert service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


def test_an_id_in_capitals_is_the_same_key(service: Service, alice: Person):
    key = alice.has_key()

    answer = alice.delete(key["id"].upper())

    assert answer.status_code == 200
    assert service.key_row(key["id"]) is None


def test_a_body_on_a_delete_is_ignored(service: Service, alice: Person):
    key = alice.has_key()

    answer = service.call(
        "DELETE",
        f"/api/v1/api-keys/{key['id']}",
        token=alice.token,
        content="{",
        headers={"content-type": "text/plain"},
    )

    assert answer.status_code == 200


def test_an_expired_key_can_be_deleted(service: Service, alice: Person):
    key = alice.has_key()
    service.rows("UPDATE api_keys SET expires_at = now() - interval '1 day' WHERE id = %(id)s", id=key["id"])

    answer = alice.delete(key["id"])

    assert answer.status_code == 200
    assert service.gateway_key(hash_of(key["key"])) is None


def test_a_key_that_litellm_lost_can_be_deleted(service: Service, alice: Person):
    key = alice.has_key()
    service.gateway("POST", "/key/delete", json={"keys": [hash_of(key["key"])]})

    answer = alice.delete(key["id"])

    assert answer.status_code == 200
    assert service.key_row(key["id"]) is None
    assert service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


def test_a_key_that_litemaas_made_is_deleted_in_litellm_too(service: Service, alice: Person):
    secret = "sk-litemaas-made-this-one"
    service.ledger.secrets[secret] = "a key of LiteMaaS's"
    service.gateway("POST", "/key/generate", json={"key": secret, "key_alias": "old_1", "models": ["gpt-4o"]})
    [row] = service.rows(
        """
        INSERT INTO api_keys (user_id, name, key_hash, key_prefix, litellm_key_alias, sync_status)
        VALUES (%(user)s, 'old', %(hash)s, 'sk-lite', 'old_1', 'synced') RETURNING id::text
        """,
        user=alice.user_id,
        hash=hash_of(secret),
    )

    answer = alice.delete(row["id"])

    assert answer.status_code == 200
    assert service.use(secret) == 401
    assert service.key_row(row["id"]) is None
    assert service.token_of(row["id"])["state"] == "dead"


def test_an_old_revoked_row_is_left_alone_by_everything_but_its_own_delete(service: Service, alice: Person):
    [row] = service.rows(
        """
        INSERT INTO api_keys (user_id, name, key_hash, key_prefix, is_active, revoked_at)
        VALUES (%(user)s, 'revoked', %(hash)s, 'sk-lite', false, now() - interval '1 year') RETURNING id::text
        """,
        user=alice.user_id,
        hash=hash_of("sk-revoked-a-year-ago"),
    )
    other = alice.has_key()

    alice.delete(other["id"])

    assert alice.status_of(row["id"]) == "revoked"
    assert alice.delete(row["id"]).status_code == 200
    assert alice.key_rows() == []
