"""Real parts for tests: a PostgreSQL, a database of its own for each test, a LiteLLM, and proxies that break them."""

import itertools
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from keyservice.schema import migrate
from local.litellm_process import LiteLLMProcess
from local.postgres import PostgresServer
from local.roles import APP, MIGRATOR, Passwords, create_roles
from tests.support.http_faults import FaultProxy
from tests.support.postgres_faults import PostgresProxy

MASTER_KEY = "sk-test-master-key"
STACK_NAME = "keyservice-test"
LITELLM_URL = "http://litellm.test"
TEMPLATE = "migrated"

_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Database:
    """A migrated database with no rows in it but what the migrations put there."""

    server: PostgresServer
    name: str
    passwords: Passwords

    @property
    def admin_dsn(self) -> str:
        """As the superuser: to look at every row, and to put some in."""
        return self.server.admin_dsn(self.name)

    @property
    def app_dsn(self) -> str:
        """As the role the functions use."""
        return self.server.dsn(self.name, user=APP, password=self.passwords.app)

    @property
    def migrator_dsn(self) -> str:
        return self.server.dsn(self.name, user=MIGRATOR, password=self.passwords.migrator)


@dataclass(frozen=True, kw_only=True)
class LiteLLM:
    """The stand-in, shared by all tests of a run: they tell their keys apart by users and aliases of their own."""

    url: str
    master_key: str
    process: LiteLLMProcess


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def database_passwords(postgres: PostgresServer) -> Passwords:
    """Of the two roles, and a migrated template for the tests' databases: they are made together, once."""
    passwords = create_roles(postgres)
    postgres.create_database(TEMPLATE, owner=MIGRATOR)
    dsn = postgres.dsn(TEMPLATE, user=MIGRATOR, password=passwords.migrator)
    with psycopg.connect(dsn, autocommit=True) as connection:
        migrate(connection, app_user=APP, stack_name=STACK_NAME, litellm_url=LITELLM_URL)
    return passwords


@pytest.fixture
def database(postgres: PostgresServer, database_passwords: Passwords) -> Iterator[Database]:
    name = f"test_{next(_numbers)}"
    postgres.create_database(name, owner=MIGRATOR, template=TEMPLATE)
    # A mark of its own: with the template's the tests' databases would be clones, whose keys the service leaves alone.
    with psycopg.connect(postgres.admin_dsn(name)) as connection:
        connection.execute("UPDATE keyservice_installation SET mark = %s", [f"lmk-{secrets.token_hex(6)}"])
    yield Database(server=postgres, name=name, passwords=database_passwords)
    postgres.drop_database(name)


@pytest.fixture(scope="session")
def litellm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteLLM]:
    directory: Path = tmp_path_factory.mktemp("litellm")
    process = LiteLLMProcess(
        master_key=MASTER_KEY, state_path=directory / "state.sqlite", log_path=directory / "litellm.log"
    )
    process.wait_until_ready()
    yield LiteLLM(url=process.url, master_key=MASTER_KEY, process=process)
    process.stop()


@pytest.fixture
def gateway_faults(litellm: LiteLLM) -> Iterator[FaultProxy]:
    """Stands before the stand-in; its `url` takes the place of LiteLLM's."""
    with FaultProxy(litellm.url) as proxy:
        yield proxy


@pytest.fixture
def database_faults(postgres: PostgresServer) -> Iterator[PostgresProxy]:
    """Stands before the server; its `socket_directory` and `port` take the place of the server's."""
    with PostgresProxy(postgres.socket_directory / f".s.PGSQL.{postgres.port}") as proxy:
        yield proxy
