import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import LiteralString

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from local.postgres import PostgresServer
from tests.support.postgres_faults import SSL_REQUEST, Fault, PostgresProxy

INSERT: LiteralString = "/* insert_note */ INSERT INTO notes (text) VALUES (%s)"
COUNT: LiteralString = "/* count_notes */ SELECT count(*) FROM notes"


@pytest.fixture
def notes(postgres: PostgresServer) -> Iterator[str]:
    """A database with one empty table."""
    postgres.create_database("notes")
    with psycopg.connect(postgres.admin_dsn("notes"), autocommit=True) as connection:
        connection.execute("CREATE TABLE notes (text text)")
    yield "notes"
    postgres.drop_database("notes")


def through(proxy: PostgresProxy, dsn: str) -> str:
    return make_conninfo(dsn, host=str(proxy.socket_directory), port=proxy.port)


@pytest.fixture
def connection(
    postgres: PostgresServer, database_faults: PostgresProxy, notes: str
) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    dsn = through(database_faults, postgres.admin_dsn(notes))
    connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
    yield connection
    connection.close()


def stored(postgres: PostgresServer) -> list[str]:
    with psycopg.connect(postgres.admin_dsn("notes")) as direct:
        return [text for (text,) in direct.execute("SELECT text FROM notes ORDER BY text").fetchall()]


def wait_until_stored(postgres: PostgresServer, wanted: list[str]) -> None:
    deadline = time.monotonic() + 30
    while stored(postgres) != wanted:
        assert time.monotonic() < deadline, f"still {stored(postgres)}"
        time.sleep(0.01)


type AnyConnection = psycopg.Connection[tuple[object, ...]]


def test_a_statement_is_one_round_trip_and_has_its_name(
    connection: AnyConnection, database_faults: PostgresProxy, postgres: PostgresServer
):
    connection.execute(INSERT, ["one"])
    answer = connection.execute(COUNT).fetchone()

    assert answer == (1,)
    assert database_faults.round_trips == 2
    assert database_faults.steps == ["insert_note", "count_notes"]
    assert database_faults.connections == 1
    assert stored(postgres) == ["one"]


def test_a_pipeline_is_one_round_trip_with_all_its_names(connection: AnyConnection, database_faults: PostgresProxy):
    with connection.pipeline():
        connection.execute(INSERT, ["one"])
        connection.execute(INSERT, ["two"])
        counted = connection.execute(COUNT)

    assert counted.fetchone() == (2,)
    assert database_faults.round_trips == 1
    assert database_faults.trips[0].steps == ("insert_note", "insert_note", "count_notes")


def test_simple_queries_and_explicit_transactions_count_each(connection: AnyConnection, database_faults: PostgresProxy):
    with connection.transaction():
        connection.execute(INSERT, ["one"])

    assert [trip.statements for trip in database_faults.trips] == [
        ("BEGIN",),
        ("/* insert_note */ INSERT INTO notes (text) VALUES ($1)",),
        ("COMMIT",),
    ]


def test_prepared_statements_keep_their_names(connection: AnyConnection, database_faults: PostgresProxy):
    for text in ("one", "two", "three"):
        connection.execute(INSERT, [text], prepare=True)

    assert database_faults.steps == ["insert_note"] * 3


def test_counts_begin_anew_after_reset(connection: AnyConnection, database_faults: PostgresProxy):
    connection.execute(COUNT)
    database_faults.reset_counts()
    connection.execute(COUNT)

    assert (database_faults.round_trips, database_faults.connections) == (1, 0)


def test_cut_before_leaves_the_server_untouched(
    connection: AnyConnection, database_faults: PostgresProxy, postgres: PostgresServer
):
    database_faults.cut_before("insert_note")

    with pytest.raises(psycopg.OperationalError):
        connection.execute(INSERT, ["one"])

    assert connection.broken
    assert stored(postgres) == []


def test_cut_after_lets_the_server_commit(
    connection: AnyConnection, database_faults: PostgresProxy, postgres: PostgresServer
):
    database_faults.cut_after("insert_note")

    with pytest.raises(psycopg.OperationalError):
        connection.execute(INSERT, ["one"])

    assert connection.broken
    assert stored(postgres) == ["one"]


@pytest.mark.parametrize(("fault", "kept"), [("cut_before", []), ("cut_after", ["one", "two"])])
def test_a_pipeline_is_cut_as_a_whole_by_any_of_its_names(
    fault: Fault, kept: list[str], connection: AnyConnection, database_faults: PostgresProxy, postgres: PostgresServer
):
    database_faults.inject(fault, "count_notes")

    with pytest.raises(psycopg.OperationalError), connection.pipeline():
        connection.execute(INSERT, ["one"])
        connection.execute(INSERT, ["two"])
        connection.execute(COUNT)

    assert stored(postgres) == kept


def test_the_nth_round_trip_can_be_cut(
    connection: AnyConnection, database_faults: PostgresProxy, postgres: PostgresServer
):
    database_faults.cut_before(nth=3)

    connection.execute(INSERT, ["one"])
    connection.execute(INSERT, ["two"])
    with pytest.raises(psycopg.OperationalError):
        connection.execute(INSERT, ["three"])

    assert stored(postgres) == ["one", "two"]


def test_an_open_transaction_is_rolled_back_by_a_cut(
    connection: AnyConnection, database_faults: PostgresProxy, postgres: PostgresServer
):
    database_faults.cut_before("count_notes")

    with pytest.raises(psycopg.OperationalError), connection.transaction():
        connection.execute(INSERT, ["one"])
        connection.execute(COUNT)

    assert stored(postgres) == []


def test_late_statements_are_carried_out_after_the_client_saw_the_cut(
    connection: AnyConnection, database_faults: PostgresProxy, postgres: PostgresServer
):
    injection = database_faults.inject("late", "insert_note")
    with pytest.raises(psycopg.OperationalError):
        connection.execute(INSERT, ["one"])
    kept_at_first = stored(postgres)

    injection.release()

    assert injection.wait()
    assert kept_at_first == []
    assert stored(postgres) == ["one"]


def test_delay_withholds_the_answer_not_the_work(
    connection: AnyConnection, database_faults: PostgresProxy, postgres: PostgresServer
):
    injection = database_faults.delay(step="insert_note")
    client = threading.Thread(target=connection.execute, args=(INSERT, ["one"]))
    client.start()
    wait_until_stored(postgres, ["one"])
    was_waiting = client.is_alive()

    injection.release()
    client.join()

    assert was_waiting
    assert connection.execute(COUNT).fetchone() == (1,)


def test_callbacks_run_before_and_after_the_server_did_its_work(
    connection: AnyConnection, database_faults: PostgresProxy, postgres: PostgresServer
):
    seen: list[list[str]] = []
    database_faults.inject("call_before", "insert_note", call=lambda: seen.append(stored(postgres)))
    database_faults.inject("call_after", "insert_note", call=lambda: seen.append(stored(postgres)))

    connection.execute(INSERT, ["one"])
    connection.execute(INSERT, ["two"])

    assert seen == [[], ["one", "two"]]


@pytest.mark.parametrize("fault", ["call_before", "call_after"])
def test_a_client_killed_at_that_moment_leaves_a_finished_statement(
    fault: Fault, database_faults: PostgresProxy, postgres: PostgresServer, notes: str
):
    program = (
        "import psycopg, sys\n"
        "connection = psycopg.connect(sys.argv[1], autocommit=True)\n"
        "connection.execute('/* insert_note */ INSERT INTO notes (text) VALUES (%s)', ['one'])\n"
    )
    killed = threading.Event()

    def kill() -> None:
        os.kill(client.pid, signal.SIGKILL)
        killed.set()

    database_faults.inject(fault, "insert_note", call=kill)
    client = subprocess.Popen([sys.executable, "-c", program, through(database_faults, postgres.admin_dsn(notes))])
    exit_code = client.wait(30)

    assert killed.is_set()
    assert exit_code == -signal.SIGKILL
    wait_until_stored(postgres, ["one"])


def test_large_results_and_errors_pass_unchanged(connection: AnyConnection):
    large = connection.execute("SELECT repeat('x', 3000000)").fetchone()
    with pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("SELECT 1 / 0")

    assert large is not None
    assert len(str(large[0])) == 3_000_000
    assert connection.execute("SELECT 1").fetchone() == (1,)


def test_copy_passes_and_the_next_round_trips_are_told_apart(
    connection: AnyConnection, database_faults: PostgresProxy, postgres: PostgresServer
):
    with connection.cursor().copy("/* copy_notes */ COPY notes FROM STDIN") as copy:
        copy.write_row(["one"])
    database_faults.cut_after("insert_note")
    connection.execute(COUNT)

    with pytest.raises(psycopg.OperationalError):
        connection.execute(INSERT, ["two"])

    assert stored(postgres) == ["one", "two"]


def test_a_cancel_request_reaches_the_server(connection: AnyConnection):
    timer = threading.Timer(0.3, connection.cancel_safe)
    timer.start()

    with pytest.raises(psycopg.errors.QueryCanceled):
        connection.execute("SELECT pg_sleep(60)")

    timer.join()


def test_a_wish_for_tls_is_declined(database_faults: PostgresProxy):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(database_faults.socket_directory / f".s.PGSQL.{database_faults.port}"))
        client.sendall(struct.pack("!II", 8, SSL_REQUEST))

        assert client.recv(1) == b"N"


def test_connections_can_be_cut_refused_and_welcome_again(
    connection: AnyConnection, database_faults: PostgresProxy, postgres: PostgresServer, notes: str
):
    dsn = through(database_faults, postgres.admin_dsn(notes))
    database_faults.cut_all()
    database_faults.refuse_connections()

    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    database_faults.clear()
    with psycopg.connect(dsn) as another:
        assert another.execute("SELECT 1").fetchone() == (1,)


def test_a_server_that_ends_the_session_is_seen_as_such(
    connection: AnyConnection, postgres: PostgresServer, database_faults: PostgresProxy
):
    (own_pid,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (None,)

    def end_it_at_work() -> None:
        """One that is idle may be met by the next request before it has told why."""
        ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND query LIKE %s"
        with psycopg.connect(postgres.admin_dsn("notes"), autocommit=True) as direct:
            while direct.execute(ending, [own_pid, "SELECT pg_sleep%"]).fetchone() is None:
                time.sleep(0.01)

    ending = threading.Thread(target=end_it_at_work)
    ending.start()

    with pytest.raises(psycopg.errors.AdminShutdown):
        connection.execute("SELECT pg_sleep(30)")

    ending.join()


def test_many_connections_at_once_are_kept_apart(database_faults: PostgresProxy, postgres: PostgresServer, notes: str):
    dsn = through(database_faults, postgres.admin_dsn(notes))
    answers: dict[int, object] = {}

    def ask(number: int) -> None:
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as own:
            for _ in range(20):
                answers[number] = (own.execute("SELECT %s::int", [number]).fetchone() or (None,))[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == {number: number for number in range(16)}
    assert database_faults.round_trips == 16 * 20
    assert database_faults.connections == 16
