from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local.stack import LocalStack

SAMPLE_TEMPLATE = Path(__file__).parent / "sample" / "template.yaml"


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalStack]:
    """The sample application. No function of it calls LiteLLM, so there is none."""
    with LocalStack.start(
        template=SAMPLE_TEMPLATE, litellm_url="http://127.0.0.1:9", litellm_master_key="sk-none"
    ) as running:
        yield running


@pytest.fixture(scope="session")
def api(stack: LocalStack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, trust_env=False, timeout=30, headers={"user-agent": "probe/1"}) as client:
        yield client
