"""One running service for all: people of their own keep the tests apart."""

import os
from collections.abc import Iterator

import pytest

from tests.e2e.service import Person
from tests.faults.rig import Rig, running_rig


@pytest.fixture(scope="session")
def shared_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """On the LiteLLM that LITELLM_URL and LITELLM_MASTER_KEY name, else on the stand-in."""
    url = os.environ.get("LITELLM_URL")
    litellm = (url, os.environ["LITELLM_MASTER_KEY"]) if url else None
    with running_rig(tmp_path_factory.mktemp("faults"), litellm=litellm) as rig:
        yield rig


@pytest.fixture
def rig(shared_rig: Rig) -> Iterator[Rig]:
    """Without a fault, and nothing under way, before and after each test."""
    yield shared_rig
    shared_rig.clear_faults()
    shared_rig.release_held()


@pytest.fixture
def alice(rig: Rig) -> Person:
    return rig.newcomer()
