"""`make plan`: what a deployment would change, computed without AWS."""

from collections.abc import Mapping
from typing import Any

import pytest

from local.errors import StartFailed
from local.plan import Change, changes, lines, resources
from tests.architecture.translation import ROOT, translate

type Resources = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def samconfig() -> str:
    return (ROOT / "samconfig.toml").read_text()


@pytest.fixture(scope="module")
def template() -> str:
    return (ROOT / "template.yaml").read_text()


@pytest.fixture(scope="module")
def planned(template: str, samconfig: str) -> Resources:
    return resources("dev", template=template, samconfig=samconfig, release_sha="0" * 64)


def planned_with(template: str, samconfig: str, *, release_sha: str = "0" * 64) -> Resources:
    return resources("dev", template=template, samconfig=samconfig, release_sha=release_sha)


def by_action(before: Resources, after: Resources) -> dict[str, list[Change]]:
    found: dict[str, list[Change]] = {}
    for change in changes(before, after):
        found.setdefault(change.action, []).append(change)
    return found


def test_a_first_deployment_adds_what_the_stage_asks_for_and_nothing_else(planned: Resources) -> None:
    without_conditions = {name for name, r in translate()["Resources"].items() if "Condition" not in r}

    found = by_action({}, planned)

    assert set(found) == {"Add"}
    # The stage names neither a domain nor a topic of its own.
    assert {change.name for change in found["Add"]} - {"AlarmTopic"} == {
        name.replace("ababababab", "0000000000") for name in without_conditions
    }


def test_the_same_twice_changes_nothing(planned: Resources, template: str, samconfig: str) -> None:
    assert list(changes(planned, planned_with(template, samconfig))) == []


def test_a_release_publishes_versions_and_asks_for_the_migration(
    planned: Resources, template: str, samconfig: str
) -> None:
    found = by_action(planned, planned_with(template, samconfig, release_sha="1" * 64))

    assert set(found) == {"Add", "Modify", "Remove"}
    assert {change.kind for change in found["Add"] + found["Remove"]} == {"AWS::Lambda::Version"}
    assert [c.properties for c in found["Modify"] if c.name == "Migration"] == [("ReleaseSha",)]
    assert {c.kind for c in found["Modify"]} == {
        "AWS::CloudFormation::CustomResource",
        "AWS::Lambda::Alias",
        "AWS::Lambda::Function",
    }


def test_another_value_of_a_parameter_shows_what_it_changes(planned: Resources, template: str, samconfig: str) -> None:
    after = planned_with(template, samconfig.replace('"LogRetentionDays=7"', '"LogRetentionDays=14"'))

    found = by_action(planned, after)

    assert set(found) == {"Modify"}
    assert {(c.kind, c.properties) for c in found["Modify"]} == {("AWS::Logs::LogGroup", ("RetentionInDays",))}


def test_what_cannot_be_changed_is_replaced(planned: Resources, template: str, samconfig: str) -> None:
    after = planned_with(template, samconfig.replace("keyservice-dev", "keyservice-other"))

    replaced = {change.name for change in by_action(planned, after)["Replace"]}

    assert {"MacKeyAlias", "CreateApiKeyLogs"} <= replaced
    assert "MacKey" not in replaced


def test_a_value_that_is_refused_ends_the_plan_in_the_templates_words(template: str, samconfig: str) -> None:
    with pytest.raises(StartFailed, match="LogLevel cannot be 'LOUD'"):
        planned_with(template, samconfig.replace("LogLevel=DEBUG", "LogLevel=LOUD"))


def test_a_combination_that_is_refused_does_too(template: str, samconfig: str) -> None:
    with pytest.raises(StartFailed, match="DomainName and CertificateArn belong together"):
        planned_with(template, samconfig.replace('"LogLevel=DEBUG"', '"DomainName=keys.example.com"'))


def test_the_drop_in_is_planned_from_its_own_template(template: str, samconfig: str) -> None:
    found = resources("litemaas", template=template, samconfig=samconfig, release_sha="0" * 64)

    assert "AuthorizeLiteMaaSToken" in found


def test_what_is_lost_is_said_first() -> None:
    found = [
        Change("Add", "New", "AWS::SQS::Queue"),
        Change("Modify", "B", "AWS::Lambda::Function", ("Timeout",)),
        Change("Modify", "A", "AWS::Lambda::Function", ("Timeout",)),
        Change("Remove", "Old", "AWS::KMS::Key"),
    ]

    assert list(lines(found)) == [
        "Remove    1 AWS::KMS::Key: Old",
        "Modify    2 AWS::Lambda::Function (Timeout): B, A",
        "Add       1 AWS::SQS::Queue: New",
    ]
