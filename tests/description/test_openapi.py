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

OPENAPI = "/api/v1/openapi.json"
# More is deeper: SCHEMATHESIS_EXAMPLES=200 make test TESTS=tests/description
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "10")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Of its own: what is made at random would be in the way of other tests."""
    logs: Path = tmp_path_factory.mktemp("random")
    parameters = {"ModelAccess": "any", "MaxActiveKeys": "1000"}
    with LocalStack.start(parameters=parameters, workers_per_function=2, log_directory=logs) as running:
        insert_models(running.admin_dsn, ["gpt-4o"])
        yield running


def get(stack: LocalStack, *, if_none_match: str = "") -> httpx.Response:
    return httpx.get(stack.url + OPENAPI, headers={"if-none-match": if_none_match}, trust_env=False)


def test_the_description_is_served_without_a_token(stack: LocalStack):
    answer = get(stack)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert answer.text == (ROOT / "functions/openapi.json").read_text()


def test_the_description_is_not_sent_twice(stack: LocalStack):
    entity_tag = get(stack).headers["etag"]

    known = get(stack, if_none_match=f'"other", W/{entity_tag}')
    other = get(stack, if_none_match='"other"')

    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", entity_tag)
    assert other.status_code == 200


@pytest.mark.timeout(600)
@pytest.mark.parametrize("roles", [pytest.param([], id="a user"), pytest.param(["admin"], id="an administrator")])
def test_every_answer_is_one_that_the_description_has(stack: LocalStack, tmp_path: Path, roles: list[str]):
    token = stack.token("alice", roles=roles)

    # Its own configuration is schemathesis.toml; a fixed seed makes the same requests each time.
    run = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "--config-file", ROOT / "schemathesis.toml"),
            *("run", stack.url + OPENAPI, "--no-color", "--max-examples", EXAMPLES),
            *("--header", f"Authorization: Bearer {token}"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr
