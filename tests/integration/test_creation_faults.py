"""A create that is cut, refused or overtaken: what is left, and that it can always be ended."""

from typing import Any

import pytest

from keyservice.errors import (
    DatabaseUnavailable,
    Forbidden,
    GatewayRefused,
    InvalidRequest,
    OperationPending,
    OperationSuperseded,
    OutcomeUnknown,
    ServiceError,
)
from keyservice.models import Deadline, DeletedKey, IssuedKey, PendingDeletion
from tests.integration.service import Service, Traces, caller

LIVE = Traces(
    row=(True, "synced"),
    tokens=[("live", False)],
    operations=[("create", "forward", "done")],
    audits=[("API_KEY_CREATE", True)],
)
# T1 is committed, and what LiteLLM may still do is not known.
PENDING = Traces(
    row=(False, "pending"), tokens=[("intended", True)], operations=[("create", "forward", "pending")], audits=[]
)
# The same after LiteLLM's own answer that it did nothing.
PENDING_AND_SAFE = Traces(
    row=(False, "pending"), tokens=[("intended", False)], operations=[("create", "forward", "pending")], audits=[]
)
UNDONE = Traces(
    row=None, tokens=[("dead", False)], operations=[("create", "undo", "failed")], audits=[("API_KEY_CREATE", False)]
)
DELETED = Traces(
    row=None,
    tokens=[("dead", False)],
    operations=[("create", "forward", "superseded"), ("delete", "forward", "done")],
    audits=[("API_KEY_CREATE", False), ("API_KEY_DELETE", True)],
)


def delete_until_gone(service: Service) -> list[str]:
    """What DELETE says now, and again after the drain; the key has to be gone everywhere then."""
    key_id, token_hash = service.only_key_id(), service.token_hash()
    said = [type(service.delete(key_id)).__name__]
    service.let_time_pass()
    if said == ["PendingDeletion"]:
        said.append(type(service.delete(key_id)).__name__)
    assert not service.is_live(token_hash)
    return said


class TestConnectionCutOnce:
    """The client repeats what is safe to repeat, and the caller notices nothing."""

    @pytest.mark.parametrize("step", ["register_caller", "begin_create", "lock_user", "lock_key", "finish_create"])
    @pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
    def test_key_is_issued_once_all_the_same(self, service: Service, step: str, fault: Any):
        service.database_faults.inject(fault, step)

        issued = service.create(model_ids=["gpt-4o-mini", "gpt-4o"], max_budget=5.5, metadata={"a": 1})

        assert service.traces(issued.id) == LIVE
        assert service.value("SELECT count(*) FROM api_keys") == 1
        assert service.chat(issued.key) == 200
        assert issued.models == ["gpt-4o-mini", "gpt-4o"]
        assert [model.id for model in issued.model_details] == ["gpt-4o-mini", "gpt-4o"]
        assert (issued.name, issued.key_prefix) == ("notebook", issued.key[:11])
        assert len(service.gateway_faults.calls_of("/key/generate")) == 1

    def test_legacy_subscription_survives_a_lost_answer(self, service: Service):
        subscription_id = service.value("SELECT id FROM subscriptions WHERE model_id = 'gpt-4o'")
        service.database_faults.cut_after("begin_create")

        issued = service.create(model_ids=None, subscription_id=subscription_id)

        assert issued.subscription_id == subscription_id

    def test_refusal_is_told_and_audited_once_for_every_try_that_committed(self, service: Service):
        service.database_faults.cut_before("begin_create")

        with pytest.raises(InvalidRequest):
            service.create(model_ids=["o3"])

        assert service.value("SELECT count(*) FROM audit_logs") == 1


class TestConnectionCutTwice:
    @pytest.mark.parametrize("step", ["register_caller", "begin_create"])
    def test_before_t1_nothing_has_happened(self, service: Service, step: str):
        service.database_faults.cut_before(step, times=2)

        with pytest.raises(OutcomeUnknown):
            service.create()

        assert service.rows("SELECT FROM api_keys") == service.rows("SELECT FROM api_key_operations") == []
        assert service.gateway_faults.calls == []
        assert service.create().is_active

    def test_after_t1_and_its_reading_leaves_a_pending_key_that_delete_ends(self, service: Service):
        service.database_faults.cut_after("begin_create")
        service.database_faults.cut_before("read_create", times=2)

        with pytest.raises(OutcomeUnknown):
            service.create()

        assert service.traces() == PENDING
        assert delete_until_gone(service) == ["PendingDeletion", "DeletedKey"]
        assert service.traces() == DELETED

    @pytest.mark.parametrize("step", ["lock_user", "lock_key", "finish_create"])
    def test_before_t2_leaves_a_pending_key_that_delete_ends(self, service: Service, step: str):
        service.database_faults.cut_before(step, times=2)

        with pytest.raises(OperationPending):
            service.create()

        assert service.traces() == PENDING
        assert service.is_live(service.token_hash())
        assert delete_until_gone(service) == ["PendingDeletion", "DeletedKey"]
        assert service.traces() == DELETED

    @pytest.mark.parametrize("step", ["lock_user", "lock_key", "finish_create"])
    def test_after_t2_the_key_is_live_and_can_be_found_and_deleted(self, service: Service, step: str):
        service.database_faults.inject("cut_after", step, times=2)

        with pytest.raises(OperationPending):
            service.create()

        assert service.traces() == LIVE
        assert [key.status for key in service.list_keys().data] == ["active"]
        assert delete_until_gone(service) == ["DeletedKey"]

    @pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
    def test_release_that_is_lost_changes_nothing_for_the_caller(self, service: Service, fault: Any):
        service.gateway_faults.inject("/key/generate", "status", status=500)
        service.database_faults.inject(fault, "release")

        with pytest.raises(OperationPending):
            service.create()

        assert service.traces() == PENDING
        assert delete_until_gone(service) == ["PendingDeletion", "DeletedKey"]

    @pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
    def test_undo_that_is_lost_once_is_repeated(self, service: Service, fault: Any):
        service.gateway_faults.inject("/key/generate", "status", status=403)
        service.database_faults.inject(fault, "finish_undo")

        with pytest.raises(GatewayRefused):
            service.create()

        assert service.traces() == UNDONE


def test_database_that_is_down_is_told_and_nothing_is_sent_to_litellm(service: Service):
    service.database_faults.refuse_connections()

    with pytest.raises(DatabaseUnavailable) as caught:
        service.create()

    assert not isinstance(caught.value, OutcomeUnknown)
    assert service.gateway_faults.calls == []
    service.database_faults.clear()
    assert service.create().is_active


class TestGenerateWithoutAnswer:
    def test_that_comes_true_later_is_ended_by_delete_after_the_drain(self, service: Service):
        late = service.gateway_faults.inject("/key/generate", "late")
        with pytest.raises(OperationPending):
            service.create(seconds=0.5)
        key_id, token_hash = service.only_key_id(), service.token_hash()
        assert service.traces() == PENDING

        before = service.delete(key_id)
        late.release()
        assert late.wait()
        came_true = service.is_live(token_hash)
        meanwhile = service.delete(key_id)
        service.let_time_pass()
        after = service.delete(key_id)

        assert isinstance(before, PendingDeletion)
        assert came_true
        assert isinstance(meanwhile, PendingDeletion)
        assert isinstance(after, DeletedKey)
        assert not service.is_live(token_hash)
        assert service.traces(key_id) == DELETED

    @pytest.mark.parametrize(
        ("fault", "is_made"),
        [
            pytest.param("reset_after", True, id="reset after the work"),
            pytest.param("reset_before", False, id="reset before the work"),
            pytest.param("hang", False, id="hangs"),
            pytest.param("status", False, id="answers 500"),
        ],
    )
    def test_leaves_a_pending_key_that_delete_ends(self, service: Service, fault: Any, *, is_made: bool):
        service.gateway_faults.inject("/key/generate", fault)

        with pytest.raises(OperationPending) as caught:
            service.create(seconds=0.5)

        assert (caught.value.status, caught.value.retry_after_seconds) == (503, 5)
        assert service.is_live(service.token_hash()) is is_made
        assert service.traces() == PENDING
        assert service.value("SELECT lease_until <= now() FROM api_key_operations") is True
        assert service.value("SELECT last_error FROM api_key_operations").startswith("key/generate: ")
        assert [key.status for key in service.list_keys().data] == ["pending"]
        assert delete_until_gone(service) == ["PendingDeletion", "DeletedKey"]
        assert service.traces() == DELETED

    def test_counts_towards_the_limit(self, service: Service):
        service.gateway_faults.inject("/key/generate", "status", status=500)
        with pytest.raises(OperationPending):
            service.create()

        with pytest.raises(InvalidRequest):
            service.create(rules={"max_active_keys": 1})

        assert service.value("SELECT count(*) FROM api_keys") == 1


class TestGenerateThatDidNothing:
    @pytest.mark.parametrize(
        ("status", "body"),
        [
            pytest.param(
                400, {"error": {"message": "x", "type": "bad_request", "param": "key_alias", "code": "400"}}, id="alias"
            ),
            pytest.param(403, {"detail": "not allowed"}, id="virtual key as master key"),
            pytest.param(429, None, id="429"),
        ],
    )
    def test_is_no_refusal_and_delete_ends_it_at_once(self, service: Service, status: int, body: Any):
        service.gateway_faults.inject("/key/generate", "status", status=status, body=body)

        with pytest.raises(OperationPending):
            service.create()

        assert service.traces() == PENDING_AND_SAFE
        assert delete_until_gone(service) == ["DeletedKey"]
        assert service.traces() == DELETED

    def test_wrong_master_key_is_our_trouble(self, service: Service):
        service.create()
        service.gateway_faults.inject("/key/generate", "status", status=401, times=2)

        with pytest.raises(OperationPending):
            service.create()

        pending = service.value("SELECT api_key_id FROM api_key_operations WHERE state = 'pending'")
        assert service.traces(pending) == PENDING_AND_SAFE

    @pytest.mark.parametrize("fault", ["status", "hang", "reset_after"])
    def test_user_that_cannot_be_made_leaves_no_doubt(self, service: Service, fault: Any):
        service.gateway_faults.inject("/user/new", fault)

        with pytest.raises(OperationPending):
            service.create(seconds=0.5)

        assert service.traces() == PENDING_AND_SAFE
        assert service.gateway_faults.calls_of("/key/generate") == []
        assert service.value("SELECT sync_status FROM users WHERE oauth_id = 'alice'") == "pending"


class TestRefusedByLiteLLM:
    @pytest.mark.parametrize(
        ("status", "body", "fields", "reason"),
        [
            pytest.param(
                400,
                {"error": {"message": "max_budget over upperbound", "type": "x", "param": None, "code": "400"}},
                ["maxBudget"],
                "refused by LiteLLM: maxBudget",
                id="400 upper bound",
            ),
            pytest.param(403, None, ["body"], "refused by LiteLLM: 403", id="403 licence"),
            pytest.param(
                422,
                {"detail": [{"type": "float_type", "loc": ["body", "soft_budget"]}]},
                ["softBudget"],
                "refused by LiteLLM: softBudget",
                id="422 wrong type",
            ),
        ],
    )
    def test_is_undone_and_audited(self, service: Service, status: int, body: Any, fields: list[str], reason: str):
        service.gateway_faults.inject("/key/generate", "status", status=status, body=body)

        with pytest.raises(GatewayRefused) as caught:
            service.create()

        assert [violation.field for violation in caught.value.details["validation"]] == fields
        assert service.traces() == UNDONE
        assert service.value("SELECT error_message FROM audit_logs") == reason
        assert len(service.gateway_faults.calls_of("/key/info")) == 1
        assert service.create().is_active

    @pytest.mark.parametrize("status", [500, 503])
    def test_that_litellm_does_not_confirm_stays_pending(self, service: Service, status: int):
        service.gateway_faults.inject("/key/generate", "status", status=403)
        service.gateway_faults.inject("/key/info", "status", status=status)

        with pytest.raises(OperationPending):
            service.create()

        assert service.traces() == PENDING_AND_SAFE

    def test_though_the_key_is_there_stays_pending(self, service: Service):
        # As when something between us and LiteLLM repeats a request.
        service.gateway_faults.inject("/key/generate", "status", status=403)

        def make_it() -> None:
            service.make_gateway_key(sent_secret(service), key_alias="made-behind-our-back")

        service.gateway_faults.inject("/key/info", "call_before", call=make_it)

        with pytest.raises(OperationPending):
            service.create()

        assert service.traces() == PENDING
        assert delete_until_gone(service) == ["PendingDeletion", "DeletedKey"]


def sent_secret(service: Service) -> str:
    [call] = service.gateway_faults.calls_of("/key/generate")
    return call.body["key"]


class TestWhatChangedWhileLiteLLMWorked:
    @pytest.mark.parametrize(
        ("change", "error", "reason"),
        [
            pytest.param("UPDATE users SET is_active = false", Forbidden, "inactiveUser", id="user deactivated"),
            pytest.param(
                "UPDATE subscriptions SET status = 'cancelled'",
                InvalidRequest,
                "notEntitled",
                id="subscription cancelled",
            ),
            pytest.param(
                "UPDATE subscriptions SET expires_at = now()",
                InvalidRequest,
                "notEntitled",
                id="subscription expired",
            ),
            pytest.param("UPDATE api_keys SET expires_at = now()", InvalidRequest, "past", id="expiry passed"),
            pytest.param("DELETE FROM api_keys", OperationSuperseded, "keyRemoved", id="row removed"),
        ],
    )
    def test_undoes_the_key(self, service: Service, change: Any, error: type[ServiceError], reason: str):
        service.gateway_faults.inject("/key/generate", "call_after", call=lambda: service.rows(change))

        with pytest.raises(error):
            service.create()

        assert not service.is_live(service.token_hash())
        assert service.traces() == UNDONE
        assert service.value("SELECT error_message FROM audit_logs") == reason

    def test_undoes_the_key_of_a_subscription_that_took_its_row_along(self, service: Service):
        subscription_id = service.value("SELECT id FROM subscriptions WHERE model_id = 'gpt-4o'")
        service.gateway_faults.inject(
            "/key/generate", "call_after", call=lambda: service.rows("DELETE FROM subscriptions")
        )

        with pytest.raises(OperationSuperseded):
            service.create(model_ids=None, subscription_id=subscription_id)

        assert not service.is_live(service.token_hash())
        assert service.traces() == UNDONE

    def test_of_another_users_subscription_changes_nothing(self, service: Service):
        bob = service.subscribe("bob", models=["gpt-4o"])
        service.gateway_faults.inject(
            "/key/generate",
            "call_after",
            call=lambda: service.rows("UPDATE subscriptions SET status = 'cancelled' WHERE user_id = %s", [bob]),
        )

        assert service.traces(service.create().id) == LIVE

    def test_stays_to_be_undone_when_litellm_does_not_take_the_key_back(self, service: Service):
        service.gateway_faults.inject(
            "/key/generate", "call_after", call=lambda: service.rows("UPDATE users SET is_active = false")
        )
        service.gateway_faults.inject("/key/delete", "status", status=500)

        with pytest.raises(Forbidden):
            service.create()

        assert service.is_live(service.token_hash())
        assert service.traces() == Traces(
            row=(False, "pending"), tokens=[("intended", False)], operations=[("create", "undo", "pending")], audits=[]
        )

    @pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
    def test_is_undone_when_the_undo_is_cut_once(self, service: Service, fault: Any):
        service.gateway_faults.inject(
            "/key/generate", "call_after", call=lambda: service.rows("UPDATE users SET is_active = false")
        )
        service.database_faults.inject(fault, "finish_undo")

        with pytest.raises(Forbidden):
            service.create()

        assert service.traces() == UNDONE

    def test_is_told_the_same_when_the_answer_of_t2_is_lost(self, service: Service):
        service.gateway_faults.inject(
            "/key/generate", "call_after", call=lambda: service.rows("UPDATE users SET is_active = false")
        )
        service.database_faults.cut_after("finish_create")

        with pytest.raises(Forbidden):
            service.create()

        assert service.traces() == UNDONE


class TestDeletedMeanwhile:
    def test_create_is_superseded_and_no_live_key_is_left(self, service: Service):
        answers: list[Any] = []
        service.gateway_faults.inject(
            "/key/generate", "call_before", call=lambda: answers.append(delete_elsewhere(service))
        )

        with pytest.raises(OperationSuperseded) as caught:
            service.create()

        key_id, token_hash = service.only_key_id(), service.token_hash()
        assert caught.value.status == 409
        assert isinstance(answers[0], PendingDeletion)
        assert isinstance(service.delete(key_id), DeletedKey)
        assert not service.is_live(token_hash)
        assert service.traces(key_id) == DELETED

    def test_create_without_an_answer_stays_superseded(self, service: Service):
        service.gateway_faults.inject("/key/generate", "status", status=500, call=lambda: delete_elsewhere(service))

        with pytest.raises(OperationPending):
            service.create()

        key_id = service.only_key_id()
        assert isinstance(service.delete(key_id), PendingDeletion)
        service.let_time_pass()
        assert isinstance(service.delete(key_id), DeletedKey)
        assert service.traces(key_id) == DELETED

    def test_superseded_create_is_audited_with_its_own_request(self, service: Service):
        service.gateway_faults.inject("/key/generate", "status", status=500)
        with pytest.raises(OperationPending):
            service.create()

        service.delete(service.only_key_id())

        [audit] = service.rows("SELECT * FROM audit_logs")
        assert (audit["action"], audit["success"], audit["error_message"]) == (
            "API_KEY_CREATE",
            False,
            "superseded by a delete",
        )
        assert audit["metadata"]["requestId"] == "request-of-alice"


def delete_elsewhere(service: Service) -> DeletedKey | PendingDeletion:
    """By another execution environment, while this one waits for LiteLLM."""
    return service.deletion(fresh=True).delete(caller(), str(service.only_key_id()), deadline=Deadline(10))


def test_no_two_keys_share_a_token(service: Service):
    first: IssuedKey = service.create()
    second: IssuedKey = service.create()

    assert first.key != second.key
    assert service.value("SELECT count(DISTINCT hash) FROM api_key_tokens") == 2
