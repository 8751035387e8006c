"""The SQL itself: its names, its indexes, and that its enumerations are Python's."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import psycopg
import pytest
from psycopg import sql

import keyservice
from keyservice.database import Statement
from keyservice.errors import GatewayRefused, OperationPending
from keyservice.models import Deadline, NewApiKey, Progress
from keyservice.parameters import positional
from tests.integration.service import Service, caller
from tests.support.fixtures import Database

PACKAGE = Path(keyservice.__path__[0])
STORES = sorted([*PACKAGE.glob("*_store.py"), PACKAGE / "journal.py"])
NAME = re.compile(r"/\* [a-z0-9_]+ \*/\n")
SQL = re.compile(r"\s*(/\*|(WITH|SELECT|INSERT|UPDATE|DELETE)\b)")


def assigned_in(store: Path) -> list[list[str]]:
    """The statements that the module itself assigns, joined from their parts: one by itself, or all of one that is made
    in several ways. What it only imports is another module's."""
    module = importlib.import_module(f"keyservice.{store.stem}")
    assigned = {
        target.id
        for node in ast.parse(store.read_text()).body
        for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
        if isinstance(target, ast.Name)
    }
    values = [value for name, value in vars(module).items() if name in assigned]
    found = [
        [text for text in (value.values() if isinstance(value, dict) else [value]) if isinstance(text, str)]
        for value in values
    ]
    return [texts for texts in found if texts and all(map(SQL.match, texts))]


def statements_in(store: Path) -> list[str]:
    return [text for texts in assigned_in(store) for text in texts]


@pytest.mark.parametrize("store", STORES, ids=lambda path: path.stem)
def test_every_statement_begins_with_its_name(store: Path):
    statements = statements_in(store)

    assert statements
    assert [statement[:60] for statement in statements if not NAME.match(statement)] == []


def test_no_two_statements_share_a_name():
    names = [
        {found[0] for found in map(NAME.match, texts) if found} for store in STORES for texts in assigned_in(store)
    ]

    assert sum(map(len, names)) == len(set.union(*names))


def test_no_statement_is_too_long_for_a_proxy():
    """An RDS Proxy keeps the connection of whoever sends a statement of more than 16 KB for them alone."""
    longest = max((positional(text).sql for store in STORES for text in statements_in(store)), key=len)  # pyright: ignore[reportArgumentType]

    assert len(longest) <= 16 * 1024, longest[:60]


def test_no_statement_changes_a_setting():
    """An RDS Proxy keeps the connection of whoever does for them alone (RDS user guide, avoiding pinning: SET and set_config,
    with no exception of what lasts for a transaction). What a session needs, its role sets."""
    changing = re.compile(r"\bset_config\b|^/\* \w+ \*/\s*(SET|RESET|DISCARD)\b")
    statements = [text for store in STORES for text in statements_in(store)]

    assert [text[:60] for text in statements if changing.search(text)] == []


def test_whoever_looks_for_the_caller_looks_for_both_kinds():
    """By the issuer's subject and, where LiteMaaS's own tokens open the service, by the id of the row."""
    by_subject = re.compile(r"oauth_provider = %\(provider\)s AND (u\.)?oauth_id = %\(subject\)s")
    by_both = re.compile(
        r"\bid = %\(caller_id\)s\s+(OR \(|UNION ALL\s+SELECT [\w, ]+ WHERE )"
        r"(u\.)?oauth_provider = %\(provider\)s AND (u\.)?oauth_id = %\(subject\)s"
    )
    statements = [text for store in STORES for text in statements_in(store)]

    assert sum(len(by_both.findall(text)) for text in statements) > 0
    assert [text for text in statements if len(by_subject.findall(text)) != len(by_both.findall(text))] == []


def test_no_statement_asks_for_all_columns_of_a_key():
    """The app role may not read LiteMaaS's plaintext secrets; in a LiteMaaS's database the statement would fail."""
    all_columns = re.compile(r"SELECT\s+(k\.)?\*\s+FROM(?:[^)]*?JOIN)?\s+api_keys\b|to_jsonb\(k\)")
    asking = {store.stem for store in STORES for text in statements_in(store) if all_columns.search(text)}

    # It logs in as the owner of the tables.
    assert asking == {"adoption_store"}


def checked_values(database: Database, *, table: str, column: str) -> set[str]:
    """What the CHECK of the column allows."""
    with psycopg.connect(database.admin_dsn) as connection:
        rows = connection.execute(
            """
            SELECT pg_get_constraintdef(c.oid)
            FROM pg_constraint AS c
            JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attname = %s
            WHERE c.conrelid = %s::regclass AND c.contype = 'c' AND c.conkey = ARRAY[a.attnum]
            """,
            [column, table],
        ).fetchall()
    return {value for (definition,) in rows for value in re.findall(r"'([a-z]+)'::", definition)}


def literals(struct: type[msgspec.Struct], field: str) -> set[str]:
    [found] = [entry.type for entry in msgspec.structs.fields(struct) if entry.name == field]
    return set(get_args(found))


def test_states_of_an_operation_are_the_same_in_sql_and_python(database: Database):
    assert checked_values(database, table="api_key_operations", column="state") == literals(Progress, "state")


def test_phases_of_an_operation_are_the_same_in_sql_and_python(database: Database):
    assert checked_values(database, table="api_key_operations", column="phase") == literals(Progress, "phase")


@pytest.mark.parametrize(
    ("table", "column", "values"),
    [
        ("api_key_tokens", "state", {"intended", "live", "retiring", "condemned", "dead"}),
        ("api_key_operations", "kind", {"create", "update", "rotate", "retire", "delete"}),
        ("api_keys", "sync_status", {"synced", "pending", "error"}),
        ("users", "sync_status", {"synced", "pending", "error"}),
    ],
)
def test_columns_take_their_words_only(database: Database, table: str, column: str, values: set[str]):
    assert checked_values(database, table=table, column=column) == values


def test_no_statement_seems_dear_while_the_tables_are_small(database: Database):
    """PostgreSQL compiles what it guesses to cost more than jit_above_cost, unless the role says otherwise: seconds for a
    statement of milliseconds. Where nothing was analyzed yet it takes each table for hundreds of rows."""
    statements = {text for store in STORES if store.stem != "adoption_store" for text in statements_in(store)}
    with psycopg.connect(database.admin_dsn, autocommit=True) as connection:
        above = float(
            str(connection.execute("SELECT setting FROM pg_settings WHERE name = 'jit_above_cost'").fetchall()[0][0])
        )
        costs = {
            text[:60]: connection.execute(EXPLAIN + positional(text).sql).fetchall()[0][0][0]["Plan"]["Total Cost"]  # pyright: ignore[reportArgumentType]
            for text in statements
        }

    assert len(costs) > 30
    assert {name: cost for name, cost in costs.items() if cost > above / 10} == {}


type Plan = dict[str, Any]


def scans(plan: Plan) -> Iterator[tuple[str, str]]:
    """Node type and table of every scan in the plan."""
    if "Relation Name" in plan and plan["Node Type"] != "ModifyTable":
        yield plan["Node Type"], plan["Relation Name"]
    for part in plan.get("Plans", []):
        yield from scans(part)


EXPLAIN = b"EXPLAIN (GENERIC_PLAN, FORMAT JSON) "
BIG_TABLES = {
    "users",
    "api_keys",
    "api_key_models",
    "api_key_tokens",
    "api_key_operations",
    "audit_logs",
    "subscriptions",
}


@pytest.fixture
def crowded(service: Service) -> Service:
    """2,000 users with keys, operations, tokens and audit records; one of them is Alice, with 200 keys."""
    service.rows(
        """
        INSERT INTO users (username, email, oauth_provider, oauth_id)
        SELECT 'user-' || n, n || '@example.com', 'openshift', 'user-' || n FROM generate_series(1, 2000) AS n
        """
    )
    service.rows(
        """
        INSERT INTO subscriptions (user_id, model_id) SELECT id, 'gpt-4o' FROM users
        ON CONFLICT DO NOTHING
        """
    )
    service.rows(
        """
        INSERT INTO api_keys (user_id, name, key_hash, key_prefix, created_at)
        SELECT u.id, 'k', md5(u.id::text || n) || md5(n || u.id::text), 'sk-abcd', now() - n * interval '1 hour'
        FROM users AS u, generate_series(1, CASE WHEN u.oauth_id = 'alice' THEN 200 ELSE 3 END) AS n
        """
    )
    service.rows("INSERT INTO api_key_models (api_key_id, model_id) SELECT id, 'gpt-4o' FROM api_keys")
    service.rows(
        "INSERT INTO api_key_tokens (hash, api_key_id, user_id, state) SELECT key_hash, id, user_id, 'live' FROM api_keys"
    )
    service.rows(
        """
        INSERT INTO api_key_operations (id, api_key_id, user_id, actor, kind, state, finished_at, lease_until,
            next_attempt_at, key_prefix, models)
        SELECT gen_random_uuid(), id, user_id, '{}', 'create', 'done', now(), now(), now(), 'sk-abcd', '{}' FROM api_keys
        """
    )
    service.rows(
        """
        INSERT INTO audit_logs (user_id, action, resource_type, resource_id, success)
        SELECT user_id, 'API_KEY_REVEAL', 'API_KEY', id, true FROM api_keys
        """
    )
    for table in BIG_TABLES:
        service.rows(sql.SQL("ANALYZE {}").format(sql.Identifier(table)))  # pyright: ignore[reportArgumentType]
    return service


def sequential_scans(service: Service, step: str) -> list[str]:
    """Big tables that the last statement of that name reads from end to end, by EXPLAIN of what was really sent, as it is
    planned for all parameters at once."""
    sent = next(
        statement
        for trip in reversed(service.database_faults.trips)
        for statement in trip.statements
        if statement.startswith(f"/* {step} */")
    )
    with psycopg.connect(service.database_under_test.app_dsn) as connection:
        [[row]] = connection.execute(EXPLAIN + sent.encode()).fetchall()
    return sorted({table for kind, table in scans(row[0]["Plan"]) if kind == "Seq Scan" and table in BIG_TABLES})


class TestPlans:
    def test_first_page_is_read_by_index(self, crowded: Service):
        crowded.list_keys(limit="20")

        assert sequential_scans(crowded, "list_keys") == []

    def test_page_after_a_cursor_is_read_by_index(self, crowded: Service):
        cursor = str(crowded.list_keys(limit="20").pagination.next_cursor)
        crowded.list_keys(limit="20", cursor=cursor, isActive="true", modelIds="gpt-4o")

        assert sequential_scans(crowded, "list_keys_after") == []

    def test_what_is_asked_often_is_planned_once(self, crowded: Service):
        """PostgreSQL goes on making a plan for each request where it finds those dearer that serve all of them."""
        for _ in range(8):
            key_id = crowded.create(rules={"max_active_keys": 1000}).id
            cursor = str(crowded.list_keys(limit="20").pagination.next_cursor)
            crowded.list_keys(limit="20", cursor=cursor)
            crowded.delete(key_id)

        [rows] = crowded.database.round_trip(
            Statement("/* plans */ SELECT statement, generic_plans FROM pg_prepared_statements")
        )
        names = {row["statement"].split()[1] for row in rows if row["generic_plans"]}
        assert {
            "begin_create",
            "finish_create",
            "list_keys",
            "list_keys_after",
            "begin_delete",
            "finish_delete",
        } <= names

    def test_create_is_done_by_index(self, crowded: Service):
        crowded.create(rules={"max_active_keys": 1000})

        for step in ("register_caller", "begin_create", "lock_user", "lock_key", "finish_create"):
            assert sequential_scans(crowded, step) == []

    def test_delete_is_done_by_index(self, crowded: Service):
        key_id = crowded.value(
            "SELECT k.id FROM api_keys AS k JOIN users AS u ON u.id = k.user_id WHERE u.oauth_id = 'alice' LIMIT 1"
        )
        crowded.gateway_faults.inject("/key/delete", "status", status=500)
        crowded.delete(key_id)
        crowded.delete(key_id)

        for step in ("lock_own_key", "begin_delete", "release", "lock_key", "finish_delete"):
            assert sequential_scans(crowded, step) == []

    def test_change_is_done_by_index(self, crowded: Service):
        """Also after one that was never answered, and of what may come late."""
        key_id = crowded.create(rules={"max_active_keys": 1000}).id
        crowded.gateway_faults.inject("/key/update", "reset_before")
        with pytest.raises(OperationPending):
            crowded.update(key_id, tpm_limit=5)
        crowded.update(key_id, rpm_limit=7)
        crowded.let_time_pass()
        crowded.settle()

        for step in ("lock_key_to_update", "begin_update", "finish_update", "begin_correction", "claim_due", "release"):
            assert sequential_scans(crowded, step) == []

    def test_what_administrators_change_is_done_by_index(self, crowded: Service):
        admin = caller("user-7", roles=["admin"])
        alice = str(crowded.value("SELECT id FROM users WHERE oauth_id = 'alice'"))
        key_id = str(crowded.value("SELECT id FROM api_keys WHERE user_id = %s LIMIT 1", [alice]))
        wanted = NewApiKey(model_ids=["gpt-4o"])
        crowded.creation(max_active_keys=1000).create_for(
            admin, alice, wanted, idempotency_key=None, deadline=Deadline(20)
        )
        crowded.deletion().end_for(admin, alice, key_id, {}, deadline=Deadline(20))

        for step in ("lock_owner", "begin_create", "lock_users_key", "begin_delete", "finish_delete"):
            assert sequential_scans(crowded, step) == []

    def test_rotation_is_done_by_index(self, crowded: Service):
        key_id = crowded.create(rules={"max_active_keys": 1000}).id
        # At this very moment Alice has seen more than she may.
        crowded.rows("UPDATE audit_logs SET created_at = created_at - interval '1 hour'")
        crowded.rotate(key_id, grace_seconds=60, idempotency_key="plan")
        crowded.reveal(key_id)
        crowded.complete(key_id)

        for step in ("lock_caller", "begin_rotate", "finish_rotate", "begin_reveal", "begin_completion"):
            assert sequential_scans(crowded, step) == []

    def test_ends_of_graces_are_found_by_index(self, crowded: Service):
        key_id = crowded.create(rules={"max_active_keys": 1000}).id
        crowded.rotate(key_id, grace_seconds=60)
        crowded.rows("UPDATE api_key_tokens SET valid_until = now() WHERE state = 'retiring'")
        crowded.settle()

        for step in ("begin_retirements", "claim_due", "finish_retirement"):
            assert sequential_scans(crowded, step) == []

    def test_undo_and_reading_again_are_done_by_index(self, crowded: Service):
        crowded.database_faults.cut_after("begin_create")
        crowded.gateway_faults.inject("/key/generate", "status", status=403)
        with pytest.raises(GatewayRefused):
            crowded.create(rules={"max_active_keys": 1000})

        for step in ("read_create", "finish_undo"):
            assert sequential_scans(crowded, step) == []
