"""A short random walk; `make faults` walks far."""

import pytest

from tests.faults.rig import Rig
from tests.faults.walk import walk

SEED = 20261122


@pytest.mark.timeout(300)
def test_short_walk_keeps_every_promise(rig: Rig) -> None:
    walked = walk(rig, seed=SEED, chapters=range(3))

    assert walked.steps == 150
    assert "\n".join(walked.found) == ""


def test_walk_is_the_same_for_the_same_seed(rig: Rig) -> None:
    """What is asked for follows from the seed; what is answered may depend on who was faster."""
    first = walk(rig, seed=SEED, chapters=[0], steps=5)
    second = walk(rig, seed=SEED, chapters=[0], steps=5)

    assert first.actions == second.actions
