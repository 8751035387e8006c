"""What LiteLLM says of a key that may still be made proves nothing, also when that ends before it is written down."""

from tests.e2e.service import Person
from tests.faults.meeting import BODY, Gate, assert_quiet_and_kept, started
from tests.faults.rig import LEASE_SECONDS, RESUME_SECONDS, Rig
from tests.faults.scenarios import DELETE, GENERATE, Situation


def test_create_that_overtakes_its_own_delete_leaves_no_key(rig: Rig, alice: Person) -> None:
    """LiteLLM says the key is not there, then makes it, then says so: all before the delete writes down that it is gone."""
    generate, delete = Gate(), Gate()
    rig.gateway_faults.inject(GENERATE, "call_before", call=generate.hold)
    rig.gateway_faults.inject(DELETE, "call_after", call=delete.hold)

    with started(lambda: rig.create(alice, BODY, is_alone=False)) as creating:
        generate.wait_for_arrival()
        key_id = str(rig.keys_of(alice)[0]["id"])
        with started(lambda: rig.delete(alice, key_id)) as deleting:
            delete.wait_for_arrival()
            generate.let_go()
            created = creating.result()
            delete.let_go()

    assert created.status_code in (409, 503)
    assert deleting.result().status_code == 202
    assert_quiet_and_kept(rig, alice)
    assert alice.gateway_keys() == []


def test_settling_while_the_create_goes_on_leaves_no_key(rig: Rig, alice: Person) -> None:
    """The same with the settler in the place of the delete's own request."""
    generate, delete = Gate(), Gate()
    rig.gateway_faults.inject(GENERATE, "call_before", call=generate.hold)
    rig.gateway_faults.inject(DELETE, "reset_before")

    with started(lambda: rig.create(alice, BODY, is_alone=False)) as creating:
        generate.wait_for_arrival()
        key_id = str(rig.keys_of(alice)[0]["id"])
        assert rig.delete(alice, key_id).status_code == 202
        rig.rows("UPDATE api_key_operations SET next_attempt_at = now() WHERE api_key_id = %(key_id)s", key_id=key_id)
        rig.gateway_faults.inject(DELETE, "call_after", call=delete.hold)
        with started(rig.try_to_settle):
            delete.wait_for_arrival()
            generate.let_go()
            creating.result()
            delete.let_go()

    assert creating.result().status_code in (409, 503)
    assert_quiet_and_kept(rig, alice)
    assert alice.gateway_keys() == []


def test_generate_that_comes_true_while_its_drain_ends_leaves_no_key(rig: Rig, alice: Person) -> None:
    """The settler asks LiteLLM before the drain is over, the lost request arrives, and then the drain is over."""
    situation = Situation(rig, alice)
    lost = rig.gateway_faults.inject(GENERATE, "late")
    assert situation.create().status_code == 503
    rig.pass_time(LEASE_SECONDS + RESUME_SECONDS)
    delete = Gate()
    rig.gateway_faults.inject(DELETE, "call_after", call=delete.hold)

    with started(rig.try_to_settle):
        delete.wait_for_arrival()
        lost.release()
        assert lost.wait()
        rig.rows("UPDATE api_key_tokens SET unsafe_until = now() WHERE user_id = %(user_id)s", user_id=alice.user_id)
        delete.let_go()

    assert_quiet_and_kept(rig, alice)
    assert alice.gateway_keys() == []
