import json
from typing import Any

import pytest

from keyservice.decoding import decode_object
from keyservice.errors import InvalidRequest
from keyservice.key_defaults import require_defaults_within_maximums
from keyservice.models import DefaultSettings, KeyDefaults, KeyToValidate, MaximumSettings


def decoded(body: Any) -> KeyDefaults:
    return decode_object(json.dumps(body).encode(), KeyDefaults)


def violations_of(caught: pytest.ExceptionInfo[InvalidRequest]) -> list[tuple[str, str]]:
    return [(violation.field, violation.code) for violation in caught.value.details["validation"]]


def test_an_object_within_is_decoded_with_its_nulls_as_not_set():
    wanted = decoded({"defaults": {"maxBudget": 5, "rpmLimit": None}, "maximums": {}})

    assert wanted == KeyDefaults(defaults=DefaultSettings(max_budget=5), maximums=MaximumSettings())


def test_everything_wrong_within_is_named_by_its_path():
    with pytest.raises(InvalidRequest) as caught:
        decoded({"defaults": {"maxBudget": "5", "x" * 70: 1}, "maximums": {"expirationDays": 0}, "more": {}})

    assert violations_of(caught) == [
        ("defaults.maxBudget", "type"),
        ("defaults." + "x" * 64 + "…", "additionalProperties"),
        ("maximums.expirationDays", "minimum"),
        ("more", "additionalProperties"),
    ]


def test_what_is_missing_is_named():
    with pytest.raises(InvalidRequest) as caught:
        decoded({"maximums": None})

    assert violations_of(caught) == [("defaults", "required"), ("maximums", "required")]


def test_a_text_in_place_of_an_object_is_a_wrong_type():
    with pytest.raises(InvalidRequest) as caught:
        decoded({"defaults": "none", "maximums": {}})

    assert violations_of(caught) == [("defaults", "type")]


def test_a_default_may_be_its_maximum():
    wanted = decoded({"defaults": {"maxBudget": 5, "tpmLimit": 0}, "maximums": {"maxBudget": 5, "tpmLimit": 0}})

    require_defaults_within_maximums(wanted)


def test_a_default_above_its_maximum_says_what_that_is():
    wanted = decoded({"defaults": {"rpmLimit": 8, "tpmLimit": 9}, "maximums": {"rpmLimit": 7}})

    with pytest.raises(InvalidRequest) as caught:
        require_defaults_within_maximums(wanted)

    [violation] = caught.value.details["validation"]
    assert (violation.field, violation.message, violation.code) == (
        "defaults.rpmLimit",
        "must not exceed the maximum of 7",
        "maximum",
    )


def test_a_secret_that_is_wrong_is_not_repeated():
    with pytest.raises(InvalidRequest) as caught:
        decode_object(b'{"key": ["sk-canary"]}', KeyToValidate)

    assert violations_of(caught) == [("key", "type")]
    assert "canary" not in repr(caught.value.details)
