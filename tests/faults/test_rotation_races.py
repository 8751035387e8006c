"""Rotations that meet each other, a delete, a settler: held where it hurts most, and let go together."""

from collections import Counter
from typing import Literal

import httpx
import pytest

from tests.e2e.service import Person, hash_of
from tests.faults.invariants import violations
from tests.faults.meeting import BODY, Gate, assert_quiet_and_kept, started, together
from tests.faults.rig import RESUME_SECONDS, Rig, error_code
from tests.faults.scenarios import DELETE, GENERATE, WEEK_SECONDS, Situation


@pytest.fixture
def rig(patient_rig: Rig) -> Rig:
    return patient_rig


def has_key(rig: Rig, person: Person) -> tuple[str, str]:
    """Id and secret."""
    answer = rig.create(person, BODY)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"], answer.json()["key"]


def rotations_of(rig: Rig, key_id: str) -> Counter[str]:
    return Counter(state for kind, state in rig.operations_of(key_id) if kind == "rotate")


def test_twenty_rotations_with_one_idempotency_key_make_one_secret(rig: Rig, alice: Person) -> None:
    key_id, _ = has_key(rig, alice)

    answers = together(*[lambda: rig.rotate(alice, key_id, idempotency_key="one")] * 20)

    # 503 is as honest as 409, when the machine is so busy that LiteLLM's time is over.
    assert {answer.status_code for answer in answers} <= {200, 409, 503}
    assert len({answer.json()["key"] for answer in answers if answer.status_code == 200}) == 1
    assert {error_code(answer) for answer in answers if answer.status_code == 409} <= {"OPERATION_IN_PROGRESS"}
    assert rotations_of(rig, key_id)["done"] == 1
    assert_quiet_and_kept(rig, alice)
    assert len(alice.gateway_keys()) == 1


def test_of_rotations_at_once_each_that_is_answered_has_made_a_secret_of_its_own(rig: Rig, alice: Person) -> None:
    key_id, _ = has_key(rig, alice)

    answers = together(*[lambda: rig.rotate(alice, key_id, is_alone=False)] * 12)

    done = [answer for answer in answers if answer.status_code == 200]
    assert done
    assert {answer.status_code for answer in answers} <= {200, 409, 503}
    assert len({answer.json()["key"] for answer in done}) == len(done)
    assert_quiet_and_kept(rig, alice)
    assert len(alice.gateway_keys()) == 1


def test_a_rotation_while_another_is_made_waits(rig: Rig, alice: Person) -> None:
    key_id, secret = has_key(rig, alice)
    generate = Gate()
    rig.gateway_faults.inject(GENERATE, "call_before", call=generate.hold)

    with started(lambda: rig.rotate(alice, key_id)) as rotating:
        generate.wait_for_arrival()
        second = rig.rotate(alice, key_id)
        works_meanwhile = rig.is_refused(secret) is False
        generate.let_go()

    assert works_meanwhile
    assert (second.status_code, error_code(second)) == (409, "OPERATION_IN_PROGRESS")
    assert rotating.result().status_code == 200
    assert_quiet_and_kept(rig, alice)


@pytest.mark.parametrize("moment", ["call_before", "call_after"])
def test_a_delete_while_litellm_makes_the_new_secret_takes_both(
    rig: Rig, alice: Person, moment: Literal["call_before", "call_after"]
) -> None:
    """Before LiteLLM has made it, LiteLLM knows nothing of the new secret: that proves nothing yet."""
    key_id, _ = has_key(rig, alice)
    generate = Gate()
    rig.gateway_faults.inject(GENERATE, moment, call=generate.hold)

    with started(lambda: rig.rotate(alice, key_id, is_alone=False)) as rotating:
        generate.wait_for_arrival()
        deleted = rig.delete(alice, key_id)
        generate.let_go()

    assert deleted.status_code == 202
    assert rotating.result().status_code == 409
    assert_quiet_and_kept(rig, alice)
    assert alice.gateway_keys() == []


def test_rotations_and_deletes_at_once_leave_no_key(rig: Rig, alice: Person) -> None:
    key_id, _ = has_key(rig, alice)
    rotations = [lambda: rig.rotate(alice, key_id, grace_seconds=WEEK_SECONDS, is_alone=False)] * 6

    answers = together(*rotations, *[lambda: rig.delete(alice, key_id)] * 4)

    assert {answer.status_code for answer in answers} <= {200, 202, 400, 404, 409, 503}
    rig.become_quiet()
    rig.delete(alice, key_id)
    assert_quiet_and_kept(rig, alice)
    assert alice.gateway_keys() == []


def test_two_settlers_end_each_grace_once(rig: Rig) -> None:
    people = [rig.newcomer() for _ in range(4)]
    situations = [Situation(rig, person).has_ended_grace() for person in people]
    rig.gateway_faults.forget_calls()

    together(*[rig.try_to_settle] * 4)

    assert len(rig.gateway_faults.calls_of(DELETE)) == len(situations)
    for situation in situations:
        assert sorted(rig.operations_of(situation.key_id)) == [
            ("create", "done"),
            ("retire", "done"),
            ("rotate", "done"),
        ]
    assert violations(rig, subjects=[person.subject for person in people]) == []


def test_a_settler_and_the_owner_who_end_a_grace_at_once_end_it_once(rig: Rig, alice: Person) -> None:
    situation = Situation(rig, alice).has_ended_grace()

    settled, completed = together(rig.try_to_settle, situation.complete)

    assert settled is not None
    assert isinstance(completed, httpx.Response)
    assert completed.status_code in (200, 202, 409)
    assert_quiet_and_kept(rig, alice)
    assert Counter(kind for kind, _ in rig.operations_of(situation.key_id))["retire"] == 1


def test_a_resumed_rotation_leaves_an_undo_alone(rig: Rig, alice: Person) -> None:
    situation = Situation(rig, alice).has_unfinished_rotation("reset_after").waits_for(RESUME_SECONDS)
    delete = Gate()
    rig.gateway_faults.inject(DELETE, "call_before", call=delete.hold)

    with started(rig.try_to_settle):
        delete.wait_for_arrival()
        answer = situation.rotate()
        delete.let_go()

    assert (answer.status_code, error_code(answer)) == (409, "OPERATION_IN_PROGRESS")
    assert_quiet_and_kept(rig, alice)
    [secret] = rig.told.secrets_of(situation.key_id)
    assert alice.gateway_keys() == [hash_of(secret)]
