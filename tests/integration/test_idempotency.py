"""A create repeated with its Idempotency-Key: one key, one secret, or an honest answer why not."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from keyservice.derivation import KeyDeriver
from keyservice.errors import (
    DerivationUnavailable,
    Forbidden,
    GatewayRefused,
    Gone,
    IdempotencyKeyReused,
    InvalidRequest,
    OperationInProgress,
    OperationPending,
    ServiceError,
)
from keyservice.models import Creation, Deadline, NewApiKey
from tests.integration.service import Service, Traces, all_at_once, caller, hash_of

LIVE = Traces(
    row=(True, "synced"),
    tokens=[("live", False)],
    operations=[("create", "forward", "done")],
    audits=[("API_KEY_CREATE", True)],
)
# What LiteLLM may still do is not known.
PENDING = Traces(
    row=(False, "pending"), tokens=[("intended", True)], operations=[("create", "forward", "pending")], audits=[]
)
OVER_A_BOUND = {"error": {"message": "max_budget over upperbound", "type": "x", "param": None, "code": "400"}}


def ask(service: Service, subject: str = "alice", /, **request: Any) -> Creation:
    return service.ask_for_key(subject, idempotency_key="order-1", **request)


def interrupted(service: Service, fault: Any = "reset_after", **request: Any) -> UUID:
    """Of a create whose generate was not answered; by default LiteLLM has made the key."""
    service.gateway_faults.inject("/key/generate", fault)
    with pytest.raises(OperationPending):
        ask(service, **request)
    service.gateway_faults.forget_calls()
    return service.only_key_id()


def only_key(service: Service) -> UUID:
    return service.value("SELECT id FROM api_keys")


class TestReplay:
    def test_gives_the_identical_key_and_secret(self, service: Service):
        subscription_id = service.value("SELECT id FROM subscriptions WHERE model_id = 'gpt-4o'")
        request: dict[str, Any] = {
            "model_ids": None,
            "subscription_id": subscription_id,
            "expires_at": datetime.now(UTC) + timedelta(days=7),
            "max_budget": 5.25,
            "metadata": {"a": 1, "b": [2]},
        }
        first = ask(service, **request)

        second = ask(service, **request)

        assert (first.is_replayed, second.is_replayed) == (False, True)
        assert second.key == first.key
        assert service.chat(second.key.key) == 200
        assert service.traces(first.key.id) == LIVE
        assert service.value("SELECT count(*) FROM api_keys") == 1

    def test_asks_litellm_nothing_and_the_database_once(self, service: Service):
        ask(service)
        service.gateway_faults.forget_calls()
        service.database_faults.reset_counts()

        ask(service)

        assert service.gateway_faults.calls == []
        assert [trip.steps for trip in service.database_faults.trips] == [("register_caller", "begin_create")]

    def test_does_not_depend_on_the_order_of_fields(self, service: Service):
        first = ask(service, metadata={"a": 1, "b": {"c": 2, "d": 3}})

        second = ask(service, metadata={"b": {"d": 3, "c": 2}, "a": 1})

        assert second.key == first.key

    def test_is_not_held_up_by_the_limit_or_by_a_subscription_that_ended(self, service: Service):
        first = ask(service, rules={"max_active_keys": 1})
        service.rows("UPDATE subscriptions SET status = 'cancelled'")

        assert ask(service, rules={"max_active_keys": 1}).key == first.key
        assert service.value("SELECT count(*) FROM audit_logs") == 1

    def test_names_models_that_are_no_more_by_their_id(self, service: Service):
        ask(service)
        service.rows("DELETE FROM subscriptions")
        service.rows("DELETE FROM models")

        again = ask(service)

        assert again.key.models == ["gpt-4o"]
        assert [(model.id, model.name, model.provider) for model in again.key.model_details] == [
            ("gpt-4o", "gpt-4o", "unknown")
        ]

    def test_without_the_header_makes_another_key(self, service: Service):
        first, second = service.ask_for_key(), service.ask_for_key()

        assert first.key.key != second.key.key
        assert not second.is_replayed

    def test_with_another_header_makes_another_key(self, service: Service):
        first = ask(service)

        assert service.ask_for_key(idempotency_key="order-2").key.id != first.key.id

    def test_belongs_to_its_caller(self, service: Service):
        service.subscribe("bob", models=["gpt-4o"])
        alices = ask(service)

        bobs = ask(service, "bob")

        assert not bobs.is_replayed
        assert bobs.key.id != alices.key.id
        assert bobs.key.key != alices.key.key

    def test_by_an_inactive_caller_is_forbidden(self, service: Service):
        ask(service)
        service.rows("UPDATE users SET is_active = false")

        with pytest.raises(Forbidden):
            ask(service)

    def test_fails_closed_when_kms_has_another_key(self, service: Service):
        ask(service)
        other = KeyDeriver(mac_key_arn=service.cloud.aws.create_mac_key(), aws=service.cloud.client)

        with pytest.raises(DerivationUnavailable):
            ask(service, rules={"deriver": other})

        assert service.traces(only_key(service)) == LIVE

    @pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
    @pytest.mark.parametrize("step", ["register_caller", "begin_create", "lock_user", "finish_create"])
    def test_follows_a_create_whose_connection_was_cut(self, service: Service, step: str, fault: Any):
        service.database_faults.inject(fault, step)
        first = ask(service)

        second = ask(service)

        assert second.key == first.key
        assert service.traces(only_key(service)) == LIVE

    def test_survives_its_own_lost_answer(self, service: Service):
        first = ask(service)
        service.database_faults.cut_after("begin_create")

        assert ask(service).key == first.key


class TestKept:
    def test_is_the_hash_alone(self, service: Service):
        issued = service.ask_for_key(idempotency_key="a-text-that-nobody-needs-to-keep", name="told-to-litellm").key

        dump = service.database_under_test.server.dump(service.database_under_test.name)
        assert hash_of("a-text-that-nobody-needs-to-keep") in dump
        assert "a-text-that-nobody-needs-to-keep" not in dump
        assert issued.key not in dump


class TestOtherBody:
    @pytest.mark.parametrize(
        "other",
        [
            pytest.param({"name": "another"}, id="name"),
            pytest.param({"model_ids": ["gpt-4o-mini"]}, id="models"),
            pytest.param({"max_budget": 1.0}, id="a limit more"),
            pytest.param({"metadata": {}}, id="metadata"),
        ],
    )
    def test_is_refused_and_changes_nothing(self, service: Service, other: dict[str, Any]):
        first = ask(service)

        with pytest.raises(IdempotencyKeyReused) as caught:
            ask(service, **other)

        assert (caught.value.status, caught.value.code) == (422, "IDEMPOTENCY_KEY_REUSED")
        assert service.traces(first.key.id) == LIVE
        assert service.value("SELECT count(*) FROM api_keys") == 1

    def test_is_refused_while_the_first_is_pending_and_leaves_it_alone(self, service: Service):
        key_id = interrupted(service)

        with pytest.raises(IdempotencyKeyReused):
            ask(service, name="another")

        assert service.traces(key_id) == PENDING
        assert service.value("SELECT epoch FROM api_key_operations") == 1

    def test_is_refused_after_the_key_is_gone(self, service: Service):
        service.delete(ask(service).key.id)

        with pytest.raises(IdempotencyKeyReused):
            ask(service, name="another")


class TestStillRunning:
    def test_is_told_with_when_to_come_back(self, service: Service):
        seen: list[ServiceError] = []

        def ask_elsewhere() -> None:
            with pytest.raises(OperationInProgress) as caught:
                ask(service, rules={"fresh": True})
            seen.append(caught.value)

        service.gateway_faults.inject("/key/generate", "call_before", call=ask_elsewhere)

        first = ask(service)

        assert (seen[0].status, seen[0].code, seen[0].retry_after_seconds) == (409, "OPERATION_IN_PROGRESS", 5)
        assert not first.is_replayed
        assert service.traces(first.key.id) == LIVE
        assert len(service.gateway_faults.calls_of("/key/generate")) == 1

    def test_for_a_lease_after_its_process_died(self, service: Service):
        service.database_faults.cut_before("lock_user", times=0)
        with pytest.raises(OperationPending):
            ask(service)
        service.database_faults.clear()
        # A process that died would not have given its lease back.
        service.rows("UPDATE api_key_operations SET lease_until = now() + interval '30 s'")

        with pytest.raises(OperationInProgress):
            ask(service)

        service.rows("UPDATE api_key_operations SET lease_until = now()")
        assert ask(service).is_replayed


class TestGone:
    @pytest.mark.parametrize(
        "end",
        [
            pytest.param(lambda service: service.delete(only_key(service)), id="deleted"),
            pytest.param(lambda service: service.rows("DELETE FROM api_keys"), id="row removed"),
            pytest.param(lambda service: service.rows("UPDATE api_keys SET expires_at = now()"), id="expired"),
            pytest.param(lambda service: service.rows("UPDATE api_keys SET is_active = false"), id="switched off"),
            pytest.param(lambda service: service.rows("UPDATE api_keys SET revoked_at = now()"), id="revoked"),
        ],
    )
    def test_key_is_told_and_no_secret_is_shown(self, service: Service, end: Callable[[Service], object]):
        ask(service)
        end(service)

        with pytest.raises(Gone) as caught:
            ask(service)

        assert (caught.value.status, caught.value.code) == (410, "GONE")
        assert service.value("SELECT count(*) FROM api_key_operations WHERE kind = 'create'") == 1

    def test_key_that_was_deleted_while_it_was_pending_is_told(self, service: Service):
        service.delete(interrupted(service))

        with pytest.raises(Gone):
            ask(service)

    def test_key_is_told_while_its_delete_is_pending(self, service: Service):
        key_id = ask(service).key.id
        service.gateway_faults.inject("/key/delete", "status", status=500)
        service.delete(key_id)

        with pytest.raises(Gone):
            ask(service)


class TestResume:
    @pytest.mark.parametrize("fault", ["reset_after", "reset_before", "status", "hang"])
    def test_finishes_what_the_first_left(self, service: Service, fault: Any):
        key_id = interrupted(service, fault, seconds=0.5 if fault == "hang" else 20.0)
        token_hash = service.token_hash()

        resumed = ask(service)

        assert resumed.is_replayed
        assert resumed.key.id == key_id
        assert hash_of(resumed.key.key) == token_hash
        assert service.chat(resumed.key.key) == 200
        traces = service.traces(key_id)
        assert (traces.row, traces.operations, traces.audits) == (LIVE.row, LIVE.operations, LIVE.audits)
        # The first generate was never answered: only the drain makes the token safe.
        assert traces.tokens == [("live", True)]
        assert service.value("SELECT epoch FROM api_key_operations") == 2

    def test_does_not_make_again_what_litellm_has(self, service: Service):
        interrupted(service, "reset_after")

        ask(service)

        assert [call.path.partition("?")[0] for call in service.gateway_faults.calls] == ["/key/info"]

    def test_makes_what_litellm_has_not_and_looks_at_it(self, service: Service):
        interrupted(service, "reset_before")

        ask(service)

        assert [call.path.partition("?")[0] for call in service.gateway_faults.calls] == [
            *("/key/info", "/user/new", "/key/generate", "/key/info")
        ]

    def test_is_replayed_the_next_time(self, service: Service):
        interrupted(service)
        resumed = ask(service)
        service.gateway_faults.forget_calls()

        assert ask(service).key == resumed.key
        assert service.gateway_faults.calls == []

    def test_keeps_what_was_asked_though_the_defaults_have_changed(self, service: Service):
        interrupted(service, "reset_before")
        service.rows("""INSERT INTO system_settings VALUES ('api_key_defaults', '{"defaults": {"rpmLimit": 3}}')""")

        resumed = ask(service)

        assert service.gateway_key(hash_of(resumed.key.key))["rpm_limit"] is None

    @pytest.mark.parametrize(
        "drifted",
        [
            pytest.param({"rpm_limit": 999}, id="limit"),
            pytest.param({"max_budget": None}, id="budget lost"),
            pytest.param({"models": ["gpt-4o", "gpt-4o-mini"]}, id="models"),
            pytest.param({"duration": "7200s"}, id="made late, so it lives longer"),
            pytest.param({"duration": "-1"}, id="lives for ever"),
        ],
    )
    def test_corrects_what_litellm_has_otherwise(self, service: Service, drifted: dict[str, Any]):
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        request: dict[str, Any] = {"expires_at": expires_at, "rpm_limit": 7, "max_budget": 5.5}
        interrupted(service, **request)
        service._ask("POST", "/key/update", body={"key": service.token_hash(), **drifted})

        resumed = ask(service, **request)

        made = service.gateway_key(hash_of(resumed.key.key))
        assert (made["models"], made["rpm_limit"], made["max_budget"]) == (["gpt-4o"], 7, 5.5)
        assert abs(datetime.fromisoformat(made["expires"]) - expires_at) < timedelta(minutes=1)
        assert made["metadata"]["keyservice"]["api_key_id"] == str(resumed.key.id)
        assert len(service.gateway_faults.calls_of("/key/update")) == 1

    def test_that_litellm_echoes_without_storing_is_seen_through(self, service: Service):
        """LiteLLM answers 200 to the second generate and has no such key."""
        key_id = interrupted(service, "reset_before")
        service.gateway_faults.inject("/key/generate", "status", status=200, body={"token": service.token_hash()})

        with pytest.raises(OperationPending):
            ask(service)

        assert service.traces(key_id) == PENDING
        assert service.value("SELECT last_error FROM api_key_operations") == "key/info: the key is not there"
        assert ask(service).key.id == key_id

    def test_wins_over_the_first_generate_that_comes_late(self, service: Service):
        late = service.gateway_faults.inject("/key/generate", "late")
        with pytest.raises(OperationPending):
            ask(service, seconds=0.5)

        resumed = ask(service)
        late.release()
        assert late.wait()

        assert service.chat(resumed.key.key) == 200
        assert service.traces(resumed.key.id).row == (True, "synced")

    @pytest.mark.parametrize(
        ("path", "status", "body"),
        [
            pytest.param("/key/generate", 500, None, id="generate fails"),
            pytest.param("/key/generate", 400, OVER_A_BOUND, id="generate is refused, after an unanswered one"),
            pytest.param("/key/info", 503, None, id="info fails"),
        ],
    )
    def test_that_fails_stays_pending_for_the_next(self, service: Service, path: str, status: int, body: Any):
        key_id = interrupted(service, "reset_before")
        service.gateway_faults.inject(path, "status", status=status, body=body)

        with pytest.raises(OperationPending):
            ask(service)

        assert service.traces(key_id) == PENDING
        assert service.value("SELECT lease_until <= now() FROM api_key_operations") is True
        assert ask(service).key.id == key_id

    def test_that_cannot_correct_stays_pending(self, service: Service):
        key_id = interrupted(service, rpm_limit=7)
        service._ask("POST", "/key/update", body={"key": service.token_hash(), "rpm_limit": 999})
        service.gateway_faults.inject("/key/update", "status", status=500)

        with pytest.raises(OperationPending):
            ask(service, rpm_limit=7)

        assert service.traces(key_id) == PENDING
        assert ask(service, rpm_limit=7).key.id == key_id

    def test_starts_the_drain_anew(self, service: Service):
        interrupted(service, "reset_before")
        service.rows("UPDATE api_key_tokens SET unsafe_until = now() - interval '1 minute'")
        service.gateway_faults.inject("/key/generate", "status", status=500)

        with pytest.raises(OperationPending):
            ask(service)

        assert service.traces().tokens == [("intended", True)]

    def test_of_a_create_that_litellm_answered_leaves_no_doubt(self, service: Service):
        """Its user could not be made, so no generate was ever sent before the resumed one."""
        service.gateway_faults.inject("/user/new", "status", status=500)
        with pytest.raises(OperationPending):
            ask(service)

        resumed = ask(service)

        assert service.traces(resumed.key.id) == LIVE

    def test_is_undone_when_the_caller_may_no_longer(self, service: Service):
        key_id = interrupted(service)
        token_hash = service.token_hash()
        service.rows("UPDATE subscriptions SET status = 'cancelled'")

        with pytest.raises(InvalidRequest):
            ask(service)
        undoing = service.traces(key_id)
        service.let_time_pass()
        service.settle()

        assert undoing.operations == [("create", "undo", "pending")]
        assert not service.is_live(token_hash)
        assert service.traces(key_id).operations == [("create", "undo", "failed")]
        assert service.traces(key_id).audits == [("API_KEY_CREATE", False)]

    def test_of_a_key_that_expired_meanwhile_issues_nothing(self, service: Service):
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        interrupted(service, "reset_before", expires_at=expires_at)
        service.rows("UPDATE api_keys SET expires_at = now() + interval '0.9 s'")

        with pytest.raises(OperationPending):
            ask(service, expires_at=expires_at)

        assert service.gateway_faults.calls_of("/key/generate") == []
        service.let_time_pass()
        service.settle()
        assert service.traces(service.only_key_id()).operations == [("create", "undo", "failed")]

    def test_with_another_kms_key_leaves_the_operation_pending(self, service: Service):
        key_id = interrupted(service)
        other = KeyDeriver(mac_key_arn=service.cloud.aws.create_mac_key(), aws=service.cloud.client)

        with pytest.raises(OperationPending):
            ask(service, rules={"deriver": other})

        assert service.traces(key_id) == PENDING

    def test_of_a_row_that_vanished_is_being_undone(self, service: Service):
        key_id = interrupted(service)
        service.rows("DELETE FROM api_keys")

        with pytest.raises(OperationInProgress) as caught:
            ask(service)

        assert caught.value.status == 409
        assert service.value("SELECT epoch FROM api_key_operations") == 1
        service.let_time_pass()
        service.settle()
        again = ask(service)
        assert (again.is_replayed, again.key.id == key_id) == (False, False)

    @pytest.mark.parametrize("step", ["lock_user", "lock_key", "finish_create"])
    @pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
    def test_finishes_once_though_the_connection_is_cut(self, service: Service, step: str, fault: Any):
        interrupted(service)
        service.database_faults.inject(fault, step)

        resumed = ask(service)

        assert service.chat(resumed.key.key) == 200
        assert service.traces(resumed.key.id).audits == [("API_KEY_CREATE", True)]

    def test_whose_first_answer_was_lost_is_told_to_come_back(self, service: Service):
        key_id = interrupted(service)
        service.database_faults.cut_after("begin_create")

        with pytest.raises(OperationInProgress):
            ask(service)

        service.let_time_pass()
        assert ask(service).key.id == key_id


class TestStartsAnew:
    def test_after_litellm_refused(self, service: Service):
        service.gateway_faults.inject("/key/generate", "status", status=400, body=OVER_A_BOUND)
        with pytest.raises(GatewayRefused):
            ask(service)
        refused = service.only_key_id()

        anew = ask(service)

        assert not anew.is_replayed
        assert anew.key.id != refused
        assert service.value("SELECT count(DISTINCT hash) FROM api_key_tokens") == 2
        assert service.traces(anew.key.id) == LIVE

    def test_after_a_refused_rule_even_with_another_body(self, service: Service):
        with pytest.raises(InvalidRequest):
            ask(service, model_ids=["o3"])

        assert not ask(service).is_replayed

    def test_after_it_was_undone_and_not_before(self, service: Service):
        undone = interrupted(service)
        service.rows("UPDATE api_key_operations SET next_attempt_at = now(), lease_until = now()")
        service.settle()

        with pytest.raises(OperationInProgress) as caught:
            ask(service)
        service.let_time_pass()
        service.settle()
        anew = ask(service)

        assert caught.value.retry_after_seconds == 5
        assert not anew.is_replayed
        assert anew.key.id != undone
        assert service.traces(anew.key.id) == LIVE

    @pytest.mark.parametrize(
        "end",
        [
            pytest.param(lambda _: None, id="live"),
            pytest.param(lambda service: service.delete(only_key(service)), id="deleted"),
        ],
    )
    def test_a_day_after_it_was_done(self, service: Service, end: Callable[[Service], object]):
        first = ask(service)
        end(service)
        service.rows("UPDATE api_key_operations SET created_at = created_at - interval '24 hours'")

        anew = ask(service, name="another body is welcome now")

        assert not anew.is_replayed
        assert anew.key.id != first.key.id
        assert ask(service, name="another body is welcome now").key == anew.key

    def test_not_a_minute_earlier(self, service: Service):
        first = ask(service)
        service.rows("UPDATE api_key_operations SET created_at = created_at - interval '23 hours 59 minutes'")

        assert ask(service).key.id == first.key.id

    def test_not_while_it_is_pending_however_old(self, service: Service):
        key_id = interrupted(service)
        service.rows("UPDATE api_key_operations SET created_at = created_at - interval '3 days'")

        assert ask(service).key.id == key_id


class TestAtOnce:
    def test_many_make_one_key(self, service: Service):
        creations = [service.creation(fresh=True) for _ in range(16)]

        outcomes = all_at_once(
            [
                lambda creation=creation: creation.create(
                    caller(), NewApiKey(model_ids=["gpt-4o"]), idempotency_key="order-1", deadline=Deadline(60)
                )
                for creation in creations
            ]
        )

        created = [outcome for outcome in outcomes if isinstance(outcome, Creation)]
        others = [outcome for outcome in outcomes if not isinstance(outcome, Creation)]
        assert created
        assert len({creation.key.key for creation in created}) == 1
        assert {type(outcome) for outcome in others} <= {OperationInProgress}
        assert [creation.is_replayed for creation in created].count(False) == 1
        assert service.traces(only_key(service)) == LIVE
        assert len(service.gateway_faults.calls_of("/key/generate")) == 1

    def test_many_resume_one_pending_create(self, service: Service):
        key_id = interrupted(service, "reset_before")
        creations = [service.creation(fresh=True) for _ in range(8)]

        outcomes = all_at_once(
            [
                lambda creation=creation: creation.create(
                    caller(),
                    NewApiKey(model_ids=["gpt-4o"], name="notebook"),
                    idempotency_key="order-1",
                    deadline=Deadline(60),
                )
                for creation in creations
            ]
        )

        created = [outcome for outcome in outcomes if isinstance(outcome, Creation)]
        assert {creation.key.id for creation in created} == {key_id}
        assert {type(outcome) for outcome in outcomes} <= {Creation, OperationInProgress}
        assert len(service.gateway_faults.calls_of("/key/generate")) == 1
        assert service.traces(key_id).audits == [("API_KEY_CREATE", True)]

    def test_resuming_and_settling_end_in_one_of_the_two(self, service: Service):
        key_id = interrupted(service, "reset_before")
        service.let_time_pass()
        creation, settlement = service.creation(fresh=True), service.settlement(fresh=True)

        outcome, _ = all_at_once(
            [
                lambda: creation.create(
                    caller(),
                    NewApiKey(model_ids=["gpt-4o"], name="notebook"),
                    idempotency_key="order-1",
                    deadline=Deadline(60),
                ),
                lambda: settlement.run(deadline=Deadline(60)),
            ]
        )
        service.let_time_pass()
        service.settle()

        [(kind, _, state)] = service.traces(key_id).operations
        assert kind == "create"
        if isinstance(outcome, Creation) and outcome.key.id == key_id:
            assert state == "done"
            assert service.chat(outcome.key.key) == 200
        else:
            assert state == "failed"
            assert not service.is_live(service.token_hash(key_id))
