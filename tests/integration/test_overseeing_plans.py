"""What administrators ask is answered by an index made for it."""

from collections.abc import Iterator
from typing import Any, LiteralString, NamedTuple

import psycopg
import pytest
from psycopg import ClientCursor
from psycopg.rows import DictRow, dict_row
from psycopg.sql import Literal

from keyservice import audit_trail_store, listing_store, validation_store
from keyservice.listing_store import _Kind
from keyservice.parameters import positional
from local.postgres import PostgresServer
from local.roles import APP, MIGRATOR, Passwords
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
ALL_KEYS: dict[str, Any] = {"user_id": None, "limit": 20, "offset": 0}
NOBODY = "99999999-9999-4999-8999-999999999999"
MOMENT = "2026-11-22T13:05:09.123456Z"


class Crowd(NamedTuple):
    """A database that these tests only read; `app` sees it as the functions do."""

    admin: psycopg.Connection[DictRow]
    app: psycopg.Connection[DictRow]


@pytest.fixture(scope="module")
def crowded(postgres: PostgresServer, database_passwords: Passwords) -> Iterator[Crowd]:
    """500 users with 10 keys and 100 audit records each."""
    name = "crowded"
    postgres.create_database(name, owner=MIGRATOR, template=TEMPLATE)
    app_dsn = postgres.dsn(name, user=APP, password=database_passwords.app)
    with (
        psycopg.Connection[DictRow].connect(
            postgres.admin_dsn(name), autocommit=True, row_factory=dict_row
        ) as connection,
        psycopg.Connection[DictRow].connect(app_dsn, autocommit=True, row_factory=dict_row) as app,
    ):
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
        connection.execute("INSERT INTO models (id, name, provider) VALUES ('common', 'c', 'p'), ('rare', 'r', 'p')")
        connection.execute(
            """
            INSERT INTO api_key_models (api_key_id, model_id)
            SELECT id, CASE WHEN key_hash < '002' THEN 'rare' ELSE 'common' END FROM api_keys
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
        connection.execute("ANALYZE users, api_keys, api_key_models, api_key_tokens, audit_logs")
        yield Crowd(connection, app)
    postgres.drop_database(name)


def planned(crowd: Crowd, statement: LiteralString, parameters: dict[str, Any]) -> dict[str, Any]:
    """The plan for these very values, with what carrying it out read."""
    row = ClientCursor(crowd.app).execute("EXPLAIN (ANALYZE, FORMAT JSON) " + statement, parameters).fetchone()
    assert row is not None
    return row["QUERY PLAN"][0]["Plan"]


def scans(crowd: Crowd, statement: LiteralString, parameters: dict[str, Any]) -> set[str]:
    """Indexes the statement reads, and tables it reads from end to end."""

    def names(plan: dict[str, Any]) -> Iterator[str]:
        if "Index Name" in plan:
            yield plan["Index Name"]
        if plan["Node Type"] == "Seq Scan":
            yield f"all of {plan['Relation Name']}"
        for part in plan.get("Plans", []):
            yield from names(part)

    return set(names(planned(crowd, statement, parameters)))


def rows_read(plan: dict[str, Any], table: str) -> Iterator[tuple[str, float]]:
    """For each scan of the table the index and how many rows it looked at."""
    if plan.get("Relation Name") == table and plan["Actual Loops"]:
        looked_at = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        yield plan.get("Index Name", plan["Node Type"]), looked_at * plan["Actual Loops"]
    for part in plan.get("Plans", []):
        yield from rows_read(part, table)


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        pytest.param({}, "audit_logs_newest_first", id="none"),
        pytest.param({"after_created_at": MOMENT, "after_id": NOBODY}, "audit_logs_newest_first", id="a cursor"),
        pytest.param({"start": MOMENT, "end": MOMENT}, "audit_logs_newest_first", id="a time"),
        pytest.param({"success": True}, "audit_logs_newest_first", id="success"),
        pytest.param({"success": False}, "audit_logs_failed_newest_first", id="failure"),
        pytest.param({"action": "ACTION_7"}, "audit_logs_of_action_newest_first", id="an action"),
        pytest.param({"user_id": NOBODY}, "audit_logs_of_user_newest_first", id="a user"),
        pytest.param({"resource_id": "user-7-7"}, "audit_logs_of_resource_newest_first", id="a resource"),
        pytest.param({"subject_id": NOBODY}, "audit_logs_of_subject_newest_first", id="a subject"),
        pytest.param({"resource_type": "TEAM"}, "audit_logs_of_type_newest_first", id="a kind of thing"),
    ],
)
def test_audit_records_are_found_by_index(crowded: Crowd, filters: dict[str, Any], index: str):
    read = scans(crowded, audit_trail_store._LIST_AUDIT_RECORDS, CALLER | ALL_RECORDS | filters)

    assert index in read
    assert "all of audit_logs" not in read


COMMON = "'action':*"
SEARCHED = {"newest": 5_000}


@pytest.mark.parametrize(
    ("words", "records"),
    [
        pytest.param("'nobody':*", 0, id="that nobody has"),
        pytest.param("'name77':* & '499':*", 1, id="that one record has"),
        pytest.param("'name77':*", 500, id="that one in a hundred has"),
        pytest.param(COMMON + " & 'nobody':*", 0, id="of which one is everywhere"),
    ],
)
@pytest.mark.parametrize("after", [None, "9999-01-01T00:00:00Z"], ids=["first page", "by cursor"])
def test_records_with_words_that_few_have_are_found_by_their_index(
    crowded: Crowd, words: str, records: int, after: str | None
):
    page = {"after_created_at": after, "after_id": after and NOBODY, "words": words}

    plan = planned(crowded, audit_trail_store._SEARCH_AUDIT_RECORDS, CALLER | ALL_RECORDS | SEARCHED | page)

    read = dict(rows_read(plan, "audit_logs"))
    assert read.pop("audit_logs_newest_first") <= 5_000
    # All that match, of which a page is sorted out; where several share the work, each count is rounded.
    assert read.keys() == {"Bitmap Heap Scan"}
    assert read["Bitmap Heap Scan"] <= records + 3


def test_records_with_words_that_many_have_are_found_among_the_newest(crowded: Crowd):
    plan = planned(
        crowded, audit_trail_store._SEARCH_AUDIT_RECORDS, CALLER | ALL_RECORDS | SEARCHED | {"words": COMMON}
    )

    assert list(rows_read(plan, "audit_logs")) == [("audit_logs_newest_first", 21)]


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        pytest.param({}, "api_keys_newest_first", id="none"),
        pytest.param({"user_id": NOBODY}, "api_keys_of_user_newest_first", id="a user"),
    ],
)
@pytest.mark.parametrize("position", ["first page", "by cursor"])
def test_keys_of_everybody_are_found_by_index(crowded: Crowd, position: str, filters: dict[str, Any], index: str):
    by_cursor = {"after_created_at": MOMENT, "after_id": NOBODY, "total": 9}
    statement = listing_store._LIST_ALL_KEYS[_Kind(position == "by cursor", ())]

    read = scans(crowded, statement, CALLER | ALL_KEYS | (by_cursor if position == "by cursor" else {}) | filters)

    assert index in read
    # Counting everybody's keys has to.
    assert ("all of api_keys" in read) == (position == "first page" and not filters)


@pytest.mark.parametrize("position", ["first page", "by cursor"])
def test_keys_with_a_model_that_few_have_are_found_by_the_model(crowded: Crowd, position: str):
    by_cursor = {"after_created_at": MOMENT, "after_id": NOBODY, "total": 9}
    statement = listing_store._LIST_ALL_KEYS[_Kind(position == "by cursor", ("model_ids",))]

    read = scans(crowded, statement, CALLER | ALL_KEYS | by_cursor | {"model_ids": ["rare"]})

    assert {"api_key_models_of_model", "api_keys_pkey"} <= read
    assert not {"all of api_keys", "api_keys_newest_first"} & read


@pytest.fixture(scope="module")
def collector(crowded: Crowd) -> dict[str, Any]:
    """Somebody with 3,000 keys, 200 times as many as anybody else has, and the middle one of them as a cursor."""
    crowded.admin.execute(
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
    crowded.admin.execute("ANALYZE api_keys")
    row = crowded.admin.execute("SELECT created_at, id FROM api_keys WHERE key_hash = md5('collector1500')").fetchone()
    assert row is not None
    return {"after_created_at": row["created_at"], "after_id": row["id"]}


def assert_reads_a_page(plan: dict[str, Any], *, is_counted: bool) -> None:
    """In the order of the index, and of the others no more than their count, by an index scan or a bitmap of it."""
    page = ("api_keys_of_user_newest_first", 101)
    counts = [[("api_keys_of_user_newest_first", 3000)], [("Bitmap Heap Scan", 3000)]] if is_counted else [[]]
    assert sorted(rows_read(plan, "api_keys")) in [sorted([page, *count]) for count in counts]


@pytest.mark.parametrize("filters", [{}, {"is_active": True}], ids=str)
@pytest.mark.parametrize("position", ["first page", "by cursor"])
def test_a_page_of_many_keys_reads_no_more_than_the_page(
    crowded: Crowd, collector: dict[str, Any], position: str, filters: dict[str, Any]
):
    is_counted = position == "first page"
    statement = listing_store._LIST_KEYS[_Kind(not is_counted, tuple(filters))]
    parameters = CALLER | {"subject": "collector", "total": 3000} | ALL_KEYS | {"limit": 100} | collector | filters

    plan = planned(crowded, statement, parameters)

    assert_reads_a_page(plan, is_counted=is_counted)


@pytest.mark.parametrize("position", ["first page", "by cursor"])
def test_one_plan_for_all_cursors_reads_no_more_than_the_page(crowded: Crowd, collector: dict[str, Any], position: str):
    """As a connection that is used for long makes it: once, without looking at the parameters."""
    is_counted = position == "first page"
    sql, names = positional(listing_store._LIST_KEYS[_Kind(not is_counted, ())])
    values = CALLER | {"subject": "collector", "total": 3000} | ALL_KEYS | {"limit": 100} | collector
    literals = ", ".join(Literal(values[name]).as_string(crowded.app) for name in names)

    with crowded.app.transaction():
        crowded.app.execute("SET LOCAL plan_cache_mode = 'force_generic_plan'")
        crowded.app.execute(b"PREPARE list AS " + sql)
        row = crowded.app.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE list ({literals})".encode()).fetchone()
        crowded.app.execute("DEALLOCATE list")

    assert row is not None
    plan = row["QUERY PLAN"][0]["Plan"]
    assert_reads_a_page(plan, is_counted=is_counted)
    assert [index for index, _ in rows_read(plan, "users")].count("Seq Scan") == 0


def test_a_single_key_is_found_by_its_id(crowded: Crowd):
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
def test_a_caller_is_found_by_index(crowded: Crowd, who: dict[str, Any], index: str):
    read = scans(crowded, listing_store._FIND_KEY, CALLER | who | {"api_key_id": NOBODY})

    assert index in read
    assert "all of users" not in read


def test_a_secret_is_found_by_its_hash(crowded: Crowd):
    read = scans(crowded, validation_store._FIND_SECRET, CALLER | {"secret_hash": "0" * 64})

    assert {"api_key_tokens_pkey", "api_keys_key_hash_key"} <= read
    assert {name for name in read if name.startswith("all of api_key")} <= {"all of api_key_operations"}
