"""The keys of a LiteMaaS, of both its eras in one database, taken over as an operator does it: the functions, over HTTP,
on the LiteLLM that the contract is tested with."""

import os
import re
import secrets
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg.rows import DictRow, dict_row

from local.postgres import PostgresServer
from local.roles import MIGRATOR, Passwords, create_roles
from local.stack import LocalStack
from local.workers import InvocationFailed
from tests.contract.gateway import Gateway, hash_of, unique
from tests.support.http_faults import FaultProxy
from tests.support.litemaas_tables import CURRENT
from tests.support.postgres_faults import PostgresProxy

ADOPT = "AdoptLiteMaaSKeys"
RUNBOOK = Path(__file__).parents[2] / "docs" / "runbooks" / "adoption.md"
_NAME = "adoption"


@dataclass(frozen=True, kw_only=True)
class Key:
    id: UUID
    secret: str

    @property
    def hash(self) -> str:
        return hash_of(self.secret)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A LiteMaaS with Alice's keys, and the service beside it."""

    stack: LocalStack
    gateway: Gateway
    database_faults: PostgresProxy
    passwords: Passwords

    def rows(self, statement: LiteralString, *parameters: Any) -> list[DictRow]:
        with psycopg.Connection[DictRow].connect(
            self.stack.admin_dsn, autocommit=True, row_factory=dict_row
        ) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def make_key(self, *, is_there: bool = True, is_of_today: bool = True, **columns: Any) -> Key:
        """As LiteMaaS makes one, or made it before it kept the secret itself."""
        secret = f"sk-{secrets.token_urlsafe(16)}"
        if is_there:
            self.gateway.generate(
                key=secret,
                key_alias=unique("litemaas"),
                models=["gpt-4o-mini"],
                metadata={"created_by": "litemaas", "model_count": 1},
                **({"duration": "1s"} if "expires_at" in columns else {}),
            )
        key = Key(id=uuid4(), secret=secret)
        self.rows(
            """
            INSERT INTO api_keys (
                id, user_id, subscription_id, name, key_hash, key_prefix, lite_llm_key_value, lite_llm_key_id,
                is_active, revoked_at, expires_at, sync_status
            )
            SELECT %s, u.id, s.id, 'old', %s, %s, %s, %s, %s, %s, %s, 'synced'
            FROM users AS u JOIN subscriptions AS s ON s.user_id = u.id WHERE u.oauth_id = 'alice'
            """,
            key.id,
            key.hash if is_of_today else hash_of(f"made up {key.id}"),
            secret[:7],
            secret if is_of_today else None,
            None if is_of_today else key.hash,
            columns.get("revoked_at") is None,
            columns.get("revoked_at"),
            columns.get("expires_at"),
        )
        return key

    def adopt(self, mode: str) -> Any:
        return self.stack.invoke(ADOPT, {"mode": mode})

    def ask(self, method: str, path: str = "") -> httpx.Response:
        headers = {"authorization": f"Bearer {self.stack.token('alice')}"}
        with httpx.Client(trust_env=False, timeout=40) as http:
            return http.request(method, f"{self.stack.url}/api/v1/api-keys{path}", headers=headers)

    def use(self, key: Key) -> int:
        return self.gateway.chat(key.secret).status_code

    def token_state(self, key: Key) -> str | None:
        rows = self.rows("SELECT state FROM api_key_tokens WHERE hash = %s", key.hash)
        return rows[0]["state"] if rows else None

    def audits(self, key: Key) -> list[str]:
        rows = self.rows("SELECT action FROM audit_logs WHERE resource_id = %s ORDER BY created_at", str(key.id))
        return [row["action"] for row in rows]


@pytest.fixture(scope="module")
def site(gateway: Gateway, postgres: PostgresServer) -> Iterator[Site]:
    passwords = create_roles(postgres)
    postgres.create_database(_NAME, owner=MIGRATOR)
    with psycopg.connect(postgres.dsn(_NAME, user=MIGRATOR, password=passwords.migrator)) as connection:
        connection.execute(CURRENT)
        connection.execute("ALTER TABLE api_keys ADD COLUMN lite_llm_key_id varchar(255)")
        connection.execute("INSERT INTO models (id, name, provider) VALUES ('gpt-4o-mini', 'GPT-4o mini', 'openai')")
        connection.execute(
            "WITH alice AS (INSERT INTO users (username, email, oauth_provider, oauth_id)"
            " VALUES ('alice', 'alice@example.com', 'openshift', 'alice') RETURNING id)"
            " INSERT INTO subscriptions (user_id, model_id) SELECT id, 'gpt-4o-mini' FROM alice"
        )
    with (
        FaultProxy(str(gateway.http.base_url).rstrip("/")) as gateway_faults,
        PostgresProxy(postgres.socket_directory / f".s.PGSQL.{postgres.port}") as database_faults,
        LocalStack.start(
            parameters={
                "DatabaseName": _NAME,
                "DatabaseHost": str(database_faults.socket_directory),
                "DatabasePort": str(database_faults.port),
                "ReconcileMode": "heal",
            },
            litellm_url=gateway_faults.url,
            litellm_master_key=gateway.master_key,
            database=postgres,
            workers_per_function=1,
        ) as stack,
    ):
        yield Site(stack=stack, gateway=gateway, database_faults=database_faults, passwords=passwords)
    postgres.drop_database(_NAME)


@pytest.fixture(autouse=True)
def nothing_left(site: Site) -> Iterator[None]:
    """Each test has LiteMaaS's tables for itself."""
    yield
    site.database_faults.clear()
    site.rows("DELETE FROM api_keys")
    site.rows("DELETE FROM api_key_operations")
    site.rows("UPDATE keyservice_adoption SET lease_until = now(), stage = 'done'")


@pytest.fixture(params=[True, False], ids=["of today", "of before"])
def is_of_today(request: pytest.FixtureRequest) -> bool:
    return request.param


def ids_by_outcome(report: Any) -> dict[str, list[str]]:
    return {outcome: rows["ids"] for outcome, rows in report["rows"].items()}


def test_every_kind_of_row_is_told_apart_and_a_dry_run_touches_none(site: Site):
    today, before = site.make_key(), site.make_key(is_of_today=False)
    expired = site.make_key(expires_at="2026-01-01T00:00:00Z")
    lost = site.make_key(is_there=False)
    revoked = site.make_key(is_there=False, revoked_at="2026-01-01T00:00:00Z")
    revoked_in_vain = site.make_key(revoked_at="2026-01-01T00:00:00Z")
    orphan = site.make_key()
    site.rows("ALTER TABLE api_keys DISABLE TRIGGER USER")
    site.rows("DELETE FROM api_keys WHERE id = %s", orphan.id)
    site.rows("ALTER TABLE api_keys ENABLE TRIGGER USER")
    rows = site.rows("SELECT * FROM api_keys ORDER BY id")

    dry = site.adopt("dry-run")
    untouched = site.rows("SELECT * FROM api_keys ORDER BY id") == rows
    wet = site.adopt("adopt")

    left_alone = {
        "missing": [str(lost.id)],
        "revoked": [str(revoked.id)],
        "revokedButThere": [str(revoked_in_vain.id)],
    }
    taken = sorted(str(key.id) for key in (today, before, expired))
    assert (dry["state"], wet["state"], untouched) == ("complete", "complete", True)
    assert ids_by_outcome(dry) == {"adoptable": taken, **left_alone}
    assert ids_by_outcome(wet) == {"adopted": taken, **left_alone}
    assert orphan.hash in dry["orphaned"]["hashes"]
    assert today.hash not in dry["orphaned"]["hashes"]


def test_an_old_secret_works_on_until_its_owner_deletes_it(site: Site, *, is_of_today: bool):
    key = site.make_key(is_of_today=is_of_today)

    site.adopt("adopt")
    site.adopt("scrub")
    listed = site.ask("GET").json()["data"]
    works = site.use(key)
    deleted = site.ask("DELETE", f"/{key.id}")

    [row] = [row for row in listed if row["id"] == str(key.id)]
    assert (row["status"], row["models"], works) == ("active", ["gpt-4o-mini"], 200)
    assert (deleted.status_code, site.use(key), site.token_state(key)) == (200, 401, "dead")
    assert site.audits(key) == ["API_KEY_ADOPT", *(["API_KEY_SCRUB"] if is_of_today else []), "API_KEY_DELETE"]


def test_twice_changes_nothing(site: Site, *, is_of_today: bool):
    key = site.make_key(is_of_today=is_of_today)
    site.adopt("adopt")
    before = site.rows("SELECT * FROM api_keys"), site.audits(key)

    again = site.adopt("adopt")

    assert ids_by_outcome(again) == {"alreadyAdopted": [str(key.id)]}
    assert (site.rows("SELECT * FROM api_keys"), site.audits(key)) == before


def test_a_key_that_litemaas_deletes_is_refused_after_the_next_settling(site: Site, *, is_of_today: bool):
    key = site.make_key(is_of_today=is_of_today)
    site.adopt("adopt")
    site.rows("DELETE FROM api_keys WHERE id = %s", key.id)

    site.stack.invoke("SettleOperations")

    assert (site.use(key), site.token_state(key)) == (401, "dead")


def test_jobs_leave_an_adopted_key_as_it_is(site: Site):
    key = site.make_key()
    site.adopt("adopt")
    site.gateway.update(key.hash, max_budget=7.0)

    reports = [site.stack.invoke(name) for name in ("Reconcile", "SettleOperations", "Reconcile", "SyncSpend")]

    assert [report.get("brake") for report in reports] == [None] * 4
    assert (reports[2]["findings"], reports[2]["healed"], reports[2]["keysCompared"]) == ({}, {}, 1)
    assert (site.use(key), site.gateway.info(key.hash)["max_budget"]) == (200, 7.0)


def test_a_job_that_was_killed_is_gone_on_with_and_audits_once(site: Site):
    keys = [site.make_key(), site.make_key(is_of_today=False)]

    def kill() -> None:
        for pid in site.stack.worker_pids(ADOPT):
            os.kill(pid, signal.SIGKILL)

    # The statement is carried out, and nobody hears of it.
    site.database_faults.inject("call_after", "adopt_keys", call=kill)
    with pytest.raises(InvocationFailed):
        site.adopt("adopt")
    held = site.adopt("adopt")
    site.rows("UPDATE keyservice_adoption SET lease_until = now()")
    report = site.adopt("adopt")

    assert (held["state"], report["state"]) == ("busy", "complete")
    assert [(site.token_state(key), site.audits(key)) for key in keys] == [("live", ["API_KEY_ADOPT"])] * 2


def test_what_litemaas_asks_with_the_hash_works_but_for_what_it_asks_as_the_user(gateway: Gateway):
    """LiteMaaS lists with the user's own key: with a hash in its place LiteLLM refuses that, and nothing else."""
    key = gateway.generate(models=["gpt-4o-mini"])

    as_the_user = gateway.http.get(
        "/key/info", params={"key": key["token"]}, headers={"x-litellm-api-key": key["token"]}
    )

    assert as_the_user.status_code == 401
    assert gateway.update(key["token"], max_budget=1.0, spend=0)["max_budget"] == 1.0
    gateway.delete(key["token"])
    assert gateway.chat(key["key"]).status_code == 401


def test_the_runbooks_undo_makes_rows_what_they_were(site: Site, *, is_of_today: bool):
    key = site.make_key(is_of_today=is_of_today)
    site.rows("INSERT INTO api_key_models SELECT id, 'gpt-4o-mini' FROM api_keys")
    columns: LiteralString = "SELECT id, key_hash, key_prefix, lite_llm_key_value, lite_llm_key_id FROM api_keys"
    before = site.rows(columns)
    site.adopt("adopt")
    [undo] = re.findall(r"```sql\n(-- Undo.*?)```", RUNBOOK.read_text(), re.DOTALL)

    dsn = site.stack.database.dsn(_NAME, user=MIGRATOR, password=site.passwords.migrator)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(undo.encode())

    assert site.rows(columns) == before
    assert (site.token_state(key), site.use(key)) == (None, 200)
    assert ids_by_outcome(site.adopt("adopt")) == {"adopted": [str(key.id)]}
