"""LiteLLM is down, slow, broken or refuses: the answer says so, the next request works, nothing is lost."""

from typing import Any

import pytest

from tests.e2e.conftest import FragileService
from tests.e2e.service import Person, Service, assert_asks_to_retry, error_of, hash_of, violations_of


@pytest.fixture
def frank(fragile_service: FragileService) -> Person:
    """Somebody whom LiteLLM knows already: each of the creates that follow is one call."""
    person = fragile_service.person()
    key = person.has_key(name="from before")
    assert person.delete(key["id"]).status_code == 200
    return person


# LiteLLM's process is gone.


def test_a_create_while_litellm_is_down_stays_pending_and_the_next_one_works(service: Service, alice: Person):
    with service.litellm_down():
        refused = alice.create({"modelIds": ["gpt-4o"], "name": "in vain"})
        [pending] = alice.listed()

    assert_asks_to_retry(refused)
    assert (pending["name"], pending["status"], pending["isActive"]) == ("in vain", "pending", False)
    assert "spendAsOf" not in pending
    assert service.operations_of(pending["id"]) == [("create", "pending")]
    assert alice.audit() == []
    assert alice.gateway_keys() == []
    key = alice.has_key()
    assert service.use(key["key"]) == 200


def test_a_pending_create_can_be_deleted_once_litellm_is_back(service: Service, alice: Person):
    with service.litellm_down():
        alice.create({"modelIds": ["gpt-4o"]})
    key_id = alice.only_key()

    answer = alice.delete(key_id)

    assert answer.status_code == 200
    assert alice.key_rows() == []
    assert service.operations_of(key_id) == [("create", "superseded"), ("delete", "done")]
    assert service.audit_of_key(key_id) == [("API_KEY_CREATE", False), ("API_KEY_DELETE", True)]


def test_a_delete_while_litellm_is_down_is_accepted_and_a_repeated_one_finishes_it(service: Service, alice: Person):
    key = alice.has_key()

    with service.litellm_down():
        accepted = alice.delete(key["id"])
        again = alice.delete(key["id"])
        [deleting] = alice.listed()
    finished = alice.delete(key["id"])

    for answer in (accepted, again):
        assert answer.status_code == 202
        assert list(answer.json()) == ["message", "status"]
        assert answer.json()["status"] == "pending"
    assert (deleting["id"], deleting["status"], deleting["isActive"]) == (key["id"], "deleting", False)
    assert finished.status_code == 200
    assert service.use(key["key"]) == 401
    error_of(alice.delete(key["id"]), status=404, code="NOT_FOUND")
    assert service.operations_of(key["id"]) == [("create", "done"), ("delete", "done")]
    assert service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


def test_the_list_does_not_need_litellm(service: Service, alice: Person):
    key = alice.has_key()

    with service.litellm_down():
        listed = alice.listed()

    assert [(row["id"], row["status"]) for row in listed] == [(key["id"], "active")]


# LiteLLM answers, but not what it should, or not at all.

UNANSWERED: list[Any] = [
    pytest.param({"fault": "status", "status": 500}, id="500"),
    pytest.param({"fault": "status", "status": 502, "body": "<html>"}, id="a load balancer's 502"),
    pytest.param({"fault": "status", "status": 404, "body": "<html>"}, id="a load balancer's 404"),
    pytest.param({"fault": "status", "status": 200, "body": {"token": "another"}}, id="200 for another key"),
    pytest.param({"fault": "hang"}, id="slower than the budget"),
    pytest.param({"fault": "reset_before"}, id="connection cut before the work"),
]


@pytest.mark.parametrize("fault", UNANSWERED)
def test_a_create_that_litellm_does_not_confirm_is_pending_until_it_is_deleted(
    fragile_service: FragileService, frank: Person, fault: dict[str, Any]
):
    fragile_service.gateway_faults.inject("/key/generate", **fault)

    answer = frank.create({"modelIds": ["gpt-4o"]})

    key_id = frank.only_key()
    assert_asks_to_retry(answer)
    assert frank.status_of(key_id) == "pending"
    assert frank.gateway_keys() == []
    next_key = frank.has_key()
    assert fragile_service.use(next_key["key"]) == 200
    # Nobody can know whether LiteLLM will carry the request out after all.
    assert frank.delete(key_id).status_code == 202
    assert frank.status_of(key_id) == "deleting"
    fragile_service.end_drain(key_id)
    assert frank.delete(key_id).status_code == 200
    assert frank.delete(key_id).status_code == 404
    assert fragile_service.audit_of_key(key_id) == [("API_KEY_CREATE", False), ("API_KEY_DELETE", True)]


def test_a_key_that_litellm_made_although_it_never_answered_is_deleted_at_once(
    fragile_service: FragileService, frank: Person
):
    fragile_service.gateway_faults.inject("/key/generate", "reset_after")
    answer = frank.create({"modelIds": ["gpt-4o"]})
    key_id, made = frank.only_key(), frank.gateway_keys()

    accepted = frank.delete(key_id)

    assert_asks_to_retry(answer)
    assert made == [fragile_service.token_of(key_id)["hash"]]
    assert accepted.status_code == 202
    assert frank.gateway_keys() == []


def test_a_key_that_litellm_makes_after_its_delete_is_deleted_again(fragile_service: FragileService, frank: Person):
    late = fragile_service.gateway_faults.inject("/key/generate", "late")
    answer = frank.create({"modelIds": ["gpt-4o"]})
    key_id = frank.only_key()

    accepted = frank.delete(key_id)
    late.release()
    late.wait()
    made_late = frank.gateway_keys()
    fragile_service.end_drain(key_id)
    finished = frank.delete(key_id)

    assert_asks_to_retry(answer)
    assert accepted.status_code == 202
    assert made_late == [fragile_service.token_of(key_id)["hash"]]
    assert finished.status_code == 200
    assert frank.gateway_keys() == []
    assert fragile_service.audit_of_key(key_id) == [("API_KEY_CREATE", False), ("API_KEY_DELETE", True)]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"fault": "status", "status": 500}, id="500"),
        pytest.param({"fault": "hang"}, id="slower than the budget"),
        pytest.param({"fault": "reset_after"}, id="connection cut after the work"),
    ],
)
def test_a_users_first_create_can_be_repeated_when_litellm_did_not_make_the_user(
    fragile_service: FragileService, fault: dict[str, Any]
):
    newcomer = fragile_service.person()
    fragile_service.gateway_faults.inject("/user/new", **fault)

    refused, created = newcomer.create({"modelIds": ["gpt-4o"]}), newcomer.create({"modelIds": ["gpt-4o"]})

    assert_asks_to_retry(refused)
    assert created.status_code == 201
    assert fragile_service.use(created.json()["key"]) == 200
    [pending] = [key["id"] for key in newcomer.listed() if key["status"] == "pending"]
    # LiteLLM was never asked for this key, so there is nothing to wait for.
    assert newcomer.delete(pending).status_code == 200
    assert newcomer.gateway_keys() == [hash_of(created.json()["key"])]


@pytest.mark.parametrize("fault", [*UNANSWERED, pytest.param({"fault": "reset_after"}, id="cut after the work")])
def test_a_delete_that_litellm_does_not_confirm_is_accepted_and_finished_by_the_next(
    fragile_service: FragileService, frank: Person, fault: dict[str, Any]
):
    key = frank.has_key()
    fragile_service.gateway_faults.inject("/key/delete", **fault)

    accepted = frank.delete(key["id"])
    status = frank.status_of(key["id"])
    finished = frank.delete(key["id"])

    assert accepted.status_code == 202
    assert "deletedAt" not in accepted.json()
    assert status == "deleting"
    assert finished.status_code == 200
    assert fragile_service.use(key["key"]) == 401
    assert fragile_service.key_row(key["id"]) is None
    assert fragile_service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


def test_a_slow_answer_within_the_budget_is_waited_for(fragile_service: FragileService, frank: Person):
    fragile_service.gateway_faults.inject("/key/generate", "delay", seconds=0.5)

    key = frank.has_key()

    assert fragile_service.use(key["key"]) == 200


# LiteLLM refuses.


def refusal(status: int, message: str, **error: Any) -> dict[str, Any]:
    shape = {"message": message, "type": "bad_request_error", "param": None, "code": str(status)}
    return {"status": status, "body": {"error": shape | error}}


SECRET_IN_ANSWER = "sk-lmk_echoed-by-litellm"


@pytest.mark.parametrize(
    ("answer", "violations"),
    [
        pytest.param(
            refusal(400, "max_budget is too high"), [("maxBudget", "gatewayRefused")], id="400 naming a field"
        ),
        pytest.param(refusal(400, SECRET_IN_ANSWER), [("body", "gatewayRefused")], id="400 naming none"),
        pytest.param(refusal(403, "not allowed"), [("body", "gatewayRefused")], id="403"),
        pytest.param(
            {"status": 422, "body": {"detail": [{"loc": ["body", "tpm_limit"], "msg": SECRET_IN_ANSWER}]}},
            [("tpmLimit", "gatewayRefused")],
            id="422",
        ),
    ],
)
def test_a_create_that_litellm_refuses_is_undone_and_says_why(
    fragile_service: FragileService, frank: Person, answer: dict[str, Any], violations: list[tuple[str, str]]
):
    before = len(frank.audit())
    fragile_service.gateway_faults.inject("/key/generate", "status", **answer)

    refused = frank.create({"modelIds": ["gpt-4o"], "name": "refused", "maxBudget": 5, "tpmLimit": 7})

    [record] = frank.audit()[before:]
    assert violations_of(refused) == violations
    assert SECRET_IN_ANSWER not in refused.text
    assert frank.key_rows() == []
    assert (record["action"], record["success"], record["metadata"]["name"]) == ("API_KEY_CREATE", False, "refused")
    assert fragile_service.operations_of(record["resource_id"]) == [("create", "failed")]
    assert fragile_service.token_of(record["resource_id"])["state"] == "dead"
    assert frank.has_key()["isActive"] is True


def test_a_default_that_litellm_itself_refuses_is_named(service: Service, alice: Person):
    with service.settings("""{"defaults": {"budgetDuration": "fortnightly"}}"""):
        answer = alice.create({"modelIds": ["gpt-4o"]})

    assert violations_of(answer) == [("budgetDuration", "gatewayRefused")]
    assert alice.key_rows() == []
    assert [record["error_message"] for record in alice.audit()] == ["refused by LiteLLM: budgetDuration"]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(refusal(400, "no", type="auth_error"), id="LiteLLM's database is broken"),
        pytest.param(refusal(400, "no", param="key_alias"), id="the alias exists"),
        pytest.param({"status": 403, "body": {"detail": "no"}}, id="the master key is a virtual key"),
        pytest.param({"status": 400, "body": "<html>"}, id="a page of somebody else's"),
        pytest.param(refusal(429, "too many requests"), id="a rate limit"),
    ],
)
def test_a_4xx_that_is_our_trouble_is_not_the_callers(
    fragile_service: FragileService, frank: Person, answer: dict[str, Any]
):
    fragile_service.gateway_faults.inject("/key/generate", "status", **answer)

    refused = frank.create({"modelIds": ["gpt-4o"]})

    assert_asks_to_retry(refused)
    assert frank.status_of(frank.only_key()) == "pending"
    assert frank.has_key()["isActive"] is True


@pytest.mark.parametrize(
    "confirmation",
    [
        pytest.param({"fault": "status", "status": 500}, id="cannot be confirmed"),
        pytest.param({"fault": "status", "status": 200, "body": {"info": {"status": "active"}}}, id="is contradicted"),
    ],
)
def test_a_refusal_counts_only_when_litellm_confirms_that_there_is_no_key(
    fragile_service: FragileService, frank: Person, confirmation: dict[str, Any]
):
    fragile_service.gateway_faults.inject("/key/generate", "status", **refusal(400, "no"))
    fragile_service.gateway_faults.inject("/key/info", **confirmation)

    answer = frank.create({"modelIds": ["gpt-4o"]})

    assert_asks_to_retry(answer)
    assert frank.status_of(frank.only_key()) == "pending"


# The master key.


def test_a_wrong_master_key_is_our_trouble_and_the_right_one_is_picked_up_without_a_restart(
    fragile_service: FragileService, frank: Person
):
    stack = fragile_service.stack
    key, arn = frank.has_key(), stack.secret_arns["LiteLLMSecretArn"]
    stack.aws.change_secret(arn, {"masterKey": "sk-not-the-master-key"})
    stack.retire_workers()
    try:
        refused, accepted = frank.create({"modelIds": ["gpt-4o"]}), frank.delete(key["id"])
    finally:
        stack.aws.change_secret(arn, {"masterKey": stack.litellm_master_key})
    workers = [stack.worker_pids(function) for function in ("CreateApiKey", "DeleteApiKey")]
    created, finished = frank.create({"modelIds": ["gpt-4o"]}), frank.delete(key["id"])

    assert_asks_to_retry(refused)
    assert accepted.status_code == 202
    assert created.status_code == 201
    assert finished.status_code == 200
    assert fragile_service.use(key["key"]) == 401
    assert workers == [stack.worker_pids(function) for function in ("CreateApiKey", "DeleteApiKey")]
    [pending] = [row["id"] for row in frank.listed() if row["status"] == "pending"]
    # LiteLLM itself said 401, so it did nothing: there is nothing to wait for.
    assert frank.delete(pending).status_code == 200


def test_a_secret_without_a_master_key_is_our_trouble(fragile_service: FragileService, frank: Person):
    stack = fragile_service.stack
    arn = stack.secret_arns["LiteLLMSecretArn"]
    stack.aws.change_secret(arn, {"password": "sk-in-the-wrong-field"})
    stack.retire_workers()
    try:
        refused = frank.create({"modelIds": ["gpt-4o"]})
    finally:
        stack.aws.change_secret(arn, {"masterKey": stack.litellm_master_key})

    assert_asks_to_retry(refused)
    stack.retire_workers()
    assert frank.has_key()["isActive"] is True
