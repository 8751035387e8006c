"""Keys past their expiry leave through the same durable path as deleted ones, exactly once."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from keyservice.models import Deadline, DeletedKey, PendingDeletion, Settled
from keyservice.settlement_store import SYSTEM_USER
from tests.integration.service import Service, Traces, all_at_once, caller, hash_of

DEACTIVATED = Traces(
    row=(False, "synced"),
    tokens=[("dead", False)],
    operations=[("create", "forward", "done"), ("delete", "forward", "done")],
    audits=[("API_KEY_CREATE", True), ("API_KEY_EXPIRED", True)],
)
REMOVED = Traces(
    row=None,
    tokens=[("dead", False)],
    operations=[("create", "forward", "done"), ("delete", "forward", "done")],
    audits=[("API_KEY_CREATE", True), ("API_KEY_EXPIRED", True)],
)
EXPIRING = Traces(
    row=(False, "pending"),
    tokens=[("condemned", False)],
    operations=[("create", "forward", "done"), ("delete", "forward", "pending")],
    audits=[("API_KEY_CREATE", True)],
)
# LiteLLM's clock and ours are one here; in real life the key is refused there when its own time is over.
MODES = pytest.mark.parametrize(
    ("keeps_rows", "left"),
    [pytest.param(True, DEACTIVATED, id="deactivate"), pytest.param(False, REMOVED, id="delete")],
)


def expired_key(service: Service) -> UUID:
    """A live key whose time is over for the database."""
    issued = service.create()
    service.rows("UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = %s", [issued.id])
    return issued.id


def test_litellm_refuses_an_expired_key_before_anything_is_settled(service: Service):
    issued = service.create(expires_at=datetime.now(UTC) + timedelta(seconds=2.5))
    assert service.chat(issued.key) == 200

    while service.value("SELECT expires_at > now() FROM api_keys"):
        time.sleep(0.1)

    assert service.chat(issued.key) in (400, 401)
    assert service.is_live(hash_of(issued.key))
    service.settle()
    assert not service.is_live(hash_of(issued.key))
    assert service.traces(issued.id) == DEACTIVATED


class TestExpiredKey:
    @MODES
    def test_leaves_both_systems(self, service: Service, *, keeps_rows: bool, left: Traces):
        key_id = expired_key(service)
        token_hash = service.token_hash(key_id)

        report = service.settle(keeps_expired_rows=keeps_rows)

        assert (report.expired, report.attempted, report.settled, report.pending_deletes) == (1, 1, 1, 0)
        assert not service.is_live(token_hash)
        assert service.traces(key_id) == left

    @MODES
    def test_does_so_once(self, service: Service, *, keeps_rows: bool, left: Traces):
        key_id = expired_key(service)
        service.settle(keeps_expired_rows=keeps_rows)

        again = service.settle(keeps_expired_rows=keeps_rows)

        assert (again.expired, again.attempted) == (0, 0)
        assert service.traces(key_id) == left

    @MODES
    def test_does_so_once_with_two_settlers(self, service: Service, *, keeps_rows: bool, left: Traces):
        keys = [expired_key(service) for _ in range(6)]
        settlements = [service.settlement(fresh=True, keeps_expired_rows=keeps_rows) for _ in range(3)]

        reports: list[Settled] = all_at_once(
            [lambda settlement=settlement: settlement.run(deadline=Deadline(60)) for settlement in settlements]
        )

        assert sum(report.expired for report in reports) == 6
        assert sum(report.settled for report in reports) == 6
        assert [service.traces(key_id) for key_id in keys] == [left] * 6

    def test_that_is_kept_is_listed_as_expired(self, service: Service):
        expired_key(service)

        service.settle()

        assert [(key.status, key.is_active) for key in service.list_keys().data] == [("expired", False)]

    def test_is_audited_with_the_system_as_actor(self, service: Service):
        key_id = expired_key(service)
        owner_id, prefix = service.rows("SELECT user_id, key_prefix FROM api_keys")[0].values()

        service.settle()

        [audit] = service.rows("SELECT * FROM audit_logs WHERE action = 'API_KEY_EXPIRED'")
        assert str(audit["user_id"]) == SYSTEM_USER
        assert service.value("SELECT username FROM users WHERE id = %s", [SYSTEM_USER]) == "system"
        assert (audit["resource_type"], audit["resource_id"], audit["success"]) == ("API_KEY", str(key_id), True)
        assert (audit["ip_address"], audit["user_agent"]) == (None, None)
        operation_id = service.value("SELECT id FROM api_key_operations WHERE kind = 'delete'")
        assert audit["metadata"] == {
            "requestId": None,
            "operationId": str(operation_id),
            "userId": str(owner_id),
            "name": "notebook",
            "keyPrefix": prefix,
            "models": ["gpt-4o"],
            "modelCount": 1,
            "reason": "expired",
        }

    @MODES
    def test_that_litellm_does_not_take_back_leaves_later(self, service: Service, *, keeps_rows: bool, left: Traces):
        key_id = expired_key(service)
        service.gateway_faults.inject("/key/delete", "status", status=500)

        report = service.settle(keeps_expired_rows=keeps_rows)

        assert (report.expired, report.settled, report.pending_deletes) == (1, 0, 1)
        assert service.traces(key_id) == EXPIRING
        service.let_time_pass()
        assert service.settle(keeps_expired_rows=keeps_rows).settled == 1
        assert service.traces(key_id) == left

    def test_of_litemaas_goes_by_its_hash(self, service: Service):
        token_hash = service.make_gateway_key("sk-made-by-litemaas-and-expired")
        service.rows(
            "INSERT INTO api_keys (user_id, name, key_hash, key_prefix, expires_at, sync_status)"
            " SELECT id, 'old', %s, 'sk-made', now(), 'synced' FROM users WHERE oauth_id = 'alice'",
            [token_hash],
        )

        service.settle()

        assert not service.is_live(token_hash)
        assert service.traces() == Traces(
            row=(False, "synced"),
            tokens=[("dead", False)],
            operations=[("delete", "forward", "done")],
            audits=[("API_KEY_EXPIRED", True)],
        )

    def test_that_litemaas_gave_another_secret_goes_with_both(self, service: Service):
        key_id = expired_key(service)
        own_hash = service.token_hash(key_id)
        new_hash = service.make_gateway_key("sk-rotated-by-litemaas-then-expired")
        service.rows("UPDATE api_keys SET key_hash = %s", [new_hash])

        service.settle()

        assert not service.is_live(own_hash)
        assert not service.is_live(new_hash)
        assert service.traces(key_id).tokens == [("dead", False), ("dead", False)]

    def test_is_one_of_very_many(self, service: Service):
        service.rows(
            "INSERT INTO api_keys (user_id, key_hash, key_prefix, expires_at)"
            " SELECT id, md5(n::text) || md5('x' || n), 'sk-many', now()"
            " FROM users, generate_series(1, 203) AS n WHERE oauth_id = 'alice'"
        )

        report = service.settle(seconds=3.0, gateway_seconds=5.0)

        assert (report.expired, report.attempted, report.pending_deletes) == (203, 0, 203)
        assert service.database_faults.steps.count("begin_expiry") == 3

    def test_stays_for_the_next_run_when_time_is_short(self, service: Service):
        key_id = expired_key(service)

        report = service.settle(seconds=1.0, reserve_seconds=2.0)

        assert report.expired == 0
        assert service.traces(key_id).row == (True, "synced")


class TestNothingToExpire:
    @pytest.mark.parametrize(
        "change",
        [
            pytest.param("UPDATE api_keys SET expires_at = now() + interval '1 hour'", id="not yet"),
            pytest.param("UPDATE api_keys SET expires_at = NULL", id="never"),
            pytest.param("UPDATE api_keys SET expires_at = now(), revoked_at = now()", id="revoked"),
            pytest.param("UPDATE api_keys SET expires_at = now(), is_active = false", id="off already"),
        ],
    )
    def test_of_a_key_that_is(self, service: Service, change: Any):
        service.create()
        service.rows(change)

        assert service.settle().expired == 0
        assert service.value("SELECT count(*) FROM api_key_operations WHERE kind = 'delete'") == 0

    def test_of_a_key_that_is_being_deleted(self, service: Service):
        key_id = expired_key(service)
        service.gateway_faults.inject("/key/delete", "status", status=500)
        service.delete(key_id)
        service.let_time_pass()

        report = service.settle()

        assert (report.expired, report.settled) == (0, 1)
        assert service.traces(key_id).audits == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


class TestOwnersDelete:
    def held_up(self, service: Service) -> UUID:
        """A key whose expiry LiteLLM has not confirmed."""
        key_id = expired_key(service)
        service.gateway_faults.inject("/key/delete", "status", status=500)
        service.settle()
        assert service.traces(key_id) == EXPIRING
        return key_id

    def test_takes_an_expiry_over_when_nobody_holds_it(self, service: Service):
        key_id = self.held_up(service)

        answer = service.delete(key_id)

        assert isinstance(answer, DeletedKey)
        assert service.traces(key_id) == Traces(
            row=None,
            tokens=[("dead", False)],
            operations=[("create", "forward", "done"), ("delete", "forward", "done")],
            audits=[("API_KEY_CREATE", True), ("API_KEY_DELETE", True)],
        )
        [audit] = service.rows("SELECT * FROM audit_logs WHERE action = 'API_KEY_DELETE'")
        assert audit["user_id"] == service.value("SELECT id FROM users WHERE oauth_id = 'alice'")
        assert audit["metadata"]["requestId"] == "request-of-alice"

    def test_of_an_expiry_that_a_settler_holds_is_carried_out_by_that_settler(self, service: Service):
        key_id = expired_key(service)
        answers: list[Any] = []
        service.gateway_faults.inject(
            "/key/delete",
            "call_before",
            call=lambda: answers.append(
                service.deletion(fresh=True).delete(caller(), str(key_id), deadline=Deadline(10))
            ),
        )

        report = service.settle()

        assert isinstance(answers[0], PendingDeletion)
        assert report.settled == 1
        assert service.traces(key_id).row is None
        assert service.traces(key_id).audits == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]

    def test_removes_the_row_that_an_expiry_kept(self, service: Service):
        key_id = expired_key(service)
        service.settle()

        assert isinstance(service.delete(key_id), DeletedKey)
        assert service.traces(key_id).row is None
        assert service.traces(key_id).audits == [
            ("API_KEY_CREATE", True),
            ("API_KEY_EXPIRED", True),
            ("API_KEY_DELETE", True),
        ]
