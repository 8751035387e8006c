"""The GitHub workflow runs the Makefile's words with pinned actions and no rights."""

import re
from typing import Any

import pytest
import yaml

from tests.architecture.test_readme import make_targets, targets_of_ci
from tests.architecture.translation import ROOT

TEXT = (ROOT / ".github/workflows/ci.yml").read_text()


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    return yaml.safe_load(TEXT)


def test_every_action_is_pinned_by_commit_and_says_its_release() -> None:
    used = re.findall(r"(?m)^\s*- uses: (.*)$", TEXT)

    assert used
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)] == []


def test_it_runs_make_and_nothing_else(workflow: dict[str, Any]) -> None:
    run = {step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step}

    assert run == {"make ${{ matrix.word }}", "make release ARGS=--audit-required"}
    assert set(workflow["jobs"]["words"]["strategy"]["matrix"]["word"]) <= make_targets()


def test_it_runs_at_least_what_ci_runs_here(workflow: dict[str, Any]) -> None:
    assert targets_of_ci() <= set(workflow["jobs"]["words"]["strategy"]["matrix"]["word"])


def test_it_may_read_the_code_and_nothing_else(workflow: dict[str, Any]) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert [name for name, job in workflow["jobs"].items() if "permissions" in job] == []
    assert "secrets." not in TEXT
