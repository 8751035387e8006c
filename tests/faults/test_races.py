"""Requests that meet: each test holds the parties where they hurt most, and lets them go together."""

import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import LiteralString

import httpx
import psycopg
import pytest

from tests.e2e.service import Person
from tests.faults.invariants import violations
from tests.faults.meeting import BODY, WAIT_SECONDS, Gate, assert_quiet_and_kept, started, together
from tests.faults.rig import MAX_ACTIVE_KEYS, RESUME_SECONDS, Rig, error_code
from tests.faults.scenarios import DELETE, GENERATE, Situation

# As many workers as the stack has for each function.
WORKERS = 4


@pytest.fixture
def rig(patient_rig: Rig) -> Rig:
    return patient_rig


@contextmanager
def locked_row(rig: Rig, query: LiteralString, **parameters: object) -> Generator[None]:
    """Nobody gets past this row until the block ends, and it ends when all the workers wait for it."""
    with psycopg.connect(rig.stack.admin_dsn) as holder:
        holder.execute(query, parameters)
        yield
        wait_until(lambda: _waiting_for_locks(rig) >= WORKERS)
        holder.rollback()


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def _waiting_for_locks(rig: Rig) -> int:
    [row] = rig.rows(
        "SELECT count(*) AS backends FROM pg_stat_activity"
        " WHERE application_name = 'keyservice' AND wait_event_type = 'Lock' AND datname = current_database()"
    )
    return row["backends"]


def warm_up(rig: Rig, person: Person) -> None:
    """All workers of create and delete are there: a cold start would let the others pass."""
    missing = "00000000-0000-4000-8000-000000000000"
    while len(rig.stack.worker_pids("CreateApiKey")) < WORKERS or len(rig.stack.worker_pids("DeleteApiKey")) < WORKERS:
        together(*[lambda: person.create({})] * 8, *[lambda: person.delete(missing)] * 8)


def test_fifty_creates_with_one_idempotency_key_make_one_key(rig: Rig, alice: Person) -> None:
    warm_up(rig, alice)

    with (
        ThreadPoolExecutor(max_workers=50) as pool,
        locked_row(rig, "SELECT id FROM users WHERE id = %(user_id)s FOR UPDATE", user_id=alice.user_id),
    ):
        answers = [pool.submit(lambda: rig.create(alice, BODY, idempotency_key="one")) for _ in range(50)]
    replies = [answer.result() for answer in answers]

    # 503 is as honest as 409, when the machine is so busy that LiteLLM's time is over.
    assert {reply.status_code for reply in replies} <= {201, 409, 503}
    issued = [reply for reply in replies if reply.status_code == 201]
    assert len({reply.json()["key"] for reply in issued}) == 1
    assert sum("idempotency-replayed" not in reply.headers for reply in issued) <= 1
    assert {error_code(reply) for reply in replies if reply.status_code == 409} <= {"OPERATION_IN_PROGRESS"}
    assert len(alice.gateway_keys()) == 1
    assert_quiet_and_kept(rig, alice)


def test_fifty_creates_one_below_the_limit_make_one_key(rig: Rig, alice: Person) -> None:
    warm_up(rig, alice)
    for _ in range(MAX_ACTIVE_KEYS - 1):
        assert rig.create(alice, BODY).status_code == 201

    with (
        ThreadPoolExecutor(max_workers=50) as pool,
        locked_row(rig, "SELECT id FROM users WHERE id = %(user_id)s FOR UPDATE", user_id=alice.user_id),
    ):
        answers = [pool.submit(lambda: rig.create(alice, BODY)) for _ in range(50)]
    statuses = Counter(answer.result().status_code for answer in answers)

    # 503 when the machine is so busy that LiteLLM's time is over: its key counts as well, until it is undone.
    assert (statuses[201] + statuses[503], statuses[400]) == (1, 49)
    assert len(alice.gateway_keys()) == MAX_ACTIVE_KEYS
    assert_quiet_and_kept(rig, alice)


def test_twenty_deletes_of_one_key_leave_one_audit_record(rig: Rig, alice: Person) -> None:
    warm_up(rig, alice)
    key_id = rig.create(alice, BODY).json()["id"]

    with (
        ThreadPoolExecutor(max_workers=20) as pool,
        locked_row(rig, "SELECT id FROM api_keys WHERE id = %(key_id)s FOR UPDATE", key_id=key_id),
    ):
        answers = [pool.submit(lambda: rig.delete(alice, key_id)) for _ in range(20)]
    statuses = {answer.result().status_code for answer in answers}

    assert statuses <= {200, 202, 404}
    assert 200 in statuses
    rig.become_quiet()
    assert rig.audit_of_key(key_id) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]
    assert_quiet_and_kept(rig, alice)


def test_delete_before_the_create_reached_litellm_leaves_no_key(rig: Rig, alice: Person) -> None:
    generate = Gate()
    rig.gateway_faults.inject(GENERATE, "call_before", call=generate.hold)

    with started(lambda: rig.create(alice, BODY, is_alone=False)) as creating:
        generate.wait_for_arrival()
        deleted = rig.delete(alice, str(rig.keys_of(alice)[0]["id"]))
        generate.let_go()

    # LiteLLM knew nothing of the key: that proves nothing yet.
    assert deleted.status_code == 202
    assert creating.result().status_code in (409, 503)
    assert_quiet_and_kept(rig, alice)
    assert alice.gateway_keys() == []


def test_two_settlers_share_the_work(rig: Rig) -> None:
    people = [rig.newcomer() for _ in range(4)]
    situations = [Situation(rig, person).has_unfinished_delete() for person in people]
    rig.gateway_faults.forget_calls()

    reports = together(*[rig.try_to_settle] * WORKERS)

    assert all(report is not None for report in reports)
    assert sum(report["settled"] for report in reports if report) == len(situations)
    assert len(rig.gateway_faults.calls_of(DELETE)) == len(situations)
    for situation in situations:
        assert sorted(rig.operations_of(situation.key_id)) == [("create", "done"), ("delete", "done")]
    assert violations(rig, subjects=[person.subject for person in people]) == []


def test_settler_whose_lease_ran_out_changes_nothing_any_more(rig: Rig, alice: Person) -> None:
    situation = Situation(rig, alice).has_unfinished_delete()
    delete = Gate()
    rig.gateway_faults.inject(DELETE, "call_after", call=delete.hold)

    with started(rig.try_to_settle):
        delete.wait_for_arrival()
        rig.pass_time(24 * 3600)
        second = rig.try_to_settle()
        settled_by_the_second = sorted(rig.operations_of(situation.key_id))
        delete.let_go()

    assert second is not None
    assert settled_by_the_second == [("create", "done"), ("delete", "done")]
    assert sorted(rig.operations_of(situation.key_id)) == [("create", "done"), ("delete", "done")]
    assert_quiet_and_kept(rig, alice)


def test_resume_leaves_an_undo_alone(rig: Rig, alice: Person) -> None:
    situation = Situation(rig, alice).has_unfinished_create("reset_after").waits_for(RESUME_SECONDS)
    delete = Gate()
    rig.gateway_faults.inject(DELETE, "call_before", call=delete.hold)

    with started(rig.try_to_settle):
        delete.wait_for_arrival()
        answer = situation.create()
        delete.let_go()

    assert answer.status_code == 409
    assert error_code(answer) == "OPERATION_IN_PROGRESS"
    assert_quiet_and_kept(rig, alice)


def test_settler_leaves_a_resumed_create_alone(rig: Rig, alice: Person) -> None:
    situation = Situation(rig, alice).has_unfinished_create("reset_before").waits_for(RESUME_SECONDS)
    generate = Gate()
    rig.gateway_faults.inject(GENERATE, "call_before", call=generate.hold)

    with started(situation.create) as resuming:
        generate.wait_for_arrival()
        report = rig.try_to_settle()
        generate.let_go()

    answer: httpx.Response = resuming.result()
    assert report is not None
    assert report["attempted"] == 0
    assert answer.status_code == 201
    assert_quiet_and_kept(rig, alice)
    assert len(alice.gateway_keys()) == 1


def test_settler_leaves_a_running_create_alone_although_it_is_due(rig: Rig, alice: Person) -> None:
    """As after an operator's retry: the lease alone keeps the settler away."""
    generate = Gate()
    rig.gateway_faults.inject(GENERATE, "call_before", call=generate.hold)

    with started(lambda: rig.create(alice, BODY)) as creating:
        generate.wait_for_arrival()
        rig.rows("UPDATE api_key_operations SET next_attempt_at = now() WHERE user_id = %(id)s", id=alice.user_id)
        report = rig.try_to_settle()
        generate.let_go()

    assert report is not None
    assert report["attempted"] == 0
    assert creating.result().status_code == 201
    assert_quiet_and_kept(rig, alice)
    assert len(alice.gateway_keys()) == 1


def test_resume_and_settle_at_once_end_in_one_of_two_ways(rig: Rig) -> None:
    people = [rig.newcomer() for _ in range(6)]
    situations = [Situation(rig, person).has_unfinished_create("reset_after") for person in people]
    rig.pass_time(RESUME_SECONDS)

    together(rig.try_to_settle, rig.try_to_settle, *[situation.create for situation in situations])

    rig.become_quiet()
    assert violations(rig, subjects=[person.subject for person in people]) == []
