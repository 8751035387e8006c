"""Rows that vanish beside the service, by LiteMaaS, a cascade or a hand at psql, take their LiteLLM keys with them."""

from typing import Any
from uuid import UUID

import psycopg
import pytest

from keyservice.errors import NotFound, OperationPending
from keyservice.models import DeletedKey, IssuedKey, PendingDeletion
from keyservice.settlement_store import SYSTEM_USER
from local.roles import MIGRATOR
from tests.integration.service import Service, Traces, hash_of

CONDEMNED = Traces(
    row=None,
    tokens=[("condemned", False)],
    operations=[("create", "forward", "done"), ("delete", "forward", "pending")],
    audits=[("API_KEY_CREATE", True)],
)
GONE = Traces(
    row=None,
    tokens=[("dead", False)],
    operations=[("create", "forward", "done"), ("delete", "forward", "done")],
    audits=[("API_KEY_CREATE", True), ("API_KEY_DELETE", True)],
)


def key_by_subscription(service: Service) -> IssuedKey:
    return service.create(
        model_ids=None, subscription_id=service.value("SELECT id FROM subscriptions WHERE model_id = 'gpt-4o'")
    )


def remove_user(service: Service, name: str = "alice") -> None:
    """As whoever removes one has to: audit records point to users."""
    service.rows("UPDATE audit_logs SET user_id = NULL")
    service.rows("DELETE FROM users WHERE oauth_id = %s", [name])


class TestKeyWhoseRowIsDeleted:
    def test_by_hand_goes_with_the_next_run(self, service: Service):
        issued = service.create(model_ids=["gpt-4o-mini", "gpt-4o"])
        service.rows("DELETE FROM api_keys")
        vanished = service.traces(issued.id)

        report = service.settle()

        assert vanished == CONDEMNED
        assert report.settled == 1
        assert service.chat(issued.key) == 401
        assert service.traces(issued.id) == GONE

    def test_with_its_subscription_goes_with_the_next_run(self, service: Service):
        issued = key_by_subscription(service)
        service.rows("DELETE FROM subscriptions WHERE model_id = 'gpt-4o'")

        service.settle()

        assert service.chat(issued.key) == 401
        assert service.traces(issued.id) == GONE

    def test_with_its_user_goes_with_the_next_run(self, service: Service):
        keys = [service.create(), key_by_subscription(service)]
        others = service.subscribe("bob", models=["gpt-4o"])
        untouched = service.create("bob")
        remove_user(service)

        report = service.settle()

        assert report.settled == 2
        assert [service.chat(issued.key) for issued in keys] == [401, 401]
        assert [service.traces(issued.id) for issued in keys] == [GONE, GONE]
        assert (service.chat(untouched.key), untouched.user_id) == (200, others)

    def test_is_audited_with_the_system_as_actor_and_what_it_was(self, service: Service):
        issued = service.create(model_ids=["gpt-4o-mini", "gpt-4o"])
        remove_user(service)

        service.settle()

        [audit] = service.rows("SELECT * FROM audit_logs WHERE action = 'API_KEY_DELETE'")
        assert str(audit["user_id"]) == SYSTEM_USER
        assert (audit["resource_id"], audit["success"]) == (str(issued.id), True)
        assert audit["metadata"]["reason"] == "rowRemoved"
        assert audit["metadata"]["userId"] == str(issued.user_id)
        assert (audit["metadata"]["name"], audit["metadata"]["keyPrefix"]) == ("notebook", issued.key_prefix)
        assert audit["metadata"]["models"] == ["gpt-4o", "gpt-4o-mini"]

    def test_by_a_role_without_rights_to_our_tables_is_condemned_all_the_same(self, service: Service):
        issued = service.create()
        service.rows("DO $$ BEGIN CREATE ROLE litemaas; EXCEPTION WHEN duplicate_object THEN END $$")
        service.rows("GRANT SELECT, DELETE ON api_keys TO litemaas")

        with psycopg.connect(service.database_under_test.admin_dsn, autocommit=True) as connection:
            connection.execute("SET ROLE litemaas")
            connection.execute("DELETE FROM api_keys")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT FROM api_key_tokens")

        assert service.traces(issued.id) == CONDEMNED

    def test_and_rolled_back_is_not_touched(self, service: Service):
        issued = service.create()
        with psycopg.connect(service.database_under_test.admin_dsn) as connection:
            connection.execute("DELETE FROM api_keys")
            connection.rollback()

        assert service.settle().attempted == 0
        assert service.chat(issued.key) == 200

    def test_stays_condemned_while_litellm_is_down(self, service: Service):
        issued = service.create()
        service.rows("DELETE FROM api_keys")
        service.gateway_faults.inject("/key/delete", "status", status=500)

        assert service.settle().settled == 0
        assert service.traces(issued.id) == CONDEMNED
        service.let_time_pass()
        assert service.settle().settled == 1
        assert service.traces(issued.id) == GONE

    def test_is_not_found_by_its_owner(self, service: Service):
        issued = service.create()
        service.rows("DELETE FROM api_keys")

        with pytest.raises(NotFound):
            service.delete(issued.id)


class TestKeyThatIsNotOurs:
    def insert(self, service: Service, key_hash: str) -> UUID:
        return service.value(
            "INSERT INTO api_keys (user_id, name, key_hash, key_prefix, litellm_key_alias)"
            " SELECT id, 'old', %s, 'sk-made', 'old_abc' FROM users WHERE oauth_id = 'alice' RETURNING id",
            [key_hash],
        )

    def test_but_litemaas_made_goes_by_its_hash(self, service: Service):
        token_hash = service.make_gateway_key("sk-made-by-litemaas-then-vanished")
        key_id = self.insert(service, token_hash)
        service.rows("DELETE FROM api_keys")

        service.settle()

        assert not service.is_live(token_hash)
        assert service.traces(key_id) == Traces(
            row=None,
            tokens=[("dead", False)],
            operations=[("delete", "forward", "done")],
            audits=[("API_KEY_DELETE", True)],
        )

    @pytest.mark.parametrize("key_hash", ["", "bcrypt$2b$12$abc", "A" * 64, "a" * 63])
    def test_nor_anything_that_litellm_could_know_leaves_nothing(self, service: Service, key_hash: str):
        key_id = self.insert(service, key_hash)

        service.rows("DELETE FROM api_keys")

        assert service.traces(key_id) == Traces(row=None, tokens=[], operations=[], audits=[])

    def test_alone_because_litemaas_gave_it_another_secret_goes_with_both(self, service: Service):
        issued = service.create()
        new_hash = service.make_gateway_key("sk-rotated-by-litemaas-then-vanished")
        service.rows("UPDATE api_keys SET key_hash = %s", [new_hash])
        service.rows("DELETE FROM api_keys")

        service.settle()

        assert not service.is_live(hash_of(issued.key))
        assert not service.is_live(new_hash)
        assert service.traces(issued.id).tokens == [("dead", False), ("dead", False)]
        assert service.traces(issued.id).audits == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]

    def test_with_a_hash_that_was_another_keys_goes_again(self, service: Service):
        token_hash = service.make_gateway_key("sk-made-twice-by-litemaas")
        first = self.insert(service, token_hash)
        service.rows("DELETE FROM api_keys")
        service.settle()
        service.make_gateway_key("sk-made-twice-by-litemaas")
        second = self.insert(service, token_hash)

        service.rows("DELETE FROM api_keys")
        service.settle()

        assert not service.is_live(token_hash)
        assert service.traces(first).tokens == []
        assert service.traces(second).tokens == [("dead", False)]


class TestRowOfAnOperation:
    def interrupted_create(self, service: Service, fault: Any = "reset_after") -> UUID:
        service.gateway_faults.inject("/key/generate", fault)
        with pytest.raises(OperationPending):
            service.create()
        return service.only_key_id()

    def test_that_creates_it_is_undone(self, service: Service):
        key_id = self.interrupted_create(service)
        token_hash = service.token_hash()
        service.rows("DELETE FROM api_keys")
        vanished = service.traces(key_id)
        service.let_time_pass()

        service.settle()

        assert vanished.tokens == [("condemned", True)]
        assert vanished.operations == [("create", "forward", "pending")]
        assert not service.is_live(token_hash)
        assert service.traces(key_id) == Traces(
            row=None,
            tokens=[("dead", False)],
            operations=[("create", "undo", "failed")],
            audits=[("API_KEY_CREATE", False)],
        )

    def test_that_deletes_it_is_finished_once(self, service: Service):
        issued = service.create()
        service.gateway_faults.inject("/key/delete", "status", status=500)
        assert isinstance(service.delete(issued.id), PendingDeletion)
        service.rows("DELETE FROM api_keys")
        service.let_time_pass()

        service.settle()

        assert service.traces(issued.id) == GONE

    def test_that_is_over_leaves_nothing_to_do(self, service: Service):
        issued = service.create()

        assert isinstance(service.delete(issued.id), DeletedKey)

        assert service.traces(issued.id) == GONE
        assert service.settle().attempted == 0

    def test_that_let_it_expire_leaves_nothing_to_do(self, service: Service):
        issued = service.create()
        service.rows("UPDATE api_keys SET expires_at = now()")
        service.settle()

        service.rows("DELETE FROM api_keys")

        assert service.settle().attempted == 0
        assert service.traces(issued.id).audits == [("API_KEY_CREATE", True), ("API_KEY_EXPIRED", True)]


def test_trigger_belongs_to_the_migrator_and_nobody_calls_its_function(service: Service):
    [row] = service.rows(
        "SELECT pg_get_userbyid(proowner)::text AS owner, prosecdef, proacl::text AS acl, proconfig::text AS config"
        " FROM pg_proc WHERE proname = 'keyservice_condemn_tokens'"
    )

    assert (row["owner"], row["prosecdef"]) == (MIGRATOR, True)
    assert row["acl"] == f"{{{MIGRATOR}=X/{MIGRATOR}}}"
    assert "search_path=pg_catalog, public, pg_temp" in row["config"]
