"""One running service for all: people of their own keep the tests apart."""

import os
from collections.abc import Iterator

import pytest

from tests.e2e.service import Person
from tests.faults.rig import Rig, running_rig

# As template.yaml has it.
DEPLOYED_BUDGET_SECONDS = 10.0


def _outside_litellm() -> tuple[str, str] | None:
    url = os.environ.get("LITELLM_URL")
    return (url, os.environ["LITELLM_MASTER_KEY"]) if url else None


@pytest.fixture(scope="session")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """On the LiteLLM that LITELLM_URL and LITELLM_MASTER_KEY name, else on the stand-in."""
    with running_rig(tmp_path_factory.mktemp("faults"), litellm=_outside_litellm()) as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """Without a fault, and nothing under way, before and after each test."""
    yield shared_rig
    shared_rig.clear_faults()
    shared_rig.release_held()


@pytest.fixture(scope="session")
def shared_patient_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One whose functions wait for LiteLLM as long as deployed ones do, for tests that hold a call while others act."""
    with running_rig(
        tmp_path_factory.mktemp("races"), litellm=_outside_litellm(), gateway_budget_seconds=DEPLOYED_BUDGET_SECONDS
    ) as rig:
        yield rig


@pytest.fixture
def patient_rig(shared_patient_rig: Rig) -> Iterator[Rig]:
    """Without a fault, and nothing under way, before and after each test."""
    yield shared_patient_rig
    shared_patient_rig.clear_faults()
    shared_patient_rig.release_held()


@pytest.fixture
def alice(rig: Rig) -> Person:
    return rig.newcomer()
