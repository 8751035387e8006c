"""The main job, told once from beginning to end."""

import re
from ipaddress import ip_address

from tests.e2e.service import USER_AGENT, Person, Service, hash_of


def test_a_key_works_from_its_create_to_its_delete_and_leaves_two_audit_records(service: Service, alice: Person):
    created = alice.create(
        {"modelIds": ["gpt-4o", "gpt-4o-mini"], "name": "build server"}, headers={"x-request-id": "create-1"}
    )
    key = created.json()
    used = service.use(key["key"])
    listed = alice.get().json()
    row = service.key_row(key["id"])
    deleted = alice.delete(key["id"], headers={"x-request-id": "delete-1"})

    assert created.status_code == 201
    assert re.fullmatch(r"sk-lmk_[0-9A-Za-z]{49}", key["key"])
    assert used == 200
    assert [listed_key["id"] for listed_key in listed["data"]] == [key["id"]]
    assert row is not None
    assert (row["is_active"], row["sync_status"]) == (True, "synced")
    assert row["key_hash"] == row["lite_llm_key_id"] == hash_of(key["key"])
    assert key["key"] not in repr(row)

    assert deleted.status_code == 200
    assert list(deleted.json()) == ["message", "deletedAt", "effectiveBy"]
    assert deleted.json()["message"] == "API key deleted successfully"
    assert service.use(key["key"]) == 401
    assert service.gateway_key(hash_of(key["key"])) is None
    assert service.key_row(key["id"]) is None
    assert alice.listed() == []
    assert alice.delete(key["id"]).status_code == 404

    creation, deletion = alice.audit()
    for record, action, request_id in (
        (creation, "API_KEY_CREATE", "create-1"),
        (deletion, "API_KEY_DELETE", "delete-1"),
    ):
        assert record["action"] == action
        assert record["resource_type"] == "API_KEY"
        assert record["resource_id"] == key["id"]
        assert record["user_id"] == alice.user_id
        assert record["success"] is True
        assert record["error_message"] is None
        assert record["ip_address"] == ip_address("127.0.0.1")
        assert record["user_agent"] == USER_AGENT
        assert record["metadata"]["requestId"] == request_id
        assert record["metadata"]["userId"] == str(alice.user_id)
        assert record["metadata"]["name"] == "build server"
        assert record["metadata"]["keyPrefix"] == key["keyPrefix"]
        assert record["metadata"]["models"] == ["gpt-4o", "gpt-4o-mini"]
        assert record["metadata"]["modelCount"] == 2
        assert key["key"] not in repr(record)
