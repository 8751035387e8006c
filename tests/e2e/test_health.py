"""GET /health: what a load balancer, and anybody else, may know."""

import pytest

from tests.e2e.conftest import FragileService
from tests.e2e.service import Service

HEALTH = "/health"


@pytest.fixture
def cold_service(fragile_service: FragileService) -> FragileService:
    """No execution environment remembers an answer."""
    fragile_service.stack.retire_workers()
    fragile_service.gateway_faults.forget_calls()
    fragile_service.database_faults.reset_counts()
    return fragile_service


def test_anybody_may_ask_and_learns_nothing_but_states(service: Service):
    answer = service.call("GET", HEALTH)

    assert answer.status_code == 200
    assert answer.json() == {"status": "healthy", "database": "up", "litellm": "up"}
    assert list(answer.json()) == ["status", "database", "litellm"]
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


def test_a_token_makes_no_difference(service: Service):
    answer = service.call("GET", HEALTH, token="not-even-a-token")

    assert answer.status_code == 200


@pytest.mark.parametrize("fault", ["reset_before", "hang", "status"])
def test_without_litellm_the_service_is_degraded(cold_service: FragileService, fault: str):
    cold_service.gateway_faults.inject("/health/readiness", fault)  # pyright: ignore[reportArgumentType]

    answer = cold_service.call("GET", HEALTH)

    assert answer.status_code == 200
    assert answer.json() == {"status": "degraded", "database": "up", "litellm": "down"}


def test_without_the_database_the_service_is_unhealthy(cold_service: FragileService):
    cold_service.database_faults.refuse_connections()

    answer = cold_service.call("GET", HEALTH)

    assert answer.status_code == 503
    assert answer.json() == {"status": "unhealthy", "database": "down", "litellm": "up"}


def test_without_both_the_service_is_unhealthy_and_recovers_by_itself(cold_service: FragileService):
    cold_service.database_faults.refuse_connections()
    cold_service.gateway_faults.inject("/health/readiness", "reset_before")

    answer = cold_service.call("GET", HEALTH)
    cold_service.database_faults.clear()
    cold_service.stack.retire_workers()
    recovered = cold_service.call("GET", HEALTH)

    assert answer.json() == {"status": "unhealthy", "database": "down", "litellm": "down"}
    assert recovered.json() == {"status": "healthy", "database": "up", "litellm": "up"}


def test_an_answer_is_remembered_so_that_questions_do_not_reach_the_backends(cold_service: FragileService):
    answers = [cold_service.call("GET", HEALTH).json() for _ in range(5)]

    assert answers == [{"status": "healthy", "database": "up", "litellm": "up"}] * 5
    assert len(cold_service.gateway_faults.calls_of("/health/readiness")) == 1
    assert cold_service.database_faults.steps == ["check_health"]
