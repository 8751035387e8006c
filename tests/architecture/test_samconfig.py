"""samconfig.toml deploys every stage with what template.yaml asks for."""

import re
import tomllib
from typing import Any

import pytest

from tests.architecture.translation import ROOT, read_litemaas_template, read_template

STAGES = ["dev", "litemaas", "prod", "staging"]


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    configuration = tomllib.loads((ROOT / "samconfig.toml").read_text())
    del configuration["version"]
    return {name: stage["deploy"]["parameters"] for name, stage in configuration.items() if "deploy" in stage}


def parameters_of(stage: str) -> dict[str, Any]:
    template = read_litemaas_template() if stage == "litemaas" else read_template()
    return template["Parameters"]


def overrides(stage: dict[str, Any]) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in stage["parameter_overrides"] if not entry.startswith("file://"))


def test_these_are_the_stages(stages: dict[str, Any]) -> None:
    assert {name: stage["stack_name"] for name, stage in stages.items()} == {s: f"keyservice-{s}" for s in STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_takes_the_sum_of_the_build(stages: dict[str, Any], stage: str) -> None:
    assert stages[stage]["parameter_overrides"][0] == "file://.aws-sam/release.yaml"
    assert "ReleaseSha" not in overrides(stages[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_gives_every_parameter_without_a_default(stages: dict[str, Any], stage: str) -> None:
    parameters = parameters_of(stage)
    given = {*overrides(stages[stage]), "ReleaseSha"}

    assert {name for name, p in parameters.items() if "Default" not in p} <= given <= set(parameters)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_values_are_values_the_template_accepts(stages: dict[str, Any], stage: str) -> None:
    parameters = parameters_of(stage)
    refused = {
        name: value
        for name, value in overrides(stages[stage]).items()
        if not re.search(parameters[name].get("AllowedPattern", ""), value)
        or value not in [str(allowed) for allowed in parameters[name].get("AllowedValues", [value])]
    }

    assert refused == {}


def test_a_production_change_is_shown_before_it_is_made(stages: dict[str, Any]) -> None:
    assert stages["prod"]["confirm_changeset"] is True


def test_only_the_drop_in_deploys_another_template(stages: dict[str, Any]) -> None:
    assert {name: stage.get("template_file") for name, stage in stages.items()} == dict.fromkeys(STAGES) | {
        "litemaas": ".aws-sam/litemaas/template.yaml"
    }
