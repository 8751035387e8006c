"""Settling: whatever was interrupted is finished without anyone asking, by one settler at a time."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from keyservice import deletion_store, settlement_store
from keyservice.errors import DatabaseUnavailable, OperationPending, OperationSuperseded
from keyservice.models import Deadline, PendingDeletion, Settled
from keyservice.settlement_store import Claimed
from tests.integration.service import Service, Traces, all_at_once, caller

UNDONE = Traces(
    row=None, tokens=[("dead", False)], operations=[("create", "undo", "failed")], audits=[("API_KEY_CREATE", False)]
)
# Committed to being undone, while a lost request may still make the key.
UNDOING = Traces(
    row=(False, "pending"), tokens=[("intended", True)], operations=[("create", "undo", "pending")], audits=[]
)
DELETED = Traces(
    row=None,
    tokens=[("dead", False)],
    operations=[("create", "forward", "done"), ("delete", "forward", "done")],
    audits=[("API_KEY_CREATE", True), ("API_KEY_DELETE", True)],
)
DELETING = Traces(
    row=(False, "pending"),
    tokens=[("condemned", False)],
    operations=[("create", "forward", "done"), ("delete", "forward", "pending")],
    audits=[("API_KEY_CREATE", True)],
)


def interrupted_create(service: Service, fault: Any = "reset_after", **request: Any) -> UUID:
    """Of a create whose generate was not answered; by default LiteLLM has made the key."""
    before = {row["id"] for row in service.rows("SELECT id FROM api_keys")}
    service.gateway_faults.inject("/key/generate", fault)
    with pytest.raises(OperationPending):
        service.create(**request)
    [key_id] = {row["id"] for row in service.rows("SELECT id FROM api_keys")} - before
    return key_id


def accepted_delete(service: Service) -> UUID:
    """Of a live key, whose delete LiteLLM has not confirmed."""
    issued = service.create()
    service.gateway_faults.inject("/key/delete", "status", status=500)
    assert isinstance(service.delete(issued.id), PendingDeletion)
    return issued.id


def claim(service: Service) -> Claimed | None:
    return settlement_store.claim_due(
        service.database,
        lease_seconds=30,
        drain_seconds=900,
        first_wait_seconds=60,
        longest_wait_seconds=900,
        only_deletes=False,
    )


def make_due(service: Service) -> None:
    """Not the tokens: what LiteLLM may still do is another clock."""
    service.rows("UPDATE api_key_operations SET next_attempt_at = now(), lease_until = now()")


def test_nothing_to_do_takes_one_look_at_each(service: Service):
    assert service.settle() == Settled(
        expired=0,
        attempted=0,
        settled=0,
        pending_creates=0,
        pending_deletes=0,
        pending_updates=0,
        pending_rotates=0,
        pending_retires=0,
        oldest_pending_seconds=0.0,
    )
    assert service.database_faults.steps == [
        *("read_installation", "read_tokens", "begin_expiry", "begin_correction", "begin_retirements"),
        *("claim_due", "read_journal_state"),
    ]
    assert [call.path.partition("?")[0] for call in service.gateway_faults.calls] == ["/key/list"]


class TestCreateThatNobodyCameBackFor:
    def test_is_left_alone_while_somebody_may_come_back(self, service: Service):
        key_id = interrupted_create(service)

        report = service.settle()

        assert (report.attempted, report.pending_creates) == (0, 1)
        assert service.traces(key_id).operations == [("create", "forward", "pending")]
        waits = service.value("SELECT next_attempt_at - created_at FROM api_key_operations")
        assert waits == timedelta(seconds=300)

    @pytest.mark.parametrize("fault", ["reset_after", "reset_before"])
    def test_is_undone_in_both_systems(self, service: Service, fault: Any):
        key_id = interrupted_create(service, fault)
        token_hash = service.token_hash(key_id)
        service.let_time_pass()

        report = service.settle()

        assert (report.attempted, report.settled, report.pending_creates) == (1, 1, 0)
        assert not service.is_live(token_hash)
        assert service.traces(key_id) == UNDONE

    def test_is_audited_as_its_callers(self, service: Service):
        key_id = interrupted_create(service)
        service.let_time_pass()

        service.settle()

        [audit] = service.rows("SELECT *, host(ip_address) AS ip FROM audit_logs")
        assert audit["user_id"] == service.value("SELECT id FROM users WHERE oauth_id = 'alice'")
        assert (audit["resource_id"], audit["ip"], audit["user_agent"]) == (str(key_id), "203.0.113.9", "test/1.0")
        assert audit["error_message"] == "undone: LiteLLM did not confirm it and nobody asked for it again"
        assert audit["metadata"]["requestId"] == "request-of-alice"
        assert audit["metadata"]["models"] == ["gpt-4o"]

    def test_leaves_room_for_another(self, service: Service):
        interrupted_create(service, rules={"max_active_keys": 1})
        service.let_time_pass()

        service.settle()

        assert service.create(rules={"max_active_keys": 1}).is_active

    def test_waits_for_the_request_that_may_still_make_it(self, service: Service):
        late = service.gateway_faults.inject("/key/generate", "late")
        with pytest.raises(OperationPending):
            service.create(seconds=0.5)
        key_id, token_hash = service.only_key_id(), service.token_hash()
        make_due(service)

        early = service.settle()
        undoing = service.traces(key_id)
        [waiting] = service.rows(
            "SELECT o.last_error, o.next_attempt_at = t.unsafe_until AS is_timed, o.lease_until <= now() AS is_free"
            " FROM api_key_operations AS o JOIN api_key_tokens AS t USING (api_key_id)"
        )
        late.release()
        assert late.wait()
        came_true = service.is_live(token_hash)
        service.let_time_pass()
        service.settle()

        assert (early.attempted, early.settled) == (1, 0)
        assert undoing == UNDOING
        assert waiting == {
            "last_error": "an earlier request to LiteLLM may still make the key",
            "is_timed": True,
            "is_free": True,
        }
        assert came_true
        assert not service.is_live(token_hash)
        assert service.traces(key_id) == UNDONE

    def test_stays_while_litellm_does_not_take_it_back(self, service: Service):
        key_id = interrupted_create(service)
        service.let_time_pass()
        service.gateway_faults.inject("/key/delete", "status", status=503)

        report = service.settle()

        assert (report.attempted, report.settled, report.pending_creates) == (1, 0, 1)
        assert service.value("SELECT last_error FROM api_key_operations") == "key/delete: answered 503"
        assert service.traces(key_id).row == (False, "pending")

    def test_can_be_deleted_by_its_owner_all_the_same(self, service: Service):
        key_id = interrupted_create(service)
        make_due(service)
        service.settle()

        assert isinstance(service.delete(key_id), PendingDeletion)
        service.let_time_pass()
        service.settle()

        assert service.traces(key_id) == Traces(
            row=None,
            tokens=[("dead", False)],
            operations=[("create", "undo", "superseded"), ("delete", "forward", "done")],
            audits=[("API_KEY_CREATE", False), ("API_KEY_DELETE", True)],
        )

    def test_is_not_brought_back_by_a_generate_that_answers_after_the_claim(self, service: Service):
        """The create still waits for LiteLLM when its lease is over and a settler claims it."""

        def overtake() -> None:
            make_due(service)
            service.settlement(fresh=True).run(deadline=Deadline(10))

        service.gateway_faults.inject("/key/generate", "call_after", call=overtake)

        with pytest.raises(OperationSuperseded):
            service.create()

        key_id = service.only_key_id()
        assert service.traces(key_id) == UNDOING
        service.let_time_pass()
        service.settle()
        assert not service.is_live(service.token_hash(key_id))
        assert service.traces(key_id) == UNDONE

    def test_may_have_come_to_life_between_the_delete_and_the_end_of_its_drain(self, service: Service):
        """LiteLLM's 404 was given while the key could still be made: it proves nothing, though the drain is over now."""
        late = service.gateway_faults.inject("/key/generate", "late")
        with pytest.raises(OperationPending):
            service.create(seconds=0.5)
        key_id, token_hash = service.only_key_id(), service.token_hash()
        make_due(service)

        def come_true() -> None:
            late.release()
            assert late.wait()
            service.rows("UPDATE api_key_tokens SET unsafe_until = now() - interval '1 second'")

        service.gateway_faults.inject("/key/delete", "call_after", call=come_true)

        report = service.settle()

        assert report.settled == 0
        assert service.is_live(token_hash)
        assert service.traces(key_id).operations == [("create", "undo", "pending")]
        service.let_time_pass()
        assert service.settle().settled == 1
        assert not service.is_live(token_hash)
        assert service.traces(key_id) == UNDONE


class TestAcceptedDelete:
    def test_is_finished_without_anyone_asking(self, service: Service):
        key_id = accepted_delete(service)
        token_hash = service.token_hash(key_id)
        service.let_time_pass()

        report = service.settle()

        assert (report.attempted, report.settled, report.pending_deletes) == (1, 1, 0)
        assert not service.is_live(token_hash)
        assert service.traces(key_id) == DELETED

    def test_is_audited_as_its_callers(self, service: Service):
        accepted_delete(service)
        service.let_time_pass()

        service.settle()

        [audit] = service.rows("SELECT * FROM audit_logs WHERE action = 'API_KEY_DELETE'")
        assert audit["user_id"] == service.value("SELECT id FROM users WHERE oauth_id = 'alice'")
        assert audit["metadata"]["requestId"] == "request-of-alice"
        assert "reason" not in audit["metadata"]

    def test_is_left_to_its_request_for_a_lease(self, service: Service):
        key_id = accepted_delete(service)

        report = service.settle()

        assert (report.attempted, report.pending_deletes) == (0, 1)
        assert service.traces(key_id) == DELETING

    @pytest.mark.parametrize("fault", ["status", "hang", "reset_before", "reset_after"])
    def test_stays_while_litellm_does_not_confirm(self, service: Service, fault: Any):
        key_id = accepted_delete(service)
        service.let_time_pass()
        service.gateway_faults.inject("/key/delete", fault)

        report = service.settle(gateway_seconds=0.3)

        assert (report.attempted, report.settled, report.pending_deletes) == (1, 0, 1)
        assert service.traces(key_id) == DELETING

    def test_of_a_create_without_an_answer_waits_for_the_drain(self, service: Service):
        key_id = interrupted_create(service)
        token_hash = service.token_hash(key_id)
        assert isinstance(service.delete(key_id), PendingDeletion)
        make_due(service)

        early = service.settle()
        service.let_time_pass()
        late = service.settle()

        assert (early.attempted, early.settled) == (1, 0)
        assert (late.attempted, late.settled) == (1, 1)
        assert not service.is_live(token_hash)
        assert service.traces(key_id).row is None

    @pytest.mark.parametrize("step", ["lock_key", "finish_delete"])
    @pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
    def test_is_finished_once_though_the_connection_is_cut(self, service: Service, step: str, fault: Any):
        key_id = accepted_delete(service)
        service.let_time_pass()
        service.database_faults.inject(fault, step)

        service.settle()

        assert service.traces(key_id) == DELETED


class TestClaim:
    def test_is_not_given_twice(self, service: Service):
        key_id = accepted_delete(service)
        make_due(service)

        first, second = claim(service), claim(service)

        assert first is not None
        assert (first.api_key_id, first.kind, first.epoch, first.attempts) == (key_id, "delete", 2, 2)
        assert [(token.hash, token.is_safe) for token in first.tokens] == [(service.token_hash(key_id), True)]
        assert second is None

    def test_holds_for_a_lease_even_when_an_operator_wants_a_retry(self, service: Service):
        accepted_delete(service)
        make_due(service)
        claim(service)
        service.rows("UPDATE api_key_operations SET next_attempt_at = now() WHERE state = 'pending'")

        assert claim(service) is None
        seconds = service.value(
            "SELECT extract(epoch FROM lease_until - updated_at)::int FROM api_key_operations WHERE state = 'pending'"
        )
        assert seconds == 30

    def test_of_a_settler_that_died_passes_on_and_its_late_end_changes_nothing(self, service: Service):
        key_id = accepted_delete(service)
        make_due(service)
        dead = claim(service)
        make_due(service)
        heir = claim(service)

        assert dead is not None
        assert heir is not None
        assert heir.epoch == dead.epoch + 1
        late_end = deletion_store.finish_delete(
            service.database,
            operation_id=dead.operation_id,
            epoch=dead.epoch,
            api_key_id=key_id,
            gone_hashes=[token.hash for token in dead.tokens],
        )
        assert late_end is None
        assert service.traces(key_id) == DELETING

    def test_passes_over_an_operation_that_somebody_locks(self, service: Service):
        first, second = accepted_delete(service), accepted_delete(service)
        make_due(service)
        with psycopg.connect(service.database_under_test.admin_dsn) as other:
            other.execute("SELECT FROM api_key_operations WHERE api_key_id = %s FOR UPDATE", [first])

            claimed = claim(service)

        assert claimed is not None
        assert claimed.api_key_id == second

    def test_takes_first_what_is_due_longest(self, service: Service):
        keys = [accepted_delete(service) for _ in range(3)]
        make_due(service)
        for minutes, key_id in enumerate(keys):
            service.rows(
                "UPDATE api_key_operations SET next_attempt_at = now() - make_interval(mins => %s)"
                " WHERE api_key_id = %s",
                [minutes, key_id],
            )

        claimed = [found.api_key_id for found in (claim(service), claim(service), claim(service)) if found]

        assert claimed == keys[::-1]

    def test_of_a_delete_names_every_token_that_is_not_dead(self, service: Service):
        key_id = accepted_delete(service)
        own_hash = service.token_hash(key_id)
        service.rows(
            """
            INSERT INTO api_key_tokens (hash, api_key_id, user_id, number, state, unsafe_until)
            SELECT repeat(m.number::text, 64), t.api_key_id, t.user_id, m.number, m.state, m.unsafe_until
            FROM api_key_tokens AS t, (VALUES
                (2, 'dead', NULL), (3, 'retiring', now() - interval '1 s'), (4, 'condemned', now() + interval '1 hour')
            ) AS m (number, state, unsafe_until)
            """
        )
        make_due(service)

        claimed = claim(service)

        assert claimed is not None
        assert claimed.api_key_id == key_id
        assert {token.hash: token.is_safe for token in claimed.tokens} == {
            own_hash: True,
            "3" * 64: True,
            "4" * 64: False,
        }


class TestBackoff:
    def waits(self, service: Service, *, attempts: int) -> float:
        service.rows("UPDATE api_key_operations SET attempts = %s WHERE state = 'pending'", [attempts])
        make_due(service)
        assert claim(service) is not None
        return service.value(
            "SELECT extract(epoch FROM next_attempt_at - updated_at)::float8 FROM api_key_operations"
            " WHERE state = 'pending'"
        )

    @pytest.mark.parametrize(
        ("attempts", "shortest", "longest"),
        [(1, 30, 90), (2, 60, 180), (3, 120, 360), (4, 240, 720), (5, 450, 1350), (1_000_000, 450, 1350)],
    )
    def test_doubles_up_to_the_longest_with_jitter(
        self, service: Service, attempts: int, shortest: float, longest: float
    ):
        accepted_delete(service)

        waits = {self.waits(service, attempts=attempts) for _ in range(8)}

        assert all(shortest <= wait <= longest for wait in waits)
        assert len(waits) > 1

    def test_is_begun_before_the_attempt(self, service: Service):
        """So an operation that kills its settler does not come first again."""
        accepted_delete(service)
        service.let_time_pass()
        seen: list[bool] = []
        service.gateway_faults.inject(
            "/key/delete",
            "call_before",
            call=lambda: seen.append(
                service.value(
                    "SELECT next_attempt_at > now() + interval '29 s' FROM api_key_operations WHERE state = 'pending'"
                )
            ),
        )

        service.settle()

        assert seen == [True]

    def test_has_no_end(self, service: Service):
        key_id = accepted_delete(service)
        service.rows("UPDATE api_key_operations SET attempts = 1000000 WHERE state = 'pending'")
        service.let_time_pass()

        assert service.settle().settled == 1
        assert service.traces(key_id) == DELETED


class TestPoisonedOperation:
    @pytest.mark.parametrize(
        ("status", "body"),
        [
            pytest.param(500, None, id="500"),
            pytest.param(200, {"deleted_keys": None}, id="nothing deleted"),
            pytest.param(200, [], id="not an object"),
        ],
    )
    def test_does_not_hold_up_the_others(self, service: Service, status: int, body: Any):
        poisoned, *others = [accepted_delete(service) for _ in range(4)]
        token_hash = service.token_hash(poisoned)
        service.let_time_pass()
        service.rows(
            "UPDATE api_key_operations SET next_attempt_at = next_attempt_at - interval '1 day' WHERE api_key_id = %s",
            [poisoned],
        )
        service.gateway_faults.inject(
            "/key/delete",
            "status",
            times=0,
            status=status,
            body=body,
            matches=lambda asked: token_hash in asked["keys"],
        )

        report = service.settle()

        assert (report.attempted, report.settled, report.pending_deletes) == (4, 3, 1)
        assert service.traces(poisoned) == DELETING
        assert [service.traces(key_id) for key_id in others] == [DELETED] * 3


class TestTime:
    def test_that_is_too_short_for_an_attempt_is_not_begun(self, service: Service):
        key_id = accepted_delete(service)
        service.let_time_pass()

        report = service.settle(seconds=3.0, gateway_seconds=3.0)

        assert (report.attempted, report.pending_deletes) == (0, 1)
        assert service.traces(key_id) == DELETING

    def test_that_litellm_uses_up_ends_the_run_and_leaves_the_rest_untouched(self, service: Service):
        for _ in range(4):
            accepted_delete(service)
        service.let_time_pass()
        service.gateway_faults.inject("/key/delete", "hang", times=0)

        report = service.settle(seconds=1.0, gateway_seconds=0.4, reserve_seconds=0.1)

        assert 1 <= report.attempted < 4
        assert (report.settled, report.pending_deletes) == (0, 4)
        claimed = service.value("SELECT count(*) FROM api_key_operations WHERE state = 'pending' AND epoch > 1")
        assert claimed == report.attempted

    def test_report_says_how_long_the_oldest_has_waited(self, service: Service):
        accepted_delete(service)
        interrupted_create(service)
        service.rows(
            "UPDATE api_key_operations SET created_at = now() - interval '2 hours' WHERE state = 'pending' AND kind = 'create'"
        )

        report = service.settle()

        assert (report.pending_creates, report.pending_deletes) == (1, 1)
        assert report.oldest_pending_seconds >= 7200


class TestTwoSettlers:
    def test_share_the_work_and_finish_each_operation_once(self, service: Service):
        keys = [accepted_delete(service) for _ in range(8)]
        service.let_time_pass()
        settlements = [service.settlement(fresh=True) for _ in range(3)]

        reports: list[Settled] = all_at_once(
            [lambda settlement=settlement: settlement.run(deadline=Deadline(60)) for settlement in settlements]
        )

        assert sum(report.attempted for report in reports) == 8
        assert sum(report.settled for report in reports) == 8
        assert [service.traces(key_id) for key_id in keys] == [DELETED] * 8
        assert service.value("SELECT max(epoch) FROM api_key_operations") == 2

    def test_and_the_owner_finish_a_delete_once(self, service: Service):
        key_id = accepted_delete(service)
        service.let_time_pass()
        deletion, settlement = service.deletion(fresh=True), service.settlement(fresh=True)

        all_at_once(
            [
                lambda: deletion.delete(caller(), str(key_id), deadline=Deadline(60)),
                lambda: settlement.run(deadline=Deadline(60)),
            ]
        )

        assert service.traces(key_id) == DELETED


class TestDatabaseFails:
    def test_run_says_so(self, service: Service):
        service.database_faults.refuse_connections()

        with pytest.raises(DatabaseUnavailable):
            service.settle()

    @pytest.mark.parametrize("step", ["begin_expiry", "claim_due", "read_journal_state"])
    def test_and_the_next_run_goes_on_where_it_was(self, service: Service, step: str):
        key_id = accepted_delete(service)
        service.let_time_pass()
        service.database_faults.cut_after(step)
        with pytest.raises(DatabaseUnavailable):
            service.settle()
        service.let_time_pass()

        service.settle()

        assert service.traces(key_id) == DELETED

    def test_while_an_operation_is_finished_leaves_it_to_the_next_run(self, service: Service):
        key_id = accepted_delete(service)
        service.let_time_pass()
        service.database_faults.cut_before("finish_delete", times=2)

        report = service.settle()

        assert (report.attempted, report.settled) == (1, 0)
        assert service.value("SELECT last_error FROM api_key_operations WHERE state = 'pending'") == "OutcomeUnknown"
        service.let_time_pass()
        service.settle()
        assert service.traces(key_id) == DELETED
