"""POST /key/generate."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.contract.gateway import Gateway, error_of, hash_of, invalid_fields, own_key, unique


def test_an_own_key_is_taken_and_its_token_is_its_sha256(gateway: Gateway):
    key = own_key()

    answer = gateway.generate(key=key)

    assert answer["key"] == key
    assert answer["token"] == hash_of(key)
    assert answer["token_id"] == hash_of(key)


def test_without_an_own_key_a_random_one_is_made(gateway: Gateway):
    answer = gateway.generate()

    assert answer["key"].startswith("sk-")
    assert len(answer["key"]) == 25
    assert answer["token"] == hash_of(answer["key"])
    assert answer["key_name"] == f"sk-...{answer['key'][-4:]}"


def test_what_was_asked_for_is_what_is_stored(gateway: Gateway):
    settings: dict[str, Any] = {
        "key": own_key(),
        "key_alias": unique("alias"),
        "key_type": "llm_api",
        "user_id": unique("user"),
        "models": ["gpt-4o", "gpt-4o-mini"],
        "metadata": {"keyservice": {"mark": "m", "api_key_id": "1"}, "user": {"n": [1, None, "é"]}},
        "max_budget": 10.5,
        "budget_duration": "30d",
        "tpm_limit": 1000,
        "rpm_limit": 100,
        "max_parallel_requests": 5,
        "permissions": {"allow_pii_controls": True},
    }

    answer = gateway.generate(**settings)
    info = gateway.info(hash_of(settings["key"]))

    for name in settings.keys() - {"key"}:
        assert answer[name] == settings[name], name
        assert info[name] == settings[name], name
    assert info["spend"] == 0
    assert info["status"] == "active"


@pytest.mark.parametrize(
    ("key", "is_taken"),
    [
        pytest.param("sk-1234567890abc", True, id="16 characters"),
        pytest.param("sk-1234567890ab", False, id="15 characters"),
        pytest.param("lmk_1234567890123456", False, id="without sk-"),
        pytest.param("", False, id="empty"),
    ],
)
def test_an_own_key_begins_with_sk_and_has_at_least_16_characters(key: str, is_taken: bool, gateway: Gateway):  # noqa: FBT001
    answer = gateway.post("/key/generate", {"key": key})

    if is_taken:
        assert answer.status_code == 200
    else:
        assert error_of(answer) == (400, "internal_server_error", None, "400")


def test_a_repeated_own_key_is_echoed_and_changes_nothing(gateway: Gateway):
    key = own_key()
    first = gateway.generate(
        key=key, key_alias=unique("first"), models=["gpt-4o-mini"], max_budget=1, metadata={"v": 1}
    )

    second = gateway.generate(key=key, key_alias=unique("second"), models=["gpt-4o"], max_budget=99, metadata={"v": 2})

    assert (second["models"], second["max_budget"], second["metadata"]) == (["gpt-4o"], 99, {"v": 2})
    assert second["created_at"] == first["created_at"]
    info = gateway.info(hash_of(key))
    assert (info["key_alias"], info["models"], info["max_budget"], info["metadata"]) == (
        first["key_alias"],
        ["gpt-4o-mini"],
        1,
        {"v": 1},
    )


def test_a_repeated_own_key_with_its_own_alias_is_refused(gateway: Gateway):
    settings = {"key": own_key(), "key_alias": unique("alias")}
    gateway.generate(**settings)

    answer = gateway.post("/key/generate", settings)

    assert error_of(answer) == (400, "bad_request_error", "key_alias", "400")


def test_one_own_key_generated_many_times_at_once_is_stored_once(gateway: Gateway):
    key = own_key()

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda budget: gateway.generate(key=key, max_budget=budget), range(1, 9)))

    assert sorted(answer["max_budget"] for answer in answers) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len({answer["created_at"] for answer in answers}) == 1
    assert gateway.get("/key/list", {"key_hash": hash_of(key)}).json()["total_count"] == 1


def test_an_alias_that_exists_is_refused(gateway: Gateway):
    alias = unique("alias")
    gateway.generate(key_alias=alias)

    answer = gateway.post("/key/generate", {"key_alias": alias})

    assert error_of(answer) == (400, "bad_request_error", "key_alias", "400")


def test_an_alias_differs_by_case(gateway: Gateway):
    alias = unique("alias")
    gateway.generate(key_alias=alias)

    assert gateway.generate(key_alias=alias.upper())["key_alias"] == alias.upper()


def test_an_alias_is_free_again_after_its_key_was_deleted(gateway: Gateway):
    alias = unique("alias")
    gateway.delete(gateway.generate(key_alias=alias)["token"])

    assert gateway.generate(key_alias=alias)["key_alias"] == alias


@pytest.mark.parametrize("alias", ["../up", "nul\0", "line\nbreak"], ids=["way up", "NUL", "line break"])
def test_an_unsafe_alias_is_refused(alias: str, gateway: Gateway):
    answer = gateway.post("/key/generate", {"key_alias": unique("alias") + "/" + alias})

    assert error_of(answer) == (400, "bad_request_error", "key_alias", "400")


def test_an_alias_may_have_colons_blanks_and_any_letters(gateway: Gateway):
    alias = unique("lmk-1:0190f0f0-0000-7000-8000-000000000001:1 é😀") + "x" * 300

    assert gateway.info(gateway.generate(key_alias=alias)["token"])["key_alias"] == alias


def test_a_duration_in_seconds_ends_the_key_exactly_then(gateway: Gateway):
    before = datetime.now(UTC)

    answer = gateway.generate(duration="90061s")

    after = datetime.now(UTC)
    expires = datetime.fromisoformat(answer["expires"])
    # LiteLLM's clock is this machine's; what it stores is cut to the millisecond.
    assert before - timedelta(milliseconds=1) <= expires - timedelta(seconds=90061) <= after
    stored = datetime.fromisoformat(gateway.info(answer["token"])["expires"])
    assert abs(expires - stored) < timedelta(milliseconds=1)


def test_without_a_duration_a_key_never_expires(gateway: Gateway):
    assert gateway.info(gateway.generate()["token"])["expires"] is None


@pytest.mark.parametrize("duration", ["xyz", "-5d", "10y", "30", "1.5h", "-1", ""])
def test_a_duration_it_cannot_read_is_a_500(duration: str, gateway: Gateway):
    answer = gateway.post("/key/generate", {"duration": duration})

    assert error_of(answer) == (500, "internal_server_error", None, "500")


@pytest.mark.parametrize(
    "period", ["daily", "weekly", "monthly", "1h", "24h", "7d", "30d", "1mo", "90d", "365d", "60s"]
)
def test_a_known_budget_period_is_taken(period: str, gateway: Gateway):
    info = gateway.info(gateway.generate(max_budget=1, budget_duration=period)["token"])

    assert info["budget_duration"] == period
    assert datetime.fromisoformat(info["budget_reset_at"]) > datetime.now(UTC) - timedelta(minutes=1)


@pytest.mark.parametrize("period", ["yearly", "1y", "2mo", "fortnight", "0d", "-1d", ""])
def test_an_unknown_budget_period_is_refused_by_name(period: str, gateway: Gateway):
    answer = gateway.post("/key/generate", {"budget_duration": period})

    assert error_of(answer) == (400, "internal_server_error", None, "400")
    assert "budget_duration" in answer.json()["error"]["message"]


@pytest.mark.parametrize("period", ["monthly", "30d", "1mo"])
def test_a_month_of_budget_ends_on_the_first(period: str, gateway: Gateway):
    info = gateway.info(gateway.generate(budget_duration=period)["token"])

    reset = datetime.fromisoformat(info["budget_reset_at"])
    assert (reset.day, reset.hour, reset.minute, reset.second) == (1, 0, 0, 0)


@pytest.mark.parametrize("budget", [-1, "NaN", "inf"])
def test_a_budget_that_is_no_amount_is_refused_by_name(budget: float | str, gateway: Gateway):
    answer = gateway.post("/key/generate", {"max_budget": budget})

    assert error_of(answer) == (400, "internal_server_error", None, "400")
    assert "max_budget" in answer.json()["error"]["message"]


def test_no_budget_and_a_budget_of_zero_are_kept_apart(gateway: Gateway):
    unlimited = gateway.generate(max_budget=None)
    nothing = gateway.generate(max_budget=0)

    assert gateway.info(unlimited["token"])["max_budget"] is None
    assert gateway.info(nothing["token"])["max_budget"] == 0


def test_an_initial_spend_is_honoured(gateway: Gateway):
    answer = gateway.generate(spend=3.5)

    assert answer["spend"] == 3.5
    assert gateway.info(answer["token"])["spend"] == 3.5


def test_an_initial_spend_counts_against_the_budget_at_once(gateway: Gateway):
    """So a rotation carries it over: who was over budget stays over budget."""
    over = gateway.generate(key=own_key(), max_budget=5, spend=5.5)
    within = gateway.generate(key=own_key(), max_budget=5, spend=4.5)

    assert gateway.chat(over["key"]).status_code == 422
    assert gateway.chat(within["key"]).status_code == 200


def test_a_second_key_of_the_same_user_and_settings_leaves_the_first_alone(gateway: Gateway):
    """What a rotation makes: another alias, the same of all else; both work until the first is deleted."""
    alias = unique("rotated")
    settings: dict[str, Any] = {"user_id": gateway.new_user(), "models": ["gpt-4o-mini"], "key_type": "llm_api"}
    first = gateway.generate(key=own_key(), key_alias=f"{alias}:1", **settings)
    second = gateway.generate(key=own_key(), key_alias=f"{alias}:2", **settings)

    assert (gateway.chat(first["key"]).status_code, gateway.chat(second["key"]).status_code) == (200, 200)
    gateway.delete(first["token"])
    assert (gateway.chat(first["key"]).status_code, gateway.chat(second["key"]).status_code) == (401, 200)


def test_values_of_the_wrong_type_are_told_by_field(gateway: Gateway):
    body = {"tpm_limit": "x", "metadata": 3, "max_budget": "lots", "models": "gpt-4o", "rpm_limit": 1.5, "key_alias": 5}

    answer = gateway.post("/key/generate", body)

    assert invalid_fields(answer) == [
        ("string_type", ("body", "key_alias")),
        ("list_type", ("body", "models")),
        ("float_parsing", ("body", "max_budget")),
        ("dict_type", ("body", "metadata")),
        ("int_parsing", ("body", "tpm_limit")),
        ("int_from_float", ("body", "rpm_limit")),
    ]


def test_numbers_in_strings_are_taken(gateway: Gateway):
    answer = gateway.generate(max_budget="1.5", tpm_limit="10")

    assert (answer["max_budget"], answer["tpm_limit"]) == (1.5, 10)


def test_unknown_fields_are_ignored(gateway: Gateway):
    answer = gateway.post("/key/generate", {"no_such_field": 1})

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"tpm_limit": 2**70}, id="number beyond 64 bits"),
        pytest.param({"max_parallel_requests": 2**31}, id="number beyond 32 bits"),
        pytest.param({"metadata": {"text": "nul\0"}}, id="NUL in metadata"),
    ],
)
def test_what_its_database_cannot_hold_is_a_500(settings: dict[str, Any], gateway: Gateway):
    answer = gateway.post("/key/generate", settings)

    assert error_of(answer) == (500, "internal_server_error", None, "500")


@pytest.mark.parametrize(
    ("setting", "status"),
    [
        ({"tags": ["a"]}, 403),
        ({"guardrails": ["a"]}, 403),
        ({"policies": ["a"]}, 403),
        ({"prompts": ["a"]}, 403),
        ({"model_max_budget": {"gpt-4o": {"budget_limit": 1, "time_period": "1d"}}}, 500),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_needs_a_licence_is_refused_by_name(setting: dict[str, Any], status: int, gateway: Gateway):
    answer = gateway.post("/key/generate", setting)

    assert error_of(answer) == (status, "internal_server_error", None, str(status))
    assert next(iter(setting)) in answer.json()["error"]["message"]


def test_the_same_settings_pass_when_they_are_empty_or_inside_metadata(gateway: Gateway):
    answer = gateway.generate(
        tags=[], model_max_budget={}, guardrails=None, metadata={"tags": ["a"], "guardrails": ["b"]}
    )

    assert answer["metadata"]["guardrails"] == ["b"]


def test_limits_per_model_are_kept_inside_metadata(gateway: Gateway):
    answer = gateway.generate(model_rpm_limit={"gpt-4o": 3}, metadata={"v": 1})

    assert gateway.info(answer["token"])["metadata"] == {"v": 1, "model_rpm_limit": {"gpt-4o": 3}}


def test_a_limit_per_model_holds(gateway: Gateway):
    key = gateway.generate(models=["gpt-4o", "gpt-4o-mini"], model_rpm_limit={"gpt-4o-mini": 1})["key"]

    statuses = [gateway.chat(key, model=model).status_code for model in ("gpt-4o-mini", "gpt-4o-mini", "gpt-4o")]

    assert statuses == [200, 429, 200]


def test_tags_in_metadata_need_no_licence_and_guardrails_in_metadata_stop_every_call(gateway: Gateway):
    tagged, guarded = gateway.generate(metadata={"tags": ["a"]}), gateway.generate(metadata={"guardrails": ["a"]})

    assert gateway.chat(tagged["key"]).status_code == 200
    assert gateway.chat(guarded["key"]).status_code == 403


def test_permissions_are_kept_and_stop_nothing(gateway: Gateway):
    key = gateway.generate(permissions={"allow_chat_completions": False})

    assert gateway.info(key["token"])["permissions"] == {"allow_chat_completions": False}
    assert gateway.chat(key["key"]).status_code == 200


def test_a_deleted_keys_value_can_be_generated_again(gateway: Gateway):
    key = own_key()
    gateway.generate(key=key)
    gateway.delete(hash_of(key))

    gateway.generate(key=key)

    assert gateway.info(hash_of(key))["status"] == "active"
    assert gateway.chat(key).status_code == 200


@pytest.mark.parametrize(
    ("key_type", "allowed_routes"),
    [
        ("llm_api", ["llm_api_routes"]),
        ("management", ["management_routes"]),
        ("read_only", ["info_routes"]),
        ("default", []),
    ],
)
def test_a_key_type_is_a_list_of_allowed_routes(key_type: str, allowed_routes: list[str], gateway: Gateway):
    info = gateway.info(gateway.generate(key_type=key_type)["token"])

    assert (info["key_type"], info["allowed_routes"]) == (key_type, allowed_routes)


def test_an_unknown_key_type_is_refused(gateway: Gateway):
    answer = gateway.post("/key/generate", {"key_type": "nope"})

    assert invalid_fields(answer) == [("enum", ("body", "key_type"))]
