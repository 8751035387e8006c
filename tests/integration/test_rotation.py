"""Rotations whose answers are lost, that are ended several times, or that meet another database's or KMS's trouble."""

from uuid import uuid4

import pytest

from keyservice import retirement_store, rotation_store
from keyservice.derivation import KeyDeriver, new_nonce
from keyservice.errors import DerivationUnavailable, InvalidRequest, OperationInProgress, OperationPending
from keyservice.issuing_store import NewToken
from keyservice.models import (
    CompletedRotation,
    Deadline,
    PendingCompletion,
    PendingEnding,
    PendingRotation,
    RotationRequest,
)
from keyservice.provenance import Deployment
from tests.integration.service import (
    DRAIN_SECONDS,
    LEASE_SECONDS,
    RESUME_SECONDS,
    Service,
    all_at_once,
    caller,
    hash_of,
)

DONE = [("create", "forward", "done"), ("rotate", "forward", "done"), ("retire", "forward", "done")]
AUDITED = [("API_KEY_CREATE", True), ("API_KEY_ROTATE", True), ("API_KEY_ROTATE_COMPLETE", True)]


def begin(service: Service, key_id: object) -> PendingRotation:
    nonce = new_nonce()
    derived = service.cloud.deriver.derive(service.only_key_id(), nonce=nonce)
    begun = rotation_store.begin_rotate(
        service.database,
        caller(),
        operation_id=uuid4(),
        api_key_id=service.only_key_id(),
        token=NewToken(hash=derived.token_hash, nonce=nonce, mac_key_arn="arn", prefix=derived.prefix),
        grace_seconds=0,
        idempotency=None,
        lease_seconds=LEASE_SECONDS,
        drain_seconds=DRAIN_SECONDS,
        resume_seconds=RESUME_SECONDS,
    )
    assert isinstance(begun, PendingRotation)
    assert begun.api_key_id == key_id
    return begun


@pytest.mark.parametrize("statement", ["begin_rotate", "finish_rotate", "finish_retirement"])
@pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
def test_a_lost_answer_of_the_database_changes_nothing_of_what_is_told(service: Service, statement: str, fault: str):
    key = service.create()
    service.database_faults.inject(fault, statement)  # pyright: ignore[reportArgumentType]

    rotated = service.rotate(key.id).key

    assert rotated.old_secret.state == "ended"
    assert (service.chat(rotated.key), service.chat(key.key)) == (200, 401)
    assert service.traces(key.id).operations == DONE
    assert service.traces(key.id).audits == AUDITED


def test_a_refusal_whose_answer_was_lost_is_recorded_once(service: Service):
    key = service.create()
    service.rows("UPDATE api_keys SET is_active = false")
    service.database_faults.cut_after("begin_rotate")

    with pytest.raises(InvalidRequest, match="inactive"):
        service.rotate(key.id)

    assert service.traces(key.id).audits == [("API_KEY_CREATE", True), ("API_KEY_ROTATE", False)]


def test_eight_ends_of_one_rotation_write_one_audit_record_and_begin_one_retirement(service: Service):
    key = service.create()
    pending = begin(service, key.id)
    databases = [service.connect_database() for _ in range(8)]

    outcomes = all_at_once(
        [
            lambda database=database: rotation_store.finish_rotate(
                database, pending, spend_usd=0.5, retirement_id=uuid4(), lease_seconds=LEASE_SECONDS
            )
            for database in databases
        ]
    )

    assert {outcome.progress.state for outcome in outcomes} == {"done"}
    [retirement] = [outcome.retirement for outcome in outcomes if outcome.retirement is not None]
    assert [token.hash for token in retirement.tokens] == [hash_of(key.key)]
    assert service.traces(key.id).audits == AUDITED[:2]
    assert service.traces(key.id).tokens == [("retiring", False), ("live", False)]


def test_eight_ends_of_one_retirement_write_one_audit_record(service: Service):
    key = service.create()
    service.rotate(key.id, grace_seconds=3600)
    begun = retirement_store.begin_completion(
        service.database, caller(), operation_id=uuid4(), api_key_id=key.id, lease_seconds=LEASE_SECONDS
    )
    assert isinstance(begun, PendingEnding)
    operation_id, epoch, hashes = begun.operation_id, begun.epoch, [token.hash for token in begun.tokens]
    databases = [service.connect_database() for _ in range(8)]

    outcomes = all_at_once(
        [
            lambda database=database: retirement_store.finish_retirement(
                database, operation_id=operation_id, epoch=epoch, api_key_id=key.id, gone_hashes=hashes
            )
            for database in databases
        ]
    )

    assert len(set(outcomes)) == 1
    assert outcomes[0] is not None
    assert service.traces(key.id).audits == AUDITED


def test_a_retirement_is_not_over_while_a_secret_was_not_confirmed_gone(service: Service):
    key = service.create()
    service.rotate(key.id, grace_seconds=3600)
    begun = retirement_store.begin_completion(
        service.database, caller(), operation_id=uuid4(), api_key_id=key.id, lease_seconds=LEASE_SECONDS
    )
    assert isinstance(begun, PendingEnding)

    ended_at = retirement_store.finish_retirement(
        service.database, operation_id=begun.operation_id, epoch=begun.epoch, api_key_id=key.id, gone_hashes=[]
    )

    assert ended_at is None
    assert service.traces(key.id).tokens == [("retiring", False), ("live", False)]


def test_completing_takes_up_what_nobody_holds_any_more(service: Service):
    key = service.create()
    service.rotate(key.id, grace_seconds=3600)
    service.gateway_faults.inject("/key/delete", "reset_before")
    first = service.complete(key.id)
    service.gateway_faults.clear()

    second = service.complete(key.id)

    assert isinstance(first, PendingCompletion)
    assert isinstance(second, CompletedRotation)
    assert service.traces(key.id).operations == DONE
    assert service.traces(key.id).audits == AUDITED


def test_completing_leaves_another_holders_lease_alone(service: Service):
    key = service.create()
    service.rotate(key.id, grace_seconds=3600)
    retirement_store.begin_completion(
        service.database, caller(), operation_id=uuid4(), api_key_id=key.id, lease_seconds=LEASE_SECONDS
    )
    service.gateway_faults.forget_calls()

    outcome = service.complete(key.id)

    assert isinstance(outcome, PendingCompletion)
    assert service.gateway_faults.calls == []


def test_an_old_secret_that_may_still_be_made_again_is_not_called_dead_before_the_drain(service: Service):
    """The create's generate was lost, resumed, and may yet be carried out: after a delete it would make the key anew."""
    service.gateway_faults.inject("/key/generate", "reset_after")
    with pytest.raises(OperationPending):
        service.ask_for_key(idempotency_key="lost")
    service.gateway_faults.clear()
    key = service.ask_for_key(idempotency_key="lost").key
    assert service.traces(key.id).tokens == [("live", True)]

    rotated = service.rotate(key.id).key

    assert rotated.old_secret.state == "ending"
    assert service.traces(key.id).tokens == [("retiring", True), ("live", False)]
    service.let_time_pass()
    service.settle()
    assert service.traces(key.id).tokens == [("dead", False), ("live", False)]
    assert service.traces(key.id).audits == AUDITED


def test_the_new_secret_of_a_lost_generate_stays_unsafe(service: Service):
    key = service.create()
    service.gateway_faults.inject("/key/generate", "reset_before")
    with pytest.raises(OperationPending):
        service.rotate(key.id, idempotency_key="lost")

    assert service.traces(key.id).tokens == [("live", False), ("intended", True)]


def test_a_rotation_that_was_never_sent_leaves_nothing_unsafe(service: Service):
    key = service.create()
    service.gateway_faults.inject("/key/info", "reset_before")
    with pytest.raises(OperationPending):
        service.rotate(key.id, idempotency_key="unsent")

    assert service.traces(key.id).tokens == [("live", False), ("intended", False)]


def test_an_unsafe_rotation_is_undone_after_the_drain_and_leaves_the_key(service: Service):
    key = service.create()
    service.gateway_faults.inject("/key/generate", "reset_before")
    with pytest.raises(OperationPending):
        service.rotate(key.id)
    service.gateway_faults.clear()
    service.rows("UPDATE api_key_operations SET next_attempt_at = now(), lease_until = now()")

    service.settle()
    waiting = service.traces(key.id)
    service.let_time_pass()
    service.settle()

    assert waiting.operations[1:] == [("rotate", "undo", "pending")]
    assert waiting.tokens == [("live", False), ("intended", True)]
    assert service.traces(key.id).operations[1:] == [("rotate", "undo", "failed")]
    assert service.traces(key.id).tokens == [("live", False), ("dead", False)]
    assert service.traces(key.id).row == (True, "synced")
    assert service.chat(key.key) == 200


def test_a_resumed_rotation_carries_over_what_was_spent_meanwhile(service: Service):
    key = service.create(max_budget=5.0)
    service.gateway_faults.inject("/key/generate", "reset_before")
    with pytest.raises(OperationPending):
        service.rotate(key.id, idempotency_key="again")
    service.gateway_faults.clear()
    service._ask("POST", "/key/update", body={"key": hash_of(key.key), "spend": 3.25})

    rotated = service.rotate(key.id, idempotency_key="again")

    assert rotated.is_replayed
    assert service.gateway_key(hash_of(rotated.key.key))["spend"] == 3.25
    assert float(service.value("SELECT current_spend FROM api_keys")) == 3.25


def test_without_kms_nothing_is_begun(service: Service):
    key = service.create()
    disabled = KeyDeriver(
        mac_key_arn=service.cloud.deriver.mac_key_arn.replace("key/", "key/no-such-"), aws=service.cloud.client
    )

    with pytest.raises(DerivationUnavailable):
        service.rotation(deriver=disabled).rotate(
            caller(), str(key.id), RotationRequest(), idempotency_key=None, deadline=Deadline(20)
        )

    assert service.traces(key.id).operations == [("create", "forward", "done")]


def test_a_change_that_is_pending_is_left_to_end(service: Service):
    key = service.create()
    begin(service, key.id)

    with pytest.raises(OperationInProgress):
        service.rotate(key.id)
    with pytest.raises(OperationInProgress):
        service.complete(key.id)


def test_in_another_stacks_database_a_grace_ends_and_a_rotation_is_not_undone(service: Service):
    """As after a restore: what a rotation has made may be in use; a secret past its grace was always to end."""
    key, other = service.create(), service.create()
    service.rotate(key.id, grace_seconds=3600)
    service.gateway_faults.inject("/key/generate", "reset_before")
    with pytest.raises(OperationPending):
        service.rotate(other.id)
    service.gateway_faults.clear()
    service.rows("UPDATE api_key_tokens SET valid_until = now() WHERE state = 'retiring'")
    service.let_time_pass()

    settled = service.settle(deployment=Deployment(stack_name="a clone", litellm_url=service.deployment.litellm_url))

    assert settled.brake == "otherStack"
    assert service.traces(key.id).tokens == [("dead", False), ("live", False)]
    assert service.traces(other.id).operations[1:] == [("rotate", "forward", "pending")]
