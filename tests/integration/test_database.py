"""The connection: what it survives, what it gives up, and what it says then."""

import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import msgspec
import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from keyservice.database import Statement
from keyservice.errors import DatabaseUnavailable, OperationPending, OutcomeUnknown, SecretUnavailable
from keyservice.secret_values import SecretValues
from local.roles import APP
from tests.integration.service import Service

PING = Statement("/* ping */ SELECT 1 AS one")
PREPARED = Statement("/* prepared */ SELECT statement FROM pg_prepared_statements", is_prepared=False)
WHO = Statement("/* who */ SELECT pg_backend_pid() AS pid, current_user AS name")


def pid_of(service: Service) -> int:
    [[row]] = service.database.round_trip(WHO)
    return row["pid"]


def locked(table: str, service: Service) -> psycopg.Connection[Any]:
    """A transaction of somebody else's that holds the table's rows until it is closed."""
    connection = psycopg.connect(service.database_under_test.admin_dsn)
    connection.execute(sql.SQL("SELECT FROM {} FOR UPDATE").format(sql.Identifier(table)))
    return connection


class TestTransaction:
    def test_statements_see_each_other_and_commit_together(self, service: Service):
        _, _, [row] = service.database.round_trip(
            Statement("/* a */ INSERT INTO models (id, name, provider) VALUES ('a', 'a', 'p')"),
            Statement("/* b */ INSERT INTO models (id, name, provider) VALUES ('b', 'b', 'p')"),
            Statement("/* c */ SELECT count(*) AS count FROM models WHERE provider = 'p'"),
        )

        assert row["count"] == 2
        assert service.database_faults.round_trips == 1
        assert service.value("SELECT count(*) FROM models WHERE provider = 'p'") == 2

    def test_statements_fail_together(self, service: Service):
        with pytest.raises(psycopg.errors.UniqueViolation):
            service.database.round_trip(
                Statement("/* a */ INSERT INTO models (id, name, provider) VALUES ('a', 'a', 'p')"),
                Statement("/* b */ INSERT INTO models (id, name, provider) VALUES ('a', 'a', 'p')"),
            )

        assert service.value("SELECT count(*) FROM models WHERE provider = 'p'") == 0
        assert service.database.round_trip(PING) == [[{"one": 1}]]

    def test_statement_without_rows_gives_none(self, service: Service):
        assert service.database.round_trip(
            Statement("/* a */ UPDATE users SET full_name = %(name)s WHERE false", {"name": "x"})
        ) == [[]]


class TestPrepared:
    def test_a_statement_is_prepared_once_whatever_it_is_given(self, service: Service):
        statement = (
            "/* pick */ SELECT %(number)s::bigint AS number, %(words)s::text[] AS words, %(facts)s::jsonb AS facts"
        )
        given: list[dict[str, Any]] = [
            {"number": 1, "words": ["a", 'b"c', "d,e", None], "facts": Jsonb({"a": [1.5, None]})},
            {"number": 10**12, "words": [], "facts": Jsonb([])},
            {"number": None, "words": None, "facts": None},
        ]

        taken = [service.database.round_trip(Statement(statement, values))[0][0] for values in given]

        assert taken == [{**values, "facts": values["facts"] and values["facts"].obj} for values in given]
        assert self.prepared(service).count("pick") == 1

    def test_values_arrive_as_they_are(self, service: Service):
        moment = datetime(2026, 11, 22, 13, 5, 9, 123456, tzinfo=timezone(timedelta(hours=-23, minutes=-59)))
        values = {"id": UUID(int=7), "moment": moment, "flag": False, "share": 0.1, "text": "%s 'x' \\ é"}

        [[row]] = service.database.round_trip(
            Statement(
                """/* values */ SELECT %(id)s::uuid AS id, %(moment)s::timestamptz AS moment, %(flag)s::boolean AS flag,
                    %(share)s::float8 AS share, %(text)s::text AS text, 7 %% 4 AS rest""",
                values,
            )
        )

        assert row == {**values, "rest": 3}

    def test_a_number_too_great_for_json_does_not_hide_the_row(self, service: Service):
        [[row]] = service.database.round_trip(
            Statement("/* great */ SELECT to_jsonb((repeat('9', 400) || '.5')::numeric) AS number")
        )

        assert row == {"number": math.inf}

    def test_one_that_is_planned_each_time_is_not(self, service: Service):
        service.database.round_trip(Statement("/* anew */ SELECT 1 AS one", is_prepared=False))

        assert "anew" not in self.prepared(service)

    def test_nothing_is_prepared_behind_a_pooler_that_forgets(self, service: Service):
        settings = msgspec.structs.replace(service.database_settings(), prepares_statements=False)
        database = service.connect_database(settings)
        database.round_trip(PING)

        [rows] = database.round_trip(PREPARED)

        assert rows == []

    def test_is_prepared_again_after_the_transaction_it_was_prepared_in_has_failed(self, service: Service):
        fails = Statement("/* fails */ SELECT 1 / 0 AS nothing")
        follows = Statement("/* follows */ SELECT 1 AS one")
        for _ in range(2):
            with pytest.raises(psycopg.errors.DivisionByZero):
                service.database.round_trip(PING, fails, follows)

        assert service.database.round_trip(PING, follows) == [[{"one": 1}], [{"one": 1}]]

    def test_a_column_of_another_type_since_then_is_unavailable_once(self, service: Service):
        names = Statement("/* names */ SELECT username FROM users WHERE false")
        service.database.round_trip(names)
        service.rows("ALTER TABLE users ALTER COLUMN username TYPE text")

        with pytest.raises(DatabaseUnavailable) as caught:
            service.database.round_trip(names)

        assert not isinstance(caught.value, OutcomeUnknown)
        assert service.database.round_trip(names) == [[]]

    def prepared(self, service: Service) -> list[str]:
        [rows] = service.database.round_trip(PREPARED)
        return [row["statement"].split()[1] for row in rows]


class TestStaleConnection:
    def test_killed_while_idle_is_reopened_before_anything_is_sent(self, service: Service):
        pid = pid_of(service)
        service.value("SELECT pg_terminate_backend(%s, 5000)", [pid])

        assert service.database.round_trip(PING) == [[{"one": 1}]]
        assert pid_of(service) != pid

    def test_cut_on_the_way_is_reopened(self, service: Service):
        pid_of(service)
        service.database_faults.cut_all()

        assert service.database.round_trip(PING) == [[{"one": 1}]]
        assert service.database_faults.connections == 2

    def test_is_used_again_while_it_lives(self, service: Service):
        assert pid_of(service) == pid_of(service)
        assert service.database_faults.connections == 1

    def test_connects_as_the_app_role(self, service: Service):
        [[row]] = service.database.round_trip(WHO)

        assert row["name"] == APP

    def test_outcome_of_a_statement_that_was_cut_is_unknown(self, service: Service):
        service.database_faults.cut_after("ping")

        with pytest.raises(OutcomeUnknown):
            service.database.round_trip(PING)

        assert service.database.round_trip(PING) == [[{"one": 1}]]


class TestPassword:
    def test_that_was_rotated_is_read_again(self, service: Service):
        arn, values = self.own_secret(service, "right")
        database = service.connect_database(service.database_settings(secret_arn=arn), values)
        values.field(arn, "password")
        self.rotate(service, arn)

        [[row]] = database.round_trip(WHO)

        assert row["name"] == "rotating"

    def test_that_stays_wrong_is_unavailable(self, service: Service):
        arn, values = self.own_secret(service, "wrong")
        service.rows("ALTER ROLE rotating PASSWORD 'another'")

        with pytest.raises(DatabaseUnavailable):
            service.connect_database(service.database_settings(secret_arn=arn), values).round_trip(PING)

    def test_secret_that_is_not_there_is_unavailable(self, service: Service):
        settings = service.database_settings(secret_arn=service.cloud.database_secret_arn + "-no-such")

        with pytest.raises(SecretUnavailable):
            service.connect_database(settings).round_trip(PING)

    def own_secret(self, service: Service, name: str) -> tuple[str, SecretValues]:
        """A login of this test's own, so that nobody else notices the rotation."""
        service.rows("DO $$ BEGIN CREATE ROLE rotating LOGIN; EXCEPTION WHEN duplicate_object THEN END $$")
        service.rows("ALTER ROLE rotating PASSWORD 'first'")
        arn = service.cloud.aws.create_secret(f"rotating-{name}", {"username": "rotating", "password": "first"})
        return arn, SecretValues(service.cloud.client)

    def rotate(self, service: Service, arn: str) -> None:
        service.rows("ALTER ROLE rotating PASSWORD 'second'")
        service.cloud.aws.change_secret(arn, {"username": "rotating", "password": "second"})


class TestServerGivesUp:
    def test_statement_that_takes_too_long_is_unavailable_and_the_connection_stays(self, service: Service):
        pid = self.impatient(service, "statement_timeout")

        with pytest.raises(DatabaseUnavailable) as caught:
            service.database.round_trip(Statement("/* slow */ SELECT pg_sleep(60)"))

        assert not isinstance(caught.value, OutcomeUnknown)
        assert pid_of(service) == pid

    def test_lock_that_is_not_released_is_unavailable(self, service: Service):
        issued = service.create()
        self.impatient(service, "lock_timeout")

        with locked("api_keys", service), pytest.raises(DatabaseUnavailable) as caught:
            service.delete(issued.id)

        assert not isinstance(caught.value, OutcomeUnknown)
        assert service.gateway_faults.calls_of("/key/delete") == []
        assert type(service.delete(issued.id)).__name__ == "DeletedKey"

    def test_locked_user_makes_a_create_unavailable(self, service: Service):
        self.impatient(service, "lock_timeout")

        with locked("users", service), pytest.raises(DatabaseUnavailable):
            service.create()

        assert service.rows("SELECT FROM api_key_operations") == []
        assert service.create().is_active

    def test_t2_that_cannot_lock_leaves_the_create_pending(self, service: Service):
        self.impatient(service, "lock_timeout")
        held: list[psycopg.Connection[Any]] = []
        service.gateway_faults.inject(
            "/key/generate", "call_after", call=lambda: held.append(locked("api_keys", service))
        )

        with pytest.raises(OperationPending):
            service.create()

        held[0].close()
        assert service.traces().operations == [("create", "forward", "pending")]

    def impatient(self, service: Service, setting: str) -> int:
        """Of the one connection the service has: a tenth of a second, where the role has seconds."""
        pid = pid_of(service)
        service.database.round_trip(
            Statement("/* impatient */ SELECT set_config(%(name)s, '100ms', false)", {"name": setting})
        )
        return pid

    def test_read_only_replica_is_left(self, service: Service):
        pid = pid_of(service)
        service.database.round_trip(
            Statement("/* failover */ SELECT set_config('default_transaction_read_only', 'on', false)")
        )

        with pytest.raises(DatabaseUnavailable):
            service.database.round_trip(Statement("/* write */ UPDATE users SET full_name = 'x'"))

        assert pid_of(service) != pid

    def test_server_that_hangs_is_left(self, service: Service):
        """The one slow test: what it takes is the client's own limit for a statement."""
        pid = pid_of(service)
        os.kill(pid, signal.SIGSTOP)

        try:
            with pytest.raises(OutcomeUnknown):
                service.database.round_trip(PING)
        finally:
            os.kill(pid, signal.SIGCONT)

        assert pid_of(service) != pid


class TestDeadlock:
    def test_is_repeated_once_and_nobody_notices(self, service: Service):
        service.subscribe("bob", models=[])
        other = psycopg.connect(service.database_under_test.admin_dsn)
        # PostgreSQL ends whoever looks for the deadlock first: not this one.
        other.execute("SET deadlock_timeout = '60s'")
        other.execute("UPDATE users SET full_name = 'other' WHERE oauth_id = 'bob'")

        def cross() -> None:
            service.wait_until_somebody_waits()
            other.execute("UPDATE users SET full_name = 'other' WHERE oauth_id = 'alice'")
            other.commit()

        with ThreadPoolExecutor(1) as thread:
            crossed = thread.submit(cross)
            # The other one has to get what it waits for before the second try may take it away again.
            service.database_faults.inject("call_before", "take_alice", nth=2, call=lambda: crossed.result(30))
            service.database.round_trip(
                Statement("/* take_alice */ UPDATE users SET full_name = 'ours' WHERE oauth_id = 'alice'"),
                Statement("/* take_bob */ UPDATE users SET full_name = 'ours' WHERE oauth_id = 'bob'"),
            )
            crossed.result(30)
        other.close()

        assert service.database_faults.steps.count("take_alice") == 2
        names = service.value("SELECT array_agg(full_name) FROM users WHERE oauth_id IN ('alice', 'bob')")
        assert names == ["ours", "ours"]
