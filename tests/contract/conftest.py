"""Which LiteLLM the suite asks: the one LITELLM_URL and LITELLM_MASTER_KEY name, else the stand-in."""

import os
from collections.abc import Iterator

import httpx
import pytest

from tests.contract.gateway import Gateway


@pytest.fixture(scope="session")
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    if url := os.environ.get("LITELLM_URL"):
        master_key = os.environ["LITELLM_MASTER_KEY"]
    else:
        # Asked for here, not as an argument: it would start even when it is not wanted.
        stand_in = request.getfixturevalue("litellm")
        url, master_key = stand_in.url, stand_in.master_key
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        gateway = Gateway(http=http, master_key=master_key)
        yield gateway
        gateway.delete_generated()
