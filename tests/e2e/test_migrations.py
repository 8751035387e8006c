"""MigrateDatabase, invoked as a deployment invokes it, and what the app role may do afterwards."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest
from psycopg import errors

from local.errors import StartFailed
from local.roles import APP
from local.stack import LocalStack
from local.workers import InvocationFailed
from tests.e2e.service import Ledger, Service
from tests.support.presigned_url import PresignedUrl

ALL = [
    "0001_litemaas_tables",
    "0002_tokens_and_journal",
    "0003_settlement",
    "0005_findings",
    "0006_overseeing",
    "0007_spend",
    "0008_changes",
    "0009_rotation",
    "0010_key_fields",
    "0011_adoption",
    "0012_audit_filters",
    "0013_failures",
    "0014_updates",
]
TABLES = [
    "api_key_models",
    "api_key_operations",
    "api_key_tokens",
    "api_keys",
    "audit_logs",
    "keyservice_adoption",
    "keyservice_adoption_candidates",
    "keyservice_findings",
    "keyservice_installation",
    "keyservice_migrations",
    "keyservice_reconciliation",
    "keyservice_spend_sync",
    "models",
    "subscriptions",
    "system_settings",
    "team_members",
    "teams",
    "users",
]
NO_LITELLM = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def deployed(
    service: Service, tmp_path_factory: pytest.TempPathFactory, http: httpx.Client, ledger: Ledger
) -> Iterator[Service]:
    """A stack of its own: its schema is thrown away again and again."""
    logs = tmp_path_factory.mktemp("deployed")
    with LocalStack.start(
        parameters={"DatabaseName": "deployed"},
        litellm_url=NO_LITELLM,
        litellm_master_key="sk-there-is-no-litellm",
        database=service.stack.database,
        aws=service.stack.aws,
        workers_per_function=4,
        log_directory=logs,
    ) as stack:
        running = Service(stack, http, ledger, logs, gateway_url=NO_LITELLM)
        yield running
        ledger.keep_texts_of(running)


@pytest.fixture
def empty(deployed: Service) -> Service:
    deployed.rows("DROP SCHEMA public CASCADE")
    deployed.rows("CREATE SCHEMA public AUTHORIZATION keyservice_migrator")
    deployed.rows("GRANT USAGE ON SCHEMA public TO keyservice_app")
    return deployed


def tables(service: Service) -> list[str]:
    rows = service.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename")
    return [row["tablename"] for row in rows]


def test_an_empty_database_gets_all_tables(empty: Service):
    migrated = empty.stack.invoke("MigrateDatabase", {})

    recorded = empty.rows("SELECT name FROM keyservice_migrations ORDER BY name")
    [installation] = empty.rows("SELECT stack_name, litellm_url FROM keyservice_installation")
    assert migrated == {"applied": ALL, "version": ALL[-1]}
    assert tables(empty) == TABLES
    assert [row["name"] for row in recorded] == ALL
    assert installation == {"stack_name": "keyservice-local", "litellm_url": NO_LITELLM}


def test_a_second_run_changes_nothing(empty: Service):
    empty.stack.invoke("MigrateDatabase", {})
    before = empty.rows("SELECT * FROM keyservice_migrations, keyservice_installation")

    migrated = empty.stack.invoke("MigrateDatabase", {})

    assert migrated == {"applied": [], "version": ALL[-1]}
    assert empty.rows("SELECT * FROM keyservice_migrations, keyservice_installation") == before


def test_eight_runs_at_once_apply_everything_once(empty: Service):
    with ThreadPoolExecutor(8) as threads:
        runs = list(threads.map(lambda _: empty.stack.invoke("MigrateDatabase", {}), range(8)))

    assert sorted(run["applied"] for run in runs) == [[]] * 7 + [ALL]
    assert tables(empty) == TABLES
    assert empty.rows("SELECT count(*) AS marks FROM keyservice_installation") == [{"marks": 1}]


def test_runs_that_all_have_begun_wait_for_each_other(empty: Service):
    with ThreadPoolExecutor(4) as threads:
        with empty.transaction() as other:
            # Whoever makes this table next waits until this one is gone again; the others ask for the lock in between.
            other.execute("CREATE TABLE keyservice_migrations ()")
            runs = [threads.submit(empty.stack.invoke, "MigrateDatabase", {}) for _ in range(4)]
            empty.wait_until_blocked(statements=1)
        applied = sorted(run.result()["applied"] for run in runs)

    assert applied == [[], [], [], ALL]
    assert tables(empty) == TABLES


def test_rows_that_litemaas_has_already_stay(empty: Service):
    empty.stack.invoke("MigrateDatabase", {})
    empty.rows("INSERT INTO models (id, name, provider) VALUES ('kept', 'kept', 'openai')")
    empty.rows("DROP TABLE keyservice_migrations, keyservice_installation, api_key_tokens, api_key_operations")
    empty.rows("DROP TABLE keyservice_findings, keyservice_reconciliation, keyservice_spend_sync")
    empty.rows("DROP FUNCTION keyservice_condemn_tokens CASCADE")
    empty.rows("DROP TABLE keyservice_adoption, keyservice_adoption_candidates")

    migrated = empty.stack.invoke("MigrateDatabase", {})

    assert migrated["applied"] == ALL
    assert [row["id"] for row in empty.rows("SELECT id FROM models")] == ["kept"]


def test_a_migration_that_was_changed_after_it_was_applied_is_refused(empty: Service):
    empty.stack.invoke("MigrateDatabase", {})
    empty.rows("UPDATE keyservice_migrations SET checksum = 'another text' WHERE name = %(name)s", name=ALL[0])
    empty.rows("DELETE FROM keyservice_migrations WHERE name > %(name)s", name=ALL[0])

    with pytest.raises(InvocationFailed) as refused:
        empty.stack.invoke("MigrateDatabase", {})

    recorded = empty.rows("SELECT name FROM keyservice_migrations")
    assert refused.value.error_type == "MigrationError"
    assert "0001_litemaas_tables was changed after it was applied" in refused.value.error_message
    assert [row["name"] for row in recorded] == [ALL[0]]


def test_without_the_app_role_nothing_is_made(service: Service):
    with pytest.raises(StartFailed) as refused:
        LocalStack.start(
            parameters={"DatabaseName": "roleless", "DatabaseAppUser": "nobody_made_this"},
            litellm_url=NO_LITELLM,
            litellm_master_key="sk-there-is-no-litellm",
            database=service.stack.database,
            aws=service.stack.aws,
        )

    with psycopg.connect(service.stack.database.admin_dsn("roleless")) as connection:
        made = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert "the app role (parameter DatabaseAppUser) does not exist" in str(refused.value)
    assert made == []


# As a stack asks for it, and before.


def asked(kind: str, url: str) -> dict[str, object]:
    """What CloudFormation sends in a release."""
    return {
        "RequestType": kind,
        "ResponseURL": url,
        "StackId": "arn:aws:cloudformation:eu-central-1:123456789012:stack/keyservice/0123",
        "RequestId": "request-1",
        "LogicalResourceId": "Migration",
        "ResourceProperties": {"ReleaseSha": "ab" * 32},
    }


def told(service: Service, kind: str) -> tuple[str, str]:
    """Status and reason that CloudFormation hears."""
    with PresignedUrl() as presigned:
        service.stack.invoke("MigrateDatabase", asked(kind, presigned.url))
    [put] = presigned.puts
    return put.answer["Status"], put.answer["Reason"]


def test_a_stack_that_is_created_gets_its_tables(empty: Service):
    assert told(empty, "Create") == ("SUCCESS", "")
    assert tables(empty) == TABLES


def test_a_stack_that_is_deleted_leaves_all_as_it_is(empty: Service):
    assert told(empty, "Delete") == ("SUCCESS", "")
    assert tables(empty) == []


def test_a_release_older_than_the_schema_changes_nothing(empty: Service):
    empty.stack.invoke("MigrateDatabase", {})
    empty.rows("UPDATE keyservice_migrations SET checksum = 'of a later release'")
    empty.rows("INSERT INTO keyservice_migrations (name, checksum) VALUES ('9999_of_a_later_release', 'x')")
    empty.rows("REVOKE SELECT ON models FROM keyservice_app")

    outcome = told(empty, "Update")

    granted = empty.rows("SELECT has_table_privilege('keyservice_app', 'models', 'SELECT') AS may_read")
    assert outcome == ("SUCCESS", "")
    assert granted == [{"may_read": False}]
    assert empty.stack.invoke("MigrateDatabase", {}) == {"applied": [], "version": "9999_of_a_later_release"}


def test_a_release_that_postgresql_refuses_is_told_why_and_changes_nothing(empty: Service):
    empty.rows("CREATE TABLE api_keys (id text)")

    status, why = told(empty, "Update")

    assert status == "FAILED"
    assert why.startswith("PostgreSQL refused a migration: ")
    assert tables(empty) == ["api_keys"]


def test_a_check_says_what_is_pending_and_changes_nothing(empty: Service):
    before = empty.stack.invoke("MigrateDatabase", {"check": True})
    made = tables(empty)
    empty.stack.invoke("MigrateDatabase", {})

    after = empty.stack.invoke("MigrateDatabase", {"check": True})

    assert before == {"pending": ALL, "version": None, "problems": []}
    assert made == []
    assert after == {"pending": [], "version": ALL[-1], "problems": []}


def test_a_check_says_what_a_release_would_stumble_over(empty: Service):
    empty.stack.invoke("MigrateDatabase", {})
    empty.rows("UPDATE keyservice_migrations SET checksum = 'another text' WHERE name = %(name)s", name=ALL[0])
    empty.rows("ALTER SCHEMA public OWNER TO postgres")
    empty.rows("GRANT USAGE ON SCHEMA public TO keyservice_migrator")

    problems = empty.stack.invoke("MigrateDatabase", {"check": True})["problems"]

    assert problems == [
        (
            "migration 0001_litemaas_tables was changed after it was applied; "
            "restore its text and put the change into a new migration"
        ),
        "the login in DatabaseMigratorSecretArn may not make tables; grant it CREATE on the schema",
    ]


# What the role of the functions may not do.


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (id integer)",
        "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "DROP TABLE audit_logs",
        "ALTER TABLE api_keys ADD COLUMN secret text",
        "ALTER TABLE audit_logs DISABLE TRIGGER ALL",
        "TRUNCATE audit_logs",
        "UPDATE audit_logs SET success = true",
        "DELETE FROM audit_logs",
        "DELETE FROM users",
        "DELETE FROM api_key_tokens",
        "DELETE FROM api_key_operations",
        "UPDATE keyservice_installation SET mark = 'lmk-000000000000'",
        "DELETE FROM keyservice_migrations",
        "UPDATE subscriptions SET status = 'active'",
        "DELETE FROM system_settings",
        "UPDATE models SET provider = 'mine'",
        "SET ROLE keyservice_migrator",
    ],
)
def test_the_app_role_may_not(service: Service, statement: str):
    database = service.stack.database
    dsn = database.dsn(service.stack.database_name, user=APP, password=database.create_login(APP))

    with psycopg.connect(dsn) as connection, pytest.raises(errors.InsufficientPrivilege):
        connection.execute(statement)  # pyright: ignore[reportArgumentType, reportCallIssue]
