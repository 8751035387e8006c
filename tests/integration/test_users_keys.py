"""What administrators do to the keys of others: one record names both, and the owner's rights count."""

from typing import Any
from uuid import UUID

import pytest

from keyservice.errors import (
    Braked,
    Forbidden,
    GatewayUnavailable,
    InvalidRequest,
    NotFound,
    OperationPending,
)
from keyservice.models import (
    CleanedUp,
    Creation,
    Deadline,
    DeletedKey,
    NewApiKey,
    PendingDeletion,
    RevokedKey,
)
from keyservice.settlement import CleanupRules, ExpiryCleanup
from tests.integration.service import Service, Traces, all_at_once, caller, hash_of

ADMIN = caller("root", roles=["admin"])
NOBODYS_ID = "99999999-9999-4999-8999-999999999999"


@pytest.fixture
def alice(service: Service) -> str:
    return str(service.value("SELECT id FROM users WHERE oauth_id = 'alice'"))


def create_for(service: Service, user_id: str, *, by: Any = ADMIN, once: str | None = None, **body: Any) -> Creation:
    wanted = NewApiKey(**({"model_ids": ["gpt-4o"], "name": "given"} | body))
    return service.creation().create_for(by, user_id, wanted, idempotency_key=once, deadline=Deadline(20))


def end_for(service: Service, user_id: str, key_id: UUID | str, *, by: Any = ADMIN, **query: str) -> Any:
    return service.deletion().end_for(by, user_id, str(key_id), query, deadline=Deadline(20))


def only_record(service: Service, action: str) -> tuple[str, str, bool]:
    """Who did it, to whom, with what success."""
    [record] = service.rows(
        "SELECT u.oauth_id, a.metadata ->> 'userId' AS subject, a.success FROM audit_logs AS a"
        " JOIN users AS u ON u.id = a.user_id WHERE a.action = %s",
        [action],
    )
    return record["oauth_id"], record["subject"], record["success"]


class TestCreate:
    def test_is_the_users_key_and_the_administrators_act(self, service: Service, alice: str):
        created = create_for(service, alice)

        assert str(created.key.user_id) == alice
        assert service.chat(created.key.key) == 200
        assert service.gateway_key(hash_of(created.key.key))["user_id"] == alice
        assert [key.id for key in service.list_keys("alice").data] == [created.key.id]
        assert only_record(service, "API_KEY_CREATE") == ("root", alice, True)
        assert [trip.steps for trip in service.database_faults.trips][:2] == [
            ("lock_owner", "begin_create"),
            ("lock_user", "lock_key", "finish_create"),
        ]

    def test_counts_the_users_subscriptions_and_keys_and_nobody_elses(self, service: Service, alice: str):
        service.subscribe("root", models=["o3"])
        create_for(service, alice)

        with pytest.raises(InvalidRequest) as not_entitled:
            create_for(service, alice, model_ids=["o3"])
        with pytest.raises(InvalidRequest) as too_many:
            service.creation(max_active_keys=1).create_for(
                ADMIN, alice, NewApiKey(model_ids=["gpt-4o"]), idempotency_key=None, deadline=Deadline(20)
            )

        assert [v.code for v in not_entitled.value.details["validation"]] == ["notEntitled"]
        assert [v.code for v in too_many.value.details["validation"]] == ["keyLimit"]
        records = service.rows(
            "SELECT u.oauth_id, a.metadata ->> 'userId' AS subject FROM audit_logs AS a"
            " JOIN users AS u ON u.id = a.user_id WHERE NOT a.success"
        )
        assert [tuple(record.values()) for record in records] == [("root", alice)] * 2

    def test_for_a_user_who_is_not_active_is_refused(self, service: Service, alice: str):
        service.rows("UPDATE users SET is_active = false WHERE id = %s", [alice])

        with pytest.raises(InvalidRequest) as caught:
            create_for(service, alice)

        assert [(v.field, v.code) for v in caught.value.details["validation"]] == [("userId", "inactiveOwner")]
        assert service.gateway_faults.calls == []

    @pytest.mark.parametrize("user_id", [NOBODYS_ID, "not an id"])
    def test_for_nobody_is_not_found(self, service: Service, user_id: str):
        with pytest.raises(NotFound) as caught:
            create_for(service, user_id)

        assert caught.value.message == "User not found"
        assert service.rows("SELECT FROM api_key_operations") == []

    @pytest.mark.parametrize("role", ["user", "readonly", "admin-readonly"])
    def test_by_anyone_else_is_forbidden(self, service: Service, alice: str, role: str):
        with pytest.raises(Forbidden):
            create_for(service, alice, by=caller("mallory", roles=[role]))

        assert service.rows("SELECT FROM api_keys") == service.rows("SELECT FROM audit_logs") == []

    def test_repeated_gives_the_same_key_again(self, service: Service, alice: str):
        first, again = (create_for(service, alice, once="k") for _ in range(2))

        assert (first.is_replayed, again.is_replayed) == (False, True)
        assert again.key == first.key

    def test_whose_answer_was_lost_is_resumed(self, service: Service, alice: str):
        service.gateway_faults.inject("/key/generate", "reset_after")
        with pytest.raises(OperationPending):
            create_for(service, alice, once="k")
        service.let_time_pass()

        created = create_for(service, alice, once="k")

        assert service.chat(created.key.key) == 200
        assert only_record(service, "API_KEY_CREATE") == ("root", alice, True)

    def test_and_the_owners_own_with_one_idempotency_key_are_three_creates(self, service: Service, alice: str):
        other = caller("other-root", roles=["admin"])

        keys = [
            create_for(service, alice, once="k").key,
            create_for(service, alice, once="k", by=other).key,
            service.ask_for_key("alice", idempotency_key="k", name="given").key,
        ]

        assert len({key.id for key in keys}) == 3

    def test_of_two_administrators_for_one_another_do_not_deadlock(self, service: Service):
        names = ["root", "other-root"]
        ids = {name: str(service.subscribe(name, models=["gpt-4o"])) for name in names}
        creations = [service.creation(fresh=True) for _ in range(8)]

        outcomes = all_at_once(
            [
                lambda creation=creation, number=number: creation.create_for(
                    caller(names[number % 2], roles=["admin"]),
                    ids[names[1 - number % 2]],
                    NewApiKey(model_ids=["gpt-4o"]),
                    idempotency_key=None,
                    deadline=Deadline(20),
                )
                for number, creation in enumerate(creations)
            ]
        )

        assert [type(outcome) for outcome in outcomes] == [Creation] * 8


class TestRevocation:
    def test_ends_the_key_and_keeps_its_row(self, service: Service, alice: str):
        issued = service.create()

        outcome = end_for(service, alice, issued.id)

        assert isinstance(outcome, RevokedKey)
        assert outcome.message == "API key revoked successfully"
        assert service.chat(issued.key) == 401
        [row] = service.rows("SELECT is_active, sync_status, revoked_at IS NOT NULL AS is_revoked FROM api_keys")
        assert tuple(row.values()) == (False, "synced", True)
        assert [key.status for key in service.list_keys().data] == ["revoked"]
        assert only_record(service, "API_KEY_REVOKE") == ("root", alice, True)
        assert service.traces(issued.id).tokens == [("dead", False)]

    def test_again_is_not_found_and_the_row_can_still_be_deleted(self, service: Service, alice: str):
        issued = service.create()
        end_for(service, alice, issued.id)

        with pytest.raises(NotFound):
            end_for(service, alice, issued.id)
        outcome = end_for(service, alice, issued.id, permanent="true")

        assert isinstance(outcome, DeletedKey)
        assert service.rows("SELECT FROM api_keys") == []

    def test_that_litellm_does_not_confirm_is_settled(self, service: Service, alice: str):
        issued = service.create()
        service.gateway_faults.inject("/key/delete", "status", status=500)

        outcome = end_for(service, alice, issued.id)
        service.let_time_pass()
        service.settle()

        assert isinstance(outcome, PendingDeletion)
        assert service.value("SELECT revoked_at IS NOT NULL FROM api_keys") is True
        assert not service.is_live(hash_of(issued.key))
        assert only_record(service, "API_KEY_REVOKE") == ("root", alice, True)

    def test_under_way_becomes_a_delete_when_that_is_asked_for(self, service: Service, alice: str):
        issued = service.create()
        service.gateway_faults.inject("/key/delete", "status", status=500)
        end_for(service, alice, issued.id)

        outcome = service.delete(issued.id)

        assert isinstance(outcome, DeletedKey)
        assert service.rows("SELECT FROM api_keys") == []
        assert only_record(service, "API_KEY_DELETE") == ("alice", alice, True)
        assert service.rows("SELECT FROM audit_logs WHERE action = 'API_KEY_REVOKE'") == []

    def test_leaves_a_delete_under_way_a_delete(self, service: Service, alice: str):
        issued = service.create()
        service.gateway_faults.inject("/key/delete", "status", status=500)
        service.delete(issued.id)

        end_for(service, alice, issued.id)

        assert service.rows("SELECT FROM api_keys") == []
        assert only_record(service, "API_KEY_DELETE") == ("alice", alice, True)

    def test_of_an_unfinished_create_ends_that_too(self, service: Service, alice: str):
        service.gateway_faults.inject("/key/generate", "reset_before")
        with pytest.raises(OperationPending):
            service.create()
        key_id = service.only_key_id()

        first = end_for(service, alice, key_id)
        service.let_time_pass()
        second = end_for(service, alice, key_id)

        assert (type(first), type(second)) == (PendingDeletion, RevokedKey)
        assert service.traces(key_id) == Traces(
            row=(False, "synced"),
            tokens=[("dead", False)],
            operations=[("create", "forward", "superseded"), ("delete", "forward", "done")],
            audits=[("API_KEY_CREATE", False), ("API_KEY_REVOKE", True)],
        )


class TestDelete:
    def test_is_as_the_owners_own(self, service: Service, alice: str):
        issued = service.create()

        outcome = end_for(service, alice, issued.id, permanent="true")

        assert isinstance(outcome, DeletedKey)
        assert service.rows("SELECT FROM api_keys") == []
        assert not service.is_live(hash_of(issued.key))
        assert only_record(service, "API_KEY_DELETE") == ("root", alice, True)
        assert ("lock_users_key", "begin_delete") in [trip.steps for trip in service.database_faults.trips]
        with pytest.raises(NotFound):
            end_for(service, alice, issued.id, permanent="true")

    def test_of_another_users_key_is_not_found(self, service: Service):
        issued = service.create()
        bob = str(service.subscribe("bob", models=[]))

        with pytest.raises(NotFound):
            end_for(service, bob, issued.id, permanent="true")

        assert service.chat(issued.key) == 200

    @pytest.mark.parametrize("user_id", [NOBODYS_ID, "not an id"])
    def test_of_nobodys_key_is_not_found(self, service: Service, user_id: str):
        issued = service.create()

        with pytest.raises(NotFound) as caught:
            end_for(service, user_id, issued.id)

        assert caught.value.message == "User not found"
        assert service.chat(issued.key) == 200

    @pytest.mark.parametrize("role", ["user", "readonly", "admin-readonly"])
    def test_by_anyone_else_is_forbidden_and_the_key_goes_on(self, service: Service, alice: str, role: str):
        issued = service.create()

        with pytest.raises(Forbidden):
            end_for(service, alice, issued.id, by=caller("mallory", roles=[role]), permanent="true")

        assert service.chat(issued.key) == 200
        assert service.traces(issued.id).operations == [("create", "forward", "done")]

    def test_with_a_malformed_permanent_is_refused(self, service: Service, alice: str):
        issued = service.create()

        with pytest.raises(InvalidRequest):
            end_for(service, alice, issued.id, permanent="yes please")

        assert service.chat(issued.key) == 200


def clean_up(service: Service, *, by: Any = ADMIN, seconds: float = 20, **rules: Any) -> CleanedUp:
    chosen = {"deployment": service.deployment, "lease_seconds": 30.0, "keeps_expired_rows": True} | rules
    cleanup = ExpiryCleanup(database=service.database, litellm=service.gateway, rules=CleanupRules(**chosen))
    return cleanup.run(by, deadline=Deadline(seconds))


class TestCleanup:
    def expire(self, service: Service, keys: int) -> list[str]:
        secrets = [service.create().key for _ in range(keys)]
        service.rows("UPDATE api_keys SET expires_at = now()")
        return secrets

    def test_ends_what_is_expired_and_nothing_else(self, service: Service, alice: str):
        secrets = self.expire(service, 2)
        kept = service.create()

        cleaned = clean_up(service)

        assert (cleaned.cleaned_count, cleaned.pending_count) == (2, 0)
        assert cleaned.message == "Expired API keys cleaned up successfully"
        assert [service.is_live(hash_of(secret)) for secret in secrets] == [False, False]
        assert service.chat(kept.key) == 200
        records = service.rows(
            "SELECT u.oauth_id, a.metadata ->> 'userId' AS subject FROM audit_logs AS a"
            " JOIN users AS u ON u.id = a.user_id WHERE a.action = 'API_KEY_EXPIRED'"
        )
        assert [tuple(record.values()) for record in records] == [("root", alice)] * 2

    def test_deletes_the_rows_where_the_stack_says_so(self, service: Service):
        self.expire(service, 1)

        clean_up(service, keeps_expired_rows=False)

        assert service.rows("SELECT FROM api_keys") == []

    def test_says_what_litellm_did_not_confirm_and_settling_ends_it(self, service: Service):
        secrets = self.expire(service, 2)
        service.gateway_faults.inject("/key/delete", "status", status=500)

        cleaned = clean_up(service)
        service.let_time_pass()
        service.settle()

        assert (cleaned.cleaned_count, cleaned.pending_count) == (1, 1)
        assert [service.is_live(hash_of(secret)) for secret in secrets] == [False, False]
        assert clean_up(service).pending_count == 0

    def test_without_anything_expired_says_so(self, service: Service):
        service.create()

        cleaned = clean_up(service)

        assert (cleaned.cleaned_count, cleaned.pending_count) == (0, 0)

    def test_in_a_copy_of_the_database_deletes_nothing(self, service: Service):
        [secret] = self.expire(service, 1)
        service.rows("UPDATE keyservice_installation SET stack_name = 'another'")

        with pytest.raises(Braked) as caught:
            clean_up(service)

        assert caught.value.details == {"brake": "otherStack"}
        assert service.is_live(hash_of(secret))

    def test_without_litellm_begins_nothing(self, service: Service):
        self.expire(service, 1)
        service.gateway_faults.inject("/key/list", "status", status=500)

        with pytest.raises(GatewayUnavailable):
            clean_up(service)

        assert service.value("SELECT count(*) FROM api_key_operations WHERE kind = 'delete'") == 0

    @pytest.mark.parametrize("role", ["user", "readonly", "admin-readonly"])
    def test_by_anyone_else_is_forbidden_before_litellm_is_asked(self, service: Service, role: str):
        self.expire(service, 1)
        service.gateway_faults.forget_calls()

        with pytest.raises(Forbidden):
            clean_up(service, by=caller("mallory", roles=[role]))

        assert service.gateway_faults.calls == []
        assert service.value("SELECT is_active FROM api_keys") is True
