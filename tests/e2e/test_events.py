"""Every recorded event is taken by its function, under AWS's own runtime client, as it would be by `sam local invoke -e`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.record_events import CALLS, EVENTS, SUBJECT
from local.template import CHECKOUT, Template
from tests.e2e.service import Service

APPLICATION = Template(CHECKOUT / "template.yaml").resolve_offline()
BEHIND_ROUTES = {route.key: route.function for route in APPLICATION.routes}
# Each job's function, by the name of its event.
JOBS = {
    stem: name
    for name, function in APPLICATION.functions.items()
    if (stem := function.handler.removesuffix(".handler")) not in CALLS
}
# Only the drop-in has it: test_litemaas_tokens.py.
ELSEWHERE = {"authorize_litemaas_token"}


def event(name: str) -> dict[str, Any]:
    return json.loads((EVENTS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def administrator(service: Service) -> Iterator[None]:
    """Gone again afterwards is what the events set for everybody."""
    caller = service.person(subject=SUBJECT)
    service.rows("UPDATE users SET roles = '{admin}' WHERE id = %(id)s", id=caller.user_id)
    yield
    service.rows("DELETE FROM system_settings")


@pytest.mark.usefixtures("administrator")
@pytest.mark.parametrize("name", CALLS)
def test_an_event_of_a_route_is_answered(service: Service, name: str):
    asked = event(name)

    answer = service.stack.invoke(BEHIND_ROUTES[asked["routeKey"]], asked)

    assert answer["statusCode"] == CALLS[name].status, answer["body"]


@pytest.mark.parametrize("name", JOBS)
def test_an_event_of_a_job_is_done(service: Service, name: str):
    report = service.stack.invoke(JOBS[name], event(name))

    assert isinstance(report, dict)


def test_no_event_is_left_out():
    assert {path.stem for path in Path(EVENTS).glob("*.json")} == CALLS.keys() | JOBS.keys() | ELSEWHERE
    assert set(BEHIND_ROUTES.values()) | set(JOBS.values()) == set(APPLICATION.functions)
