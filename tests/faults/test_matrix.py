"""The fault matrix: every operation, every step of it, every fault, then repeated or settled."""

import re
from pathlib import Path

import pytest

import keyservice
from tests.faults.matrix import Step, cells, record_steps, run_cell
from tests.faults.rig import Rig, is_thorough
from tests.faults.scenarios import SCENARIOS

SOURCES = Path(keyservice.__file__).parent if keyservice.__file__ else Path()
# What creating, changing, rotating, deleting and settling speak to PostgreSQL with, and LiteLLM.
STORES = (
    *("creation_store.py", "rotation_store.py", "retirement_store.py", "issuing_store.py"),
    *("alteration_store.py", "deletion_store.py", "settlement_store.py", "journal.py"),
)
# What settling reads of reconcile's, before it undoes anything: whether the database is the one the keys were made from.
PROVENANCE = {"read_installation", "read_tokens"}
# What a change shows of the key at its end.
SHOWN = {"show_key"}
# Reads that decide nothing: which models there are.
OTHER_PATHS = {"/model/info", "/health/readiness"}


@pytest.fixture(scope="session")
def steps_of(shared_rig: Rig) -> dict[str, list[Step]]:
    return {name: record_steps(shared_rig, scenario) for name, scenario in SCENARIOS.items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_whatever_breaks(rig: Rig, steps_of: dict[str, list[Step]], name: str) -> None:
    scenario = SCENARIOS[name]
    found: list[str] = []

    for step, fault_name, fault, variant in cells(steps_of[name], scenario, thorough=is_thorough()):
        found += [
            f"{step.system} {fault_name} at {step}, then {variant}: {violation}"
            for violation in run_cell(rig, scenario, step, fault, variant)
        ]

    assert steps_of[name]
    assert found == []


def test_matrix_breaks_every_step_of_the_source(steps_of: dict[str, list[Step]]) -> None:
    written = {name for store in STORES for name in re.findall(r'"/\* (\w+) \*/', (SOURCES / store).read_text())}
    paths = set(re.findall(r'"(/[a-z]+/[a-z]+)"', (SOURCES / "litellm.py").read_text())) - OTHER_PATHS

    broken = {name for steps in steps_of.values() for step in steps for name in (step.name, *step.statements)}

    assert written
    assert paths
    assert broken == written | paths | PROVENANCE | SHOWN
