"""The API's description is served, and true: requests made of it are answered as it says, by whoever they come."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local.seed import insert_models
from local.stack import LocalStack
from tests.architecture.translation import ROOT
from tests.e2e.service import MODELS, Ledger, Service

OPENAPI = "/api/v1/openapi.json"
# More is deeper: SCHEMATHESIS_EXAMPLES=200 make test TESTS=tests/e2e/test_openapi.py
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "20")


@pytest.fixture(scope="module")
def asked_at_random(
    tmp_path_factory: pytest.TempPathFactory, service: Service, http: httpx.Client, ledger: Ledger
) -> Iterator[Service]:
    """A service of its own: what is made here would be in the way of other tests."""
    logs: Path = tmp_path_factory.mktemp("random")
    shared = service.stack
    with LocalStack.start(
        parameters={"DatabaseName": "random", "ModelAccess": "any", "MaxActiveKeys": "1000"},
        litellm_url=shared.litellm_url,
        litellm_master_key=shared.litellm_master_key,
        database=shared.database,
        aws=shared.aws,
        workers_per_function=2,
        log_directory=logs,
    ) as stack:
        insert_models(stack.admin_dsn, MODELS)
        running = Service(stack, http, ledger, logs, gateway_url=shared.litellm_url)
        ledger.services.append(running)
        yield running


def test_the_description_is_served_without_a_token(service: Service):
    answer = service.call("GET", OPENAPI)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert answer.text == (ROOT / "functions/openapi.json").read_text()


def test_the_description_is_not_sent_twice(service: Service):
    entity_tag = service.call("GET", OPENAPI).headers["etag"]

    known = service.call("GET", OPENAPI, headers={"if-none-match": f'"other", W/{entity_tag}'})
    other = service.call("GET", OPENAPI, headers={"if-none-match": '"other"'})

    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", entity_tag)
    assert other.status_code == 200


@pytest.mark.timeout(600)
@pytest.mark.parametrize("roles", [pytest.param([], id="a user"), pytest.param(["admin"], id="an administrator")])
def test_every_answer_is_one_that_the_description_has(asked_at_random: Service, roles: list[str]):
    caller = asked_at_random.person(roles=roles)

    # Its own configuration is schemathesis.toml; a fixed seed makes the same requests each time.
    run = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file", ROOT / "schemathesis.toml"),
            *("run", asked_at_random.stack.url + OPENAPI, "--no-color", "--max-examples", EXAMPLES),
            *("--header", f"Authorization: Bearer {caller.token}"),
        ],
        cwd=asked_at_random.log_directory,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr
