"""What docs/runbooks tell an operator to run, run: every curl and every SELECT, against a service with what they are about."""

import os
import re
import shlex
import subprocess
from typing import Any, LiteralString, cast

import pytest

from tests.architecture.translation import ROOT
from tests.e2e.conftest import FragileService

PAGES = sorted((ROOT / "docs/runbooks").glob("*.md"))


def blocks(language: str) -> list[str]:
    found = [
        block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)
    ]
    return [re.sub(r"\\\n\s*", " ", block) for block in found]


CURLS = sorted(
    {line.strip() for block in blocks("sh") for line in block.splitlines() if line.strip().startswith("curl")}
)
SELECTS = sorted(
    {
        statement.strip()
        for block in blocks("sql")
        for statement in block.split(";")
        if statement.strip().startswith("SELECT")
    }
)


@pytest.fixture
def variables(fragile_service: FragileService) -> dict[str, str]:
    """What the pages call $URL, $TOKEN and so on, of a service with a pending operation and a key of somebody."""
    service = fragile_service
    service.gateway_faults.inject("/key/delete", "status", status=500)
    owner = service.person()
    pending, other = owner.has_key(), owner.has_key()
    assert owner.delete(pending["id"]).status_code == 202
    [operation] = service.rows(
        "SELECT id::text FROM api_key_operations WHERE api_key_id = %(id)s AND state = 'pending'", id=pending["id"]
    )
    operator = service.person(roles=["admin"])
    return {
        "URL": service.stack.url,
        "TOKEN": operator.token,
        "ID": operation["id"],
        "LITELLM_URL": service.gateway_url,
        "MASTER_KEY": service.stack.litellm_master_key,
        "HASH": service.token_of(other["id"])["hash"],
    }


def test_there_is_something_to_run() -> None:
    assert len(CURLS) >= 5
    assert len(SELECTS) >= 4


@pytest.mark.parametrize("command", CURLS, ids=lambda command: shlex.split(command)[-1][:60])
def test_a_request_is_answered(command: str, variables: dict[str, str]) -> None:
    run = subprocess.run(
        ["bash", "-euc", command.replace("curl -s", "curl -s --noproxy '*' --fail-with-body", 1)],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("statement", SELECTS, ids=lambda statement: " ".join(statement.split())[:60])
def test_a_statement_is_one_that_postgresql_takes(statement: str, service: Any) -> None:
    service.rows(cast(LiteralString, statement.replace("%", "%%")))
