"""POST /api/v1/api-keys with a body that is refused: every violation is named, and nothing is made."""

import json
from typing import Any, LiteralString

import pytest

from tests.e2e.service import Person, Service, error_of, violations_of


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param("", "json", id="missing"),
        pytest.param("{", "json", id="cut off"),
        pytest.param("modelIds=gpt-4o", "json", id="a form"),
        pytest.param('{"modelIds": ["gpt-4o"],}', "json", id="a comma too many"),
        pytest.param('{"modelIds": ["gpt-4o"]} {}', "json", id="two documents"),
        pytest.param('{"modelIds": ["gpt-4o"], "maxBudget": NaN}', "json", id="NaN"),
        pytest.param('{"modelIds": ["gpt-4o"], "maxBudget": Infinity}', "json", id="Infinity"),
        pytest.param('{"modelIds": ["gpt-4o"], "maxBudget": 1e999}', "json", id="beyond every number"),
        pytest.param('{"modelIds": ["gpt-4o"], "name": "\\ud800"}', "json", id="a lone surrogate"),
        pytest.param('{"modelIds": ["gpt-4o"], "\\udfff": 1}', "json", id="a lone surrogate in a field name"),
        pytest.param(b'{"modelIds": ["gpt-4o"], "name": "\xff"}', "json", id="not UTF-8"),
        pytest.param('["gpt-4o"]', "type", id="a list"),
        pytest.param('"gpt-4o"', "type", id="a string"),
        pytest.param("null", "type", id="null"),
        pytest.param('{"a":' * 10_000 + "1" + "}" * 10_000, "json", id="10000 levels deep"),
        pytest.param("[" * 60_000, "json", id="60000 brackets"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(alice: Person, content: str | bytes, code: str):
    answer = alice.post(content)

    assert violations_of(answer) == [("body", code)]
    assert alice.key_rows() == []


@pytest.mark.parametrize(
    ("fields", "violations"),
    [
        pytest.param({"modelIds": None}, [("modelIds", "required")], id="no models"),
        pytest.param({"modelIds": []}, [("modelIds", "minItems")], id="empty models"),
        pytest.param({"modelIds": ["gpt-4o", "gpt-4o"]}, [("modelIds", "uniqueItems")], id="a model twice"),
        pytest.param({"modelIds": "gpt-4o"}, [("modelIds", "type")], id="models as a string"),
        pytest.param({"modelIds": {"gpt-4o": True}}, [("modelIds", "type")], id="models as an object"),
        pytest.param({"modelIds": [1]}, [("modelIds[0]", "type")], id="a model as a number"),
        pytest.param({"modelIds": [None]}, [("modelIds[0]", "type")], id="a model as null"),
        pytest.param({"modelIds": [""]}, [("modelIds[0]", "minLength")], id="a model without a name"),
        pytest.param({"modelIds": ["m" * 256]}, [("modelIds[0]", "maxLength")], id="a model of 256 characters"),
        pytest.param({"modelIds": ["gpt\x004o"]}, [("modelIds", "pattern")], id="NUL in a model"),
        pytest.param({"modelIds": [f"m{n}" for n in range(101)]}, [("modelIds", "maxItems")], id="101 models"),
        pytest.param({"name": ""}, [("name", "minLength")], id="an empty name"),
        pytest.param({"name": "n" * 256}, [("name", "maxLength")], id="a name of 256 characters"),
        pytest.param({"name": "a\x00b"}, [("name", "pattern")], id="NUL in a name"),
        pytest.param({"name": 5}, [("name", "type")], id="a name as a number"),
        pytest.param({"maxBudget": -0.01}, [("maxBudget", "minimum")], id="a negative budget"),
        pytest.param({"maxBudget": 100_000_000}, [("maxBudget", "maximum")], id="a budget beyond the column"),
        pytest.param({"maxBudget": 1e300}, [("maxBudget", "maximum")], id="a huge budget"),
        pytest.param({"maxBudget": 0.005}, [("maxBudget", "multipleOf")], id="a budget with three decimals"),
        pytest.param({"maxBudget": "5"}, [("maxBudget", "type")], id="a budget as a string"),
        pytest.param({"maxBudget": True}, [("maxBudget", "type")], id="a budget as a boolean"),
        pytest.param({"maxBudget": [5]}, [("maxBudget", "type")], id="a budget as a list"),
        pytest.param({"softBudget": -1}, [("softBudget", "minimum")], id="a negative soft budget"),
        pytest.param({"softBudget": 1.001}, [("softBudget", "multipleOf")], id="a soft budget with three decimals"),
        pytest.param({"tpmLimit": -1}, [("tpmLimit", "minimum")], id="a negative limit"),
        pytest.param({"tpmLimit": 1.5}, [("tpmLimit", "type")], id="a limit of one and a half"),
        pytest.param({"rpmLimit": 2_147_483_648}, [("rpmLimit", "maximum")], id="a limit beyond the column"),
        pytest.param({"rpmLimit": 10**30}, [("rpmLimit", "maximum")], id="a limit beyond every integer"),
        pytest.param({"maxParallelRequests": "4"}, [("maxParallelRequests", "type")], id="parallel as a string"),
        pytest.param({"metadata": "env"}, [("metadata", "type")], id="metadata as a string"),
        pytest.param({"metadata": ["env"]}, [("metadata", "type")], id="metadata as a list"),
        pytest.param({"metadata": {"a": "\x00"}}, [("metadata", "pattern")], id="NUL in metadata"),
        pytest.param({"metadata": {"\x00": 1}}, [("metadata", "pattern")], id="NUL in a name in metadata"),
        pytest.param({"metadata": {"a": [{"b": ["\x00"]}]}}, [("metadata", "pattern")], id="NUL deep in metadata"),
        pytest.param({"expiresAt": "tomorrow"}, [("expiresAt", "format")], id="an expiry in words"),
        pytest.param({"expiresAt": ""}, [("expiresAt", "format")], id="an empty expiry"),
        pytest.param({"expiresAt": "2029-01-01"}, [("expiresAt", "format")], id="an expiry without a time"),
        pytest.param({"expiresAt": "2029-01-01T00:00:00"}, [("expiresAt", "format")], id="an expiry without timezone"),
        pytest.param({"expiresAt": "2029-02-30T00:00:00Z"}, [("expiresAt", "format")], id="the 30th of February"),
        pytest.param({"expiresAt": 1_861_920_000}, [("expiresAt", "type")], id="an expiry as a number"),
        pytest.param({"expiresAt": "2020-01-01T00:00:00Z"}, [("expiresAt", "past")], id="a past expiry"),
        pytest.param({"expiresAt": "0001-01-01T00:00:00+14:00"}, [("expiresAt", "past")], id="before the first year"),
        pytest.param({"expiresAt": "2126-01-01T00:00:00Z"}, [("expiresAt", "tooFar")], id="in a hundred years"),
        pytest.param({"expiresAt": "9999-12-31T23:59:59-14:00"}, [("expiresAt", "tooFar")], id="after the last year"),
        pytest.param({"budgetDuration": "fortnightly"}, [("budgetDuration", "pattern")], id="a made-up duration"),
        pytest.param({"budgetDuration": "1y"}, [("budgetDuration", "pattern")], id="a duration LiteLLM does not know"),
        pytest.param({"budgetDuration": "0d"}, [("budgetDuration", "pattern")], id="a duration of nothing"),
        pytest.param({"budgetDuration": "-1d"}, [("budgetDuration", "pattern")], id="a negative duration"),
        pytest.param({"budgetDuration": 30}, [("budgetDuration", "type")], id="a duration as a number"),
        pytest.param({"subscriptionId": "zzz"}, [("subscriptionId", "format")], id="a subscription that is no UUID"),
        pytest.param({"isActive": True}, [("isActive", "additionalProperties")], id="an unknown field"),
        pytest.param({"ModelIds": ["x"]}, [("ModelIds", "additionalProperties")], id="a field in the wrong case"),
        pytest.param({"model_ids": ["x"]}, [("model_ids", "additionalProperties")], id="our own name of a field"),
        pytest.param({"key": "sk-mine"}, [("key", "additionalProperties")], id="a secret of the caller's choice"),
        pytest.param({"userId": "1"}, [("userId", "additionalProperties")], id="somebody else's id"),
        pytest.param({"claude": 1, "": 2}, [("claude", "additionalProperties"), ("", "additionalProperties")], id="''"),
    ],
)
def test_a_body_that_breaks_a_rule_is_refused(alice: Person, fields: dict[str, Any], violations: list[tuple[str, str]]):
    answer = alice.create({"modelIds": ["gpt-4o"], **fields})

    assert violations_of(answer) == violations
    assert alice.key_rows() == []


def test_metadata_that_is_nested_too_deeply_is_refused(alice: Person):
    metadata = '{"a":' * 40 + "1" + "}" * 40

    answer = alice.post(f'{{"modelIds": ["gpt-4o"], "metadata": {metadata}}}')

    assert violations_of(answer) == [("metadata", "maxDepth")]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("1e300", id="a float beyond 64 bits"),
        pytest.param("9" * 40, id="an integer beyond 64 bits"),
        pytest.param("1e-320", id="a float that hardly is one"),
        pytest.param('"' + "x" * 20_000 + '"', id="20000 characters"),
    ],
)
def test_awkward_values_in_metadata_are_kept(alice: Person, value: str):
    answer = alice.post(f'{{"modelIds": ["gpt-4o"], "metadata": {{"n": {value}}}}}')

    assert answer.status_code == 201, answer.text
    assert [key["sync_status"] for key in alice.key_rows()] == ["synced"]
    assert list(alice.listed()[0]["metadata"]) == ["n"]


def test_all_violations_are_reported_at_once(alice: Person):
    answer = alice.create(
        {"modelIds": [], "name": "n" * 256, "maxBudget": -1, "rpmLimit": "many", "expiresAt": "soon", "colour": "red"}
    )

    error = error_of(answer, status=400, code="VALIDATION_ERROR")
    assert error["message"] == "Request validation failed"
    assert [(v["field"], v["code"]) for v in error["details"]["validation"]] == [
        ("modelIds", "minItems"),
        ("name", "maxLength"),
        ("maxBudget", "minimum"),
        ("rpmLimit", "type"),
        ("expiresAt", "format"),
        ("colour", "additionalProperties"),
    ]
    assert all(list(v) == ["field", "message", "code"] for v in error["details"]["validation"])
    assert error["details"]["suggestion"] == "Please check your input and try again"


def test_a_refusal_does_not_repeat_what_was_sent(alice: Person):
    answer = alice.create({"modelIds": ["gpt-4o"], "name": ["sk-pasted-by-mistake"], "expiresAt": "sk-pasted-too"})

    assert answer.status_code == 400
    assert "sk-pasted" not in answer.text


def test_an_unknown_field_with_a_long_name_is_shortened(alice: Person):
    answer = alice.create({"modelIds": ["gpt-4o"], "f" * 5000: 1})

    assert violations_of(answer) == [("f" * 64 + "…", "additionalProperties")]


def test_models_and_a_subscription_together_are_refused_with_the_deprecation_headers(alice: Person):
    answer = alice.create({"modelIds": ["gpt-4o"], "subscriptionId": "99999999-9999-4999-8999-999999999999"})

    assert violations_of(answer) == [("subscriptionId", "not")]
    assert answer.headers["x-api-deprecation-warning"].startswith("subscriptionId parameter is deprecated")
    assert answer.headers["x-api-migration-guide"].startswith("See /docs/api/migration-guide")


@pytest.mark.parametrize(
    "setting",
    ["guardrails", "modelMaxBudget"],
)
def test_a_setting_that_cannot_be_enforced_is_refused_by_name(alice: Person, setting: str):
    answer = alice.create({"modelIds": ["gpt-4o"], setting: {"gpt-4o": 5}})

    error = error_of(answer, status=422, code="UNSUPPORTED_SETTING")
    assert setting in error["message"]
    assert error["details"]["fields"] == [setting]
    assert alice.key_rows() == []


def test_a_body_of_64_kib_is_read_and_one_byte_more_is_too_large(alice: Person):
    def body(size: int) -> str:
        empty = json.dumps({"modelIds": [], "metadata": {"text": ""}})
        return json.dumps({"modelIds": [], "metadata": {"text": "x" * (size - len(empty))}})

    read, too_large = alice.post(body(65_536)), alice.post(body(65_537))

    assert violations_of(read) == [("modelIds", "minItems")]
    error_of(too_large, status=413, code="PAYLOAD_TOO_LARGE")
    assert alice.key_rows() == []


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/octet-stream", "json", ""],
)
def test_another_content_type_is_refused(alice: Person, content_type: str):
    answer = alice.post('{"modelIds": ["gpt-4o"]}', headers={"content-type": content_type})

    error_of(answer, status=415, code="UNSUPPORTED_MEDIA_TYPE")
    assert alice.key_rows() == []


def test_a_content_type_with_parameters_in_any_case_is_json(alice: Person):
    answer = alice.post('{"modelIds": ["gpt-4o"]}', headers={"content-type": "Application/JSON; Charset=UTF-8"})

    assert answer.status_code == 201


# Rules that only the database knows.


@pytest.mark.parametrize(
    ("models", "missing"),
    [
        pytest.param(["no-such-model"], "no-such-model", id="unknown"),
        pytest.param(["claude-sonnet"], "claude-sonnet", id="not subscribed"),
        pytest.param(
            ["gpt-4o", "claude-sonnet", "no-such-model"], "claude-sonnet, no-such-model", id="some of several"
        ),
        pytest.param(["GPT-4o"], "GPT-4o", id="the wrong case"),
    ],
)
def test_a_model_without_an_active_subscription_is_refused_and_audited(alice: Person, models: list[str], missing: str):
    answer = alice.create({"modelIds": models, "name": "wishful"})

    [record] = alice.audit()
    error = error_of(answer, status=400, code="VALIDATION_ERROR")
    assert error["message"] == f"You do not have active subscriptions for the following models: {missing}"
    assert violations_of(answer) == [("modelIds", "notEntitled")]
    assert alice.key_rows() == []
    assert (record["action"], record["success"]) == ("API_KEY_CREATE", False)
    assert record["error_message"] == "modelIds: notEntitled"
    assert record["resource_id"] is None
    assert record["metadata"]["name"] == "wishful"
    assert record["metadata"]["models"] == models
    assert record["metadata"]["modelCount"] == len(models)
    assert record["metadata"]["requestId"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("status = 'suspended'", id="suspended"),
        pytest.param("expires_at = now() - interval '1 second'", id="expired a second ago"),
    ],
)
def test_a_subscription_that_no_longer_holds_counts_for_nothing(service: Service, alice: Person, change: LiteralString):
    service.rows(
        f"UPDATE subscriptions SET {change} WHERE user_id = %(user)s AND model_id = 'gpt-4o'", user=alice.user_id
    )

    answer = alice.create({"modelIds": ["gpt-4o", "gpt-4o-mini"]})

    assert violations_of(answer) == [("modelIds", "notEntitled")]
    assert answer.json()["error"]["message"].endswith("models: gpt-4o")
    assert alice.key_rows() == []


def test_rules_of_the_database_are_reported_together(alice: Person):
    answer = alice.create({"modelIds": ["claude-sonnet"], "expiresAt": "2020-01-01T00:00:00Z"})

    assert violations_of(answer) == [("modelIds", "notEntitled"), ("expiresAt", "past")]
    assert [record["error_message"] for record in alice.audit()] == ["modelIds: notEntitled; expiresAt: past"]


def test_a_budget_duration_with_a_line_end_is_refused(alice: Person):
    answer = alice.create({"modelIds": ["gpt-4o"], "budgetDuration": "30d\n"})

    assert violations_of(answer) == [("budgetDuration", "pattern")]
    assert alice.key_rows() == []
