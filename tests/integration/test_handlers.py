"""The functions as Lambda calls them, wired from their environment, in this process."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import check_health
import complete_rotation
import create_api_key
import delete_api_key
import list_api_keys
import list_operations
import migrate_database
import retry_operation
import reveal_api_key
import rotate_api_key
import settle_operations
from keyservice import wiring
from keyservice.errors import DatabaseUnavailable
from keyservice.models import Deadline
from keyservice.schema import MigrationError
from local.roles import APP
from tests.integration.service import Service

EVENTS = Path(__file__).parents[2] / "events"
PARTS = [
    *(wiring.settings, wiring.aws, wiring.secret_values, wiring.database, wiring.litellm, wiring.key_creation),
    *(wiring.key_rotation, wiring.secret_retirement, wiring.secret_revelation),
    *(wiring.key_deletion, wiring.key_listing, wiring.operations, wiring.settlement, wiring.health_check),
]


@dataclass
class Context:
    aws_request_id: str = "lambda-request-1"
    timeout_seconds: int = 25

    def get_remaining_time_in_millis(self) -> int:
        return self.timeout_seconds * 1000


@pytest.fixture
def environment(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As the template sets it; the wiring starts and ends with nothing built."""
    service.rows(
        "UPDATE keyservice_installation SET stack_name = %s, litellm_url = %s",
        ["keyservice-test", service.gateway_faults.url],
    )
    variables = {
        "DATABASE_HOST": str(service.database_faults.socket_directory),
        "DATABASE_PORT": str(service.database_faults.port),
        "DATABASE_NAME": service.database_under_test.name,
        "DATABASE_SECRET_ARN": service.cloud.database_secret_arn,
        "DATABASE_CA_BUNDLE": "",
        "DATABASE_PREPARED_STATEMENTS": "true",
        "DATABASE_APP_USER": APP,
        "LITELLM_URL": service.gateway_faults.url,
        "LITELLM_SECRET_ARN": service.cloud.litellm_secret_arn,
        "MAC_KEY_ARN": service.cloud.deriver.mac_key_arn,
        "STACK_NAME": "keyservice-test",
        "MODEL_ACCESS": "subscription",
        "MAX_ACTIVE_KEYS": "2",
        "GATEWAY_CACHE_SECONDS": "60",
        "GATEWAY_DRAIN_SECONDS": "900",
        "FUNCTION_TIMEOUT_SECONDS": "25",
        "LITELLM_BUDGET_SECONDS": "10",
        "RESUME_SECONDS": "300",
        "REVEAL_POLICY": "recent-login",
        "EXPIRY_MODE": "deactivate",
        "SETTLE_RESERVE_SECONDS": "5",
        "SETTLE_FIRST_WAIT_SECONDS": "30",
        "SETTLE_LONGEST_WAIT_SECONDS": "900",
        "OAUTH_PROVIDER": "openshift",
        "SUBJECT_CLAIM": "sub",
        "SUBJECT_COLUMN": "oauth_id",
        "USERNAME_CLAIM": "preferred_username",
        "EMAIL_CLAIM": "email",
        "NAME_CLAIM": "name",
        "ROLES_CLAIM": "roles",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for part in PARTS:
        part.cache_clear()
    yield monkeypatch
    if wiring.database.cache_info().currsize:
        wiring.database().close()
    if wiring.aws.cache_info().currsize:
        wiring.aws().close()
    if wiring.litellm.cache_info().currsize:
        wiring.litellm()._http.close()
    for part in PARTS:
        part.cache_clear()


def event(name: str, *, subject: str = "alice", **changes: Any) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text())
    if "authorizer" in recorded.get("requestContext", {}):
        claims = recorded["requestContext"]["authorizer"]["jwt"]["claims"]
        claims |= {"sub": subject, "preferred_username": subject, "email": f"{subject}@example.com"}
    return recorded | changes


def call(handler: Callable[[Any, Any], Any], asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
    answer = handler(asked, Context())
    return answer["statusCode"], json.loads(answer["body"]), answer["headers"]


@pytest.mark.usefixtures("environment")
class TestKeysLife:
    def test_goes_on_with_another_secret(self):
        _, created, _ = call(create_api_key.handler, event("create_api_key"))
        named = {"id": created["id"]}
        status, rotated, headers = call(rotate_api_key.handler, event("rotate_api_key", pathParameters=named))
        completed = call(complete_rotation.handler, event("complete_rotation", pathParameters=named))
        revealing = event("reveal_api_key", pathParameters=named)
        revealing["requestContext"]["authorizer"]["jwt"]["claims"]["auth_time"] = str(time.time())
        revealed = call(reveal_api_key.handler, revealing)

        assert (status, rotated["oldSecret"]["state"], headers["cache-control"]) == (200, "valid", "no-store")
        assert (completed[0], list(completed[1])) == (200, ["message", "completedAt", "effectiveBy"])
        assert (revealed[0], revealed[1]["key"]) == (200, rotated["key"])

    def test_is_create_list_delete(self):
        status, created, headers = call(create_api_key.handler, event("create_api_key"))
        listed = call(list_api_keys.handler, event("list_api_keys", queryStringParameters={"limit": "1"}))
        deleted = call(delete_api_key.handler, event("delete_api_key", pathParameters={"id": created["id"]}))
        again = call(delete_api_key.handler, event("delete_api_key", pathParameters={"id": created["id"]}))

        assert (status, headers["location"]) == (201, f"/api/v1/api-keys/{created['id']}")
        assert list(created) == [
            *("id", "userId", "name", "key", "keyPrefix", "models", "modelDetails", "isActive", "createdAt", "status")
        ]
        assert "x-api-deprecation-warning" not in headers
        assert (listed[0], [key["id"] for key in listed[1]["data"]]) == (200, [created["id"]])
        assert (deleted[0], list(deleted[1])) == (200, ["message", "deletedAt", "effectiveBy"])
        assert again[0] == 404

    def test_ends_pending_while_litellm_does_not_confirm(self, service: Service):
        _, created, _ = call(create_api_key.handler, event("create_api_key"))
        service.gateway_faults.inject("/key/delete", "status", status=500)

        status, body, _ = call(delete_api_key.handler, event("delete_api_key", pathParameters={"id": created["id"]}))

        assert (status, body["status"], "deletedAt" in body) == (202, "pending", False)

    def test_by_a_subscription_carries_the_deprecation_headers(self, service: Service):
        subscription_id = service.value("SELECT id::text FROM subscriptions WHERE model_id = 'gpt-4o'")
        body = json.dumps({"subscriptionId": subscription_id})

        status, created, headers = call(create_api_key.handler, event("create_api_key", body=body))

        assert (status, created["subscriptionId"], created["models"]) == (201, subscription_id, ["gpt-4o"])
        assert headers["x-api-deprecation-warning"].startswith("subscriptionId parameter is deprecated")
        assert "x-api-migration-guide" in headers

    def test_of_an_unknown_subscription_carries_them_too(self):
        body = json.dumps({"subscriptionId": "3f2504e0-4f89-41d3-9a0c-0305e82c3301"})

        status, refused, headers = call(create_api_key.handler, event("create_api_key", body=body))

        assert (status, refused["error"]["code"]) == (404, "NOT_FOUND")
        assert "x-api-deprecation-warning" in headers

    def test_never_begins_when_the_body_is_wrong(self, service: Service):
        status, refused, _ = call(create_api_key.handler, event("create_api_key", body='{"modelIds": []}'))

        assert (status, refused["error"]["details"]["validation"][0]["field"]) == (400, "modelIds")
        assert service.database_faults.connections == 0

    def test_of_a_malformed_id_is_not_found(self):
        assert call(delete_api_key.handler, event("delete_malformed_id"))[0] == 404

    def test_is_listed_whatever_odd_parameters_come(self):
        assert call(list_api_keys.handler, event("list_odd_parameters"))[0] in (200, 400)
        assert call(list_api_keys.handler, event("list_repeated_parameters"))[0] in (200, 400)
        assert call(list_api_keys.handler, event("list_with_cookies"))[0] == 200

    def test_goes_on_after_the_database_was_away(self, service: Service):
        service.database_faults.refuse_connections()
        away = call(list_api_keys.handler, event("list_api_keys"))
        service.database_faults.clear()

        assert (away[0], away[1]["error"]["retry"]) == (503, {"retryable": True, "retryAfter": 5})
        assert call(list_api_keys.handler, event("list_api_keys"))[0] == 200


@pytest.mark.usefixtures("environment")
class TestRepeatedCreate:
    def test_says_that_it_is_a_replay(self):
        asked = event("create_api_key")
        asked["headers"]["idempotency-key"] = "order-1"

        _, first, first_headers = call(create_api_key.handler, asked)
        status, again, headers = call(create_api_key.handler, asked)

        assert (status, again) == (201, first)
        assert "idempotency-replayed" not in first_headers
        assert headers["idempotency-replayed"] == "true"
        assert headers["location"] == f"/api/v1/api-keys/{first['id']}"


# {"roles": ["admin"]} between two dots; API Gateway has verified the signature before anything of ours runs.
ADMINS_TOKEN = "Bearer header.eyJyb2xlcyI6WyJhZG1pbiJdfQ.signature"


@pytest.mark.usefixtures("environment")
class TestSettling:
    def test_finishes_what_was_interrupted_and_reports_it(self, service: Service, capsys: pytest.CaptureFixture[str]):
        _, created, _ = call(create_api_key.handler, event("create_api_key"))
        service.gateway_faults.inject("/key/delete", "status", status=500)
        call(delete_api_key.handler, event("delete_api_key", pathParameters={"id": created["id"]}))
        service.let_time_pass()
        capsys.readouterr()

        report = settle_operations.handler({}, Context())

        assert report == {
            "expired": 0,
            "attempted": 1,
            "settled": 1,
            "pendingCreates": 0,
            "pendingDeletes": 0,
            "pendingUpdates": 0,
            "pendingRotates": 0,
            "pendingRetires": 0,
            "oldestPendingSeconds": 0.0,
        }
        metrics = emitted_metrics(capsys)
        assert metrics["Settled", ()] == [1.0]
        assert metrics["Attempts", ()] == [1.0]
        assert metrics["Expired", ()] == [0.0]
        assert metrics["OldestPendingAge", ()] == [0.0]
        assert metrics["PendingOperations", (("kind", "create"),)] == [0.0]
        assert metrics["PendingOperations", (("kind", "delete"),)] == [0.0]

    def test_that_fails_ends_the_invocation_as_failed(self, service: Service, capsys: pytest.CaptureFixture[str]):
        service.database_faults.refuse_connections()

        with pytest.raises(DatabaseUnavailable):
            settle_operations.handler({}, Context())

        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert any(line.get("operation") == "settle_operations" and line.get("outcome") == "error" for line in lines)

    def test_is_seen_and_hastened_by_an_administrator(self, service: Service):
        service.gateway_faults.inject("/key/generate", "status", status=500)
        assert call(create_api_key.handler, event("create_api_key"))[0] == 503

        listed = self.as_admin(list_operations.handler, "list_api_keys", queryStringParameters={"state": "pending"})
        operation_id = listed[1]["data"][0]["id"]
        retried = self.as_admin(retry_operation.handler, "delete_api_key", pathParameters={"id": operation_id})

        assert (listed[0], listed[1]["data"][0]["lastError"]) == (200, "key/generate: answered 500")
        assert (retried[0], retried[1]["id"]) == (202, operation_id)

    def test_is_no_business_of_anybody_else(self):
        assert call(list_operations.handler, event("list_api_keys"))[0] == 403
        refused = call(retry_operation.handler, event("delete_api_key", pathParameters={"id": str(uuid4())}))
        assert refused[0] == 403

    def as_admin(
        self, handler: Callable[[Any, Any], Any], name: str, **changes: Any
    ) -> tuple[int, Any, dict[str, str]]:
        asked = event(name, subject="root", **changes)
        asked["headers"]["authorization"] = ADMINS_TOKEN
        return call(handler, asked)


def emitted_metrics(capsys: pytest.CaptureFixture[str]) -> dict[tuple[str, tuple[tuple[str, str], ...]], Any]:
    """Values by name and by the dimensions other than the service, as CloudWatch reads them from the log."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
    for line in map(json.loads, capsys.readouterr().out.splitlines()):
        for directive in line.get("_aws", {}).get("CloudWatchMetrics", []):
            for dimensions in directive["Dimensions"]:
                named = tuple((name, line[name]) for name in dimensions if name != "service")
                found |= {(metric["Name"], named): line[metric["Name"]] for metric in directive["Metrics"]}
    return found


@pytest.mark.usefixtures("environment")
class TestHealth:
    def test_is_good_when_both_answer(self):
        status, body, _ = call(check_health.handler, event("check_health"))

        assert (status, body) == (200, {"status": "healthy", "database": "up", "litellm": "up"})

    @pytest.mark.parametrize("fault", ["status", "hang", "reset_before"])
    def test_is_degraded_without_litellm(self, service: Service, fault: Any):
        service.gateway_faults.inject("/health/readiness", fault, status=503)

        status, body, _ = call(check_health.handler, event("check_health"))

        assert (status, body) == (200, {"status": "degraded", "database": "up", "litellm": "down"})

    def test_is_bad_without_the_database(self, service: Service):
        service.database_faults.refuse_connections()

        status, body, _ = call(check_health.handler, event("check_health"))

        assert (status, body) == (503, {"status": "unhealthy", "database": "down", "litellm": "up"})

    def test_is_bad_when_the_database_does_not_answer(self, service: Service):
        service.database_faults.delay(step="check_health")

        status, body, _ = call(check_health.handler, event("check_health"))

        assert (status, body["database"]) == (503, "down")

    def test_is_bad_without_the_databases_secret(self, service: Service, environment: pytest.MonkeyPatch):
        environment.setenv("DATABASE_SECRET_ARN", service.cloud.database_secret_arn + "-no-such")

        status, body, _ = call(check_health.handler, event("check_health"))

        assert (status, body["database"]) == (503, "down")

    def test_is_remembered(self, service: Service):
        call(check_health.handler, event("check_health"))
        service.database_faults.refuse_connections()
        service.gateway_faults.forget_calls()

        status, _, _ = call(check_health.handler, event("check_health"))

        assert status == 200
        assert service.gateway_faults.calls == []


class TestMigration:
    def test_is_run_as_the_migrator(self, service: Service, environment: pytest.MonkeyPatch):
        environment.setenv("DATABASE_SECRET_ARN", service.cloud.migrator_secret_arn)

        result = migrate_database.handler(event("migrate_database"), Context(timeout_seconds=300))

        assert result["applied"] == []
        assert result["version"] == service.value("SELECT max(name) FROM keyservice_migrations")

    def test_that_fails_is_raised_for_whoever_deploys(self, service: Service, environment: pytest.MonkeyPatch):
        environment.setenv("DATABASE_SECRET_ARN", service.cloud.migrator_secret_arn)
        environment.setenv("DATABASE_APP_USER", "nobody_here")

        with pytest.raises(MigrationError):
            migrate_database.handler(event("migrate_database"), Context(timeout_seconds=300))

    def test_that_waits_too_long_ends_in_time_to_say_so(self, service: Service, environment: pytest.MonkeyPatch):
        environment.setenv("DATABASE_SECRET_ARN", service.cloud.migrator_secret_arn)
        wiring.settings.cache_clear()

        with service._admin.transaction():
            service.rows("LOCK TABLE keyservice_migrations")

            with pytest.raises(MigrationError, match="or the time was over"):
                wiring.migrate_schema(Deadline(0.5))


@pytest.mark.usefixtures("environment")
class TestRestore:
    def test_does_not_fail_when_the_database_is_away(self, service: Service):
        service.database_faults.refuse_connections()

        wiring.open_afresh()

        assert call(list_api_keys.handler, event("list_api_keys"))[0] == 503

    def test_reads_the_settings_anew(self, environment: pytest.MonkeyPatch):
        before = wiring.settings().text("STACK_NAME")
        environment.setenv("STACK_NAME", "restored")

        wiring.open_afresh()

        assert (before, wiring.settings().text("STACK_NAME")) == ("keyservice-test", "restored")
