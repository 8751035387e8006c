"""What administrators ask is answered by an index made for it."""

from collections.abc import Iterator
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import ClientCursor
from psycopg.rows import DictRow, dict_row
from psycopg.sql import Literal

from keyservice import audit_trail_store, listing_store, validation_store
from keyservice.parameters import positional
from local.postgres import PostgresServer
from local.roles import MIGRATOR, Passwords
from tests.support.fixtures import TEMPLATE

CALLER: dict[str, Any] = {
    "caller_id": None,
    "provider": "openshift",
    "subject": "user-1",
    "username": "user-1",
    "email": "user-1@example.com",
    "full_name": None,
    "claimed_roles": ["admin"],
}
ALL_RECORDS: dict[str, Any] = {
    **dict.fromkeys(("action", "user_id", "subject_id", "resource_type", "resource_id", "success"), None),
    **dict.fromkeys(("start", "end", "words"), None),
    "after_created_at": None,
    "after_id": None,
    "limit": 20,
    "max_bytes": 5_000_000,
}
ALL_KEYS: dict[str, Any] = {
    **dict.fromkeys(("user_id", "subscription_id", "model_ids", "is_active"), None),
    "limit": 20,
    "offset": 0,
}
NOBODY = "99999999-9999-4999-8999-999999999999"
MOMENT = "2026-11-22T13:05:09.123456Z"


@pytest.fixture(scope="module")
def crowded(postgres: PostgresServer, database_passwords: Passwords) -> Iterator[psycopg.Connection[DictRow]]:
    """500 users with 10 keys and 100 audit records each, in a database that these tests only read."""
    name = "crowded"
    postgres.create_database(name, owner=MIGRATOR, template=TEMPLATE)
    with psycopg.Connection[DictRow].connect(
        postgres.admin_dsn(name), autocommit=True, row_factory=dict_row
    ) as connection:
        connection.execute(
            """
            INSERT INTO users (username, email, oauth_provider, oauth_id)
            SELECT 'user-' || n, 'user-' || n || '@example.com', 'openshift', 'user-' || n
            FROM generate_series(1, 500) AS n
            """
        )
        connection.execute(
            """
            INSERT INTO api_keys (user_id, name, key_hash, key_prefix, created_at)
            SELECT id, 'k', md5(id::text || n), 'sk-abcd', now() - n * interval '1 day'
            FROM users, generate_series(1, 10) AS n
            """
        )
        connection.execute(
            """
            INSERT INTO api_key_tokens (hash, api_key_id, user_id, state)
            SELECT key_hash, id, user_id, 'live' FROM api_keys
            """
        )
        connection.execute(
            """
            INSERT INTO audit_logs (user_id, action, resource_type, resource_id, metadata, created_at)
            SELECT u.id, 'ACTION_' || n, 'API_KEY', u.oauth_id || '-' || n,
                jsonb_build_object('userId', u.id, 'name', 'name' || n || ' of ' || u.oauth_id), now() - n * interval '1 day'
            FROM users AS u, generate_series(1, 100) AS n
            """
        )
        connection.execute("ANALYZE users, api_keys, api_key_tokens, audit_logs")
        yield connection
    postgres.drop_database(name)


def scans(connection: psycopg.Connection[DictRow], statement: LiteralString, parameters: dict[str, Any]) -> set[str]:
    """Indexes the statement reads, and tables it reads from end to end; planned, as always, for these very values."""
    row = ClientCursor(connection).execute("EXPLAIN (FORMAT JSON) " + statement, parameters).fetchone()
    assert row is not None

    def names(plan: dict[str, Any]) -> Iterator[str]:
        if "Index Name" in plan:
            yield plan["Index Name"]
        if plan["Node Type"] == "Seq Scan":
            yield f"all of {plan['Relation Name']}"
        for part in plan.get("Plans", []):
            yield from names(part)

    return set(names(row["QUERY PLAN"][0]["Plan"]))


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        pytest.param({}, "audit_logs_newest_first", id="none"),
        pytest.param({"after_created_at": MOMENT, "after_id": NOBODY}, "audit_logs_newest_first", id="a cursor"),
        pytest.param({"start": MOMENT, "end": MOMENT}, "audit_logs_newest_first", id="a time"),
        pytest.param({"success": True}, "audit_logs_newest_first", id="success"),
        pytest.param({"action": "ACTION_7"}, "audit_logs_of_action_newest_first", id="an action"),
        pytest.param({"user_id": NOBODY}, "audit_logs_of_user_newest_first", id="a user"),
        pytest.param({"resource_id": "user-7-7"}, "audit_logs_of_resource_newest_first", id="a resource"),
        pytest.param({"subject_id": NOBODY}, "audit_logs_of_subject_newest_first", id="a subject"),
        pytest.param({"resource_type": "TEAM"}, "audit_logs_of_type_newest_first", id="a kind of thing"),
        pytest.param({"words": "'name77':* & '499':*"}, "audit_logs_words", id="words"),
    ],
)
def test_audit_records_are_found_by_index(crowded: psycopg.Connection[DictRow], filters: dict[str, Any], index: str):
    read = scans(crowded, audit_trail_store._LIST_AUDIT_RECORDS, CALLER | ALL_RECORDS | filters)

    assert index in read
    assert "all of audit_logs" not in read


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        pytest.param({}, "api_keys_newest_first", id="none"),
        pytest.param({"user_id": NOBODY}, "api_keys_of_user_newest_first", id="a user"),
    ],
)
@pytest.mark.parametrize("position", ["first page", "by cursor"])
def test_keys_of_everybody_are_found_by_index(
    crowded: psycopg.Connection[DictRow], position: str, filters: dict[str, Any], index: str
):
    by_cursor = {"after_created_at": MOMENT, "after_id": NOBODY, "total": 9}
    if position == "by cursor":
        read = scans(crowded, listing_store._LIST_ALL_KEYS_AFTER, CALLER | ALL_KEYS | by_cursor | filters)
    else:
        read = scans(crowded, listing_store._LIST_ALL_KEYS, CALLER | ALL_KEYS | filters)

    assert index in read
    # Counting everybody's keys has to.
    assert ("all of api_keys" in read) == (position == "first page" and not filters)


@pytest.fixture(scope="module")
def collector(crowded: psycopg.Connection[DictRow]) -> dict[str, Any]:
    """Somebody with 3,000 keys, 200 times as many as anybody else has, and the middle one of them as a cursor."""
    crowded.execute(
        """
        WITH collector AS (
            INSERT INTO users (username, email, oauth_provider, oauth_id)
            VALUES ('collector', 'collector@example.com', 'openshift', 'collector')
            RETURNING id
        )
        INSERT INTO api_keys (user_id, name, key_hash, key_prefix, created_at)
        SELECT id, 'k', md5('collector' || n), 'sk-abcd', now() - n * interval '1 day'
        FROM collector, generate_series(1, 3000) AS n
        """
    )
    crowded.execute("ANALYZE api_keys")
    row = crowded.execute("SELECT created_at, id FROM api_keys WHERE key_hash = md5('collector1500')").fetchone()
    assert row is not None
    return {"after_created_at": row["created_at"], "after_id": row["id"]}


@pytest.mark.parametrize("filters", [{}, {"is_active": True}, {"subscription_id": None}], ids=str)
@pytest.mark.parametrize("position", ["first page", "by cursor"])
def test_a_page_of_many_keys_reads_no_more_than_the_page(
    crowded: psycopg.Connection[DictRow], collector: dict[str, Any], position: str, filters: dict[str, Any]
):
    is_counted = position == "first page"
    statement = listing_store._LIST_KEYS if is_counted else listing_store._LIST_KEYS_AFTER
    parameters = CALLER | {"subject": "collector", "total": 3000} | ALL_KEYS | {"limit": 100} | collector | filters

    with crowded.transaction():
        crowded.execute(listing_store._IN_INDEX_ORDER.sql)
        row = ClientCursor(crowded).execute("EXPLAIN (ANALYZE, FORMAT JSON) " + statement, parameters).fetchone()

    assert row is not None
    read = sorted(rows_read(row["QUERY PLAN"][0]["Plan"], "api_keys"))
    counted = [("api_keys_of_user_newest_first", 3000)] if is_counted else []
    assert read == [("api_keys_of_user_newest_first", 101), *counted]


@pytest.mark.parametrize("position", ["first page", "by cursor"])
def test_one_plan_for_all_cursors_reads_no_more_than_the_page(
    crowded: psycopg.Connection[DictRow], collector: dict[str, Any], position: str
):
    """As a connection that is used for long makes it: once, without looking at the parameters."""
    is_counted = position == "first page"
    statement = listing_store._LIST_KEYS if is_counted else listing_store._LIST_KEYS_AFTER
    sql, names = positional(statement)
    values = CALLER | {"subject": "collector", "total": 3000} | ALL_KEYS | {"limit": 100} | collector
    literals = ", ".join(Literal(values[name]).as_string(crowded) for name in names)

    with crowded.transaction():
        crowded.execute(listing_store._IN_INDEX_ORDER.sql)
        crowded.execute("SET LOCAL plan_cache_mode = 'force_generic_plan'")
        crowded.execute(b"PREPARE list AS " + sql)
        row = crowded.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE list ({literals})".encode()).fetchone()
        crowded.execute("DEALLOCATE list")

    assert row is not None
    plan = row["QUERY PLAN"][0]["Plan"]
    counted = [("api_keys_of_user_newest_first", 3000)] if is_counted else []
    assert sorted(rows_read(plan, "api_keys")) == [("api_keys_of_user_newest_first", 101), *counted]
    assert [index for index, _ in rows_read(plan, "users")].count("Seq Scan") == 0


def rows_read(plan: dict[str, Any], table: str) -> Iterator[tuple[str, float]]:
    """For each scan of the table the index and how many rows came of it."""
    if plan.get("Relation Name") == table and plan["Actual Loops"]:
        yield plan.get("Index Name", plan["Node Type"]), plan["Actual Rows"] * plan["Actual Loops"]
    for part in plan.get("Plans", []):
        yield from rows_read(part, table)


def test_a_single_key_is_found_by_its_id(crowded: psycopg.Connection[DictRow]):
    read = scans(crowded, listing_store._FIND_KEY, CALLER | {"api_key_id": NOBODY})

    assert "api_keys_pkey" in read
    assert "all of api_keys" not in read


@pytest.mark.parametrize(
    ("who", "index"),
    [
        pytest.param({}, "users_oauth_provider_oauth_id_key", id="by the issuer's subject"),
        pytest.param({"caller_id": NOBODY, "provider": None, "subject": None}, "users_pkey", id="by the id of the row"),
    ],
)
def test_a_caller_is_found_by_index(crowded: psycopg.Connection[DictRow], who: dict[str, Any], index: str):
    read = scans(crowded, listing_store._FIND_KEY, CALLER | who | {"api_key_id": NOBODY})

    assert index in read
    assert "all of users" not in read


def test_a_secret_is_found_by_its_hash(crowded: psycopg.Connection[DictRow]):
    read = scans(crowded, validation_store._FIND_SECRET, CALLER | {"secret_hash": "0" * 64})

    assert {"api_key_tokens_pkey", "api_keys_key_hash_key"} <= read
    assert {name for name in read if name.startswith("all of api_key")} <= {"all of api_key_operations"}
