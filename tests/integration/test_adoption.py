"""LiteMaaS's keys, of both its eras, taken over on databases that it made, while it works on beside the service."""

import itertools
import secrets
from collections.abc import Iterator
from typing import Any, Literal, LiteralString

import psycopg
import pytest
from psycopg import errors as pg

from keyservice.models import AdoptionMode, Deadline, DeletedKey, KeyPage
from keyservice.schema import migrate
from keyservice.settlement_store import SYSTEM_USER
from keyservice.spend import SpendRules, SpendSync
from local.postgres import PostgresServer
from local.roles import APP, MIGRATOR, Passwords
from tests.integration.adopting import Adopter, LiteMaaS, LiteMaaSKey, outcomes
from tests.integration.reconciling import Reconciler, seen
from tests.integration.service import Cloud, Service, hash_of
from tests.support.fixtures import LITELLM_URL, STACK_NAME, Database, LiteLLM
from tests.support.http_faults import FaultProxy
from tests.support.litemaas_tables import CURRENT, SEED_ERA
from tests.support.postgres_faults import PostgresProxy

_numbers = itertools.count(1)
ERAS: dict[str, LiteralString] = {"seed": SEED_ERA, "current": CURRENT}
of_today = pytest.mark.parametrize("era", ["current"], indirect=True)
of_before = pytest.mark.parametrize("era", ["seed"], indirect=True)


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def database(era: str, postgres: PostgresServer, database_passwords: Passwords) -> Iterator[Database]:
    """A database that LiteMaaS made, migrated."""
    name = f"litemaas_{next(_numbers)}"
    postgres.create_database(name, owner=MIGRATOR)
    dsn = postgres.dsn(name, user=MIGRATOR, password=database_passwords.migrator)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(ERAS[era])
        migrate(connection, app_user=APP, stack_name=STACK_NAME, litellm_url=LITELLM_URL)
    yield Database(server=postgres, name=name, passwords=database_passwords)
    postgres.drop_database(name)


@pytest.fixture
def service(
    cloud: Cloud, database: Database, litellm: LiteLLM, gateway_faults: FaultProxy, database_faults: PostgresProxy
) -> Iterator[Service]:
    with Service(
        cloud=cloud, database=database, litellm=litellm, gateway_faults=gateway_faults, database_faults=database_faults
    ) as service:
        service.subscribe("alice", models=["gpt-4o", "gpt-4o-mini"])
        yield service


@pytest.fixture
def litemaas(service: Service, era: str) -> LiteMaaS:
    return LiteMaaS(service, has_plaintext=era == "current")


@pytest.fixture
def adopter(service: Service) -> Adopter:
    return Adopter(service)


class TestServiceOnLiteMaaSTables:
    def test_creates_lists_and_deletes(self, service: Service):
        issued = service.create(max_budget=5.0)

        assert [key.id for key in service.list_keys().data] == [issued.id]
        assert service.chat(issued.key) == 200
        assert isinstance(service.delete(issued.id), DeletedKey)
        assert service.chat(issued.key) == 401

    @of_today
    def test_reads_no_secret_of_litemaas(self, litemaas: LiteMaaS, database: Database):
        key = litemaas.make_key()

        with psycopg.connect(database.app_dsn, autocommit=True) as connection:
            for statement in (
                "SELECT lite_llm_key_value FROM api_keys",
                "SELECT * FROM api_keys",
                "UPDATE api_keys SET lite_llm_key_value = 'x'",
            ):
                with pytest.raises(pg.InsufficientPrivilege):
                    connection.execute(statement.encode())
            assert connection.execute("SELECT id FROM api_keys").fetchall() == [(key.id,)]


class TestDryRun:
    def test_says_what_would_become_of_each_row_and_changes_nothing(
        self, service: Service, litemaas: LiteMaaS, adopter: Adopter
    ):
        active, lost = litemaas.make_key(), litemaas.make_key(is_there=False)
        expired = litemaas.make_key(expires_at="2025-01-01T00:00:00Z")
        revoked = litemaas.make_key(is_there=False, is_active=False, revoked_at="2025-01-01T00:00:00Z")
        revoked_in_vain = litemaas.make_key(is_active=False, revoked_at="2025-01-01T00:00:00Z")
        orphan = litemaas.make_gateway_key(f"sk-{secrets.token_urlsafe(16)}")
        own = service.create()
        before = adopter.everything()

        report = adopter.run("dry-run")

        assert report.state == "complete"
        assert outcomes(report) == {
            "adoptable": sorted([active.id, expired.id]),
            "missing": [lost.id],
            "revoked": [revoked.id],
            "revokedButThere": [revoked_in_vain.id],
            "own": [own.id],
        }
        assert orphan in report.orphaned.hashes
        assert {active.hash, revoked_in_vain.hash, hash_of(own.key)} & set(report.orphaned.hashes) == set()
        assert adopter.everything() == before


class TestAdoptedKey:
    def test_works_on_is_shown_and_is_refused_once_deleted(
        self, service: Service, litemaas: LiteMaaS, adopter: Adopter
    ):
        key = litemaas.make_key()

        report = adopter.run()
        shown: KeyPage = service.list_keys()
        works = service.chat(key.secret)
        deleted = service.delete(key.id)

        assert outcomes(report) == {"adopted": [key.id]}
        assert [(one.id, one.status) for one in shown.data] == [(key.id, "active")]
        assert (works, type(deleted), service.chat(key.secret)) == (200, DeletedKey, 401)
        assert adopter.tokens(key) == [(key.hash, "dead")]

    def test_has_a_live_token_without_a_nonce_and_one_audit_record_of_the_system(
        self, litemaas: LiteMaaS, adopter: Adopter
    ):
        key = litemaas.make_key()

        adopter.run()

        row = adopter.row(key)
        assert row["key_hash"] == row["lite_llm_key_id"] == key.hash
        assert adopter.tokens(key) == [(key.hash, "live")]
        [audit] = adopter.audits(key)
        assert (str(audit["user_id"]), audit["success"]) == (SYSTEM_USER, True)
        assert audit["metadata"]["tokenHash"] == audit["metadata"]["previousKeyHash"] == key.hash

    def test_twice_changes_nothing(self, litemaas: LiteMaaS, adopter: Adopter):
        key, lost = litemaas.make_key(), litemaas.make_key(is_there=False)
        adopter.run()
        before = adopter.everything()

        report = adopter.run()

        assert outcomes(report) == {"alreadyAdopted": [key.id], "missing": [lost.id]}
        assert adopter.everything() == before

    def test_leaves_revoked_and_missing_rows_alone(self, litemaas: LiteMaaS, adopter: Adopter):
        left_alone = [
            litemaas.make_key(is_there=False),
            litemaas.make_key(is_active=False, revoked_at="2025-01-01T00:00:00Z"),
            litemaas.make_key(is_active=False),
        ]
        before = adopter.everything()

        adopter.run()

        assert adopter.everything() == before
        assert [adopter.tokens(key) for key in left_alone] == [[], [], []]

    def test_past_its_expiry_leaves_as_keys_of_ours_do(self, service: Service, litemaas: LiteMaaS, adopter: Adopter):
        key = litemaas.make_key(expires_at="2025-01-01T00:00:00Z")
        adopter.run()

        service.settle()

        assert not service.is_live(key.hash)
        assert adopter.tokens(key) == [(key.hash, "dead")]
        assert len(adopter.audits(key, "API_KEY_EXPIRED")) == 1

    def test_deleted_by_litemaas_goes_in_litellm_too(self, service: Service, litemaas: LiteMaaS, adopter: Adopter):
        key = litemaas.make_key()
        adopter.run()
        litemaas.delete(key)

        service.settle()

        assert service.chat(key.secret) == 401
        assert adopter.tokens(key) == [(key.hash, "dead")]

    def test_of_a_subscription_names_its_model_from_then_on(
        self, service: Service, litemaas: LiteMaaS, adopter: Adopter
    ):
        key = litemaas.make_key()

        adopter.run()

        assert service.rows("SELECT api_key_id, model_id FROM api_key_models") == [
            {"api_key_id": key.id, "model_id": "gpt-4o"}
        ]

    def test_brings_its_spend_along(self, service: Service, litemaas: LiteMaaS, adopter: Adopter):
        key = litemaas.make_key()
        adopter.run()
        Reconciler(service).change(key.hash, spend=1.5)

        SpendSync(
            database=service.database,
            litellm=service.connect_litellm(),
            rules=SpendRules(lease_seconds=30, gateway_seconds=5, reserve_seconds=1, pages_at_once=1),
        ).run(deadline=Deadline(60))

        assert float(adopter.row(key)["current_spend"]) == 1.5


class TestHash:
    @of_today
    def test_of_the_stored_secret_wins_over_one_that_a_failed_rotation_left(
        self, service: Service, litemaas: LiteMaaS, adopter: Adopter
    ):
        key = litemaas.make_key()
        invented = litemaas.rotate(key, gateway_works=False)

        adopter.run()

        row = adopter.row(key)
        assert (row["key_hash"], row["key_prefix"]) == (key.hash, key.secret[:7])
        [audit] = adopter.audits(key)
        assert audit["metadata"]["previousKeyHash"] == hash_of(invented)
        assert audit["metadata"]["previousKeyPrefix"] == invented[:7]
        assert service.chat(key.secret) == 200

    @of_before
    def test_that_litemaas_made_up_gives_way_to_litellms_id(self, litemaas: LiteMaaS, adopter: Adopter):
        key = litemaas.make_key(key_hash=hash_of("sk-made-up-by-litemaas"), key_prefix="sk-made")

        adopter.run()

        row = adopter.row(key)
        assert (row["key_hash"], row["key_prefix"], row["lite_llm_key_id"]) == (key.hash, "sk-made", key.hash)

    @of_before
    def test_of_a_secret_in_the_id_column_is_taken_and_the_column_kept_until_it_is_scrubbed(
        self, litemaas: LiteMaaS, adopter: Adopter
    ):
        secret = f"sk-{secrets.token_urlsafe(16)}"
        litemaas.make_gateway_key(secret)
        key = litemaas.make_key(is_there=False, lite_llm_key_id=secret, key_hash=hash_of("sk-x"), key_prefix="sk-x")

        adopter.run()
        adopted = adopter.row(key)
        adopter.run("scrub")

        assert (adopted["key_hash"], adopted["key_prefix"]) == (hash_of(secret), secret[:7])
        assert (adopted["lite_llm_key_id"], adopter.row(key)["lite_llm_key_id"]) == (secret, hash_of(secret))

    @pytest.mark.parametrize("told", [None, "", "key-1234", "sk-...7NcA"])
    def test_in_key_hash_serves_where_nothing_else_tells(
        self, litemaas: LiteMaaS, adopter: Adopter, told: str | None, era: str
    ):
        column = "lite_llm_key_value" if era == "current" else "lite_llm_key_id"
        columns: dict[str, Any] = {column: told}
        key = litemaas.make_key(**columns)

        report = adopter.run()

        assert outcomes(report) == {"adopted": [key.id]}

    def test_that_nothing_tells_is_unusable(self, litemaas: LiteMaaS, adopter: Adopter, era: str):
        column = "lite_llm_key_value" if era == "current" else "lite_llm_key_id"
        columns: dict[str, Any] = {column: None, "key_hash": "$2b$12$bcrypt"}
        key = litemaas.make_key(**columns)

        assert outcomes(adopter.run()) == {"unusable": [key.id]}

    @of_today
    def test_that_two_rows_tell_is_nobodys(self, litemaas: LiteMaaS, adopter: Adopter):
        key = litemaas.make_key()
        twin = litemaas.make_key(is_there=False, lite_llm_key_value=key.secret)

        report = adopter.run()

        assert outcomes(report) == {"conflicting": sorted([key.id, twin.id])}
        assert adopter.tokens(key) == adopter.tokens(twin) == []

    def test_of_a_token_that_is_over_is_not_brought_back(self, service: Service, litemaas: LiteMaaS, adopter: Adopter):
        key = litemaas.make_key()
        adopter.run()
        service.delete(key.id)
        litemaas.make_gateway_key(key.secret)
        again = litemaas.make_key(is_there=False, key_hash=key.hash)

        report = adopter.run()

        assert outcomes(report)["conflicting"] == [again.id]
        assert adopter.tokens(key) == [(key.hash, "dead")]


@of_today
class TestRotationByLiteMaaS:
    def test_of_an_adopted_key_is_followed_by_the_next_run(
        self, service: Service, litemaas: LiteMaaS, adopter: Adopter
    ):
        key = litemaas.make_key()
        adopter.run()
        new = litemaas.rotate(key)

        report = adopter.run()

        assert outcomes(report) == {"adopted": [key.id]}
        assert adopter.tokens(key) == [(key.hash, "condemned"), (hash_of(new), "live")]
        service.delete(key.id)
        assert service.chat(new) == 401

    def test_that_failed_is_put_right_by_the_next_run(self, litemaas: LiteMaaS, adopter: Adopter):
        key = litemaas.make_key()
        adopter.run()
        litemaas.rotate(key, gateway_works=False)

        report = adopter.run()

        assert outcomes(report) == {"adopted": [key.id]}
        assert adopter.row(key)["key_hash"] == key.hash
        assert adopter.tokens(key) == [(key.hash, "live")]


class TestScrub:
    def test_puts_the_hash_in_the_place_of_the_secret_of_adopted_keys_alone(
        self, service: Service, litemaas: LiteMaaS, adopter: Adopter
    ):
        key = litemaas.make_key()
        adopter.run()
        later, lost = litemaas.make_key(), litemaas.make_key(is_there=False)

        report = adopter.run("scrub")
        again = adopter.run("scrub")

        expected: dict[str, Any] = {"adoptable": [later.id], "missing": [lost.id]}
        if litemaas.has_plaintext:
            assert outcomes(report) == {"scrubbed": [key.id], **expected}
            rows = service.rows("SELECT id, lite_llm_key_value FROM api_keys")
            assert {row["id"]: row["lite_llm_key_value"] for row in rows} == {
                key.id: key.hash,
                later.id: later.secret,
                lost.id: lost.secret,
            }
            assert len(adopter.audits(key, "API_KEY_SCRUB")) == 1
        assert outcomes(again) == {"alreadyAdopted": [key.id], **expected}
        assert service.chat(key.secret) == 200
        assert isinstance(service.delete(key.id), DeletedKey)

    @of_today
    def test_keeps_the_secret_of_a_key_that_litellm_has_lost(
        self, service: Service, litemaas: LiteMaaS, adopter: Adopter
    ):
        key = litemaas.make_key()
        adopter.run()
        Reconciler(service).lose(key.hash)

        report = adopter.run("scrub")

        assert outcomes(report) == {"missing": [key.id]}
        assert adopter.row(key)["lite_llm_key_value"] == key.secret

    @of_today
    def test_keeps_a_secret_that_litemaas_has_given_since(self, litemaas: LiteMaaS, adopter: Adopter):
        key = litemaas.make_key()
        adopter.run()
        new = litemaas.rotate(key)

        adopter.run("scrub")

        assert adopter.row(key)["lite_llm_key_value"] == new


class TestInterruptedRun:
    @pytest.mark.parametrize(
        "statement", ["collect_candidates", "compare_candidates", "record_answers", "adopt_keys", "count_adopted"]
    )
    @pytest.mark.parametrize("moment", ["cut_before", "cut_after"])
    def test_is_gone_on_with_and_audits_each_key_once(
        self,
        service: Service,
        litemaas: LiteMaaS,
        adopter: Adopter,
        statement: str,
        moment: Literal["cut_before", "cut_after"],
    ):
        keys = [litemaas.make_key() for _ in range(3)]
        service.database_faults.inject(moment, statement)

        with_fault = run_or_fail(adopter)
        service.rows("UPDATE keyservice_adoption SET lease_until = now()")
        report = adopter.run()

        assert with_fault != "complete"
        assert report.state == "complete"
        assert [adopter.tokens(key) for key in keys] == [[(key.hash, "live")] for key in keys]
        assert [len(adopter.audits(key)) for key in keys] == [1, 1, 1]

    def test_by_litellm_says_so_and_goes_on(self, service: Service, litemaas: LiteMaaS, adopter: Adopter):
        key = litemaas.make_key()
        adopter.run("dry-run")
        faults = service.gateway_faults
        # The first look at LiteLLM is whether a brake is to be pulled.
        faults.inject("/key/list", "call_after", call=lambda: faults.inject("/key/list", "status", status=500))

        first, second = adopter.run(), adopter.run()

        assert (first.state, first.stage, first.interruption) == ("unfinished", "compare", "key/list: answered 500")
        assert (second.state, outcomes(second)) == ("complete", {"adopted": [key.id]})

    def test_for_want_of_time_says_so(self, litemaas: LiteMaaS, adopter: Adopter):
        litemaas.make_key()

        report = adopter.run(seconds=4.0)

        assert (report.state, report.stage, report.interruption) == ("unfinished", "collect", "no time left")

    def test_is_not_joined_by_a_second(self, service: Service, litemaas: LiteMaaS, adopter: Adopter):
        key = litemaas.make_key()
        service.rows("UPDATE keyservice_adoption SET lease_until = now() + interval '1 minute'")

        assert adopter.run().state == "busy"
        assert adopter.tokens(key) == []

    def test_leaves_a_row_that_somebody_holds_for_the_next(
        self, database: Database, litemaas: LiteMaaS, adopter: Adopter
    ):
        key = litemaas.make_key()

        with psycopg.connect(database.admin_dsn) as other:
            other.execute("SELECT FROM api_keys WHERE id = %s FOR UPDATE", [key.id])
            first = adopter.run()
        second = adopter.run()

        assert outcomes(first) == {"changed": [key.id]}
        assert outcomes(second) == {"adopted": [key.id]}


class TestBrake:
    @pytest.mark.parametrize("mode", ["adopt", "scrub"])
    def test_of_a_clone_keeps_everything_as_it_is(self, litemaas: LiteMaaS, adopter: Adopter, mode: AdoptionMode):
        litemaas.make_key()
        before = adopter.everything()

        report = adopter.run(mode, stack_name="clone")

        assert (report.state, report.brake) == ("braked", "otherStack")
        assert adopter.everything() == before


class TestReconcile:
    def test_finds_nothing_in_an_adopted_key_whatever_litellm_says_of_it(
        self, service: Service, litemaas: LiteMaaS, adopter: Adopter
    ):
        reconciler = Reconciler(service)
        key, own = litemaas.make_key(max_budget=5), service.create()
        adopter.run()
        reconciler.change(key.hash, max_budget=1000.0)

        first, second = reconciler.run(), reconciler.run()

        assert (seen(first), seen(second)) == ({}, {})
        assert (first.brake, second.keys_compared) == (None, 2)
        assert service.gateway_key(key.hash)["max_budget"] == 1000.0
        assert service.chat(own.key) == 200

    def test_marks_one_that_litellm_has_lost_and_one_that_came_back(
        self, service: Service, litemaas: LiteMaaS, adopter: Adopter
    ):
        key = litemaas.make_key()
        adopter.run()
        reconciler = Reconciler(service)
        reconciler.lose(key.hash)

        lost = reconciler.run()
        marked = reconciler.row(key.id)
        litemaas.make_gateway_key(key.secret)
        back = reconciler.run()

        assert (seen(lost), marked) == ({"missing": [key.hash]}, (True, "error", "LiteLLM has no such key"))
        assert (seen(back), reconciler.row(key.id)) == ({"found": [key.hash]}, (True, "synced", None))

    def test_takes_no_deleted_one_for_an_orphan(self, service: Service, litemaas: LiteMaaS, adopter: Adopter):
        key = litemaas.make_key()
        adopter.run()
        service.delete(key.id)
        litemaas.make_gateway_key(key.secret)
        reconciler = Reconciler(service)

        assert [seen(reconciler.run()), seen(reconciler.run())] == [{}, {}]
        assert service.is_live(key.hash)

    @of_today
    def test_does_not_miss_a_secret_that_litemaas_has_replaced(
        self, service: Service, litemaas: LiteMaaS, adopter: Adopter
    ):
        key = litemaas.make_key()
        adopter.run()
        litemaas.rotate(key)
        reconciler = Reconciler(service)

        assert seen(reconciler.run()) == {}

    def test_asks_for_none_of_many_adopted_keys_by_itself(self, service: Service, litemaas: LiteMaaS, adopter: Adopter):
        for _ in range(5):
            litemaas.make_key()
        adopter.run()
        reconciler = Reconciler(service)
        service.gateway_faults.forget_calls()

        reconciler.run()

        assert [call.path for call in service.gateway_faults.calls if not call.path.startswith("/key/list?")] == []


def run_or_fail(adopter: Adopter) -> str:
    """The report's state, or that there was none."""
    try:
        return adopter.run().state
    except Exception as error:  # noqa: BLE001 - a database that is cut off in the middle of the last statement
        return type(error).__name__


def test_no_secret_is_in_a_report_or_a_note(service: Service, litemaas: LiteMaaS, adopter: Adopter):
    keys: list[LiteMaaSKey] = [litemaas.make_key(), litemaas.make_key(is_there=False)]

    reports = [adopter.run(mode) for mode in ("dry-run", "adopt", "scrub")]

    kept = service.rows("SELECT t::text FROM keyservice_adoption_candidates AS t")
    audits = service.rows("SELECT t::text FROM audit_logs AS t")
    assert [key.secret for key in keys if key.secret in f"{reports}{kept}{audits}"] == []
