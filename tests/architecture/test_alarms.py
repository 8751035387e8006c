"""Alarms, dashboard and queries, as in the CloudFormation that SAM makes of template.yaml.

That the functions write the service's own metrics is for tests/e2e/test_watching.py; what AWS's services write is held
to the table here, which is what their documentation says.
"""

import json
import re
from typing import Any

import pytest

from tests.architecture.translation import ROOT, translate

# Namespace and metric with its sets of dimensions. API Gateway: "Monitor HTTP API metrics". Lambda: "Types of metrics" and
# "Viewing metrics for Lambda functions" (without dimensions: all functions of the region). SQS: "Available metrics".
DOCUMENTED = {
    ("AWS/ApiGateway", "5xx"): [{"ApiId"}, {"ApiId", "Stage"}],
    ("AWS/ApiGateway", "4xx"): [{"ApiId"}, {"ApiId", "Stage"}],
    ("AWS/ApiGateway", "Count"): [{"ApiId"}, {"ApiId", "Stage"}],
    ("AWS/ApiGateway", "Latency"): [{"ApiId"}, {"ApiId", "Stage"}],
    ("AWS/Lambda", "Errors"): [set[str](), {"FunctionName"}],
    ("AWS/Lambda", "Invocations"): [set[str](), {"FunctionName"}],
    ("AWS/Lambda", "Throttles"): [set[str](), {"FunctionName"}],
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): [{"QueueName"}],
}
OWN = "KeyService"
SCHEDULED = ["Reconcile", "SettleOperations", "SyncSpend"]
HEADINGS = ["Symptom", "Meaning", "Check", "Fix"]


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    return translate()


@pytest.fixture(scope="module")
def alarms(stack: dict[str, Any]) -> dict[str, Any]:
    return {
        name: resource["Properties"]
        for name, resource in stack["Resources"].items()
        if resource["Type"] == "AWS::CloudWatch::Alarm"
    }


@pytest.fixture(scope="module")
def dashboard(stack: dict[str, Any]) -> dict[str, Any]:
    return json.loads(stack["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"])


def metrics_of(alarm: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Namespace, name and dimensions of each metric the alarm looks at."""
    metrics = [m["MetricStat"]["Metric"] for m in alarm.get("Metrics", []) if "MetricStat" in m] or [alarm]
    return [
        (m["Namespace"], m["MetricName"], {d["Name"]: d["Value"] for d in m.get("Dimensions", [])}) for m in metrics
    ]


def runbook_of(alarm: dict[str, Any]) -> tuple[str, str]:
    """File and anchor that the description leads to."""
    [(file, anchor)] = re.findall(r"\${RunbookUrl}/([\w-]+\.md)(?:#([\w-]+))?$", alarm["AlarmDescription"]["Fn::Sub"])
    return file, anchor


def section_of(text: str, anchor: str) -> str:
    """The part of a page under the heading of that anchor, as web pages name it; all of it without one."""
    if not anchor:
        return text
    parts = re.split(r"(?m)^(?=#+ )", text)
    [found] = [
        p for p in parts if p and re.sub(r"[^\w -]", "", p.splitlines()[0].lower()).strip().replace(" ", "-") == anchor
    ]
    return found


def test_these_things_raise_an_alarm(alarms: dict[str, Any]) -> None:
    assert sorted(alarm["AlarmName"]["Fn::Sub"].removeprefix("${AWS::StackName}-") for alarm in alarms.values()) == [
        "api-5xx",
        "brake",
        "jobs-failing",
        "orphans",
        "pending-too-long",
        "reconcile-not-running",
        "server-errors",
        "settle-not-running",
        "slow",
        "spend-not-running",
        "throttled",
        "undelivered",
    ]


def test_every_alarm_tells_the_topic_when_it_begins_and_when_it_ends(
    stack: dict[str, Any], alarms: dict[str, Any]
) -> None:
    topic = [{"Fn::If": ["AlarmsHaveOwnTopic", {"Ref": "AlarmTopic"}, {"Ref": "AlarmTopicArn"}]}]

    assert [
        name for name, alarm in alarms.items() if alarm["AlarmActions"] != topic or alarm["OKActions"] != topic
    ] == []
    assert stack["Resources"]["AlarmTopic"]["Condition"] == "AlarmsHaveOwnTopic"
    assert stack["Resources"]["AlarmSubscription"]["Condition"] == "MailsAlarms"


def test_metrics_of_aws_are_as_aws_documents_them(alarms: dict[str, Any]) -> None:
    looked_at = [(ns, name, dimensions) for a in alarms.values() for ns, name, dimensions in metrics_of(a) if ns != OWN]

    assert looked_at
    assert [m for m in looked_at if set(m[2]) not in DOCUMENTED.get((m[0], m[1]), [])] == []


def test_metrics_of_our_own_are_those_of_this_stack(alarms: dict[str, Any]) -> None:
    dimensions = [d for a in alarms.values() for ns, _, d in metrics_of(a) if ns == OWN]

    assert dimensions == [{"service": {"Ref": "AWS::StackName"}}] * 4


def test_metrics_of_the_api_are_those_of_its_stage(stack: dict[str, Any], alarms: dict[str, Any]) -> None:
    [stage] = [name for name, r in stack["Resources"].items() if r["Type"] == "AWS::ApiGatewayV2::Stage"]
    dimensions = [d for a in alarms.values() for ns, _, d in metrics_of(a) if ns == "AWS/ApiGateway"]

    assert dimensions == [{"ApiId": {"Ref": "Api"}, "Stage": {"Ref": stage}}] * 2


def test_a_job_that_does_not_run_is_missed_when_nothing_is_heard(alarms: dict[str, Any]) -> None:
    watching = {
        name: (metrics_of(alarm)[0][2], alarm["TreatMissingData"], alarm["ComparisonOperator"], alarm["Threshold"])
        for name, alarm in alarms.items()
        if metrics_of(alarm)[0][1] == "Invocations"
    }

    assert watching == {
        f"{alarm}MissingAlarm": ({"FunctionName": {"Ref": function}}, "breaching", "LessThanThreshold", 1)
        for alarm, function in {"Settle": "SettleOperations", "Reconcile": "Reconcile", "Spend": "SyncSpend"}.items()
    }


def test_a_job_is_given_the_time_of_a_run_and_more_before_it_is_missed(alarms: dict[str, Any]) -> None:
    minutes = {
        name: alarm["Period"] * alarm["EvaluationPeriods"] / 60
        for name, alarm in alarms.items()
        if name.endswith("MissingAlarm")
    }

    assert minutes == {"SettleMissingAlarm": 5, "ReconcileMissingAlarm": 45, "SpendMissingAlarm": 15}


def test_every_alarm_says_what_silence_means(alarms: dict[str, Any]) -> None:
    assert {name: alarm["TreatMissingData"] for name, alarm in alarms.items()} == {
        # No request, no answer.
        "Api5xxAlarm": "notBreaching",
        "LatencyAlarm": "notBreaching",
        "ServerErrorsAlarm": "notBreaching",
        "ThrottlesAlarm": "notBreaching",
        "JobsFailAlarm": "notBreaching",
        "UndeliveredAlarm": "notBreaching",
        # The job that would say so is silent: what it said last goes on being true.
        "BrakeAlarm": "ignore",
        "OrphansAlarm": "ignore",
        "PendingTooLongAlarm": "ignore",
        # Silence is what is looked for.
        "ReconcileMissingAlarm": "breaching",
        "SettleMissingAlarm": "breaching",
        "SpendMissingAlarm": "breaching",
    }


def test_all_jobs_are_watched_for_failing_and_for_schedules_that_could_not_deliver(alarms: dict[str, Any]) -> None:
    failing = [dimensions["FunctionName"]["Ref"] for _, _, dimensions in metrics_of(alarms["JobsFailAlarm"])]
    queues = [d["QueueName"]["Fn::GetAtt"] for _, _, d in metrics_of(alarms["UndeliveredAlarm"])]

    assert sorted(failing) == SCHEDULED
    assert sorted(queues) == [[f"{name}Undelivered", "QueueName"] for name in SCHEDULED]


def test_a_sum_over_metrics_adds_each_of_them(alarms: dict[str, Any]) -> None:
    for alarm in (alarms["JobsFailAlarm"], alarms["UndeliveredAlarm"]):
        [total, *parts] = alarm["Metrics"]

        assert total["Expression"] == " + ".join(f"FILL({part['Id']}, 0)" for part in parts)
        assert [part["ReturnData"] for part in parts] == [False] * len(parts)


def test_every_alarm_leads_to_a_runbook_that_says_what_to_do(alarms: dict[str, Any]) -> None:
    for name, alarm in alarms.items():
        file, anchor = runbook_of(alarm)
        section = section_of((ROOT / "docs/runbooks" / file).read_text(), anchor)

        assert re.findall(r"(?m)^\*\*(\w+)\.\*\*", section) == HEADINGS, name
        assert re.search(r"(?m)^\s*```(sh|sql)$", section), name


# The dashboard.


def test_the_dashboard_shows_metrics_that_there_are(dashboard: dict[str, Any]) -> None:
    direct = [m for w in dashboard["widgets"] for m in w["properties"]["metrics"] if isinstance(m[0], str)]
    of_aws = [m for m in direct if m[0] != OWN]

    assert of_aws
    assert [m for m in of_aws if {m[2], m[4]} not in DOCUMENTED[m[0], m[1]]] == []
    assert {(m[0], *m[2:-1]) for m in direct} == {
        ("AWS/ApiGateway", "ApiId", "${Api}", "Stage", "$default"),
        (OWN, "service", "${AWS::StackName}"),
    }


def test_the_dashboard_has_what_one_looks_for_on_a_bad_day(dashboard: dict[str, Any]) -> None:
    shown = {m[1] for w in dashboard["widgets"] for m in w["properties"]["metrics"] if isinstance(m[0], str)}
    searched = {
        (name, m[0]["expression"].split("'")[3])
        for w in dashboard["widgets"]
        for m in w["properties"]["metrics"]
        if not isinstance(m[0], str)
        for name in re.findall(r'MetricName="(\w+)"', m[0]["expression"])
    }

    assert {"Count", "4xx", "5xx", "LiteLLMFailures", "LiteLLMLatency", "OldestPendingAge"} <= shown
    assert {"Orphans", "Missing", "Drift", "ColdStarts", "BrakePulled"} <= shown
    assert searched == {("Latency", "p50"), ("Latency", "p99"), ("ServerErrors", "Sum")}


def test_widgets_do_not_cover_each_other(dashboard: dict[str, Any]) -> None:
    cells = [
        (x, y)
        for w in dashboard["widgets"]
        for x in range(w["x"], w["x"] + w["width"])
        for y in range(w["y"], w["y"] + w["height"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


# The queries.


def test_queries_look_where_the_functions_write(stack: dict[str, Any]) -> None:
    resources = stack["Resources"]
    groups = {name for name, r in resources.items() if r["Type"] == "AWS::Logs::LogGroup"} - {"ApiAccessLogs"}
    jobs = {f"{name}Logs" for name in SCHEDULED}
    invoked = {"MigrateDatabaseLogs", "AdoptLiteMaaSKeysLogs"}
    looked_at = {
        name: {group["Ref"] for group in r["Properties"]["LogGroupNames"]}
        for name, r in resources.items()
        if r["Type"] == "AWS::Logs::QueryDefinition"
    }

    assert looked_at == {
        "ColdStartsQuery": groups - jobs - invoked,
        "FailedRequestsQuery": groups - jobs - invoked,
        "JobsQuery": jobs,
        "OneRequestQuery": groups - jobs - invoked,
        "RefusedRequestsQuery": groups - jobs - invoked,
        "SlowRequestsQuery": groups - jobs - invoked,
        "UnexpectedQuery": groups,
    }


def test_queries_ask_for_fields_that_are_written(stack: dict[str, Any]) -> None:
    source = "\n".join(file.read_text() for file in (ROOT / "layers/shared/keyservice").glob("*.py"))
    of_lambda = {"@timestamp", "@message", "@log", "@type", "@initDuration", "@maxMemoryUsed"}
    words = {
        word
        for r in stack["Resources"].values()
        if r["Type"] == "AWS::Logs::QueryDefinition"
        for line in r["Properties"]["QueryString"].splitlines()
        for word in re.findall(r"@?\b[a-z_]\w*", re.sub(r'"[^"]*"|/[^/]*/', "", line.split("as ")[0]), re.IGNORECASE)
    }
    language = {"fields", "filter", "sort", "limit", "stats", "by", "and", "or", "desc", "asc", "like", "ispresent"}
    functions = {"count", "pct", "max", "stack", "requests", "p99"}

    assert {w for w in words - of_lambda - language - functions if not re.search(rf'\b{w}\b["=]', source)} == set()
