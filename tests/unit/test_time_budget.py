"""The time limits of one request, held to the function's own: our answer has to be out before API Gateway's."""

from pathlib import Path
from typing import Any

import pytest

from keyservice.database import CONNECT_TIMEOUT_SECONDS, STATEMENT_TIMEOUT_SECONDS
from keyservice.endpoint import RESERVED_SECONDS
from keyservice.health import CHECK_TIMEOUT_SECONDS
from keyservice.litellm import CONNECT_TIMEOUT_SECONDS as LITELLM_CONNECT_TIMEOUT_SECONDS
from local.intrinsics import read_yaml
from local.roles import _APP_SETTINGS as APP_ROLE_SETTINGS

HTTP_API_SECONDS = 30


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    """What template.yaml says of every function."""
    text = (Path(__file__).parents[2] / "template.yaml").read_text()
    template: dict[str, Any] = read_yaml(text)
    return template["Globals"]["Function"]


def test_function_answers_before_the_gateway_gives_up(shared: dict[str, Any]):
    assert shared["Timeout"] < HTTP_API_SECONDS


def test_functions_know_their_timeout(shared: dict[str, Any]):
    assert shared["Environment"]["Variables"]["FUNCTION_TIMEOUT_SECONDS"] == str(shared["Timeout"])


def test_litellm_and_the_reserve_fit_into_the_timeout_with_time_for_the_first_statement(shared: dict[str, Any]):
    litellm_seconds = float(shared["Environment"]["Variables"]["LITELLM_BUDGET_SECONDS"])

    # LiteLLM's time runs from the start of the request on, so the first statement does not come on top of it.
    assert litellm_seconds + RESERVED_SECONDS <= shared["Timeout"]
    assert litellm_seconds > CONNECT_TIMEOUT_SECONDS + LITELLM_CONNECT_TIMEOUT_SECONDS


def test_reserve_is_enough_for_a_reconnect_and_the_last_statement():
    assert CONNECT_TIMEOUT_SECONDS + STATEMENT_TIMEOUT_SECONDS < RESERVED_SECONDS


def test_server_ends_a_statement_before_the_client_gives_up():
    limits = [float(APP_ROLE_SETTINGS[name].removesuffix("s")) for name in ("lock_timeout", "statement_timeout")]

    assert limits[0] < limits[1] < STATEMENT_TIMEOUT_SECONDS


def test_health_is_told_within_the_patience_of_a_load_balancer():
    assert CHECK_TIMEOUT_SECONDS < LITELLM_CONNECT_TIMEOUT_SECONDS < 5
