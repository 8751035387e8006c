"""Changing a key: what is lost on the way, who meets whom, and what is never undone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from keyservice import alteration_store, settlement_store, spend_store
from keyservice.errors import (
    DatabaseUnavailable,
    GatewayRefused,
    InvalidRequest,
    NotFound,
    OperationInProgress,
    OperationPending,
    OperationSuperseded,
)
from keyservice.litellm import GatewaySpend
from keyservice.models import Deadline, DeletedKey, FoundKey, KeyChanges, PendingUpdate, Settled
from tests.integration.service import DRAIN_SECONDS, LEASE_SECONDS, Service, all_at_once, caller

UPDATED = [("create", "forward", "done"), ("update", "forward", "done")]


def tpm_limits(service: Service, key_id: UUID) -> tuple[int | None, int | None]:
    """Of the row, and of LiteLLM."""
    row = service.value("SELECT tpm_limit FROM api_keys WHERE id = %s", [key_id])
    return row, service.gateway_key(service.token_hash(key_id))["tpm_limit"]


def unsafe_until(service: Service, key_id: UUID) -> datetime | None:
    return service.value("SELECT settings_unsafe_until FROM api_key_tokens WHERE api_key_id = %s", [key_id])


def begin(service: Service, key_id: UUID, **changes: Any) -> PendingUpdate:
    begun = alteration_store.begin_update(
        service.database,
        caller(),
        operation_id=uuid4(),
        owner_id=None,
        api_key_id=key_id,
        changes=changes,
        entity_tags=None,
        model_access="subscription",
        gateway_models=(),
        lease_seconds=LEASE_SECONDS,
        drain_seconds=DRAIN_SECONDS,
    )
    assert begun.pending is not None
    return begun.pending


def give_another_secret(service: Service, key_id: UUID, **settings: Any) -> str:
    """As LiteMaaS regenerates: a key in LiteLLM that we did not make, and the row says so. Its hash."""
    given = service.make_gateway_key("sk-given-by-litemaas", models=["gpt-4o"], **settings)
    service.rows("UPDATE api_keys SET key_hash = %s WHERE id = %s", [given, key_id])
    return given


def end_in_litellm(service: Service, token_hash: str) -> None:
    service._ask("POST", "/key/delete", body={"keys": [token_hash]})


class TestLostAnswer:
    @pytest.mark.parametrize("step", ["begin_update", "finish_update"])
    @pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
    def test_of_the_database_is_asked_for_once_more(self, service: Service, step: str, fault: Any):
        key_id = service.create().id
        service.database_faults.inject(fault, step)

        updated = service.update(key_id, tpm_limit=5)

        assert updated.key.tpm_limit == 5
        assert tpm_limits(service, key_id) == (5, 5)
        traces = service.traces(key_id)
        assert (traces.operations, len(traces.audits)) == (UPDATED, 2)
        assert unsafe_until(service, key_id) is None

    def test_of_a_refusal_is_audited_once(self, service: Service):
        key_id = service.create().id
        service.database_faults.cut_after("begin_update")

        with pytest.raises(InvalidRequest):
            service.update(key_id, model_ids=["o3"])

        assert service.traces(key_id).audits == [("API_KEY_CREATE", True), ("API_KEY_UPDATE", False)]

    def test_of_t1_twice_leaves_a_change_that_settling_makes(self, service: Service):
        key_id = service.create().id
        service.database_faults.inject("cut_after", "begin_update", times=2)

        with pytest.raises(DatabaseUnavailable):
            service.update(key_id, tpm_limit=5)

        assert tpm_limits(service, key_id) == (None, None)
        service.let_time_pass()
        assert service.settle().settled == 1
        assert tpm_limits(service, key_id) == (5, 5)

    def test_of_t2_twice_leaves_the_row_to_settling(self, service: Service):
        key_id = service.create().id
        service.database_faults.inject("cut_before", "finish_update", times=2)

        with pytest.raises(OperationPending):
            service.update(key_id, tpm_limit=5, model_ids=["gpt-4o-mini"])

        assert tpm_limits(service, key_id) == (None, 5)
        service.let_time_pass()
        service.gateway_faults.forget_calls()
        assert service.settle().settled == 1
        assert tpm_limits(service, key_id) == (5, 5)
        assert service.rows("SELECT model_id FROM api_key_models") == [{"model_id": "gpt-4o-mini"}]
        # What was to change, once more: the same again harms nothing, and reading first would be a call more.
        assert len(service.gateway_faults.calls_of("/key/update")) == 1
        assert service.gateway_faults.calls_of("/key/info") == []


class TestUnsafeMark:
    def test_is_there_while_litellm_is_told(self, service: Service):
        key_id = service.create().id
        seen: list[datetime | None] = []
        service.gateway_faults.inject(
            "/key/update", "call_before", call=lambda: seen.append(unsafe_until(service, key_id))
        )

        service.update(key_id, tpm_limit=5)

        assert len(seen) == 1
        assert seen[0] is not None
        assert unsafe_until(service, key_id) is None

    def test_is_taken_back_by_an_answer(self, service: Service):
        key_id = service.create().id
        service.gateway_faults.inject(
            "/key/update", "status", status=429, body={"error": {"message": "slow", "type": "x", "code": "429"}}
        )

        with pytest.raises(OperationPending):
            service.update(key_id, tpm_limit=5)

        assert unsafe_until(service, key_id) is None

    def test_of_an_earlier_attempt_outlives_a_later_answer(self, service: Service):
        key_id = service.create().id
        service.gateway_faults.inject("/key/update", "reset_before")
        with pytest.raises(OperationPending):
            service.update(key_id, tpm_limit=5)
        service.rows("UPDATE api_key_operations SET lease_until = now()")

        service.update(key_id, tpm_limit=6)

        assert unsafe_until(service, key_id) is not None
        service.let_time_pass()
        service.gateway_faults.forget_calls()
        assert service.settle().settled == 1
        assert unsafe_until(service, key_id) is None
        assert service.gateway_faults.calls_of("/key/update") == []
        assert service.traces(key_id).audits[1:] == [("API_KEY_UPDATE", False)] + [("API_KEY_UPDATE", True)] * 2

    def test_of_an_earlier_attempt_lasts_no_longer_for_later_changes(self, service: Service):
        """As often as somebody asks for the same again."""
        key_id = service.create().id
        service.gateway_faults.inject("/key/update", "reset_before")
        with pytest.raises(OperationPending):
            service.update(key_id, tpm_limit=5)
        first = unsafe_until(service, key_id)

        for tpm_limit in (6, 6, 7):
            service.update(key_id, tpm_limit=tpm_limit)

        assert unsafe_until(service, key_id) == first

    def test_is_not_made_by_a_reset_of_spend(self, service: Service):
        """Of a resumed create the token keeps until when it was unsafe."""
        key_id = service.create().id
        service.rows("UPDATE api_key_tokens SET unsafe_until = now() - interval '1 hour'")

        service.alteration().reset_spend(caller(), str(key_id), deadline=Deadline(20))

        assert unsafe_until(service, key_id) is None

    def test_of_an_earlier_attempt_outlives_a_later_refusal(self, service: Service):
        key_id = service.create().id
        service.gateway_faults.inject("/key/update", "reset_after")
        with pytest.raises(OperationPending):
            service.update(key_id, max_budget=1000.0)
        first = unsafe_until(service, key_id)
        refusal = {"error": {"message": "rpm_limit", "type": "auth_error", "param": "None", "code": "400"}}
        service.gateway_faults.inject("/key/update", "status", status=400, body=refusal)

        with pytest.raises(GatewayRefused):
            service.update(key_id, rpm_limit=7)

        assert unsafe_until(service, key_id) == first
        service.let_time_pass()
        service.settle()
        assert service.gateway_key(service.token_hash(key_id))["max_budget"] is None

    def test_of_which_the_time_is_over_outlives_a_reset_of_spend(self, service: Service):
        """Which compares no settings."""
        key_id = service.create().id
        service.gateway_faults.inject("/key/update", "reset_after")
        with pytest.raises(OperationPending):
            service.update(key_id, tpm_limit=5)
        service.update(key_id, rpm_limit=7)
        service.let_time_pass()

        service.alteration().reset_spend(caller(), str(key_id), deadline=Deadline(20))

        assert unsafe_until(service, key_id) is not None

    def test_remembers_the_correction_of_a_resumed_create(self, service: Service):
        """That one is an update too: carried out late it would bring the created key's settings back."""
        key_id = service.create().id
        service.rows("UPDATE api_key_tokens SET unsafe_until = now() + interval '5 minutes'")

        service.update(key_id, tpm_limit=5)

        assert unsafe_until(service, key_id) is not None
        token_hash = service.token_hash(key_id)
        late = service._ask("POST", "/key/update", body={"key": token_hash, "tpm_limit": None})
        assert late.status_code == 200
        service.let_time_pass()
        assert service.settle().settled == 1
        assert tpm_limits(service, key_id) == (5, 5)


class TestAtOnce:
    def test_two_changes_leave_one_of_them(self, service: Service):
        key_id = service.create().id
        alterations = [service.alteration(fresh=True) for _ in range(2)]

        outcomes = all_at_once(
            [
                lambda limit=limit, alteration=alteration: alteration.update(
                    caller(), str(key_id), KeyChanges(tpm_limit=limit), deadline=Deadline(20)
                )
                for limit, alteration in enumerate(alterations, start=1)
            ]
        )

        kinds = [type(outcome) for outcome in outcomes]
        assert FoundKey in kinds
        assert set(kinds) <= {FoundKey, OperationInProgress}
        row, gateway = tpm_limits(service, key_id)
        assert row == gateway
        assert row in (1, 2)

    def test_a_change_and_a_delete_leave_no_key(self, service: Service):
        issued = service.create()
        token_hash = service.token_hash(issued.id)
        alteration, deletion = service.alteration(fresh=True), service.deletion(fresh=True)
        works: list[Callable[[], Any]] = [
            lambda: alteration.update(caller(), str(issued.id), KeyChanges(tpm_limit=5), deadline=Deadline(20)),
            lambda: deletion.delete(caller(), str(issued.id), deadline=Deadline(20)),
        ]

        updated, deleted = all_at_once(works)

        # 400 and 404: the row was off, or gone; 503: LiteLLM had none any more when it was told.
        assert isinstance(updated, FoundKey | OperationSuperseded | NotFound | InvalidRequest | OperationPending), (
            updated
        )
        assert isinstance(deleted, DeletedKey)
        assert not service.is_live(token_hash)
        traces = service.traces(issued.id)
        assert (traces.row, traces.tokens) == (None, [("dead", False)])
        assert len(traces.audits) == len(traces.operations) + (
            isinstance(updated, InvalidRequest) and len(traces.operations) == 2
        )

    def test_a_change_does_not_take_over_what_a_settler_is_just_claiming(self, service: Service):
        """It would end first, and the settler would tell LiteLLM the older value."""
        key_id = service.create().id
        service.gateway_faults.inject("/key/update", "status", status=429)
        with pytest.raises(OperationPending):
            service.update(key_id, tpm_limit=5)
        service.rows("UPDATE api_key_operations SET lease_until = now(), next_attempt_at = now()")
        claiming = {
            "lease_seconds": LEASE_SECONDS,
            "drain_seconds": DRAIN_SECONDS,
            "first_wait_seconds": 60.0,
            "longest_wait_seconds": 900.0,
            "only_deletes": False,
        }

        with psycopg.connect(service.database_under_test.admin_dsn) as settler, ThreadPoolExecutor(1) as thread:
            settler.execute(settlement_store._CLAIM_DUE, claiming)
            changed = thread.submit(service.update, key_id, tpm_limit=6)
            service.wait_until_somebody_waits()
            settler.commit()
            with pytest.raises(OperationInProgress):
                changed.result(30)

    def test_two_settlers_make_a_change_once(self, service: Service):
        key_id = service.create().id
        service.gateway_faults.inject("/key/update", "reset_before")
        with pytest.raises(OperationPending):
            service.update(key_id, tpm_limit=5)
        service.rows("UPDATE api_key_operations SET lease_until = now(), next_attempt_at = now()")
        settlements = [service.settlement(fresh=True) for _ in range(2)]

        reports: list[Settled] = all_at_once(
            [lambda settlement=settlement: settlement.run(deadline=Deadline(20)) for settlement in settlements]
        )

        assert sum(report.settled for report in reports) == 1
        assert service.traces(key_id).audits == [("API_KEY_CREATE", True), ("API_KEY_UPDATE", True)]

    def test_eight_ends_of_one_change_write_one_audit_record(self, service: Service):
        pending = begin(service, service.create().id, tpm_limit=5)
        databases = [service.connect_database() for _ in range(8)]

        outcomes = all_at_once(
            [lambda database=database: alteration_store.finish_update(database, pending)[0] for database in databases]
        )

        assert {outcome.state for outcome in outcomes} == {"done"}
        assert service.traces(pending.api_key_id).audits == [("API_KEY_CREATE", True), ("API_KEY_UPDATE", True)]


class TestSettling:
    def test_of_an_operation_that_cannot_be_read_lets_the_others_through(self, service: Service):
        poisoned, other = service.create().id, service.create().id
        for key_id in (poisoned, other):
            begin(service, key_id, tpm_limit=5)
        service.rows(
            "UPDATE api_key_operations SET request = '{\"new\": {\"models\": 5}}' WHERE api_key_id = %s AND kind = 'update'",
            [poisoned],
        )
        service.let_time_pass()

        report = service.settle()

        assert (report.attempted, report.settled, report.pending_updates) == (2, 1, 1)
        assert tpm_limits(service, other) == (5, 5)
        assert service.value("SELECT last_error FROM api_key_operations WHERE state = 'pending'") == "ValidationError"

    def test_of_a_claimed_change_ends_its_first_holder(self, service: Service):
        pending = begin(service, service.create().id, tpm_limit=5)
        service.let_time_pass()
        claimed = settlement_store.claim_due(
            service.database,
            lease_seconds=LEASE_SECONDS,
            drain_seconds=DRAIN_SECONDS,
            first_wait_seconds=60,
            longest_wait_seconds=900,
            only_deletes=False,
        )

        late, _ = alteration_store.finish_update(service.database, pending)

        assert claimed is not None
        assert (claimed.kind, claimed.epoch, late.state) == ("update", 2, "pending")
        assert alteration_store.finish_update(service.database, claimed.update())[0].state == "done"

    def test_is_left_alone_in_a_restored_database(self, service: Service):
        key_id = service.create().id
        begin(service, key_id, tpm_limit=5)
        service.let_time_pass()
        service.rows("UPDATE keyservice_installation SET stack_name = 'another'")

        report = service.settle()

        assert (report.attempted, report.brake) == (0, "otherStack")
        assert tpm_limits(service, key_id) == (None, None)

    def test_of_a_key_that_expired_meanwhile_is_followed_by_its_end(self, service: Service):
        key_id = service.create().id
        pending = begin(service, key_id, tpm_limit=5)
        service.rows(
            'UPDATE api_key_operations SET request = request || \'{"expires_at": "2020-01-01T00:00:00Z"}\' WHERE id = %s',
            [pending.operation_id],
        )
        service.rows("UPDATE api_keys SET expires_at = '2020-01-01T00:00:00Z' WHERE id = %s", [key_id])
        service.let_time_pass()

        assert service.settle().settled == 1
        report = service.settle()

        assert (report.expired, report.settled) == (1, 1)
        assert not service.is_live(service.token_hash(key_id))


def test_models_that_litellm_serves_can_be_added_where_any_model_may(service: Service):
    key_id = service.create().id
    alteration = service.alteration(model_access="any")

    updated = alteration.update(caller(), str(key_id), KeyChanges(model_ids=["claude-sonnet"]), deadline=Deadline(20))

    assert updated.key.models == ["claude-sonnet"]
    with pytest.raises(InvalidRequest) as caught:
        alteration.update(caller(), str(key_id), KeyChanges(model_ids=["none"]), deadline=Deadline(20))
    assert caught.value.message == "The following models do not exist: none"


def test_what_somebody_else_changed_in_the_row_meanwhile_stays(service: Service):
    key_id = service.create().id
    pending = begin(service, key_id, tpm_limit=5)
    service.rows("UPDATE api_keys SET name = 'by LiteMaaS', rpm_limit = 9 WHERE id = %s", [key_id])

    alteration_store.finish_update(service.database, pending)

    [row] = service.rows("SELECT name, rpm_limit, tpm_limit FROM api_keys WHERE id = %s", [key_id])
    assert row == {"name": "by LiteMaaS", "rpm_limit": 9, "tpm_limit": 5}


def test_change_that_is_the_key_as_it_is_writes_nothing(service: Service):
    key_id = service.create(tpm_limit=5).id
    service.gateway_faults.forget_calls()

    service.update(key_id, tpm_limit=5)

    assert service.traces(key_id).operations == [("create", "forward", "done")]
    assert service.gateway_faults.calls == []


def test_reset_of_spend_outlives_a_page_of_spend_that_was_asked_for_before(service: Service):
    key_id = service.create().id
    spent = [GatewaySpend(token=service.token_hash(key_id), spend=9.0)]

    def spend_after_page_asked_for_at(asked_at: datetime) -> float:
        spend_store.write_spend(service.database, spent, asked_at=asked_at, next_page=1, ends_round=True)
        return float(service.value("SELECT current_spend FROM api_keys WHERE id = %s", [key_id]))

    before = service.value("SELECT now()")
    assert spend_after_page_asked_for_at(before) == 9
    service.alteration().reset_spend(caller(), str(key_id), deadline=Deadline(20))

    assert spend_after_page_asked_for_at(before) == 0
    assert spend_after_page_asked_for_at(service.value("SELECT now()")) == 9


def test_of_a_key_whose_other_settings_litellm_will_not_take_is_made(service: Service):
    """Others write rows, too; that LiteLLM refuses one of their values must not undo in the row what it has stored."""
    key_id = service.create().id
    service.rows("UPDATE api_keys SET budget_duration = '1y' WHERE id = %s", [key_id])

    updated = service.update(key_id, tpm_limit=5)

    assert updated.key.tpm_limit == 5
    assert tpm_limits(service, key_id) == (5, 5)
    assert service.traces(key_id).operations == UPDATED
    assert service.gateway_key(service.token_hash(key_id))["budget_duration"] is None


class TestWhatElseDiffers:
    """LiteMaaS and administrators write rows, and keys in LiteLLM, too."""

    def test_and_litellm_will_not_take_does_not_undo_an_earlier_change(self, service: Service):
        """Which was carried out unanswered, and is taken back by another one that takes over."""
        key_id = service.create().id
        service.rows("UPDATE api_keys SET budget_duration = '1y' WHERE id = %s", [key_id])
        service.gateway_faults.inject("/key/update", "reset_after")
        with pytest.raises(OperationPending):
            service.update(key_id, tpm_limit=5, rpm_limit=7)
        assert tpm_limits(service, key_id) == (None, 5)

        updated = service.update(key_id, tpm_limit=None, rpm_limit=7)

        assert updated.key.rpm_limit == 7
        assert tpm_limits(service, key_id) == (None, None)

    @pytest.mark.parametrize(
        "changes", [{"metadata": {"a": 1}}, {"soft_budget": 2.0}, {"budget_duration": "7d"}, {"tags": ["x"]}], ids=str
    )
    def test_of_a_key_moved_to_another_team_is_made(self, service: Service, changes: dict[str, Any]):
        """LiteLLM would refuse to move it back: its owner is no member there."""
        key_id = service.create(team_id=str(service.make_team("alice"))).id
        token_hash = service.token_hash(key_id)
        service._ask("POST", "/key/update", body={"key": token_hash, "team_id": None})

        service.update(key_id, **changes)

        assert service.traces(key_id).operations == UPDATED
        assert service.gateway_key(token_hash)["team_id"] is None

    def test_of_a_key_moved_to_another_team_is_settled(self, service: Service):
        key_id = service.create(team_id=str(service.make_team("alice"))).id
        service._ask("POST", "/key/update", body={"key": service.token_hash(key_id), "team_id": None})
        service.gateway_faults.inject("/key/update", "reset_after")
        with pytest.raises(OperationPending):
            service.update(key_id, tpm_limit=5)

        service.let_time_pass()
        service.settle()
        service.let_time_pass()
        service.settle()

        assert tpm_limits(service, key_id) == (5, 5)
        assert service.settle().pending_updates == 0

    @pytest.mark.parametrize("earlier_may_come_late", [True, False])
    def test_of_what_litemaas_changed_meanwhile_is_left(self, service: Service, *, earlier_may_come_late: bool):
        key_id = service.create(max_budget=10.0).id
        if earlier_may_come_late:
            service.rows("UPDATE api_key_tokens SET settings_unsafe_until = now() + interval '1 second'")
        service.gateway_faults.inject("/key/update", "status", status=429)
        with pytest.raises(OperationPending):
            service.update(key_id, tpm_limit=5)
        service.rows("UPDATE api_keys SET max_budget = 3 WHERE id = %s", [key_id])
        service._ask("POST", "/key/update", body={"key": service.token_hash(key_id), "max_budget": 3})

        service.let_time_pass()
        service.settle()

        assert tpm_limits(service, key_id) == (5, 5)
        assert service.gateway_key(service.token_hash(key_id))["max_budget"] == 3

    @pytest.mark.parametrize(
        ("fault", "settings"), [("reset_after", {}), ("status", {"status": 429})], ids=["no answer", "another answer"]
    )
    def test_in_a_key_that_litemaas_made_stays(self, service: Service, fault: Any, settings: dict[str, Any]):
        """LiteMaaS keeps there an expiry and a budget that its row has lost."""
        key_id = service.create(model_ids=["gpt-4o"]).id
        known = service.token_hash(key_id)
        given = give_another_secret(service, key_id, max_budget=10, duration="30d")
        end_in_litellm(service, known)
        service.gateway_faults.inject("/key/update", fault, **settings)
        with pytest.raises(OperationPending):
            service.update(key_id, tpm_limit=5)

        service.update(key_id, tpm_limit=6)
        service.let_time_pass()
        service.settle()

        stored = service.gateway_key(given)
        assert (stored["tpm_limit"], stored["max_budget"]) == (6, 10)
        assert stored["expires"] is not None


def test_of_a_value_that_may_yet_be_undone_asks_litellm(service: Service):
    key_id = service.create().id
    service.gateway_faults.inject("/key/update", "reset_before")
    with pytest.raises(OperationPending):
        service.update(key_id, tpm_limit=5)
    service.update(key_id, tpm_limit=6)
    # The first one, late.
    service._ask("POST", "/key/update", body={"key": service.token_hash(key_id), "tpm_limit": 5})

    service.update(key_id, tpm_limit=6)

    assert tpm_limits(service, key_id) == (6, 6)


class TestOfSeveralSecrets:
    """The current one, and an earlier one whose grace runs. Their hashes come in either order, so four keys each."""

    @pytest.fixture
    def rotated(self, service: Service) -> list[tuple[UUID, str, str]]:
        """The keys, each with the hashes of its earlier and its current secret."""

        def rotated() -> tuple[UUID, str, str]:
            key_id = service.create().id
            earlier = service.token_hash(key_id)
            service.rotate(key_id, grace_seconds=3600)
            return key_id, earlier, service.value("SELECT key_hash FROM api_keys WHERE id = %s", [key_id])

        return [rotated() for _ in range(4)]

    def test_changes_both(self, service: Service, rotated: list[tuple[UUID, str, str]]):
        for key_id, earlier, current in rotated:
            service.update(key_id, tpm_limit=5)

            assert [service.gateway_key(token)["tpm_limit"] for token in (earlier, current)] == [5, 5]

    def test_does_not_miss_the_earlier_one(self, service: Service, rotated: list[tuple[UUID, str, str]]):
        for key_id, earlier, current in rotated:
            end_in_litellm(service, earlier)

            assert service.update(key_id, tpm_limit=5).key.tpm_limit == 5

            assert service.gateway_key(current)["tpm_limit"] == 5

    def test_of_which_the_current_one_is_gone_says_so(self, service: Service, rotated: list[tuple[UUID, str, str]]):
        for key_id, _, current in rotated:
            end_in_litellm(service, current)

            with pytest.raises(InvalidRequest, match="no such key any more"):
                service.update(key_id, tpm_limit=5)

            assert service.value("SELECT tpm_limit FROM api_keys WHERE id = %s", [key_id]) is None

    @pytest.mark.parametrize("is_refused", [True, False], ids=["refused", "gone"])
    def test_leaves_the_earlier_one_nothing_that_the_current_one_did_not_get(
        self, service: Service, rotated: list[tuple[UUID, str, str]], *, is_refused: bool
    ):
        refusal = {"error": {"message": "max_budget", "type": "auth_error", "param": "None", "code": "400"}}
        for key_id, earlier, current in rotated:
            if is_refused:
                service.gateway_faults.inject(
                    "/key/update",
                    "status",
                    status=400,
                    body=refusal,
                    times=2,
                    matches=lambda body, current=current: body["key"] == current,
                )
            else:
                end_in_litellm(service, current)

            with pytest.raises(InvalidRequest):
                service.update(key_id, max_budget=1000.0)

            assert service.gateway_key(earlier)["max_budget"] == 1000
        service.settle()

        for key_id, earlier, _ in rotated:
            assert service.gateway_key(earlier)["max_budget"] is None
            audits = len(service.traces(key_id).audits)
            service.settle()
            assert len(service.traces(key_id).audits) == audits

    def test_settles_with_the_secret_that_litemaas_has_given_meanwhile(self, service: Service):
        key_id = service.create().id
        begin(service, key_id, tpm_limit=5)
        given = give_another_secret(service, key_id)
        service.let_time_pass()

        assert service.settle().settled == 1

        assert service.gateway_key(given)["tpm_limit"] == 5

    def test_settles_without_the_earlier_one(self, service: Service, rotated: list[tuple[UUID, str, str]]):
        for key_id, earlier, _ in rotated:
            end_in_litellm(service, earlier)
            begin(service, key_id, tpm_limit=5)
        service.let_time_pass()

        assert service.settle().settled == len(rotated)

        for key_id, _, current in rotated:
            assert service.value("SELECT tpm_limit FROM api_keys WHERE id = %s", [key_id]) == 5
            assert service.gateway_key(current)["tpm_limit"] == 5


def test_of_a_key_that_litemaas_gave_another_secret(service: Service):
    """LiteMaaS regenerates: LiteLLM has the new secret instead of the one that we know, and the row says so."""
    key_id = service.create().id
    known = service.token_hash(key_id)
    given = give_another_secret(service, key_id)
    end_in_litellm(service, known)

    assert service.update(key_id, tpm_limit=5).key.tpm_limit == 5

    assert service.gateway_key(given)["tpm_limit"] == 5


def test_of_the_name_compares_what_has_to_be_compared(service: Service):
    """After the drain, and before settling has."""
    key_id = service.create().id
    service.gateway_faults.inject("/key/update", "reset_before")
    with pytest.raises(OperationPending):
        service.update(key_id, tpm_limit=5)
    service.update(key_id, rpm_limit=7)
    # The first one, late.
    service._ask("POST", "/key/update", body={"key": service.token_hash(key_id), "tpm_limit": 5})
    service.let_time_pass()

    service.alteration().update(caller(), str(key_id), KeyChanges(name="renamed"), deadline=Deadline(20))

    assert tpm_limits(service, key_id) == (None, None)
    assert unsafe_until(service, key_id) is None
