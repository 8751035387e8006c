"""The service's classes on real parts: PostgreSQL as the app role, the LiteLLM stand-in, KMS and Secrets Manager."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from keyservice.aws import Aws
from keyservice.derivation import KeyDeriver
from keyservice.secret_values import SecretValues
from local.aws import CREDENTIALS, AwsServer
from local.roles import APP, MIGRATOR, Passwords
from tests.integration.service import Cloud, Service
from tests.support.aws_client import aws_client
from tests.support.fixtures import Database, LiteLLM
from tests.support.http_faults import FaultProxy
from tests.support.postgres_faults import PostgresProxy


@pytest.fixture(scope="session")
def aws() -> Iterator[AwsServer]:
    with AwsServer() as server, pytest.MonkeyPatch.context() as environment:
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": server.url}).items():
            environment.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def client(aws: AwsServer) -> Iterator[Aws]:
    with closing(aws_client(aws.url)) as client:
        yield client


@pytest.fixture(scope="session")
def cloud(aws: AwsServer, client: Aws, database_passwords: Passwords, litellm: LiteLLM) -> Cloud:
    """The secrets and the key as a stack has them."""
    return Cloud(
        aws=aws,
        client=client,
        secret_values=SecretValues(client),
        deriver=KeyDeriver(mac_key_arn=aws.create_mac_key(), aws=client),
        database_secret_arn=aws.create_secret("database", {"username": APP, "password": database_passwords.app}),
        migrator_secret_arn=aws.create_secret(
            "migrator", {"username": MIGRATOR, "password": database_passwords.migrator}
        ),
        litellm_secret_arn=aws.create_secret("litellm", {"masterKey": litellm.master_key}),
    )


@pytest.fixture(scope="session")
def gateway_proxy(litellm: LiteLLM) -> Iterator[FaultProxy]:
    with FaultProxy(litellm.url) as proxy:
        yield proxy


@pytest.fixture
def gateway_faults(gateway_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """One proxy for all tests, ending one takes 100 ms; each finds it without faults and calls."""
    gateway_proxy.forget_calls()
    yield gateway_proxy
    gateway_proxy.clear()


@pytest.fixture
def service(
    cloud: Cloud, database: Database, litellm: LiteLLM, gateway_faults: FaultProxy, database_faults: PostgresProxy
) -> Iterator[Service]:
    """Everything goes through the fault proxies; Alice may use gpt-4o and gpt-4o-mini."""
    with Service(
        cloud=cloud, database=database, litellm=litellm, gateway_faults=gateway_faults, database_faults=database_faults
    ) as service:
        service.subscribe("alice", models=["gpt-4o", "gpt-4o-mini"])
        yield service
