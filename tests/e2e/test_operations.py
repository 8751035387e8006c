"""GET /api/v1/admin/operations and POST .../{id}/retry: what administrators see of the journal."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import FragileService
from tests.e2e.service import OPERATIONS, Person, Row, Service, error_of, violations_of


def operations(person: Person, query: str = "") -> httpx.Response:
    return person.service.call("GET", f"{OPERATIONS}?{query}" if query else OPERATIONS, token=person.token)


def retry(person: Person, operation_id: str) -> httpx.Response:
    return person.service.call("POST", f"{OPERATIONS}/{operation_id}/retry", token=person.token)


def all_of_state(person: Person, state: str) -> list[Row]:
    """However many pages it takes."""
    found: list[Row] = []
    query = f"state={state}&limit=100"
    while True:
        answer = operations(person, query)
        assert answer.status_code == 200, answer.text
        found += answer.json()["data"]
        cursor = answer.json()["pagination"].get("nextCursor")
        if cursor is None:
            return found
        query = f"state={state}&limit=100&cursor={cursor}"


@pytest.fixture
def admin(fragile_service: FragileService) -> Person:
    """By the token; the service has never seen them."""
    return fragile_service.person(is_known=False, roles=["admin"])


@pytest.fixture
def stuck(settling_service: FragileService) -> Row:
    """A pending delete, as its row in the journal."""
    owner = settling_service.person()
    key = owner.has_key(name="stuck")
    settling_service.gateway_faults.inject("/key/delete", "status", status=500)
    assert owner.delete(key["id"]).status_code == 202
    [operation] = settling_service.rows(
        "SELECT * FROM api_key_operations WHERE api_key_id = %(id)s AND state = 'pending'", id=key["id"]
    )
    return operation


# Who may.


@pytest.mark.parametrize(
    "roles",
    [
        pytest.param(["admin"], id="admin"),
        pytest.param(["admin-readonly"], id="admin-readonly"),
        pytest.param(["user", "admin"], id="one of several"),
        pytest.param(["cluster", "admin"], id="beside an unknown one"),
    ],
)
def test_an_administrator_by_the_token_sees_operations(fragile_service: FragileService, roles: list[str]):
    person = fragile_service.person(is_known=False, roles=roles)

    answer = operations(person)

    assert answer.status_code == 200


@pytest.mark.parametrize("role", ["admin", "admin-readonly"])
def test_an_administrator_by_the_database_sees_operations(fragile_service: FragileService, role: str):
    person = fragile_service.person()
    fragile_service.rows("UPDATE users SET roles = ARRAY[%(role)s] WHERE id = %(id)s", role=role, id=person.user_id)

    answer = operations(person)

    assert answer.status_code == 200


NO_ADMINISTRATORS: list[Any] = [
    pytest.param(None, id="no roles"),
    pytest.param([], id="an empty list"),
    pytest.param(["user"], id="user"),
    pytest.param(["readonly"], id="readonly"),
    pytest.param(["cluster admin"], id="a role with a blank"),
    pytest.param(["x,admin"], id="a role with a comma"),
    pytest.param(["[admin]"], id="a role in brackets"),
    pytest.param(["Admin"], id="another case"),
    pytest.param(["a\x00b"], id="NUL"),
]


@pytest.mark.parametrize("roles", NO_ADMINISTRATORS)
def test_nobody_else_sees_or_retries_operations(fragile_service: FragileService, stuck: Row, roles: list[str] | None):
    person = fragile_service.person(roles=roles)

    answers = [operations(person), retry(person, str(stuck["id"]))]

    for answer in answers:
        error = error_of(answer, status=403, code="FORBIDDEN")
        assert error["message"] == "This needs an administrator's role."
        assert str(stuck["api_key_id"]) not in answer.text
    assert_not_due(fragile_service, stuck)


def assert_not_due(service: Service, operation: Row) -> None:
    [now] = service.rows("SELECT next_attempt_at FROM api_key_operations WHERE id = %(id)s", id=operation["id"])
    assert now["next_attempt_at"] == operation["next_attempt_at"] > datetime.now(UTC)


def test_an_administrator_who_only_reads_retries_nothing(fragile_service: FragileService, stuck: Row):
    reader = fragile_service.person(roles=["admin-readonly"])

    answer = retry(reader, str(stuck["id"]))

    error_of(answer, status=403, code="FORBIDDEN")
    assert_not_due(fragile_service, stuck)


def test_an_administrator_who_is_inactive_is_refused(fragile_service: FragileService, stuck: Row):
    former = fragile_service.person(roles=["admin"])
    fragile_service.rows("UPDATE users SET is_active = false WHERE id = %(id)s", id=former.user_id)

    answers = [operations(former), retry(former, str(stuck["id"]))]

    for answer in answers:
        error = error_of(answer, status=403, code="FORBIDDEN")
        assert error["message"] == "This account is not active. Ask an administrator."
    assert_not_due(fragile_service, stuck)


# What they see.


def test_a_pending_operation_is_shown_with_its_age_attempts_and_last_error(admin: Person, stuck: Row):
    [shown] = [operation for operation in all_of_state(admin, "pending") if operation["id"] == str(stuck["id"])]

    assert list(shown) == [
        "id",
        "kind",
        "phase",
        "state",
        "keyId",
        "userId",
        "ageSeconds",
        "attempts",
        "lastError",
        "createdAt",
        "nextAttemptAt",
    ]
    assert (shown["kind"], shown["phase"], shown["state"]) == ("delete", "forward", "pending")
    assert (shown["keyId"], shown["userId"]) == (str(stuck["api_key_id"]), str(stuck["user_id"]))
    assert (shown["attempts"], shown["lastError"]) == (1, "key/delete: answered 500")
    assert 0 <= shown["ageSeconds"] < 600
    assert abs(datetime.fromisoformat(shown["createdAt"]) - stuck["created_at"]).total_seconds() < 0.001
    assert abs(datetime.fromisoformat(shown["nextAttemptAt"]) - stuck["next_attempt_at"]).total_seconds() < 0.001


def test_a_failed_operation_is_shown_with_its_end(fragile_service: FragileService, admin: Person):
    owner = fragile_service.person()
    no = {"error": {"message": "no", "type": "bad_request_error", "param": "max_budget", "code": "400"}}
    fragile_service.gateway_faults.inject("/key/generate", "status", status=400, body=no)
    assert owner.create({"modelIds": ["gpt-4o"]}).status_code == 400

    [shown] = [operation for operation in all_of_state(admin, "failed") if operation["userId"] == str(owner.user_id)]

    assert (shown["kind"], shown["phase"], shown["state"]) == ("create", "undo", "failed")
    assert shown["lastError"] == "refused by LiteLLM: maxBudget"
    assert shown["finishedAt"] >= shown["createdAt"]
    assert "nextAttemptAt" not in shown
    assert shown["id"] not in [operation["id"] for operation in all_of_state(admin, "pending")]


def test_pages_go_from_the_oldest_to_the_newest_without_gaps(settling_service: FragileService, admin: Person):
    owner = settling_service.person()
    keys = [owner.has_key()["id"] for _ in range(5)]
    settling_service.gateway_faults.inject("/key/delete", "status", times=5)
    for key_id in keys:
        assert owner.delete(key_id).status_code == 202

    seen: list[str] = []
    query = "limit=2"
    while True:
        page = operations(admin, query).json()
        seen += [operation["keyId"] for operation in page["data"]]
        assert page["pagination"]["limit"] == 2
        if "nextCursor" not in page["pagination"]:
            break
        assert len(page["data"]) == 2
        query = f"limit=2&cursor={page['pagination']['nextCursor']}"

    assert len(seen) == len(set(seen))
    assert [key_id for key_id in seen if key_id in keys] == keys


@pytest.mark.parametrize(
    ("query", "violations"),
    [
        pytest.param("state=done", [("state", "enum")], id="a state that is not shown"),
        pytest.param("state=", [("state", "enum")], id="an empty state"),
        pytest.param("limit=0", [("limit", "range")], id="no rows"),
        pytest.param("limit=101", [("limit", "range")], id="too many rows"),
        pytest.param("cursor=nonsense", [("cursor", "format")], id="no cursor"),
        pytest.param("limit=x&cursor=%00&state=%27", [("limit", "range"), ("cursor", "format"), ("state", "enum")]),
    ],
)
def test_a_malformed_query_is_refused(admin: Person, query: str, violations: list[tuple[str, str]]):
    assert violations_of(operations(admin, query)) == violations


# Trying again.


def test_a_retried_operation_is_settled_by_the_next_run(settling_service: FragileService, admin: Person, stuck: Row):
    answer = retry(admin, str(stuck["id"]))
    report = settling_service.settle()

    assert answer.status_code == 202
    assert list(answer.json()) == ["id", "message"]
    assert answer.json()["id"] == str(stuck["id"])
    assert (report["attempted"], report["settled"]) == (1, 1)
    key_id = str(stuck["api_key_id"])
    assert settling_service.key_row(key_id) is None
    assert settling_service.audit_of_key(key_id) == [
        ("API_KEY_CREATE", True),
        ("API_KEY_OPERATION_RETRY", True),
        ("API_KEY_DELETE", True),
    ]
    over = retry(admin, str(stuck["id"]))
    error_of(over, status=409, code="OPERATION_OVER")


def test_a_retry_is_audited_with_who_asked_for_it(settling_service: FragileService, stuck: Row):
    known = settling_service.person(roles=["admin"])

    retry(known, str(stuck["id"]))

    [record] = known.audit()
    assert (record["action"], record["success"]) == ("API_KEY_OPERATION_RETRY", True)
    assert record["resource_id"] == str(stuck["api_key_id"])
    assert record["metadata"]["operationId"] == str(stuck["id"])


@pytest.mark.parametrize("operation_id", ["9e107d9d-372b-4b6a-8f3e-5a1c0b6d2f47", "not-a-uuid", "%00", "1"])
def test_an_operation_that_is_not_there_is_not_found(admin: Person, operation_id: str):
    answer = retry(admin, operation_id)

    error = error_of(answer, status=404, code="NOT_FOUND")
    assert error["message"] == "Operation not found"
