import json
from typing import Any

import pytest

from keyservice.decoding import decode_object
from keyservice.errors import InvalidRequest, UnsupportedSetting
from keyservice.models import NewApiKey, Permissions


def violations_of(body: bytes) -> list[tuple[str, str]]:
    """Field and code of each violation, in the order in which the answer names them."""
    with pytest.raises(InvalidRequest) as caught:
        decode_object(body, NewApiKey)
    return [(violation.field, violation.code) for violation in caught.value.details["validation"]]


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        pytest.param("modelIds", [], "minItems", id="no models"),
        pytest.param("modelIds", [f"model-{number}" for number in range(101)], "maxItems", id="101 models"),
        pytest.param("modelIds", {}, "type", id="models as an object"),
        pytest.param("name", "", "minLength", id="empty name"),
        pytest.param("name", "n" * 256, "maxLength", id="name of 256 characters"),
        pytest.param("name", 5, "type", id="name as a number"),
        pytest.param("maxBudget", -0.01, "minimum", id="negative budget"),
        pytest.param("maxBudget", 100_000_000, "maximum", id="budget too large for the column"),
        pytest.param("maxBudget", 10**400, "type", id="budget beyond any number"),
        pytest.param("maxBudget", "5", "type", id="budget as a string"),
        pytest.param("softBudget", -1, "minimum", id="negative soft budget"),
        pytest.param("tpmLimit", 1.5, "type", id="fraction of a token"),
        pytest.param("tpmLimit", True, "type", id="limit as a boolean"),
        pytest.param("rpmLimit", 2_147_483_648, "maximum", id="limit too large for the column"),
        pytest.param("maxParallelRequests", -1, "minimum", id="negative parallel requests"),
        pytest.param("budgetDuration", "fortnightly", "pattern", id="unknown duration"),
        pytest.param("budgetDuration", "0d", "pattern", id="duration of nothing"),
        pytest.param("expiresAt", "tomorrow", "format", id="expiry in words"),
        pytest.param("expiresAt", "2027-01-01", "format", id="expiry without time"),
        pytest.param("expiresAt", "2027-01-01T00:00:00", "format", id="expiry without zone"),
        pytest.param("expiresAt", 1_800_000_000, "type", id="expiry as a number"),
        pytest.param("subscriptionId", "not-a-uuid", "format", id="subscription that is no UUID"),
        pytest.param("metadata", [], "type", id="metadata as a list"),
        pytest.param("metadata", {"note": "a\0b"}, "pattern", id="NUL in metadata"),
        pytest.param("metadata", {"a\0b": 1}, "pattern", id="NUL in a name of metadata"),
        pytest.param("metadata", {"list": [["a\0b"]]}, "pattern", id="NUL in a nested list"),
        pytest.param("name", "a\0b", "pattern", id="NUL in the name"),
        pytest.param("modelIds", ["a\0b"], "pattern", id="NUL in a model"),
        pytest.param("colour", "red", "additionalProperties", id="unknown field"),
        pytest.param("model_ids", ["gpt-4o"], "additionalProperties", id="Python's name of a field"),
    ],
)
def test_broken_field_is_named_with_its_code(field: str, value: Any, code: str):
    assert violations_of(json.dumps({field: value}).encode()) == [(field, code)]


@pytest.mark.parametrize(
    ("models", "field", "code"),
    [
        pytest.param(["gpt-4o", ""], "modelIds[1]", "minLength", id="empty name"),
        pytest.param(["gpt-4o", 7], "modelIds[1]", "type", id="number"),
        pytest.param(["m" * 256], "modelIds[0]", "maxLength", id="256 characters"),
        pytest.param([None], "modelIds[0]", "type", id="null"),
    ],
)
def test_broken_model_is_named_by_its_place(models: list[Any], field: str, code: str):
    assert violations_of(json.dumps({"modelIds": models}).encode()) == [(field, code)]


def test_all_violations_are_reported_at_once_in_the_order_of_the_body():
    body = {"name": "", "colour": "red", "tpmLimit": -1, "expiresAt": "soon", "modelIds": []}

    found = violations_of(json.dumps(body).encode())

    assert found == [
        ("name", "minLength"),
        ("colour", "additionalProperties"),
        ("tpmLimit", "minimum"),
        ("expiresAt", "format"),
        ("modelIds", "minItems"),
    ]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut short"),
        pytest.param(b'{"maxBudget": NaN}', id="NaN"),
        pytest.param(b'{"maxBudget": 1e400}', id="number beyond a double"),
        pytest.param(b'{"name": "\xff"}', id="not UTF-8"),
        pytest.param(b'{"name": "\\ud800"}', id="half a surrogate pair"),
        pytest.param(b"[" * 100_000, id="nested without end"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte order mark"),
    ],
)
def test_body_that_is_not_json_is_refused(body: bytes):
    assert violations_of(body) == [("body", "json")]


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"5", b"null", b"true"])
def test_json_that_is_not_an_object_is_refused(body: bytes):
    assert violations_of(body) == [("body", "type")]


def test_no_answer_repeats_what_was_sent():
    body = json.dumps({"name": "CANARY" * 50, "budgetDuration": "CANARY", "expiresAt": "CANARY", "tpmLimit": "CANARY"})

    with pytest.raises(InvalidRequest) as caught:
        decode_object(body.encode(), NewApiKey)

    assert "CANARY" not in caught.value.message
    assert "CANARY" not in repr(caught.value.details)


def test_unknown_field_of_any_length_is_shown_shortened():
    assert violations_of(json.dumps({"x" * 5000: 1}).encode()) == [("x" * 64 + "…", "additionalProperties")]


def nested(depth: int) -> bytes:
    return b'{"metadata": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"


def test_metadata_may_be_nested_32_deep():
    decoded = decode_object(nested(32), NewApiKey)

    assert decoded.metadata is not None
    assert decoded.metadata.keys() == {"a"}


@pytest.mark.parametrize("depth", [33, 500, 5000])
def test_deeper_metadata_is_refused(depth: int):
    [(field, code)] = violations_of(nested(depth))

    # msgspec itself gives up on what is nested far deeper: the body is not valid JSON then.
    assert (field, code) in {("metadata", "maxDepth"), ("body", "json")}


def test_field_that_cannot_be_enforced_is_refused_by_name():
    body = {"modelIds": ["gpt-4o"], "modelMaxBudget": {"gpt-4o": {}}, "guardrails": ["b"], "tags": []}

    with pytest.raises(UnsupportedSetting) as caught:
        decode_object(json.dumps(body).encode(), NewApiKey)

    assert caught.value.status == 422
    assert caught.value.details == {"fields": ["guardrails", "modelMaxBudget"]}


@pytest.mark.parametrize("name", ["guardrails", "modelMaxBudget"])
def test_every_setting_of_litemaas_that_is_not_enforced_is_refused(name: str):
    with pytest.raises(UnsupportedSetting) as caught:
        decode_object(json.dumps({name: "anything"}).encode(), NewApiKey)

    assert caught.value.details == {"fields": [name]}


@pytest.mark.parametrize("empty", ["[]", "{}", "null"])
def test_a_setting_that_asks_for_nothing_needs_no_enforcing(empty: str):
    body = f'{{"guardrails": {empty}, "modelMaxBudget": {empty}}}'

    assert decode_object(body.encode(), NewApiKey) == NewApiKey()


@pytest.mark.parametrize(
    ("body", "violation"),
    [
        ('{"permissions": {"allowEverything": true}}', ("permissions.allowEverything", "additionalProperties")),
        ('{"permissions": {"allowEmbeddings": "no"}}', ("permissions.allowEmbeddings", "type")),
        ('{"permissions": ["allowEmbeddings"]}', ("permissions", "type")),
        ('{"tags": [""]}', ("tags[0]", "minLength")),
        ('{"tags": "prod"}', ("tags", "type")),
        ('{"teamId": ""}', ("teamId", "minLength")),
        ('{"modelRpmLimit": {"gpt-4o": -1}}', ("modelRpmLimit[]", "minimum")),
        ('{"modelTpmLimit": {"gpt-4o": 1.5}}', ("modelTpmLimit[]", "type")),
        ('{"modelTpmLimit": {"gpt\\u00004o": 1}}', ("modelTpmLimit", "pattern")),
    ],
)
def test_what_litemaas_takes_is_checked(body: str, violation: tuple[str, str]):
    assert violations_of(body.encode()) == [violation]


def test_permissions_are_read():
    decoded = decode_object(b'{"permissions": {"allowEmbeddings": false, "allowCompletions": null}}', NewApiKey)

    assert decoded.permissions == Permissions(allow_embeddings=False)


def test_broken_rules_come_before_settings_that_cannot_be_enforced():
    assert violations_of(b'{"guardrails": ["a"], "name": ""}') == [("name", "minLength")]


def test_null_means_not_set_for_every_field():
    body = dict.fromkeys(
        [
            *("modelIds", "subscriptionId", "name", "expiresAt", "maxBudget", "softBudget", "budgetDuration"),
            *("tpmLimit", "rpmLimit", "maxParallelRequests", "metadata", "tags", "colour"),
        ]
    )

    assert decode_object(json.dumps(body).encode(), NewApiKey) == NewApiKey()


@pytest.mark.parametrize(
    "duration", ["daily", "weekly", "monthly", "yearly", "1mo", "1s", "30m", "12h", "30d", "99999w"]
)
def test_duration_that_litellm_knows_is_taken(duration: str):
    decoded = decode_object(json.dumps({"budgetDuration": duration}).encode(), NewApiKey)

    assert decoded.budget_duration == duration


def test_whole_body_is_decoded():
    body = {
        "modelIds": ["gpt-4o"],
        "name": "😀" * 255,
        "expiresAt": "2027-01-01T02:00:00.5+02:00",
        "maxBudget": 99_999_999.99,
        "softBudget": 0,
        "tpmLimit": 2_147_483_647,
        "rpmLimit": 0,
        "maxParallelRequests": 1,
        "metadata": {"team": ["a", {"b": None}]},
    }

    decoded = decode_object(json.dumps(body).encode(), NewApiKey)

    assert decoded.model_ids == ["gpt-4o"]
    assert decoded.name == "😀" * 255
    assert decoded.expires_at is not None
    assert decoded.expires_at.isoformat() == "2027-01-01T02:00:00.500000+02:00"
    assert (decoded.max_budget, decoded.soft_budget) == (99_999_999.99, 0.0)
    assert (decoded.tpm_limit, decoded.rpm_limit, decoded.max_parallel_requests) == (2_147_483_647, 0, 1)
    assert decoded.metadata == {"team": ["a", {"b": None}]}
