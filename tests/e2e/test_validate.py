"""POST /api/v1/api-keys/validate: whether a secret is that of a key that works."""

from typing import Any, LiteralString

import pytest

from tests.e2e.service import KEYS, Person, Service, hash_of, violations_of


@pytest.fixture
def admin(service: Service) -> Person:
    return service.person(roles=["admin"])


def is_valid(admin: Person, secret: str) -> bool:
    answer = admin.service.call("POST", f"{KEYS}/validate", token=admin.token, json={"key": secret})
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["isValid"]
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()["isValid"]


def adopted(person: Person, secret: str) -> str:
    """A row as LiteMaaS makes it: the hash of its secret and no token of ours."""
    [row] = person.service.rows(
        """
        INSERT INTO api_keys (user_id, name, key_hash, key_prefix, sync_status)
        VALUES (%(user)s, 'adopted', %(hash)s, 'sk-abcd', 'synced') RETURNING id::text
        """,
        user=person.user_id,
        hash=hash_of(secret),
    )
    return row["id"]


def test_the_secret_of_a_working_key_is_valid(alice: Person, admin: Person):
    key = alice.has_key()

    assert is_valid(admin, key["key"]) is True


def test_the_secret_of_a_key_that_litemaas_made_is_valid(alice: Person, admin: Person):
    adopted(alice, "sk-made-by-litemaas-1")

    assert is_valid(admin, "sk-made-by-litemaas-1") is True


def test_a_secret_that_litemaas_gave_a_key_of_ours_is_valid(service: Service, alice: Person, admin: Person):
    key, secret = alice.has_key(), "sk-made-by-litemaas-2"
    service.rows("UPDATE api_keys SET key_hash = %(hash)s WHERE id = %(id)s", hash=hash_of(secret), id=key["id"])

    assert is_valid(admin, secret) is True


@pytest.mark.parametrize(
    "secret", ["x", "", "sk-" + "0" * 64, "ключ"], ids=["garbage", "empty", "unknown", "not ASCII"]
)
def test_what_is_no_secret_of_ours_is_not_valid(admin: Person, secret: str):
    assert is_valid(admin, secret) is False


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("expires_at = now() - interval '1 second'", id="expired"),
        pytest.param("revoked_at = now()", id="revoked"),
        pytest.param("is_active = false", id="switched off"),
        pytest.param("sync_status = 'error'", id="unknown to LiteLLM"),
    ],
)
@pytest.mark.parametrize("maker", ["ours", "LiteMaaS"])
def test_the_secret_of_a_key_that_does_not_work_is_not_valid(
    service: Service, alice: Person, admin: Person, change: LiteralString, maker: str
):
    if maker == "ours":
        key = alice.has_key()
        key_id, secret = key["id"], key["key"]
    else:
        secret = f"sk-made-by-litemaas-{alice.subject}"
        key_id = adopted(alice, secret)
    service.rows(f"UPDATE api_keys SET {change} WHERE id = %(id)s", id=key_id)

    assert is_valid(admin, secret) is False


@pytest.mark.parametrize(
    ("state", "valid"),
    [
        pytest.param("state = 'intended'", False, id="not confirmed"),
        pytest.param("state = 'condemned'", False, id="condemned"),
        pytest.param("state = 'dead'", False, id="dead"),
        pytest.param("state = 'retiring', valid_until = now() + interval '1 hour'", True, id="in its grace"),
        pytest.param("state = 'retiring', valid_until = now() - interval '1 hour'", False, id="after its grace"),
    ],
)
def test_the_token_has_to_be_alive(
    service: Service, alice: Person, admin: Person, state: LiteralString, *, valid: bool
):
    key = alice.has_key()
    service.rows(f"UPDATE api_key_tokens SET {state} WHERE api_key_id = %(id)s", id=key["id"])

    assert is_valid(admin, key["key"]) is valid


def test_the_secret_of_a_deleted_key_is_not_valid(alice: Person, admin: Person):
    key = alice.has_key()
    alice.delete(key["id"])

    assert is_valid(admin, key["key"]) is False


def test_the_secret_stands_in_no_log_and_no_table(service: Service, admin: Person):
    secret = f"sk-canary-{admin.subject}-0123456789abcdef"

    is_valid(admin, secret)

    assert [text.where for text in service.texts() if secret in text.content] == []


@pytest.mark.parametrize(
    ("body", "violations"),
    [
        pytest.param({}, [("key", "required")], id="nothing"),
        pytest.param({"key": None}, [("key", "required")], id="null"),
        pytest.param({"key": 5}, [("key", "type")], id="a number"),
        pytest.param({"token": "x"}, [("token", "additionalProperties"), ("key", "required")], id="another field"),
    ],
)
def test_a_body_without_a_key_is_refused(service: Service, admin: Person, body: Any, violations: list[tuple[str, str]]):
    answer = service.call("POST", f"{KEYS}/validate", token=admin.token, json=body)

    assert violations_of(answer) == violations
