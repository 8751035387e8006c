"""POST /api/v1/api-keys with an Idempotency-Key: repeated, it never makes a second key."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, LiteralString
from uuid import uuid4

import httpx
import pytest

from tests.e2e.conftest import FragileService
from tests.e2e.service import Person, Service, assert_asks_to_retry, error_of, hash_of, violations_of

REPLAYED = "idempotency-replayed"


@pytest.fixture
def once() -> str:
    """An Idempotency-Key nobody has used yet."""
    return f"once-{uuid4()}"


@pytest.fixture
def ida(fragile_service: FragileService) -> Person:
    """Somebody whom LiteLLM knows already."""
    person = fragile_service.person()
    assert person.delete(person.has_key(name="from before")["id"]).status_code == 200
    return person


def assert_asks_to_wait(answer: httpx.Response) -> None:
    error = error_of(answer, status=409, code="OPERATION_IN_PROGRESS")
    assert error["retry"] == {"retryable": True, "retryAfter": 5}
    assert answer.headers["retry-after"] == "5"


# The create worked: it is answered again.


def test_a_repeated_create_gives_the_identical_answer_and_makes_nothing(service: Service, alice: Person, once: str):
    wanted = {"name": "ci", "maxBudget": 5, "expiresAt": "2029-01-01T00:00:00Z", "metadata": {"a": 1}}
    first = alice.create_once(once, **wanted)

    repeated = alice.create_once(once, **wanted)

    assert (first.status_code, repeated.status_code) == (201, 201)
    assert REPLAYED not in first.headers
    assert repeated.headers[REPLAYED] == "true"
    assert repeated.content == first.content
    assert repeated.headers["location"] == first.headers["location"]
    assert repeated.headers["cache-control"] == "no-store"
    assert service.use(repeated.json()["key"]) == 200
    assert alice.only_key() == first.json()["id"]
    assert alice.gateway_keys() == [hash_of(first.json()["key"])]
    assert service.operations_of(first.json()["id"]) == [("create", "done")]
    assert [(record["action"], record["success"]) for record in alice.audit()] == [("API_KEY_CREATE", True)]


def test_a_create_by_subscription_is_repeated_with_its_deprecation_headers(service: Service, alice: Person, once: str):
    [subscription] = service.rows(
        "SELECT id::text FROM subscriptions WHERE user_id = %(user)s AND model_id = 'gpt-4o'", user=alice.user_id
    )
    body, headers = {"subscriptionId": subscription["id"]}, {"idempotency-key": once}
    first = alice.create(body, headers=headers)

    repeated = alice.create(body, headers=headers)

    assert repeated.headers[REPLAYED] == "true"
    assert repeated.content == first.content
    assert repeated.headers["x-api-deprecation-warning"] == first.headers["x-api-deprecation-warning"]


def test_the_same_body_written_differently_is_the_same_request(alice: Person, once: str):
    headers = {"idempotency-key": once}
    first = alice.post('{"modelIds": ["gpt-4o"], "name": "ci", "maxBudget": 5}', headers=headers)

    repeated = alice.post('{ "maxBudget":5.0,"name":"\\u0063i",  "modelIds":["gpt-4o"] }', headers=headers)

    assert repeated.status_code == 201
    assert repeated.content == first.content


def test_a_create_at_the_limit_of_keys_can_still_be_repeated(alice: Person, once: str):
    for _ in range(9):
        alice.has_key()
    tenth = alice.create_once(once)

    repeated, eleventh = alice.create_once(once), alice.create_once(f"{once}-eleventh")

    assert repeated.content == tenth.content
    assert violations_of(eleventh) == [("activeKeysCount", "keyLimit")]


def test_another_body_is_refused(alice: Person, once: str):
    alice.create_once(once, name="ci")

    answer = alice.create_once(once, name="cd")

    error_of(answer, status=422, code="IDEMPOTENCY_KEY_REUSED")
    assert len(alice.key_rows()) == 1


def test_an_idempotency_key_is_its_callers_own(alice: Person, bob: Person, once: str):
    alices = alice.create_once(once)

    bobs = bob.create_once(once)

    assert bobs.status_code == 201
    assert REPLAYED not in bobs.headers
    assert bobs.json()["key"] != alices.json()["key"]
    assert bob.only_key() == bobs.json()["id"]


def test_an_inactive_caller_is_not_shown_the_secret_again(service: Service, alice: Person, once: str):
    alice.create_once(once)
    service.rows("UPDATE users SET is_active = false WHERE id = %(id)s", id=alice.user_id)

    answer = alice.create_once(once)

    error_of(answer, status=403, code="FORBIDDEN")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("DELETE FROM api_keys WHERE id = %(id)s", id="its row removed"),
        pytest.param("UPDATE api_keys SET expires_at = now() WHERE id = %(id)s", id="expired"),
        pytest.param("UPDATE api_keys SET revoked_at = now() WHERE id = %(id)s", id="revoked"),
        pytest.param("UPDATE api_keys SET is_active = false WHERE id = %(id)s", id="switched off"),
    ],
)
def test_a_secret_that_does_not_work_any_more_is_not_given_again(
    service: Service, alice: Person, once: str, change: LiteralString
):
    key = alice.create_once(once).json()
    service.rows(change, id=key["id"])

    answer = alice.create_once(once)

    error_of(answer, status=410, code="GONE")


def test_a_key_that_was_deleted_since_is_gone_also_while_its_delete_is_pending(
    service: Service, alice: Person, once: str
):
    key = alice.create_once(once).json()

    with service.litellm_down():
        accepted, while_pending = alice.delete(key["id"]), alice.create_once(once)
    deleted, afterwards = alice.delete(key["id"]), alice.create_once(once)

    assert (accepted.status_code, deleted.status_code) == (202, 200)
    error_of(while_pending, status=410, code="GONE")
    error_of(afterwards, status=410, code="GONE")
    assert alice.key_rows() == alice.gateway_keys() == []


def test_after_24_hours_an_idempotency_key_is_free(service: Service, alice: Person, once: str):
    old = alice.create_once(once).json()
    service.rows(
        "UPDATE api_key_operations SET created_at = now() - interval '24 hours' WHERE api_key_id = %(id)s", id=old["id"]
    )

    answer = alice.create_once(once, name="another body")

    assert answer.status_code == 201
    assert REPLAYED not in answer.headers
    assert answer.json()["id"] != old["id"]
    assert len(alice.key_rows()) == 2


def test_of_twenty_at_once_one_makes_the_key_and_no_other_secret_is_given(service: Service, alice: Person, once: str):
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: alice.create_once(once), range(20)))

    created = [answer for answer in answers if answer.status_code == 201]
    [secret] = {answer.json()["key"] for answer in created}
    assert [answer.headers.get(REPLAYED) for answer in created].count(None) == 1
    for answer in answers:
        if answer.status_code != 201:
            assert_asks_to_wait(answer)
    assert alice.gateway_keys() == [hash_of(secret)]
    assert len(alice.key_rows()) == len(alice.audit()) == 1


# The create did not work, or nobody knows.


def test_while_the_first_is_still_running_a_repeated_one_is_told_to_wait(
    fragile_service: FragileService, ida: Person, once: str
):
    meanwhile: list[httpx.Response] = []
    fragile_service.gateway_faults.inject(
        "/key/generate", "call_after", call=lambda: meanwhile.append(ida.create_once(once))
    )

    first = ida.create_once(once)

    assert first.status_code == 201
    assert_asks_to_wait(meanwhile[0])
    assert ida.only_key() == first.json()["id"]


RESUMED: list[Any] = [
    # The fault, and how many generates LiteLLM is sent in all.
    pytest.param({"fault": "status", "status": 500}, 2, id="500"),
    pytest.param({"fault": "reset_before"}, 2, id="connection cut before the work"),
    pytest.param({"fault": "reset_after"}, 1, id="connection cut after the work"),
]


@pytest.mark.parametrize(("fault", "generates"), RESUMED)
def test_a_repeated_create_goes_on_with_what_litellm_did_not_confirm(
    fragile_service: FragileService, ida: Person, once: str, fault: dict[str, Any], generates: int
):
    fragile_service.gateway_faults.inject("/key/generate", **fault)
    fragile_service.gateway_faults.forget_calls()

    refused = ida.create_once(once, maxBudget=7)
    pending = ida.only_key()
    resumed, replayed = ida.create_once(once, maxBudget=7), ida.create_once(once, maxBudget=7)

    assert_asks_to_retry(refused)
    assert resumed.status_code == 201
    assert resumed.headers[REPLAYED] == "true"
    assert resumed.json()["id"] == ida.only_key() == pending
    assert replayed.content == resumed.content
    assert fragile_service.use(resumed.json()["key"]) == 200
    assert ida.gateway_keys() == [hash_of(resumed.json()["key"])]
    told = fragile_service.gateway_key(hash_of(resumed.json()["key"]))
    assert told is not None
    assert told["max_budget"] == 7
    assert len(fragile_service.gateway_faults.calls_of("/key/generate")) == generates
    assert fragile_service.operations_of(pending) == [("create", "done")]
    assert fragile_service.audit_of_key(pending) == [("API_KEY_CREATE", True)]


def test_a_resumed_create_corrects_what_litellm_has(fragile_service: FragileService, ida: Person, once: str):
    fragile_service.gateway_faults.inject("/key/generate", "reset_after")
    ida.create_once(once, maxBudget=7)
    [made] = ida.gateway_keys()
    changed = fragile_service.gateway("POST", "/key/update", json={"key": made, "max_budget": 700})

    resumed = ida.create_once(once, maxBudget=7)

    told = fragile_service.gateway_key(made)
    assert changed.status_code == 200
    assert resumed.status_code == 201
    assert told is not None
    assert told["max_budget"] == 7


def test_a_resumed_create_keeps_its_secret_when_the_first_request_arrives_late(
    fragile_service: FragileService, ida: Person, once: str
):
    late = fragile_service.gateway_faults.inject("/key/generate", "late")
    refused = ida.create_once(once)

    resumed = ida.create_once(once)
    late.release()
    assert late.wait()

    assert_asks_to_retry(refused)
    assert resumed.status_code == 201
    assert fragile_service.use(resumed.json()["key"]) == 200
    assert ida.gateway_keys() == [hash_of(resumed.json()["key"])]


def test_another_body_does_not_resume(fragile_service: FragileService, ida: Person, once: str):
    fragile_service.gateway_faults.inject("/key/generate", "reset_before")
    ida.create_once(once, name="ci")

    answer = ida.create_once(once, name="cd")

    error_of(answer, status=422, code="IDEMPOTENCY_KEY_REUSED")
    assert ida.status_of(ida.only_key()) == "pending"


def test_a_pending_create_is_resumed_after_any_time(fragile_service: FragileService, ida: Person, once: str):
    fragile_service.gateway_faults.inject("/key/generate", "reset_before")
    ida.create_once(once)
    pending = ida.only_key()
    fragile_service.rows(
        "UPDATE api_key_operations SET created_at = now() - interval '3 days' WHERE api_key_id = %(id)s", id=pending
    )

    answer = ida.create_once(once)

    assert answer.status_code == 201
    assert answer.json()["id"] == ida.only_key() == pending


def test_a_create_whose_function_died_is_resumed_when_its_lease_is_over(
    fragile_service: FragileService, ida: Person, once: str
):
    killing = fragile_service.gateway_faults.inject(
        "/key/generate", "call_after", call=lambda: fragile_service.kill_workers("CreateApiKey")
    )

    died = ida.create_once(once)
    assert killing.wait()
    too_early = ida.create_once(once)
    fragile_service.make_due(ida.only_key())
    resumed = ida.create_once(once)

    assert died.status_code == 500
    assert_asks_to_wait(too_early)
    assert resumed.status_code == 201
    assert resumed.headers[REPLAYED] == "true"
    assert fragile_service.use(resumed.json()["key"]) == 200
    assert ida.gateway_keys() == [hash_of(resumed.json()["key"])]
    assert fragile_service.audit_of_key(ida.only_key()) == [("API_KEY_CREATE", True)]


def test_what_litellm_refused_starts_anew(fragile_service: FragileService, ida: Person, once: str):
    no = {"error": {"message": "no", "type": "bad_request_error", "param": None, "code": "400"}}
    fragile_service.gateway_faults.inject("/key/generate", "status", status=400, body=no)
    fragile_service.gateway_faults.forget_calls()
    refused = ida.create_once(once)

    created = ida.create_once(once)

    first, second = (call.body["key_alias"] for call in fragile_service.gateway_faults.calls_of("/key/generate"))
    assert violations_of(refused) == [("body", "gatewayRefused")]
    assert created.status_code == 201
    assert REPLAYED not in created.headers
    assert first != second
    assert ida.only_key() == created.json()["id"]


def test_what_a_rule_refused_starts_anew(service: Service, alice: Person, once: str):
    service.rows("UPDATE subscriptions SET status = 'suspended' WHERE user_id = %(user)s", user=alice.user_id)
    refused = alice.create_once(once)
    service.rows("UPDATE subscriptions SET status = 'active' WHERE user_id = %(user)s", user=alice.user_id)

    created = alice.create_once(once)

    assert violations_of(refused) == [("modelIds", "notEntitled")]
    assert created.status_code == 201
    assert REPLAYED not in created.headers


def test_what_is_being_undone_is_waited_for_and_then_starts_anew(
    fragile_service: FragileService, ida: Person, once: str
):
    fragile_service.gateway_faults.inject("/key/generate", "reset_after")
    ida.create_once(once)
    undone = ida.only_key()
    fragile_service.make_due(undone)
    fragile_service.settle()

    waiting = ida.create_once(once)
    fragile_service.end_drain(undone)
    fragile_service.make_due(undone)
    fragile_service.settle()
    created = ida.create_once(once)

    assert_asks_to_wait(waiting)
    assert "is being undone" in waiting.text
    assert created.status_code == 201
    assert REPLAYED not in created.headers
    assert ida.only_key() == created.json()["id"] != undone
    assert ida.gateway_keys() == [hash_of(created.json()["key"])]
    assert fragile_service.audit_of_key(undone) == [("API_KEY_CREATE", False)]


# The header itself.


@pytest.mark.parametrize(
    "idempotency_key",
    [
        pytest.param("", id="empty"),
        pytest.param("k" * 256, id="256 characters"),
        pytest.param("schlüssel", id="not ASCII"),
        pytest.param("a\tb", id="with a tab"),
    ],
)
def test_an_idempotency_key_that_is_none_is_refused(alice: Person, idempotency_key: str):
    answer = alice.create({"modelIds": ["gpt-4o"]}, headers={"idempotency-key": idempotency_key})

    assert violations_of(answer) == [("Idempotency-Key", "format")]
    assert alice.key_rows() == []


@pytest.mark.parametrize(
    "idempotency_key",
    [pytest.param("k" * 255, id="255 characters"), pytest.param('order 5; "x" ~\'--', id="any printable character")],
)
def test_an_idempotency_key_may_be_any_printable_ascii(alice: Person, idempotency_key: str):
    headers = {"idempotency-key": idempotency_key}
    first = alice.create({"modelIds": ["gpt-4o"]}, headers=headers)

    repeated = alice.create({"modelIds": ["gpt-4o"]}, headers=headers)

    assert repeated.headers[REPLAYED] == "true"
    assert repeated.content == first.content


def test_without_the_header_a_repeated_create_makes_a_second_key(alice: Person):
    first, second = alice.has_key(), alice.has_key()

    assert first["id"] != second["id"]
    assert len(alice.key_rows()) == 2
