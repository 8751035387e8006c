"""A delete: 200 only when the key is gone in both systems, and whatever cuts it, it can be ended."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from keyservice.errors import DatabaseUnavailable, Forbidden, NotFound, OutcomeUnknown
from keyservice.models import Deadline, DeletedKey, PendingDeletion
from tests.integration.service import Service, Traces, caller, hash_of

DELETED = Traces(
    row=None,
    tokens=[("dead", False)],
    operations=[("create", "forward", "done"), ("delete", "forward", "done")],
    audits=[("API_KEY_CREATE", True), ("API_KEY_DELETE", True)],
)
PENDING = Traces(
    row=(False, "pending"),
    tokens=[("condemned", False)],
    operations=[("create", "forward", "done"), ("delete", "forward", "pending")],
    audits=[("API_KEY_CREATE", True)],
)
UNTOUCHED = Traces(
    row=(True, "synced"),
    tokens=[("live", False)],
    operations=[("create", "forward", "done")],
    audits=[("API_KEY_CREATE", True)],
)


@pytest.fixture
def key_id(service: Service) -> UUID:
    """Of a live key; what its making took is forgotten."""
    issued = service.create(model_ids=["gpt-4o-mini", "gpt-4o"])
    service.gateway_faults.forget_calls()
    service.database_faults.reset_counts()
    return issued.id


class TestDeletedKey:
    def test_is_gone_everywhere(self, service: Service, key_id: UUID):
        token_hash = service.token_hash(key_id)

        answer = service.delete(key_id)

        assert isinstance(answer, DeletedKey)
        assert answer.message == "API key deleted successfully"
        assert service.traces(key_id) == DELETED
        assert service.rows("SELECT FROM api_key_models") == []
        assert not service.is_live(token_hash)

    def test_is_refused_by_litellm(self, service: Service):
        issued = service.create()

        service.delete(issued.id)

        assert service.chat(issued.key) == 401

    def test_is_forgotten_by_all_replicas_a_minute_later(self, service: Service, key_id: UUID):
        answer = service.delete(key_id)

        assert isinstance(answer, DeletedKey)
        finished = service.value(
            "SELECT to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
            " FROM api_key_operations WHERE kind = 'delete'"
        )
        later = service.value(
            "SELECT to_char((finished_at + interval '60 s') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"
            " FROM api_key_operations WHERE kind = 'delete'"
        )
        assert (answer.deleted_at, answer.effective_by) == (finished, later)

    def test_is_audited_with_its_name_prefix_and_models(self, service: Service, key_id: UUID):
        prefix = service.value("SELECT key_prefix FROM api_keys")

        service.delete(key_id)

        [audit] = service.rows("SELECT * FROM audit_logs WHERE action = 'API_KEY_DELETE'")
        operation_id = service.value("SELECT id FROM api_key_operations WHERE kind = 'delete'")
        user_id = service.value("SELECT id FROM users WHERE oauth_id = 'alice'")
        assert audit["user_id"] == user_id
        assert audit["metadata"] == {
            "requestId": "request-of-alice",
            "operationId": str(operation_id),
            "userId": str(user_id),
            "name": "notebook",
            "keyPrefix": prefix,
            "models": ["gpt-4o", "gpt-4o-mini"],
            "modelCount": 2,
        }

    def test_takes_two_round_trips_and_one_call(self, service: Service, key_id: UUID):
        service.delete(key_id)

        assert [trip.steps for trip in service.database_faults.trips] == [
            ("lock_own_key", "begin_delete"),
            ("lock_key", "finish_delete"),
        ]
        assert [call.path for call in service.gateway_faults.calls] == ["/key/delete"]

    def test_is_not_found_a_second_time(self, service: Service, key_id: UUID):
        service.delete(key_id)

        with pytest.raises(NotFound):
            service.delete(key_id)

        assert service.traces(key_id) == DELETED

    def test_that_litellm_has_lost_already_is_deleted_all_the_same(self, service: Service, key_id: UUID):
        service._ask("POST", "/key/delete", body={"keys": [service.token_hash(key_id)]})

        assert isinstance(service.delete(key_id), DeletedKey)
        assert service.traces(key_id) == DELETED


class TestRefusedDelete:
    @pytest.mark.parametrize("given", ["x", "", "3f2504e04f8941d39a0c0305e82c3301", "\0", "%00", "a" * 10_000])
    def test_of_a_malformed_id_is_not_found_without_a_query(self, service: Service, given: str):
        with pytest.raises(NotFound) as caught:
            service.delete(given)

        assert caught.value.message == "API key not found"
        assert "id" not in caught.value.details
        assert service.database_faults.round_trips == 0

    def test_of_an_unknown_id_names_it(self, service: Service):
        unknown = uuid4()

        with pytest.raises(NotFound) as caught:
            service.delete(unknown)

        assert caught.value.message == f"API key with ID '{unknown}' not found"
        assert caught.value.details["id"] == str(unknown)

    def test_of_somebody_elses_key_looks_the_same_and_changes_nothing(self, service: Service, key_id: UUID):
        service.subscribe("bob", models=[])

        with pytest.raises(NotFound) as caught:
            service.delete(key_id, "bob")

        assert caught.value.message == f"API key with ID '{key_id}' not found"
        assert service.traces(key_id) == UNTOUCHED
        assert service.gateway_faults.calls == []

    def test_by_somebody_unknown_is_not_found_and_registers_nobody(self, service: Service, key_id: UUID):
        with pytest.raises(NotFound):
            service.delete(key_id, "bob")

        assert service.rows("SELECT FROM users WHERE oauth_id = 'bob'") == []

    def test_by_an_inactive_caller_is_forbidden_and_changes_nothing(self, service: Service, key_id: UUID):
        service.rows("UPDATE users SET is_active = false")

        with pytest.raises(Forbidden):
            service.delete(key_id)

        assert service.traces(key_id) == UNTOUCHED


class TestLiteLLMDoesNotConfirm:
    @pytest.mark.parametrize(
        ("fault", "status", "is_gone"),
        [
            pytest.param("status", 500, False, id="500"),
            pytest.param("status", 401, False, id="wrong master key"),
            pytest.param("hang", 500, False, id="hangs"),
            pytest.param("reset_before", 500, False, id="reset before the work"),
            pytest.param("reset_after", 500, True, id="reset after the work"),
        ],
    )
    def test_delete_is_accepted_and_ended_by_the_next(
        self, service: Service, key_id: UUID, fault: Any, status: int, *, is_gone: bool
    ):
        service.gateway_faults.inject("/key/delete", fault, status=status, times=2 if status == 401 else 1)

        accepted = service.delete(key_id, seconds=0.5)

        assert accepted == PendingDeletion(
            message="API key deletion accepted. The key is off in this service; LiteLLM has not confirmed yet."
        )
        assert service.traces(key_id) == PENDING
        assert service.is_live(service.token_hash(key_id)) is not is_gone
        assert [key.status for key in service.list_keys().data] == ["deleting"]
        assert isinstance(service.delete(key_id), DeletedKey)
        assert service.traces(key_id) == DELETED
        with pytest.raises(NotFound):
            service.delete(key_id)

    def test_404_of_a_load_balancer_is_no_confirmation(self, service: Service, key_id: UUID):
        service.gateway_faults.inject("/key/delete", "status", status=404, body={"detail": "Not Found"})

        assert isinstance(service.delete(key_id), PendingDeletion)
        assert service.traces(key_id) == PENDING

    def test_journal_says_why(self, service: Service, key_id: UUID):
        service.gateway_faults.inject("/key/delete", "status", status=503)

        service.delete(key_id)

        [row] = service.rows("SELECT * FROM api_key_operations WHERE kind = 'delete'")
        assert row["last_error"] == "key/delete: answered 503"
        assert row["next_attempt_at"] <= row["updated_at"]

    def test_unsafe_token_is_looked_at_again_when_it_is_safe(self, service: Service, key_id: UUID):
        service.rows("UPDATE api_key_tokens SET unsafe_until = now() + interval '10 minutes'")

        accepted = service.delete(key_id)

        [row] = service.rows(
            "SELECT o.last_error, o.next_attempt_at = t.unsafe_until AS is_timed, o.lease_until <= now() AS is_free"
            " FROM api_key_operations AS o JOIN api_key_tokens AS t USING (api_key_id) WHERE o.kind = 'delete'"
        )
        assert isinstance(accepted, PendingDeletion)
        assert row == {
            "last_error": "an earlier request to LiteLLM may still make the key",
            "is_timed": True,
            "is_free": True,
        }


class TestConnectionCut:
    @pytest.mark.parametrize("step", ["lock_own_key", "begin_delete", "lock_key", "finish_delete"])
    @pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
    def test_once_is_not_noticed(self, service: Service, key_id: UUID, step: str, fault: Any):
        service.database_faults.inject(fault, step)

        assert isinstance(service.delete(key_id), DeletedKey)
        assert service.traces(key_id) == DELETED

    @pytest.mark.parametrize("step", ["lock_own_key", "begin_delete"])
    def test_twice_before_t1_has_changed_nothing(self, service: Service, key_id: UUID, step: str):
        service.database_faults.cut_before(step, times=2)

        with pytest.raises(OutcomeUnknown):
            service.delete(key_id)

        assert service.traces(key_id) == UNTOUCHED
        assert isinstance(service.delete(key_id), DeletedKey)

    def test_twice_after_t1_is_ended_by_whoever_asks_after_the_lease(self, service: Service, key_id: UUID):
        service.database_faults.cut_after("begin_delete", times=2)

        with pytest.raises(OutcomeUnknown):
            service.delete(key_id)

        assert service.traces(key_id) == PENDING
        assert isinstance(service.delete(key_id), PendingDeletion)
        assert service.gateway_faults.calls == []
        service.let_time_pass()
        assert isinstance(service.delete(key_id), DeletedKey)
        assert service.traces(key_id) == DELETED

    @pytest.mark.parametrize("step", ["lock_key", "finish_delete"])
    def test_twice_before_t2_is_ended_by_the_next_delete(self, service: Service, key_id: UUID, step: str):
        service.database_faults.cut_before(step, times=2)

        accepted = service.delete(key_id)

        assert isinstance(accepted, PendingDeletion)
        assert service.traces(key_id) == PENDING
        assert isinstance(service.delete(key_id), DeletedKey)
        assert service.traces(key_id) == DELETED

    @pytest.mark.parametrize("step", ["lock_key", "finish_delete"])
    def test_twice_after_t2_has_deleted_it_once(self, service: Service, key_id: UUID, step: str):
        service.database_faults.inject("cut_after", step, times=2)

        accepted = service.delete(key_id)

        assert isinstance(accepted, PendingDeletion)
        assert service.traces(key_id) == DELETED
        with pytest.raises(NotFound):
            service.delete(key_id)

    @pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
    def test_of_the_release_leaves_the_delete_to_whoever_asks_after_the_lease(
        self, service: Service, key_id: UUID, fault: Any
    ):
        service.gateway_faults.inject("/key/delete", "status", status=500)
        service.database_faults.inject(fault, "release")

        accepted = service.delete(key_id)
        service.let_time_pass()

        assert isinstance(accepted, PendingDeletion)
        assert isinstance(service.delete(key_id), DeletedKey)
        assert service.traces(key_id) == DELETED

    def test_database_that_is_down_is_told(self, service: Service, key_id: UUID):
        service.database_faults.refuse_connections()
        service.database_faults.cut_all()

        with pytest.raises(DatabaseUnavailable):
            service.delete(key_id)

        service.database_faults.clear()
        assert service.traces(key_id) == UNTOUCHED


class TestDeleteHeldByAnother:
    def test_is_left_to_it_until_its_lease_is_over(self, service: Service, key_id: UUID):
        answers: list[Any] = []
        service.gateway_faults.inject("/key/delete", "call_before", call=lambda: answers.append(again(service, key_id)))

        first = service.delete(key_id)

        assert isinstance(first, DeletedKey)
        assert isinstance(answers[0], PendingDeletion)
        assert len(service.gateway_faults.calls_of("/key/delete")) == 1
        assert service.traces(key_id) == DELETED

    def test_that_was_taken_over_is_not_finished_by_the_first(self, service: Service, key_id: UUID):
        answers: list[Any] = []

        def take_over() -> None:
            service.let_time_pass()
            answers.append(again(service, key_id))

        service.gateway_faults.inject("/key/delete", "call_before", call=take_over)

        first = service.delete(key_id)

        assert isinstance(answers[0], DeletedKey)
        assert isinstance(first, PendingDeletion)
        assert service.traces(key_id) == DELETED
        assert service.value("SELECT epoch FROM api_key_operations WHERE kind = 'delete'") == 2


def again(service: Service, key_id: UUID) -> DeletedKey | PendingDeletion:
    """By another execution environment."""
    return service.deletion(fresh=True).delete(caller(), str(key_id), deadline=Deadline(10))


class TestKeyOfLiteMaaS:
    """A row without a token of ours: its key_hash is LiteLLM's token id all the same."""

    SECRET = "sk-made-by-litemaas-before-us"

    def insert(self, service: Service, **columns: Any) -> UUID:
        values = {
            "key_hash": hash_of(self.SECRET),
            "key_prefix": "sk-made",
            "litellm_key_alias": "old key_abc",
            "is_active": True,
            "revoked_at": None,
        } | columns
        key_id: UUID = service.value(
            """
            INSERT INTO api_keys (user_id, name, key_hash, key_prefix, litellm_key_alias, is_active, revoked_at)
            SELECT id, 'old key', %(key_hash)s, %(key_prefix)s, %(litellm_key_alias)s, %(is_active)s, %(revoked_at)s
            FROM users WHERE oauth_id = 'alice'
            RETURNING id
            """,
            values,
        )
        service.rows("INSERT INTO api_key_models (api_key_id, model_id) VALUES (%s, 'gpt-4o')", [key_id])
        return key_id

    def test_is_deleted_in_litellm_by_its_hash(self, service: Service):
        token_hash = service.make_gateway_key(self.SECRET)
        key_id = self.insert(service)

        answer = service.delete(key_id)

        assert isinstance(answer, DeletedKey)
        assert not service.is_live(token_hash)
        assert service.chat(self.SECRET) == 401
        assert service.traces(key_id) == Traces(
            row=None,
            tokens=[("dead", False)],
            operations=[("delete", "forward", "done")],
            audits=[("API_KEY_DELETE", True)],
        )
        audit = service.value("SELECT metadata FROM audit_logs")
        assert (audit["name"], audit["keyPrefix"], audit["models"]) == ("old key", "sk-made", ["gpt-4o"])

    def test_stays_pending_while_litellm_does_not_confirm(self, service: Service):
        token_hash = service.make_gateway_key(self.SECRET)
        key_id = self.insert(service)
        service.gateway_faults.inject("/key/delete", "status", status=500)

        accepted = service.delete(key_id)

        assert isinstance(accepted, PendingDeletion)
        assert service.is_live(token_hash)
        assert isinstance(service.delete(key_id), DeletedKey)
        assert not service.is_live(token_hash)

    def test_is_deleted_when_it_was_revoked_long_ago(self, service: Service):
        key_id = self.insert(service, is_active=False, revoked_at="2025-01-01T00:00:00Z")

        assert isinstance(service.delete(key_id), DeletedKey)
        assert service.rows("SELECT FROM api_keys") == []

    def test_is_listed_as_what_it_is(self, service: Service):
        self.insert(service)
        self.insert(service, key_hash="a" * 64, is_active=False, revoked_at="2025-01-01T00:00:00Z")

        listed = service.list_keys().data

        assert [(key.status, key.is_active) for key in listed] == [("revoked", False), ("active", True)]
