"""After all of it: nothing that was written down holds a secret, and everybody's keys are as they should be."""

from tests.faults.invariants import secrets_written_down, violations
from tests.faults.rig import Rig


def test_no_secret_is_written_down(rig: Rig) -> None:
    found = secrets_written_down(rig)

    assert rig.told.issued
    assert found == []


def test_invariants_hold_for_everybody_in_the_end(rig: Rig) -> None:
    rig.become_quiet()

    found = violations(rig)

    assert rig.user_ids
    assert found == []
