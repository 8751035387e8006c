"""Answers that must not say more than is true, and odd rows and moments that must not end in a 500."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

import psycopg
import pytest

from keyservice.database import Statement
from keyservice.errors import (
    DatabaseUnavailable,
    Forbidden,
    IdentityConflict,
    InvalidRequest,
    OperationPending,
    OperationSuperseded,
    OutcomeUnknown,
)
from keyservice.models import Deadline, DeletedKey, IssuedKey, NewApiKey, PendingDeletion
from tests.integration.service import Service, Traces, caller, hash_of

LIVE = Traces(
    row=(True, "synced"),
    tokens=[("live", False)],
    operations=[("create", "forward", "done")],
    audits=[("API_KEY_CREATE", True)],
)


def wait_until_somebody_waits(service: Service) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while service.value(waiting) == 0:
        time.sleep(0.01)


class TestProofOfAbsence:
    """LiteLLM's 404 proves nothing when it was given before a generate that was still on its way."""

    def test_given_before_the_generate_is_not_made_good_by_the_creates_end(self, service: Service):
        """The 404 comes first, then the create runs its T2, which finds the token safe, and then the delete's T2."""
        told, may_go_on = Event(), Event()
        deletion = service.deletion(fresh=True)
        with ThreadPoolExecutor(1) as thread:
            deleting: list[Future[Any]] = []

            def begin_delete() -> None:
                key_id = str(service.only_key_id())
                deleting.append(thread.submit(deletion.delete, caller(), key_id, deadline=Deadline(20)))
                assert told.wait(20)

            service.gateway_faults.inject("/key/delete", "call_after", call=lambda: (told.set(), may_go_on.wait(20)))
            service.gateway_faults.inject("/key/generate", "call_before", call=begin_delete)
            with pytest.raises(OperationSuperseded):
                service.create()
            may_go_on.set()
            answer = deleting[0].result(30)

        key_id, token_hash = service.only_key_id(), service.token_hash()
        assert isinstance(answer, PendingDeletion)
        service.let_time_pass()
        assert service.settle().settled == 1
        assert not service.is_live(token_hash)
        assert service.traces(key_id) == Traces(
            row=None,
            tokens=[("dead", False)],
            operations=[("create", "forward", "superseded"), ("delete", "forward", "done")],
            audits=[("API_KEY_CREATE", False), ("API_KEY_DELETE", True)],
        )

    def test_given_while_unsafe_is_not_made_good_by_the_end_of_the_drain(self, service: Service):
        issued = service.create()
        service.rows("UPDATE api_key_tokens SET unsafe_until = now() + interval '1 hour'")
        service.gateway_faults.inject(
            "/key/delete",
            "call_after",
            call=lambda: service.rows("UPDATE api_key_tokens SET unsafe_until = now() - interval '1 s'"),
        )

        assert isinstance(service.delete(issued.id), PendingDeletion)
        assert isinstance(service.delete(issued.id), DeletedKey)


class TestNothingWasChanged:
    """Is said only when it is true."""

    def test_is_not_said_after_t1_whose_answer_was_lost(self, service: Service):
        service.database_faults.inject("cut_after", "begin_create", call=service.database_faults.refuse_connections)

        with pytest.raises(OutcomeUnknown):
            service.create()

        assert service.value("SELECT count(*) FROM api_key_operations WHERE state = 'pending'") == 1

    def test_is_not_said_after_t2_whose_answer_was_lost(self, service: Service):
        service.database_faults.inject("cut_after", "finish_create", call=service.database_faults.refuse_connections)

        with pytest.raises(OperationPending):
            service.create()

    def test_is_not_said_when_the_database_is_gone_after_litellm_made_the_key(self, service: Service):
        service.gateway_faults.inject(
            "/key/generate",
            "call_after",
            call=lambda: (service.database_faults.refuse_connections(), service.database_faults.cut_all()),
        )

        with pytest.raises(OperationPending):
            service.create()

        assert service.is_live(service.token_hash())

    def test_is_not_said_of_an_accepted_delete_whose_answer_was_lost(self, service: Service):
        issued = service.create()
        service.database_faults.inject("cut_after", "begin_delete", call=service.database_faults.refuse_connections)

        with pytest.raises(OutcomeUnknown):
            service.delete(issued.id)

        assert service.traces(issued.id).row == (False, "pending")


class TestTheSameIdsAgain:
    def test_meet_a_first_try_that_commits_only_now(self, service: Service):
        """The connection broke while T1 waited for the user's row; the server goes on with it all the same."""
        service.database.round_trip(Statement("/* warm_up */ SELECT 1"))
        with psycopg.connect(service.database_under_test.admin_dsn) as other, ThreadPoolExecutor(1) as thread:
            other.execute("SELECT FROM users WHERE oauth_id = 'alice' FOR UPDATE")
            creating = thread.submit(service.create)
            wait_until_somebody_waits(service)
            service.database_faults.inject("call_after", "read_create", call=other.rollback)
            service.database_faults.cut_all()
            issued: IssuedKey = creating.result(60)

        assert service.chat(issued.key) == 200
        assert service.value("SELECT count(*) FROM api_keys") == 1
        assert service.traces(issued.id) == LIVE

    def test_of_a_refused_create_are_audited_once(self, service: Service):
        service.database_faults.cut_after("begin_create")

        with pytest.raises(InvalidRequest):
            service.create(model_ids=["o3"])

        assert service.value("SELECT count(*) FROM audit_logs") == 1


class TestTwoFirstUses:
    def test_of_a_model_both_name_it(self, service: Service):
        service.rows("DELETE FROM subscriptions")
        service.rows("DELETE FROM models")
        with psycopg.connect(service.database_under_test.admin_dsn) as other, ThreadPoolExecutor(1) as thread:
            other.execute("INSERT INTO models (id, name, provider) VALUES ('gpt-4o', 'gpt-4o', 'openai')")
            creating = thread.submit(service.create, rules={"model_access": "any"})
            wait_until_somebody_waits(service)
            other.commit()
            issued: IssuedKey = creating.result(60)

        assert [model.id for model in issued.model_details] == ["gpt-4o"]
        assert service.traces(issued.id) == LIVE

    @pytest.mark.parametrize("constraint", ["users_username_key", "users_email_key"])
    @pytest.mark.parametrize(
        ("ask", "told"),
        [
            pytest.param(lambda service: service.list_keys("bob").pagination.total, 0, id="list"),
            pytest.param(
                lambda service: service.create("bob", rules={"model_access": "any"}).name, "notebook", id="create"
            ),
        ],
    )
    def test_of_the_service_by_one_caller_are_no_conflict(
        self, service: Service, ask: Callable[[Service], Any], told: Any, constraint: str
    ):
        """Both found no row; the second then meets the first's on the index that the conflict clause does not name."""
        self.collide(service, constraint, times=1)

        assert ask(service) == told
        assert service.value("SELECT count(*) FROM users WHERE oauth_id = 'bob'") == 1

    def test_that_collide_again_are_a_conflict(self, service: Service):
        self.collide(service, "users_username_key", times=2)

        with pytest.raises(IdentityConflict):
            service.list_keys("bob")

    def collide(self, service: Service, constraint: str, *, times: int) -> None:
        """PostgreSQL itself raises it, from a trigger: the moment between two index insertions cannot be met."""
        service.rows("CREATE SEQUENCE collisions")
        service.rows("GRANT USAGE ON SEQUENCE collisions TO PUBLIC")
        body = (
            "CREATE FUNCTION collide() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF nextval('collisions') <= {times} THEN"
            f" RAISE EXCEPTION USING ERRCODE = '23505', CONSTRAINT = '{constraint}'; END IF; RETURN NEW; END $$"
        )
        service.rows(body)  # pyright: ignore[reportArgumentType]
        service.rows("CREATE TRIGGER collide BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION collide()")


class TestDriver:
    def test_second_deadlock_is_unavailable(self, service: Service):
        deadlock = Statement("/* deadlock */ DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$")

        with pytest.raises(DatabaseUnavailable) as caught:
            service.database.round_trip(deadlock)

        assert not isinstance(caught.value, OutcomeUnknown)
        assert service.database_faults.steps == ["deadlock", "deadlock"]

    def test_does_not_log_what_it_then_raises(self):
        assert not logging.getLogger("psycopg").isEnabledFor(logging.WARNING)


class TestT2:
    def test_checks_every_model(self, service: Service):
        service.gateway_faults.inject(
            "/key/generate",
            "call_after",
            call=lambda: service.rows("UPDATE subscriptions SET status = 'cancelled' WHERE model_id = 'gpt-4o'"),
        )

        with pytest.raises(InvalidRequest):
            service.create(model_ids=["gpt-4o-mini", "gpt-4o"])

        assert not service.is_live(service.token_hash())
        assert service.traces().operations == [("create", "undo", "failed")]

    def test_of_a_key_lives_no_longer_than_it_was_asked_for(self, service: Service):
        """What LiteLLM takes for the user comes off: it counts a key's life from when it reads the request."""
        service.gateway_faults.inject("/user/new", "delay", seconds=1.2)

        issued = service.create(expires_at=datetime.now(UTC) + timedelta(hours=1))

        [call] = service.gateway_faults.calls_of("/key/generate")
        assert int(call.body["duration"].removesuffix("s")) <= 3598
        assert service.chat(issued.key) == 200


class TestOddRows:
    def insert(self, service: Service, **columns: Any) -> Any:
        values: dict[str, Any] = {
            "key_hash": "c" * 64,
            "is_active": True,
            "created_at": "2026-01-01T00:00:00Z",
        } | columns
        return service.value(
            "INSERT INTO api_keys (user_id, name, key_hash, key_prefix, is_active, created_at)"
            " SELECT id, 'n', %(key_hash)s, 'sk-x', %(is_active)s, %(created_at)s FROM users WHERE oauth_id = 'alice'"
            " RETURNING id",
            values,
        )

    def test_key_without_a_date_is_listed(self, service: Service):
        key_id = self.insert(service, created_at=None)

        assert [key.id for key in service.list_keys().data] == [key_id]

    def test_key_that_says_neither_on_nor_off_is_listed(self, service: Service):
        self.insert(service, is_active=None)

        [key] = service.list_keys().data
        assert (key.status, key.is_active) == ("active", True)

    def test_user_that_says_neither_on_nor_off_is_the_same_everywhere(self, service: Service):
        service.rows("UPDATE users SET is_active = NULL")

        for ask in (service.list_keys, service.create, lambda: service.delete(self.insert(service))):
            with pytest.raises(Forbidden):
                ask()

    def test_key_with_a_hash_of_an_earlier_one_is_deleted(self, service: Service):
        assert isinstance(service.delete(self.insert(service)), DeletedKey)

        again = self.insert(service)

        assert isinstance(service.delete(again), DeletedKey)
        assert service.traces(again).tokens == [("dead", False)]

    def test_key_that_litemaas_gave_another_secret_is_deleted_with_both(self, service: Service):
        issued = service.create()
        new_hash = service.make_gateway_key("sk-rewritten-by-litemaas")
        service.rows("UPDATE api_keys SET key_hash = %s", [new_hash])

        assert isinstance(service.delete(issued.id), DeletedKey)

        assert not service.is_live(hash_of(issued.key))
        assert not service.is_live(new_hash)
        assert service.traces(issued.id).tokens == [("dead", False), ("dead", False)]

    @pytest.mark.parametrize("value", ["null", "{}", '{"defaults": null}', '{"maximums": {"maxBudget": null}}'])
    def test_defaults_that_say_nothing_change_nothing(self, service: Service, value: str):
        service.rows("INSERT INTO system_settings (key, value) VALUES ('api_key_defaults', %s)", [value])

        assert service.create().is_active


def test_number_that_json_holds_and_python_does_not_print_is_no_failure(service: Service):
    service.create(metadata={"n": 10**30})

    [key] = service.list_keys().data
    assert key.metadata["n"] == 10**30


def test_request_without_models_is_told_before_anything_is_asked(service: Service):
    with pytest.raises(InvalidRequest):
        service.creation(model_access="any").create(
            caller(), NewApiKey(), idempotency_key="order-1", deadline=Deadline(5)
        )

    assert service.gateway_faults.calls == []
