from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from keyservice.derivation import KeyDeriver, is_well_formed
from keyservice.errors import DerivationUnavailable, Forbidden, IdentityConflict, InvalidRequest, NotFound
from keyservice.models import Deadline, NewApiKey
from tests.integration.service import Service, Traces, caller, hash_of

IN_A_WEEK = datetime.now(UTC) + timedelta(days=7)


def refused_rules(service: Service, *, rules: dict[str, Any] | None = None, **body: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        service.create(rules=rules, **body)
    return [(violation.field, violation.code) for violation in caught.value.details["validation"]]


class TestIssuedKey:
    def test_works_in_litellm_and_stands_in_the_database(self, service: Service):
        issued = service.create(model_ids=["gpt-4o-mini", "gpt-4o"])

        assert is_well_formed(issued.key)
        assert issued.models == ["gpt-4o-mini", "gpt-4o"]
        assert [model.id for model in issued.model_details] == ["gpt-4o-mini", "gpt-4o"]
        assert (issued.name, issued.is_active, issued.status) == ("notebook", True, "active")
        assert issued.key_prefix == issued.key[:11]
        assert service.chat(issued.key) == 200
        assert service.traces(issued.id) == Traces(
            row=(True, "synced"),
            tokens=[("live", False)],
            operations=[("create", "forward", "done")],
            audits=[("API_KEY_CREATE", True)],
        )

    def test_is_audited_with_who_and_what(self, service: Service):
        issued = service.create(model_ids=["gpt-4o", "gpt-4o-mini"])

        [audit] = service.rows("SELECT *, host(ip_address) AS ip FROM audit_logs")
        assert audit["user_id"] == issued.user_id
        assert (audit["resource_type"], audit["resource_id"]) == ("API_KEY", str(issued.id))
        assert (audit["ip"], audit["user_agent"]) == ("203.0.113.9", "test/1.0")
        operation_id = audit["metadata"].pop("operationId")
        assert operation_id == str(service.value("SELECT id FROM api_key_operations"))
        assert audit["metadata"] == {
            "requestId": "request-of-alice",
            "userId": str(issued.user_id),
            "name": "notebook",
            "keyPrefix": issued.key_prefix,
            "models": ["gpt-4o", "gpt-4o-mini"],
            "modelCount": 2,
        }

    def test_carries_its_settings_to_both_systems(self, service: Service):
        issued = service.create(
            expires_at=IN_A_WEEK,
            max_budget=5.25,
            soft_budget=4.0,
            budget_duration="30d",
            tpm_limit=1000,
            rpm_limit=10,
            max_parallel_requests=2,
            metadata={"team": "blue", "n": [1, {"a": None}]},
        )

        [row] = service.rows("SELECT * FROM api_keys")
        assert (float(row["max_budget"]), float(row["soft_budget"]), row["budget_duration"]) == (5.25, 4.0, "30d")
        assert (row["tpm_limit"], row["rpm_limit"], row["max_parallel_requests"]) == (1000, 10, 2)
        assert row["metadata"] == {"team": "blue", "n": [1, {"a": None}]}
        assert (row["expires_at"], row["user_id"]) == (IN_A_WEEK, issued.user_id)
        assert row["key_hash"] == row["lite_llm_key_id"] == hash_of(issued.key)
        made = service.gateway_key(hash_of(issued.key))
        assert made["key_alias"] == row["litellm_key_alias"]
        assert (made["max_budget"], made["tpm_limit"], made["rpm_limit"]) == (5.25, 1000, 10)
        assert (made["user_id"], made["models"]) == (str(issued.user_id), ["gpt-4o"])
        assert made["metadata"]["user"] == {"team": "blue", "n": [1, {"a": None}]}
        assert made["metadata"]["keyservice"]["api_key_id"] == str(issued.id)
        seconds_apart = abs(datetime.fromisoformat(made["expires"]) - IN_A_WEEK).total_seconds()
        assert seconds_apart < 60

    def test_alias_is_the_mark_the_key_and_the_number_of_its_token(self, service: Service):
        issued = service.create()

        mark = service.value("SELECT mark FROM keyservice_installation")
        assert service.value("SELECT litellm_key_alias FROM api_keys") == f"{mark}:{issued.id}:1"

    def test_is_nowhere_kept_in_the_clear(self, service: Service):
        issued = service.create(metadata={"a": 1})

        dump = service.database_under_test.server.dump(service.database_under_test.name)
        assert hash_of(issued.key) in dump
        assert issued.key not in dump
        assert issued.key[20:40] not in dump

    def test_can_be_derived_again_from_what_is_stored(self, service: Service):
        issued = service.create()

        nonce = service.value("SELECT nonce FROM api_key_tokens")
        assert service.cloud.deriver.derive(issued.id, nonce=nonce).secret.reveal() == issued.key

    def test_cannot_make_keys_itself(self, service: Service):
        issued = service.create()

        answer = service._ask("POST", "/key/generate", body={}, key=issued.key)

        assert answer.status_code in (401, 403)

    def test_without_a_name_has_an_empty_one(self, service: Service):
        assert service.create(name=None).name == ""

    def test_takes_any_character_in_its_name(self, service: Service):
        assert service.create(name="😀 Ω ' \"; --").name == "😀 Ω ' \"; --"
        assert service.value("SELECT name FROM api_keys") == "😀 Ω ' \"; --"


class TestRoundTrips:
    def test_first_key_takes_two_to_the_database_and_two_to_litellm(self, service: Service):
        service.create()

        assert [trip.steps for trip in service.database_faults.trips] == [
            ("register_caller", "begin_create"),
            ("lock_user", "lock_key", "finish_create"),
        ]
        assert [call.path for call in service.gateway_faults.calls] == ["/user/new", "/key/generate"]

    def test_next_key_needs_no_call_about_the_user(self, service: Service):
        service.create()
        service.gateway_faults.forget_calls()

        service.create()

        assert [call.path for call in service.gateway_faults.calls] == ["/key/generate"]


class TestCallersRow:
    def test_is_made_with_the_first_request(self, service: Service):
        with pytest.raises(InvalidRequest):
            service.create("bob")

        [row] = service.rows("SELECT * FROM users WHERE oauth_id = 'bob'")
        assert (row["username"], row["email"], row["oauth_provider"]) == ("bob", "bob@example.com", "openshift")
        assert row["roles"] == ["user"]

    def test_is_refreshed_but_keeps_its_name_and_email(self, service: Service):
        changed = msgspec.structs.replace(
            caller("alice"), username="renamed", email="renamed@example.com", full_name="Alice Liddell"
        )

        service.creation().create(changed, NewApiKey(model_ids=["gpt-4o"]), idempotency_key=None, deadline=Deadline(20))

        [row] = service.rows("SELECT * FROM users WHERE oauth_id = 'alice'")
        assert (row["username"], row["email"]) == ("alice", "alice@example.com")
        assert row["full_name"] == "Alice Liddell"
        assert row["last_login_at"] is not None

    @pytest.mark.parametrize("column", ["username", "email"])
    def test_is_never_linked_to_another_identity(self, service: Service, column: str):
        service.subscribe("mallory", models=[])
        update = (
            "UPDATE users SET username = 'bob'"
            if column == "username"
            else "UPDATE users SET email = 'bob@example.com'"
        )
        service.rows(update + " WHERE oauth_id = 'mallory'")

        with pytest.raises(IdentityConflict):
            service.create("bob")

        assert service.rows("SELECT FROM users WHERE oauth_id = 'bob'") == []
        assert service.gateway_faults.calls == []

    def test_that_is_inactive_is_forbidden_and_audited(self, service: Service):
        service.rows("UPDATE users SET is_active = false WHERE oauth_id = 'alice'")

        with pytest.raises(Forbidden):
            service.create()

        [audit] = service.rows("SELECT * FROM audit_logs")
        assert (audit["action"], audit["success"], audit["error_message"]) == (
            "API_KEY_CREATE",
            False,
            "user: inactiveUser",
        )
        assert service.rows("SELECT FROM api_keys") == []


class TestRules:
    def test_model_without_a_subscription_is_refused_by_name(self, service: Service):
        with pytest.raises(InvalidRequest) as caught:
            service.create(model_ids=["gpt-4o", "o3", "claude"])

        assert caught.value.message == "You do not have active subscriptions for the following models: o3, claude"

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE subscriptions SET status = 'suspended'",
            "UPDATE subscriptions SET status = 'cancelled'",
            "UPDATE subscriptions SET status = 'expired'",
            "UPDATE subscriptions SET status = 'inactive'",
            "UPDATE subscriptions SET status = 'pending'",
            "UPDATE subscriptions SET status = 'denied'",
            "UPDATE subscriptions SET expires_at = now() - interval '1 second'",
        ],
    )
    def test_subscription_that_is_not_active_does_not_count(self, service: Service, change: Any):
        service.rows(change)

        assert refused_rules(service) == [("modelIds", "notEntitled")]
        assert service.gateway_faults.calls == []

    def test_subscription_of_somebody_else_does_not_count(self, service: Service):
        service.subscribe("bob", models=["o3"])

        assert refused_rules(service, model_ids=["o3"]) == [("modelIds", "notEntitled")]

    def test_all_that_is_wrong_is_reported_at_once_and_audited_once(self, service: Service):
        service.rows(
            "INSERT INTO system_settings (key, value) VALUES ('api_key_defaults', "
            """'{"maximums": {"maxBudget": 10, "tpmLimit": 100, "rpmLimit": 5, "expirationDays": 3}}')"""
        )

        found = refused_rules(
            service,
            model_ids=["gpt-4o", "o3"],
            max_budget=11,
            tpm_limit=101,
            rpm_limit=6,
            expires_at=IN_A_WEEK,
            rules={"max_active_keys": 0},
        )

        assert found == [
            ("modelIds", "notEntitled"),
            ("maxBudget", "maximum"),
            ("tpmLimit", "maximum"),
            ("rpmLimit", "maximum"),
            ("expiresAt", "maximum"),
            ("activeKeysCount", "keyLimit"),
        ]
        [audit] = service.rows("SELECT * FROM audit_logs")
        assert audit["success"] is False
        assert audit["metadata"]["models"] == ["gpt-4o", "o3"]
        assert audit["error_message"].startswith("modelIds: notEntitled; maxBudget: maximum")
        assert service.rows("SELECT FROM api_keys") == service.rows("SELECT FROM api_key_operations") == []

    def test_defaults_fill_what_the_body_leaves_open(self, service: Service):
        service.rows(
            "INSERT INTO system_settings (key, value) VALUES ('api_key_defaults', "
            """'{"defaults": {"maxBudget": 7.5, "tpmLimit": 50, "rpmLimit": 5, "budgetDuration": "monthly",
                 "softBudget": 6, "expirationDays": 30}}')"""
        )

        issued = service.create(rpm_limit=4)

        [row] = service.rows("SELECT *, expires_at - created_at AS lifetime FROM api_keys")
        assert (float(row["max_budget"]), float(row["soft_budget"]), row["budget_duration"]) == (7.5, 6.0, "monthly")
        assert (row["tpm_limit"], row["rpm_limit"]) == (50, 4)
        assert row["lifetime"] == timedelta(days=30)
        assert issued.expires_at

    def test_maximums_are_the_defaults_where_there_is_no_other(self, service: Service):
        service.rows(
            "INSERT INTO system_settings (key, value) VALUES ('api_key_defaults', "
            """'{"maximums": {"maxBudget": 10, "tpmLimit": 100, "rpmLimit": 5}}')"""
        )

        service.create()

        [row] = service.rows("SELECT max_budget::float8, tpm_limit, rpm_limit FROM api_keys")
        assert list(row.values()) == [10.0, 100, 5]

    def test_key_without_expiry_is_refused_where_a_maximum_is_set(self, service: Service):
        service.rows(
            """INSERT INTO system_settings (key, value)
               VALUES ('api_key_defaults', '{"maximums": {"expirationDays": 3}}')"""
        )

        assert refused_rules(service) == [("expiresAt", "required")]

    @pytest.mark.parametrize(
        ("expires_at", "code"),
        [
            pytest.param(datetime(2020, 1, 1, tzinfo=UTC), "past", id="past"),
            pytest.param(datetime(1, 1, 1, tzinfo=UTC), "past", id="before the calendar"),
            pytest.param(datetime(9999, 12, 31, tzinfo=UTC), "tooFar", id="end of the calendar"),
            pytest.param(
                datetime.fromisoformat("9999-12-31T23:59:59-14:00"), "tooFar", id="beyond the calendar in UTC"
            ),
        ],
    )
    def test_absurd_expiry_is_refused(self, service: Service, expires_at: datetime, code: str):
        assert refused_rules(service, expires_at=expires_at) == [("expiresAt", code)]

    @pytest.mark.parametrize(
        ("body", "found"),
        [
            pytest.param({"model_ids": None}, [("modelIds", "required")], id="no models"),
            pytest.param({"model_ids": ["gpt-4o", "gpt-4o"]}, [("modelIds", "uniqueItems")], id="a model twice"),
            pytest.param({"max_budget": 1.005}, [("maxBudget", "multipleOf")], id="half a cent"),
            pytest.param({"soft_budget": 0.001}, [("softBudget", "multipleOf")], id="half a cent, softly"),
        ],
    )
    def test_body_that_contradicts_itself_is_refused_before_anything_happens(
        self, service: Service, body: dict[str, Any], found: list[tuple[str, str]]
    ):
        assert refused_rules(service, **body) == found
        assert service.database_faults.round_trips == 0

    def test_eleventh_key_is_refused(self, service: Service):
        for _ in range(3):
            service.create(rules={"max_active_keys": 3})

        with pytest.raises(InvalidRequest) as caught:
            service.create(rules={"max_active_keys": 3})

        assert caught.value.message == "Maximum 3 active API keys allowed per user"

    @pytest.mark.parametrize(
        "change",
        ["UPDATE api_keys SET revoked_at = now()", "UPDATE api_keys SET expires_at = now() - interval '1 hour'"],
    )
    def test_revoked_and_expired_keys_leave_room(self, service: Service, change: Any):
        service.create(rules={"max_active_keys": 1})
        service.rows(change)

        service.create(rules={"max_active_keys": 1})

        assert service.value("SELECT count(*) FROM api_keys") == 2

    def test_keys_of_others_leave_room(self, service: Service):
        service.subscribe("bob", models=["gpt-4o"])
        service.create("bob", rules={"max_active_keys": 1})

        assert service.create(rules={"max_active_keys": 1}).is_active


class TestLegacySubscription:
    def subscription(self, service: Service) -> Any:
        return service.value("SELECT id FROM subscriptions WHERE model_id = 'gpt-4o'")

    def test_gives_its_model(self, service: Service):
        subscription_id = self.subscription(service)

        issued = service.create(model_ids=None, subscription_id=subscription_id)

        assert (issued.models, issued.subscription_id) == (["gpt-4o"], subscription_id)
        assert service.value("SELECT subscription_id FROM api_keys") == subscription_id

    def test_together_with_models_is_refused(self, service: Service):
        assert refused_rules(service, subscription_id=self.subscription(service)) == [("subscriptionId", "not")]

    def test_that_is_not_active_is_refused(self, service: Service):
        service.rows("UPDATE subscriptions SET status = 'suspended'")

        with pytest.raises(InvalidRequest) as caught:
            service.create(model_ids=None, subscription_id=self.subscription(service))

        assert caught.value.message == "Cannot create API key for suspended subscription"

    def test_of_somebody_else_is_not_found(self, service: Service):
        service.subscribe("bob", models=["o3"])
        foreign = service.value("SELECT id FROM subscriptions WHERE model_id = 'o3'")

        with pytest.raises(NotFound):
            service.create(model_ids=None, subscription_id=foreign)


class TestAnyModel:
    RULES = {"model_access": "any"}

    def test_of_litellm_may_be_used_without_a_subscription(self, service: Service):
        service.subscribe("bob", models=[])
        service.rows("DELETE FROM models WHERE id NOT IN (SELECT model_id FROM subscriptions)")

        issued = service.create("bob", model_ids=["gpt-4o"], rules=self.RULES)

        assert issued.models == ["gpt-4o"]

    def test_that_the_database_did_not_know_is_recorded(self, service: Service):
        service.rows("DELETE FROM subscriptions")
        service.rows("DELETE FROM models")

        issued = service.create(model_ids=["gpt-4o-mini"], rules=self.RULES)

        assert [model.provider for model in issued.model_details] == ["openai"]
        assert service.value("SELECT id FROM models") == "gpt-4o-mini"

    def test_that_litellm_does_not_serve_is_refused(self, service: Service):
        with pytest.raises(InvalidRequest) as caught:
            service.create(model_ids=["gpt-4o", "no-such-model"], rules=self.RULES)

        assert caught.value.message == "The following models do not exist: no-such-model"

    def test_is_looked_up_once_for_many_keys(self, service: Service):
        creation = service.creation(model_access="any")

        for _ in range(3):
            creation.create(caller(), NewApiKey(model_ids=["gpt-4o"]), idempotency_key=None, deadline=Deadline(20))

        assert len(service.gateway_faults.calls_of("/model/info")) == 1


def test_kms_that_refuses_leaves_nothing_behind(service: Service):
    arn = service.cloud.aws.create_mac_key()
    service.cloud.aws.disable_mac_key(arn)

    with pytest.raises(DerivationUnavailable):
        service.creation(deriver=KeyDeriver(mac_key_arn=arn, aws=service.cloud.client)).create(
            caller(), NewApiKey(model_ids=["gpt-4o"]), idempotency_key=None, deadline=Deadline(20)
        )

    assert service.rows("SELECT FROM api_key_operations") == []
    assert service.gateway_faults.calls == []
