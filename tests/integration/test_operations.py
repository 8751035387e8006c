"""The operator's view of the journal: for administrators only, oldest first, and a retry that settling takes up."""

from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from keyservice.errors import Forbidden, GatewayRefused, InvalidRequest, NotFound, OperationOver, OperationPending
from keyservice.models import OperationPage, RetriedOperation
from keyservice.operations import Operations
from tests.integration.service import Service, caller


def listed(service: Service, *, roles: tuple[str, ...] = ("admin",), name: str = "root", **query: str) -> OperationPage:
    return Operations(database=service.database).page(caller(name, roles=roles), query)


def retried(
    service: Service, operation_id: object, *, roles: tuple[str, ...] = ("admin",), name: str = "root"
) -> RetriedOperation:
    return Operations(database=service.database).retry(caller(name, roles=roles), str(operation_id))


def pending_create(service: Service) -> UUID:
    service.gateway_faults.inject("/key/generate", "status", status=500)
    with pytest.raises(OperationPending):
        service.create()
    return service.value(
        "SELECT id FROM api_key_operations WHERE state = 'pending' ORDER BY created_at DESC, id DESC LIMIT 1"
    )


def failed_create(service: Service) -> UUID:
    service.gateway_faults.inject("/key/generate", "status", status=403)
    with pytest.raises(GatewayRefused):
        service.create()
    return service.value(
        "SELECT id FROM api_key_operations WHERE state = 'failed' ORDER BY created_at DESC, id DESC LIMIT 1"
    )


class TestWhoMaySee:
    @pytest.mark.parametrize(
        "roles", [("admin",), ("admin-readonly",), ("user", "admin"), ("readonly", "admin-readonly")]
    )
    def test_is_an_administrator_by_the_token(self, service: Service, roles: tuple[str, ...]):
        operation_id = pending_create(service)

        assert [operation.id for operation in listed(service, roles=roles).data] == [operation_id]

    @pytest.mark.parametrize("role", ["admin", "admin-readonly"])
    def test_is_an_administrator_by_the_database(self, service: Service, role: str):
        operation_id = pending_create(service)
        service.rows("UPDATE users SET roles = %s WHERE oauth_id = 'alice'", [[role]])

        page = listed(service, roles=(), name="alice")

        assert [operation.id for operation in page.data] == [operation_id]

    @pytest.mark.parametrize("roles", [(), ("user",), ("readonly",), ("user", "readonly")])
    @pytest.mark.parametrize("name", ["alice", "nobody-yet"])
    def test_is_nobody_else(self, service: Service, roles: tuple[str, ...], name: str):
        pending_create(service)

        with pytest.raises(Forbidden) as caught:
            listed(service, roles=roles, name=name)

        assert caught.value.message == "This needs an administrator's role."

    def test_is_no_inactive_administrator(self, service: Service):
        service.subscribe("root", models=[])
        service.rows("UPDATE users SET is_active = false WHERE oauth_id = 'root'")

        with pytest.raises(Forbidden) as caught:
            listed(service)

        assert caught.value.message == "This account is not active. Ask an administrator."

    def test_need_not_have_been_here_before(self, service: Service):
        assert listed(service, name="first-time").data == []

    def test_may_have_no_roles_in_the_database(self, service: Service):
        service.rows("UPDATE users SET roles = NULL WHERE oauth_id = 'alice'")

        assert listed(service, name="alice", roles=("admin",)).data == []
        with pytest.raises(Forbidden):
            listed(service, name="alice", roles=())


class TestListedOperation:
    def test_says_how_old_it_is_what_was_tried_and_what_went_wrong(self, service: Service):
        operation_id = pending_create(service)
        service.rows("UPDATE api_key_operations SET created_at = '2026-01-02T03:04:05.678Z', attempts = 7")

        [operation] = listed(service).data

        shown: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(operation))
        [row] = service.rows("SELECT api_key_id, user_id FROM api_key_operations")
        assert shown.pop("ageSeconds") > 86_400
        assert shown.pop("nextAttemptAt").endswith("Z")
        assert shown == {
            "id": str(operation_id),
            "kind": "create",
            "phase": "forward",
            "state": "pending",
            "keyId": str(row["api_key_id"]),
            "userId": str(row["user_id"]),
            "attempts": 7,
            "lastError": "key/generate: answered 500",
            "createdAt": "2026-01-02T03:04:05.678Z",
        }

    def test_that_failed_says_when_and_has_no_next_attempt(self, service: Service):
        operation_id = failed_create(service)

        [operation] = listed(service, state="failed").data

        shown: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(operation))
        assert (shown["id"], shown["state"], shown["phase"]) == (str(operation_id), "failed", "undo")
        assert shown["lastError"] == "refused by LiteLLM: 403"
        assert shown["finishedAt"].endswith("Z")
        assert "nextAttemptAt" not in shown

    def test_that_nothing_went_wrong_with_has_no_error(self, service: Service):
        pending_create(service)
        service.rows("UPDATE api_key_operations SET last_error = NULL")

        [operation] = listed(service).data

        assert "lastError" not in msgspec.to_builtins(operation)

    def test_is_in_the_state_asked_for(self, service: Service):
        service.create()
        pending, failed = pending_create(service), failed_create(service)

        assert [operation.id for operation in listed(service).data] == [pending]
        assert [operation.id for operation in listed(service, state="pending").data] == [pending]
        assert [operation.id for operation in listed(service, state="failed").data] == [failed]


class TestPages:
    def test_come_oldest_first_and_show_each_once(self, service: Service):
        for _ in range(5):
            pending_create(service)
        # Two of one moment: the id decides.
        service.rows("UPDATE api_key_operations SET created_at = date_trunc('minute', created_at)")

        first = listed(service, limit="2")
        second = listed(service, limit="2", cursor=str(first.pagination.next_cursor))
        third = listed(service, limit="2", cursor=str(second.pagination.next_cursor))

        expected = [row["id"] for row in service.rows("SELECT id FROM api_key_operations ORDER BY created_at, id")]
        assert [[operation.id for operation in page.data] for page in (first, second, third)] == [
            *(expected[:2], expected[2:4], expected[4:])
        ]
        assert msgspec.to_builtins(third.pagination) == {"limit": 2}

    @pytest.mark.parametrize(
        ("query", "fields"),
        [
            pytest.param({"state": "done"}, ["state"], id="a state that is not shown"),
            pytest.param({"state": ""}, ["state"], id="no state"),
            pytest.param({"limit": "0"}, ["limit"], id="limit too small"),
            pytest.param({"limit": "101"}, ["limit"], id="limit too large"),
            pytest.param({"cursor": "%%%"}, ["cursor"], id="no cursor"),
            pytest.param({"limit": "x", "cursor": "x", "state": "x"}, ["limit", "cursor", "state"], id="all at once"),
        ],
    )
    def test_of_a_query_that_is_wrong_are_refused(self, service: Service, query: dict[str, str], fields: list[str]):
        with pytest.raises(InvalidRequest) as caught:
            Operations(database=service.database).page(caller("root", roles=("admin",)), query)

        assert [violation.field for violation in caught.value.details["validation"]] == fields
        assert service.database_faults.round_trips == 0

    def test_are_read_again_when_the_connection_is_cut(self, service: Service):
        operation_id = pending_create(service)
        service.database_faults.cut_after("list_operations")

        assert [operation.id for operation in listed(service).data] == [operation_id]


class TestRetry:
    def test_makes_an_operation_due_and_settling_takes_it(self, service: Service):
        operation_id = pending_create(service)
        service.rows("UPDATE api_key_tokens SET unsafe_until = NULL")
        before = service.settle().attempted

        answer = retried(service, operation_id)

        assert before == 0
        assert answer == RetriedOperation(
            id=operation_id, message="The operation is due and will be attempted within a minute"
        )
        assert service.settle().settled == 1

    def test_is_audited_with_who_asked_for_it(self, service: Service):
        operation_id = pending_create(service)
        root_id = service.subscribe("root", models=[])

        retried(service, operation_id)

        [audit] = service.rows("SELECT *, host(ip_address) AS ip FROM audit_logs")
        assert (audit["action"], audit["success"]) == ("API_KEY_OPERATION_RETRY", True)
        assert (audit["user_id"], audit["resource_id"]) == (root_id, str(service.only_key_id()))
        assert (audit["ip"], audit["user_agent"]) == ("203.0.113.9", "test/1.0")
        assert audit["metadata"] == {"requestId": "request-of-root", "operationId": str(operation_id)}

    def test_leaves_a_running_attempt_alone(self, service: Service):
        operation_id = pending_create(service)
        service.rows("UPDATE api_key_operations SET lease_until = now() + interval '30 s'")

        retried(service, operation_id)

        assert service.settle().attempted == 0

    @pytest.mark.parametrize("roles", [(), ("user",), ("readonly",), ("admin-readonly",)])
    def test_by_anybody_but_an_administrator_is_forbidden_and_changes_nothing(
        self, service: Service, roles: tuple[str, ...]
    ):
        operation_id = pending_create(service)
        before = service.rows("SELECT * FROM api_key_operations")

        with pytest.raises(Forbidden):
            retried(service, operation_id, roles=roles)

        assert service.rows("SELECT * FROM api_key_operations") == before
        assert service.rows("SELECT FROM audit_logs") == []

    def test_by_an_inactive_administrator_is_forbidden_and_changes_nothing(self, service: Service):
        operation_id = pending_create(service)
        service.rows("UPDATE users SET is_active = false, roles = '{admin}' WHERE oauth_id = 'alice'")
        before = service.rows("SELECT * FROM api_key_operations")

        with pytest.raises(Forbidden):
            retried(service, operation_id, name="alice")

        assert service.rows("SELECT * FROM api_key_operations") == before

    @pytest.mark.parametrize("operation_id", ["9e107d9d-372b-4b6a-8f3e-5a1c0b6d2f47", "x", "", "a" * 5000, "\0"])
    def test_of_an_unknown_operation_is_not_found(self, service: Service, operation_id: str):
        with pytest.raises(NotFound) as caught:
            retried(service, operation_id)

        assert caught.value.message == "Operation not found"

    def test_of_an_unknown_operation_is_forbidden_first(self, service: Service):
        with pytest.raises(Forbidden):
            retried(service, uuid4(), roles=("user",))

    def test_of_an_operation_that_is_over_is_refused(self, service: Service):
        failed = failed_create(service)
        service.create()
        done = service.value("SELECT id FROM api_key_operations WHERE state = 'done'")

        for operation_id in (failed, done):
            with pytest.raises(OperationOver) as caught:
                retried(service, operation_id)
            assert (caught.value.status, caught.value.code) == (409, "OPERATION_OVER")
        assert service.settle().attempted == 0
