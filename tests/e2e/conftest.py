"""The stacks of the end-to-end tests: one as deployed by default, two more where a parameter must differ."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from local.seed import insert_models
from local.stack import LocalStack
from tests.e2e.service import MODELS, USER_AGENT, Ledger, Person, Service
from tests.support.http_faults import FaultProxy
from tests.support.postgres_faults import PostgresProxy


@dataclass
class FragileService(Service):
    """Proxies stand between the functions and LiteLLM and PostgreSQL."""

    gateway_faults: FaultProxy
    database_faults: PostgresProxy


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture(scope="session")
def http() -> Iterator[httpx.Client]:
    # Many threads share it, and httpcore may close an idle connection that another thread has just taken.
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=0)
    with httpx.Client(trust_env=False, timeout=40, limits=limits, headers={"user-agent": USER_AGENT}) as client:
        yield client


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, http: httpx.Client, ledger: Ledger) -> Iterator[Service]:
    """All parameters as the template has them."""
    logs = tmp_path_factory.mktemp("service")
    with LocalStack.start(log_directory=logs) as stack:
        insert_models(stack.admin_dsn, MODELS)
        running = Service(stack, http, ledger, logs, gateway_url=stack.litellm_url)
        ledger.services.append(running)
        yield running


@pytest.fixture(scope="session")
def shared_fragile_service(
    tmp_path_factory: pytest.TempPathFactory, service: Service, http: httpx.Client, ledger: Ledger
) -> Iterator[FragileService]:
    logs: Path = tmp_path_factory.mktemp("fragile")
    shared = service.stack
    socket = shared.database.socket_directory / f".s.PGSQL.{shared.database.port}"
    with (
        FaultProxy(shared.litellm_url) as gateway_faults,
        PostgresProxy(socket) as database_faults,
        LocalStack.start(
            parameters={
                "DatabaseHost": str(database_faults.socket_directory),
                "DatabasePort": str(database_faults.port),
                "DatabaseName": "fragile",
                "ExpiryMode": "delete",
                "OwnersMayResetSpend": "true",
            },
            # A LiteLLM that never answers shall not hold up the tests for long.
            extra_environment={"LITELLM_BUDGET_SECONDS": "2"},
            litellm_url=gateway_faults.url,
            litellm_master_key=shared.litellm_master_key,
            database=shared.database,
            aws=shared.aws,
            workers_per_function=2,
            log_directory=logs,
        ) as stack,
    ):
        insert_models(stack.admin_dsn, MODELS)
        running = FragileService(
            stack,
            http,
            ledger,
            logs,
            gateway_url=shared.litellm_url,
            gateway_faults=gateway_faults,
            database_faults=database_faults,
        )
        ledger.services.append(running)
        yield running


@pytest.fixture
def fragile_service(shared_fragile_service: FragileService) -> Iterator[FragileService]:
    """Whole again after each test."""
    yield shared_fragile_service
    shared_fragile_service.gateway_faults.clear()
    shared_fragile_service.database_faults.clear()


@pytest.fixture
def settling_service(fragile_service: FragileService) -> FragileService:
    """Nothing that other tests have left pending or expired is going to be settled."""
    fragile_service.settle()
    fragile_service.rows(
        "UPDATE api_key_operations SET next_attempt_at = now() + interval '1 day' WHERE state = 'pending'"
    )
    return fragile_service


@pytest.fixture
def alice(service: Service) -> Person:
    """Somebody new in every test, with active subscriptions to gpt-4o and gpt-4o-mini."""
    return service.person()


@pytest.fixture
def bob(service: Service) -> Person:
    """Somebody else, likewise."""
    return service.person()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What must stand nowhere is looked for last, when everything else has left its traces."""
    items.sort(key=lambda item: item.path.parent.name == "e2e" and item.path.name == "test_secrecy.py")
