"""The throw-away PostgreSQL server."""

import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from local.postgres import PostgresServer


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as running:
        yield running


def query(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def server_process_id(server: PostgresServer) -> int:
    return int(Path(server.socket_directory.parent, "data", "postmaster.pid").read_text().splitlines()[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another account to lend")
def test_root_lends_the_server_an_account_without_rights(server: PostgresServer) -> None:
    status = Path(f"/proc/{server_process_id(server)}/status").read_text()

    uid = re.search(r"^Uid:\s+(\d+)\s+(\d+)", status, re.MULTILINE)
    groups = re.search(r"^Groups:(.*)$", status, re.MULTILINE)
    assert uid is not None
    assert groups is not None
    assert uid.groups() == (str(pwd.getpwnam("nobody").pw_uid),) * 2
    assert groups[1].split() == []


def test_only_its_owner_reaches_the_socket_and_the_data(server: PostgresServer) -> None:
    modes = {
        path.name: path.stat().st_mode & 0o777
        for path in (server.socket_directory, server.socket_directory.parent / "data")
    }

    assert modes == {"s": 0o700, "data": 0o700}


def test_socket_path_fits_into_what_the_system_allows(server: PostgresServer) -> None:
    assert len(str(server.socket_directory / f".s.PGSQL.{server.port}")) < 80


def test_wrong_password_is_refused(server: PostgresServer) -> None:
    server.create_login("somebody")

    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        query(server.dsn("postgres", user="somebody", password="wrong"), "SELECT 1")


def test_login_has_no_rights_of_its_own(server: PostgresServer) -> None:
    password = server.create_login("modest")
    assert server.create_login("modest") == password

    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        query(server.dsn("postgres", user="modest", password=password), "CREATE TABLE public.t ()")


def test_database_is_a_copy_of_its_template(server: PostgresServer) -> None:
    server.create_database("original")
    query(server.admin_dsn("original"), "CREATE TABLE t AS SELECT 7 AS n")

    server.create_database("copy", template="original")

    assert query(server.admin_dsn("copy"), "SELECT n FROM t") == [(7,)]
    assert server.has_database("copy")
    server.drop_database("copy")
    assert not server.has_database("copy")


def test_dump_holds_every_row(server: PostgresServer) -> None:
    server.create_database("dumped")
    query(server.admin_dsn("dumped"), "CREATE TABLE t AS SELECT 'canary-4711' AS text")

    assert "canary-4711" in server.dump("dumped")


@pytest.mark.parametrize("how", ["kill", "stop", "restart"])
def test_what_was_committed_survives_and_who_was_connected_is_cut_off(server: PostgresServer, how: str) -> None:
    server.create_database(f"survivor_{how}")
    dsn = server.admin_dsn(f"survivor_{how}")
    query(dsn, "CREATE TABLE t AS SELECT 1 AS n")
    bystander = psycopg.connect(dsn)

    getattr(server, how)()
    server.start()

    with pytest.raises(psycopg.OperationalError):
        bystander.execute("SELECT 1")
    bystander.close()
    assert query(dsn, "SELECT n FROM t") == [(1,)]


def test_stopped_server_refuses_connections(server: PostgresServer) -> None:
    server.stop()

    with pytest.raises(psycopg.OperationalError, match="connection to server on socket"):
        query(server.admin_dsn(), "SELECT 1")
    server.start()


def test_nothing_is_left_of_a_closed_server() -> None:
    with PostgresServer() as server:
        root = server.socket_directory.parent
        process_id = server_process_id(server)

    assert not root.exists()
    assert not Path(f"/proc/{process_id}").exists()
