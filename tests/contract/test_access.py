"""Who is let in, and what a key may do."""

import json
import time
from typing import Any

import pytest

from tests.contract.gateway import Gateway, error_of, hash_of, invalid_fields, talk, unique

MANAGEMENT_CALLS: list[tuple[str, str, Any]] = [
    ("POST", "/key/generate", {}),
    ("POST", "/key/delete", {"keys": ["f" * 64]}),
    ("POST", "/key/update", {"key": "f" * 64, "max_budget": 1}),
    ("POST", "/key/block", {"key": "f" * 64}),
    ("POST", "/user/new", {}),
]
management_calls = pytest.mark.parametrize(("method", "path", "body"), MANAGEMENT_CALLS, ids=str)


def test_a_wrong_master_key_is_a_401(gateway: Gateway):
    answer = gateway.post("/key/generate", {}, key="sk-wrong-master-key")

    assert error_of(answer) == (401, "token_not_found_in_db", "key", "401")


def test_a_401_names_the_hash_of_the_key_it_got(gateway: Gateway):
    answer = gateway.post("/key/generate", {}, key="sk-wrong-master-key")

    assert hash_of("sk-wrong-master-key") in answer.text
    assert "sk-wrong-master-key" not in answer.text


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "sk-1234567890123456"}, {"Authorization": "Bearer not-a-key"}],
    ids=["nothing", "without Bearer", "without sk-"],
)
def test_a_request_without_a_key_is_a_401(headers: dict[str, str], gateway: Gateway):
    answer = gateway.http.post("/key/generate", json={}, headers=headers)

    assert error_of(answer) == (401, "auth_error", "None", "401")


@pytest.mark.parametrize("header", ["x-api-key", "api-key", "x-litellm-api-key"])
def test_the_key_is_taken_from_other_headers_too(header: str, gateway: Gateway):
    answer = gateway.http.get("/key/list", headers={header: gateway.master_key})

    assert answer.status_code == 200


@management_calls
def test_an_llm_api_key_may_not_manage_anything(method: str, path: str, body: Any, gateway: Gateway):
    key = gateway.generate(key_type="llm_api", user_id=gateway.new_user(user_role="internal_user"))

    answer = gateway.call(method, path, body=body, key=key["key"])

    assert answer.status_code == 403
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("path", ["/key/info", "/key/list", "/user/info"])
def test_an_llm_api_key_may_not_look_anything_up(path: str, gateway: Gateway):
    key = gateway.generate(key_type="llm_api")

    assert gateway.get(path, key=key["key"]).status_code == 403


@management_calls
def test_a_key_of_the_default_type_without_a_user_may_not_manage(method: str, path: str, body: Any, gateway: Gateway):
    key = gateway.generate()

    answer = gateway.call(method, path, body=body, key=key["key"])

    assert error_of(answer) == (401, "auth_error", "None", "401")


@pytest.mark.parametrize("role", ["internal_user", None], ids=["internal_user", "no role"])
def test_a_key_of_the_default_type_whose_user_exists_makes_keys(role: str | None, gateway: Gateway):
    """The trap that key_type llm_api closes: the second key outlives the first and knows no limits."""
    user_id = gateway.new_user(**({"user_role": role} if role else {}))
    key = gateway.generate(user_id=user_id, max_budget=1)

    made = gateway.post("/key/generate", {}, key=key["key"])

    assert made.status_code == 200
    assert (made.json()["user_id"], made.json()["max_budget"]) == (user_id, None)


def test_a_key_whose_user_is_only_a_name_makes_no_keys(gateway: Gateway):
    key = gateway.generate(user_id=unique("user"))

    assert gateway.post("/key/generate", {}, key=key["key"]).status_code == 401


def test_a_user_deletes_its_own_keys_and_no_one_elses(gateway: Gateway):
    key = gateway.generate(user_id=gateway.new_user())
    other = gateway.generate()

    refused = gateway.post("/key/delete", {"keys": [other["token"]]}, key=key["key"])
    deleted = gateway.post("/key/delete", {"keys": [key["token"]]}, key=key["key"])

    assert (refused.status_code, deleted.status_code) == (403, 200)


def test_a_key_sees_its_own_info_and_no_other_users(gateway: Gateway):
    key, other = gateway.generate(user_id=unique("user")), gateway.generate(user_id=unique("user"))

    own = gateway.get("/key/info", key=key["key"])
    others = gateway.get("/key/info", {"key": other["token"]}, key=key["key"])

    assert (own.status_code, own.json()["key"]) == (200, key["token"])
    assert error_of(others) == (403, "internal_server_error", None, "403")


def test_a_key_without_a_user_sees_the_others_without_one(gateway: Gateway):
    key, other = gateway.generate(), gateway.generate()

    assert gateway.get("/key/info", {"key": other["token"]}, key=key["key"]).status_code == 200


def test_a_fresh_key_works_at_once(gateway: Gateway):
    key = gateway.generate(key_type="llm_api", models=["gpt-4o-mini"])

    answer = gateway.chat(key["key"])

    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "mock answer from gpt-4o-mini"


def test_the_path_with_v1_is_the_same(gateway: Gateway):
    key = gateway.generate(key_type="llm_api")
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}

    assert gateway.post("/v1/chat/completions", body, key=key["key"]).status_code == 200


def test_a_model_outside_the_keys_list_is_a_403(gateway: Gateway):
    key = gateway.generate(models=["gpt-4o-mini"])

    answer = gateway.chat(key["key"], model="gpt-4o")

    assert error_of(answer) == (403, "key_model_access_denied", "model", "403")


def test_a_model_that_does_not_exist_is_a_400(gateway: Gateway):
    answer = gateway.chat(gateway.generate()["key"], model="no-such-model")

    assert error_of(answer) == (400, "invalid_request_error", None, "400")


def test_a_deleted_key_is_a_401(gateway: Gateway):
    key = gateway.generate()
    assert gateway.chat(key["key"]).status_code == 200
    gateway.delete(key["token"])

    answer = gateway.chat(key["key"])

    assert error_of(answer) == (401, "token_not_found_in_db", "key", "401")


def test_a_blocked_key_is_a_401(gateway: Gateway):
    key = gateway.generate(blocked=True)

    assert error_of(gateway.chat(key["key"])) == (401, "auth_error", "None", "401")


def test_an_expired_key_is_a_401(gateway: Gateway):
    key = gateway.generate(duration="1s")
    assert gateway.chat(key["key"]).status_code == 200

    time.sleep(1.1)

    assert error_of(gateway.chat(key["key"])) == (401, "expired_key", key["key_name"], "401")


def test_a_hash_is_no_key(gateway: Gateway):
    key = gateway.generate()

    assert error_of(gateway.chat(key["token"])) == (401, "auth_error", "None", "401")


def test_a_budget_ends_after_the_call_that_passes_it(gateway: Gateway):
    key = gateway.generate(max_budget=1e-7)

    first, second = gateway.chat(key["key"]), gateway.chat(key["key"])

    assert first.status_code == 200
    assert error_of(second) == (422, "budget_exceeded", None, "422")


@pytest.mark.parametrize(
    "settings", [{"max_budget": 0}, {"max_budget": 1, "spend": 1}], ids=["a budget of nothing", "spent before"]
)
def test_a_key_with_nothing_left_is_a_422(settings: dict[str, float], gateway: Gateway):
    key = gateway.generate(**settings)

    assert error_of(gateway.chat(key["key"])) == (422, "budget_exceeded", None, "422")


def test_what_a_call_costs_shows_in_the_keys_info(gateway: Gateway):
    key = gateway.generate()
    gateway.chat(key["key"])

    deadline = time.monotonic() + 30
    # LiteLLM writes spend to its database some seconds later.
    while (spend := gateway.info(key["token"])["spend"]) == 0 and time.monotonic() < deadline:
        time.sleep(0.2)

    assert 1e-6 < spend < 1e-4


def test_requests_beyond_the_limit_of_a_minute_are_a_429(gateway: Gateway):
    key = gateway.generate(rpm_limit=2)

    answers = [gateway.chat(key["key"]) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert error_of(answers[2]) == (429, "throttling_error", None, "429")
    assert int(answers[2].headers["retry-after"]) > 0


def test_a_body_that_is_not_json_is_a_422(gateway: Gateway):
    headers = {"Authorization": f"Bearer {gateway.master_key}", "Content-Type": "application/json"}

    answer = gateway.http.post("/key/generate", content=b"{nope", headers=headers)

    assert invalid_fields(answer) == [("json_invalid", ("body", 1))]


def test_no_body_is_a_422(gateway: Gateway):
    answer = gateway.call("POST", "/key/generate")

    assert invalid_fields(answer) == [("missing", ("body",))]


def test_a_body_that_is_no_object_is_a_500_without_a_code_and_ends_the_connection(gateway: Gateway):
    content = b"[1]"
    request = (
        "POST /key/generate HTTP/1.1\r\nHost: litellm\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {gateway.master_key}\r\nContent-Length: {len(content)}\r\n\r\n"
    )

    received = talk(gateway, request.encode() + content)

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500")
    assert b"connection: close" not in head.lower()
    error = json.loads(body)["error"]
    assert error["type"] == "internal_server_error"
    assert "code" not in error


def test_a_wrong_method_is_a_405_and_a_wrong_path_a_404(gateway: Gateway):
    wrong_method = gateway.get("/key/generate")
    wrong_path = gateway.post("/key/nope", {})

    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")
    assert wrong_method.json() == {"detail": "Method Not Allowed"}
    assert (wrong_path.status_code, wrong_path.json()) == (404, {"detail": "Not Found"})
