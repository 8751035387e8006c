"""What the functions write when things go wrong is what the alarms and the dashboard of template.yaml look at."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from local.function_log import objects_in
from local.stack import STACK_NAME
from tests.architecture.translation import read_template
from tests.e2e.conftest import FragileService
from tests.e2e.service import hash_of

OWN = "KeyService"

type Emitted = dict[tuple[str, frozenset[tuple[str, str]]], list[float]]


def emitted_since(service: FragileService, position: int) -> Emitted:
    """Values by metric and dimensions, as CloudWatch reads them from the log."""
    found: Emitted = {}
    for line in objects_in(service.stack.log_path.read_text()[position:]):
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", []):
            assert directive["Namespace"] == OWN
            for names in directive["Dimensions"]:
                dimensions = frozenset((name, line[name]) for name in names)
                for metric in directive["Metrics"]:
                    found.setdefault((metric["Name"], dimensions), []).extend(line[metric["Name"]])
    return found


def make_orphan(service: FragileService) -> str:
    """A key that was deleted and is in LiteLLM all the same; its hash."""
    owner = service.person()
    key = owner.has_key()
    assert owner.delete(key["id"]).status_code == 200
    [installation] = service.rows("SELECT mark FROM keyservice_installation")
    made = service.gateway(
        "POST",
        "/key/generate",
        json={
            "key": key["key"],
            "key_alias": f"{installation['mark']}:{key['id']}:1",
            "metadata": {"keyservice": {"mark": installation["mark"], "api_key_id": key["id"]}, "user": {}},
            "models": ["gpt-4o"],
        },
    )
    assert made.status_code == 200, made.text
    return hash_of(key["key"])


@pytest.fixture
def emitted(fragile_service: FragileService) -> Iterator[Emitted]:
    """By a service on a bad day: LiteLLM fails, changes wait, a key is where it should not be, the database is a clone."""
    service = fragile_service
    service.stack.retire_workers()
    begin = len(service.stack.log_path.read_text())
    orphan = make_orphan(service)
    service.stack.invoke("Reconcile", {})
    service.stack.invoke("SyncSpend", {})
    service.gateway_faults.inject("/key/generate", "status", status=500, times=5)
    unlucky = service.person()
    answers = [unlucky.create({"modelIds": ["gpt-4o"]}).status_code for _ in range(5)]
    assert answers == [503] * 5
    service.rows(
        "UPDATE api_key_operations SET created_at = now() - interval '10 minutes', next_attempt_at = now() + interval '1 hour'"
        " WHERE state = 'pending'"
    )
    service.rows("UPDATE keyservice_installation SET stack_name = 'the-original'")
    try:
        service.settle()
        service.stack.invoke("Reconcile", {})
        yield emitted_since(service, begin)
    finally:
        service.rows("UPDATE keyservice_installation SET stack_name = %(name)s", name=STACK_NAME)
        service.rows("UPDATE api_key_operations SET created_at = now() WHERE state = 'pending'")
        service.gateway("POST", "/key/delete", json={"keys": [orphan]})


def own_alarms() -> dict[str, dict[str, Any]]:
    return {
        name: resource["Properties"]
        for name, resource in read_template()["Resources"].items()
        if resource["Type"] == "AWS::CloudWatch::Alarm" and resource["Properties"].get("Namespace") == OWN
    }


def dashboard_metrics() -> list[Any]:
    text = read_template()["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    named = text.replace("${AWS::StackName}", STACK_NAME)
    return [metric for widget in json.loads(named)["widgets"] for metric in widget["properties"]["metrics"]]


def test_on_a_bad_day_every_alarm_on_a_metric_of_ours_would_be_on(emitted: Emitted):
    reached = {"GreaterThanThreshold": float.__gt__, "GreaterThanOrEqualToThreshold": float.__ge__}
    over = {"Sum": sum, "Maximum": max}
    of_this_stack = {"Ref": "AWS::StackName"}
    outcome: dict[str, bool] = {}

    for name, alarm in own_alarms().items():
        dimensions = frozenset(
            (d["Name"], STACK_NAME if d["Value"] == of_this_stack else d["Value"]) for d in alarm["Dimensions"]
        )
        value = float(over[alarm["Statistic"]](emitted[alarm["MetricName"], dimensions]))
        outcome[name] = reached[alarm["ComparisonOperator"]](value, float(alarm["Threshold"]))

    assert outcome == dict.fromkeys(["BrakeAlarm", "OrphansAlarm", "PendingTooLongAlarm", "ServerErrorsAlarm"], True)


def test_everything_of_ours_on_the_dashboard_was_written(emitted: Emitted):
    wanted = {
        (metric[1], frozenset(zip(metric[2:-1:2], metric[3:-1:2], strict=True)))
        for metric in dashboard_metrics()
        if metric[0] == OWN
    }

    assert len(wanted) >= 10
    assert sorted(name for name, dimensions in wanted if (name, dimensions) not in emitted) == []


def test_every_search_of_the_dashboard_finds_what_was_written(emitted: Emitted):
    searches = [metric[0]["expression"] for metric in dashboard_metrics() if isinstance(metric[0], dict)]
    written = [(name, dict(dimensions)) for name, dimensions in emitted]

    assert searches
    for search in searches:
        [(schema, terms)] = re.findall(r"SEARCH\('\{([\w,]+)\} (.*?)', '", search)
        [namespace, *names] = schema.split(",")
        wanted = dict(re.findall(r'(\w+)="([^"]+)"', terms))
        metric = wanted.pop("MetricName")
        found = [d for name, d in written if name == metric and set(d) == set(names) and wanted.items() <= d.items()]
        assert namespace == OWN
        assert found, search
