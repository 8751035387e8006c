import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

import keyservice
from keyservice.schema import MigrationError, migrate
from local.postgres import PostgresServer
from local.roles import APP, MIGRATOR, Passwords
from tests.support.fixtures import Database
from tests.support.litemaas_tables import CURRENT, CURRENT_ROWS, SEED_ERA, SEED_ERA_ROWS

type Connection = psycopg.Connection[tuple[Any, ...]]

TABLES = [
    *("api_key_models", "api_key_operations", "api_key_tokens", "api_keys", "audit_logs", "keyservice_installation"),
    *("keyservice_migrations", "models", "subscriptions", "system_settings", "team_members", "teams", "users"),
]


@pytest.fixture
def empty(postgres: PostgresServer, database_passwords: Passwords) -> Iterator[Connection]:
    """A new database, as the role that owns it."""
    postgres.create_database("schema", owner=MIGRATOR)
    dsn = postgres.dsn("schema", user=MIGRATOR, password=database_passwords.migrator)
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection
    postgres.drop_database("schema")


def migrated(connection: Connection) -> list[str]:
    return migrate(connection, app_user=APP, stack_name="prod", litellm_url="http://litellm.internal").applied


def contents(connection: Connection, tables: list[str]) -> dict[str, list[str]]:
    return {
        table: [
            row
            for (row,) in connection.execute(
                sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1").format(sql.Identifier(table))
            )
        ]
        for table in tables
    }


def tables_of(connection: Connection) -> list[str]:
    rows = connection.execute("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
    return [name for (name,) in rows]


def migration_names() -> list[str]:
    [package] = keyservice.__path__
    return sorted(file.stem.removesuffix(".concurrently") for file in Path(package).glob("migrations/*.sql"))


class TestEmptyDatabase:
    def test_gets_every_table_in_order(self, empty: Connection):
        result = migrate(empty, app_user=APP, stack_name="prod", litellm_url="http://l")

        assert result.applied == migration_names()
        assert result.version == migration_names()[-1]
        assert set(TABLES) <= set(tables_of(empty))

    def test_is_marked_once_and_for_all(self, empty: Connection):
        migrated(empty)
        before = empty.execute("SELECT mark, stack_name, litellm_url FROM keyservice_installation").fetchall()
        migrate(empty, app_user=APP, stack_name="clone", litellm_url="http://other")
        after = empty.execute("SELECT mark, stack_name, litellm_url FROM keyservice_installation").fetchall()

        assert after == before
        [(mark, stack_name, litellm_url)] = before
        assert (stack_name, litellm_url) == ("prod", "http://litellm.internal")
        assert len(mark) == len("lmk-0123456789ab")

    def test_second_run_applies_nothing_and_changes_nothing(self, empty: Connection):
        migrated(empty)
        before = contents(empty, tables_of(empty))

        assert migrated(empty) == []
        assert contents(empty, tables_of(empty)) == before


class TestDatabaseOfLiteMaaS:
    def test_keeps_every_row_and_column(self, empty: Connection):
        empty.execute(CURRENT)
        empty.execute(CURRENT_ROWS)
        tables = tables_of(empty)
        before = contents(empty, tables)

        migrated(empty)

        assert empty.execute(
            "SELECT array_agg(lite_llm_key_value ORDER BY name), array_agg(migration_status::text) FROM api_keys"
        ).fetchone() == (["sk-live-in-the-clear", "sk-gone-in-the-clear"], ["pending", "pending"])
        empty.execute(
            "ALTER TABLE api_keys DROP COLUMN lite_llm_key_id, DROP COLUMN team_id, DROP COLUMN lite_llm_team_id"
        )
        assert contents(empty, tables) == before

    def test_gets_our_tables_beside_its_own(self, empty: Connection):
        empty.execute(CURRENT)
        empty.execute(CURRENT_ROWS)

        assert migrated(empty) == migration_names()
        assert set(TABLES) <= set(tables_of(empty))

    def test_old_tables_do_not_stop_a_second_run(self, empty: Connection):
        empty.execute(CURRENT)
        empty.execute(CURRENT_ROWS)
        migrated(empty)

        assert migrated(empty) == []


class TestDatabaseOfAnOldLiteMaaS:
    def test_keeps_every_row_and_gets_what_it_lacks(self, empty: Connection):
        empty.execute(SEED_ERA)
        empty.execute(SEED_ERA_ROWS)
        keys = sql.SQL("SELECT id, name, key_hash, lite_llm_key_id, is_active, revoked_at FROM api_keys ORDER BY name")
        before = empty.execute(keys).fetchall()

        assert migrated(empty) == migration_names()
        assert migrated(empty) == []
        assert empty.execute(keys).fetchall() == before
        assert set(TABLES) <= set(tables_of(empty))

    def test_takes_keys_of_several_models(self, empty: Connection):
        empty.execute(SEED_ERA)
        empty.execute(SEED_ERA_ROWS)
        migrated(empty)

        made = empty.execute(
            "INSERT INTO api_keys (user_id, key_hash, key_prefix, soft_budget, metadata)"
            " SELECT id, 'x', 'sk-x', 1, '{}' FROM users WHERE username = 'alice' RETURNING subscription_id"
        ).fetchall()

        assert made == [(None,)]


@pytest.fixture
def litemaas(empty: Connection, postgres: PostgresServer) -> Iterator[Connection]:
    """Another connection to a database of LiteMaaS's, in no transaction."""
    empty.execute(CURRENT)
    empty.execute(CURRENT_ROWS)
    with psycopg.connect(postgres.admin_dsn("schema"), autocommit=True) as connection:
        connection.execute("SET lock_timeout = '5s'")
        yield connection


def until(connection: Connection, query: LiteralString) -> None:
    """Returns when the query answers true."""
    deadline = time.monotonic() + 30
    while connection.execute(query).fetchone() != (True,):
        assert time.monotonic() < deadline, query
        time.sleep(0.02)


# For a transaction, not for the table, which autovacuum may hold before the index is in the catalogue; and not for this
# very question, which has a snapshot of its own that the build of any index waits for.
BUILDS_AND_WAITS: LiteralString = """
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = 'schema' AND wait_event = 'virtualxid' AND query LIKE 'CREATE INDEX CONCURRENTLY%'
    AND NOT pg_backend_pid() = ANY (pg_blocking_pids(pid))
)"""
WAITS_FOR_A_TABLE: LiteralString = """
SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')"""
AUDIT: LiteralString = "INSERT INTO audit_logs (action, resource_type) VALUES ('API_ACCESS', 'API')"
UNFINISHED: LiteralString = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"


class TestBesideALiteMaaSAtWork:
    def test_it_writes_on_while_an_index_is_built(
        self, empty: Connection, litemaas: Connection, postgres: PostgresServer
    ):
        with psycopg.connect(postgres.admin_dsn("schema")) as slow, ThreadPoolExecutor(1) as thread:
            slow.execute(AUDIT)
            migrating = thread.submit(migrated, empty)
            until(litemaas, BUILDS_AND_WAITS)
            litemaas.execute(AUDIT)
            litemaas.execute("UPDATE api_keys SET name = name")
            slow.commit()

            assert migrating.result() == migration_names()

    def test_a_table_it_holds_is_not_waited_for_long(
        self, empty: Connection, litemaas: Connection, postgres: PostgresServer
    ):
        with psycopg.connect(postgres.admin_dsn("schema")) as slow, ThreadPoolExecutor(1) as thread:
            slow.execute("SELECT FROM api_keys")
            migrating = thread.submit(migrated, empty)
            until(litemaas, WAITS_FOR_A_TABLE)
            # Behind the one that waits; with the lock timeout of a client that is not patient.
            litemaas.execute("SELECT FROM api_keys")
            slow.commit()

            assert migrating.result() == migration_names()

    def test_an_index_whose_builder_was_ended_is_built_anew(
        self, empty: Connection, litemaas: Connection, postgres: PostgresServer, database_passwords: Passwords
    ):
        with psycopg.connect(postgres.admin_dsn("schema")) as slow, ThreadPoolExecutor(1) as thread:
            slow.execute(AUDIT)
            migrating = thread.submit(migrated, empty)
            until(litemaas, BUILDS_AND_WAITS)
            litemaas.execute("SELECT pg_terminate_backend(%s)", [empty.info.backend_pid])
            with pytest.raises(MigrationError):
                migrating.result()
        left_behind = litemaas.execute(UNFINISHED).fetchall()

        with psycopg.connect(
            postgres.dsn("schema", user=MIGRATOR, password=database_passwords.migrator), autocommit=True
        ) as again:
            applied = migrated(again)

        assert len(left_behind) == 1
        assert applied == migration_names()[migration_names().index("0006_overseeing") :]
        assert litemaas.execute(UNFINISHED).fetchall() == []

    def test_what_is_unfinished_under_an_indexs_name_is_not_taken_for_it(self, empty: Connection, litemaas: Connection):
        litemaas.execute(AUDIT)
        litemaas.execute(AUDIT)
        with pytest.raises(psycopg.errors.UniqueViolation):
            empty.execute("CREATE UNIQUE INDEX CONCURRENTLY audit_logs_newest_first ON audit_logs (action)")

        migrated(empty)

        assert empty.execute(
            "SELECT indisvalid, indisunique FROM pg_index WHERE indexrelid = 'audit_logs_newest_first'::regclass"
        ).fetchall() == [(True, False)]


class TestFailure:
    def test_changed_migration_is_refused_and_named(self, empty: Connection):
        migrated(empty)
        empty.execute("UPDATE keyservice_migrations SET checksum = 'x' WHERE name = %s", [migration_names()[0]])

        with pytest.raises(MigrationError, match=migration_names()[0]):
            migrated(empty)

    def test_missing_app_role_is_refused_and_nothing_is_made(self, empty: Connection):
        with pytest.raises(MigrationError, match="DatabaseAppUser"):
            migrate(empty, app_user="nobody_here", stack_name="prod", litellm_url="http://l")

        assert tables_of(empty) == []

    def test_half_a_migration_is_none(self, empty: Connection):
        # A table of ours that is there already, though the journal does not know it.
        empty.execute("CREATE TABLE api_key_tokens (hash text)")

        with pytest.raises(MigrationError, match=r"already exists \(SQLSTATE 42P07\)"):
            migrated(empty)

        assert tables_of(empty) == ["api_key_tokens"]

    def test_a_refusal_quotes_no_row(self, empty: Connection):
        first = resources.files("keyservice").joinpath("migrations/0001_litemaas_tables.sql").read_text()
        empty.execute(first[first.index("CREATE TABLE") :].partition(";")[0].encode())
        empty.execute("ALTER TABLE users ADD CHECK (email <> 'system@litemaas.internal')")

        with pytest.raises(MigrationError) as refused:
            migrated(empty)

        assert "SQLSTATE 23514" in str(refused.value)
        assert "litemaas.internal" not in "".join(traceback.format_exception(refused.value))


class TestAppRole:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE audit_logs SET success = true",
            "DELETE FROM audit_logs",
            "TRUNCATE audit_logs",
            "DELETE FROM api_key_operations",
            "DELETE FROM api_key_tokens",
            "DELETE FROM users",
            "UPDATE users SET roles = '{admin}'",
            "UPDATE users SET is_active = true",
            "UPDATE users SET oauth_id = 'x'",
            "UPDATE users SET email = 'x'",
            "UPDATE users SET max_budget = 1000",
            "SELECT keyservice_condemn_tokens()",
            'DROP TRIGGER "Condemn_tokens" ON api_keys',
            "ALTER TABLE api_keys DISABLE TRIGGER ALL",
            "INSERT INTO subscriptions (user_id, model_id) SELECT id, 'gpt-4o' FROM users",
            "UPDATE subscriptions SET status = 'active'",
            "DELETE FROM system_settings",
            "UPDATE keyservice_installation SET mark = 'lmk-000000000000'",
            "UPDATE models SET provider = 'x'",
            "CREATE TABLE mine (id int)",
            "ALTER TABLE api_keys ADD COLUMN mine int",
            "DROP TABLE api_keys",
        ],
    )
    def test_may_not(self, database: Database, statement: LiteralString):
        with (
            psycopg.connect(database.app_dsn, autocommit=True) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement)

    def test_gives_up_before_the_function_does(self, database: Database):
        with psycopg.connect(database.app_dsn) as connection:
            settings = [
                connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()
                for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
            ]

        assert settings == [("5s",), ("4s",), ("10s",)]

    def test_has_no_statement_compiled(self, database: Database):
        with psycopg.connect(database.app_dsn) as connection:
            assert connection.execute("SHOW jit").fetchone() == ("off",)
