"""Keys past their expiry leave LiteLLM, exactly once, with an audit record; the stack decides about their rows."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from tests.e2e.conftest import FragileService
from tests.e2e.service import Person, Row, Service, hash_of

SYSTEM_USER = "00000000-0000-0000-0000-000000000001"


def expire(service: Service, *keys: Row) -> None:
    """In our row only; LiteLLM's own end is far away."""
    for key in keys:
        service.rows("UPDATE api_keys SET expires_at = now() WHERE id = %(id)s", id=key["id"])


def test_litellm_refuses_an_expired_key_before_we_do_anything(service: Service, alice: Person):
    soon = datetime.now(UTC) + timedelta(seconds=2)
    key = alice.has_key(expiresAt=soon.isoformat())
    used = service.use(key["key"])

    deadline = time.monotonic() + 30
    while service.use(key["key"]) == 200:
        assert time.monotonic() < deadline, "LiteLLM still accepts the key"
        time.sleep(0.1)
    refused_at = datetime.now(UTC)

    row = service.key_row(key["id"])
    assert used == 200
    assert row is not None
    # Nothing of ours has happened yet: it was LiteLLM alone, and not before its time.
    assert (row["is_active"], row["sync_status"]) == (True, "synced")
    assert refused_at >= soon - timedelta(seconds=1)
    assert service.gateway_key(hash_of(key["key"])) is not None
    assert service.operations_of(key["id"]) == [("create", "done")]


def test_an_expired_key_leaves_litellm_and_its_row_stays_as_expired(service: Service, alice: Person):
    key = alice.has_key(name="ci", modelIds=["gpt-4o", "gpt-4o-mini"])
    other = alice.has_key(expiresAt="2029-01-01T00:00:00Z")
    expire(service, key)

    first, second = service.settle(), service.settle()

    row = service.key_row(key["id"])
    [_, record] = service.rows("SELECT * FROM audit_logs WHERE resource_id = %(id)s ORDER BY created_at", id=key["id"])
    [shown] = [listed for listed in alice.listed() if listed["id"] == key["id"]]
    assert first["expired"] >= 1
    assert second["expired"] == 0
    assert row is not None
    assert (row["is_active"], row["sync_status"]) == (False, "synced")
    assert (shown["status"], shown["isActive"], shown["models"]) == ("expired", False, ["gpt-4o", "gpt-4o-mini"])
    assert service.use(key["key"]) == 401
    assert alice.gateway_keys() == [hash_of(other["key"])]
    assert service.token_of(key["id"])["state"] == "dead"
    assert service.operations_of(key["id"]) == [("create", "done"), ("delete", "done")]
    assert (record["action"], record["success"], str(record["user_id"])) == ("API_KEY_EXPIRED", True, SYSTEM_USER)
    assert record["metadata"]["userId"] == str(alice.user_id)
    assert (record["metadata"]["name"], record["metadata"]["keyPrefix"]) == ("ci", key["keyPrefix"])
    assert record["metadata"]["models"] == ["gpt-4o", "gpt-4o-mini"]


def test_an_expired_row_that_stayed_can_be_deleted(service: Service, alice: Person):
    key = alice.has_key()
    expire(service, key)
    service.settle()

    answer = alice.delete(key["id"])

    assert answer.status_code == 200
    assert alice.key_rows() == []
    assert service.audit_of_key(key["id"]) == [
        ("API_KEY_CREATE", True),
        ("API_KEY_EXPIRED", True),
        ("API_KEY_DELETE", True),
    ]


def test_where_expiry_deletes_the_row_goes_as_well(settling_service: FragileService):
    rita = settling_service.person()
    key = rita.has_key()
    expire(settling_service, key)

    report = settling_service.settle()

    assert (report["expired"], report["attempted"], report["settled"]) == (1, 1, 1)
    assert rita.listed() == rita.gateway_keys() == []
    assert settling_service.use(key["key"]) == 401
    assert settling_service.token_of(key["id"])["state"] == "dead"
    assert settling_service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_EXPIRED", True)]


def test_two_settlers_at_once_expire_every_key_once(settling_service: FragileService):
    rita = settling_service.person()
    keys = [rita.has_key() for _ in range(5)]
    expire(settling_service, *keys)

    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(lambda _: settling_service.settle(), range(2)))

    assert sum(report["expired"] for report in reports) == 5
    assert rita.key_rows() == rita.gateway_keys() == []
    for key in keys:
        assert settling_service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_EXPIRED", True)]


def test_while_litellm_is_away_an_expired_key_waits(settling_service: FragileService):
    rita = settling_service.person()
    key = rita.has_key()
    expire(settling_service, key)
    settling_service.gateway_faults.inject("/key/delete", "reset_before")
    in_vain = settling_service.settle()
    [shown] = rita.listed()
    settling_service.make_due(key["id"])

    report = settling_service.settle()

    assert (in_vain["expired"], in_vain["settled"]) == (1, 0)
    assert shown["isActive"] is False
    assert (report["expired"], report["settled"]) == (0, 1)
    assert rita.key_rows() == rita.gateway_keys() == []
    assert settling_service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_EXPIRED", True)]


def test_an_owner_who_deletes_a_key_that_is_expiring_has_their_own_audit_record(service: Service, alice: Person):
    key = alice.has_key()
    expire(service, key)
    with service.litellm_down():
        service.settle()
        service.make_due(key["id"])

    answer = alice.delete(key["id"])

    assert answer.status_code == 200
    assert alice.key_rows() == alice.gateway_keys() == []
    assert [record["action"] for record in alice.audit()] == ["API_KEY_CREATE", "API_KEY_DELETE"]


def test_keys_that_do_not_expire_or_were_revoked_stay(service: Service, alice: Person):
    lasting, revoked = alice.has_key(expiresAt="2029-01-01T00:00:00Z"), alice.has_key()
    expire(service, revoked)
    service.rows("UPDATE api_keys SET revoked_at = now() WHERE id = %(id)s", id=revoked["id"])

    service.settle()

    assert service.use(lasting["key"]) == 200
    for key in (lasting, revoked):
        assert service.operations_of(key["id"]) == [("create", "done")]
