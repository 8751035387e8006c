"""POST /key/update, /key/block, /key/unblock and /key/{key}/reset_spend."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.contract.gateway import Gateway, error_of, invalid_fields, unique


def test_an_update_by_hash_replaces_models_and_metadata(gateway: Gateway):
    key = gateway.generate(models=["gpt-4o", "gpt-4o-mini"], metadata={"a": 1}, max_budget=1, tpm_limit=5)

    answer = gateway.update(key["token"], models=["gpt-4o"], metadata={"b": 2})

    assert (answer["key"], answer["token"]) == (key["token"], key["token"])
    info = gateway.info(key["token"])
    assert (info["models"], info["metadata"]) == (["gpt-4o"], {"b": 2})
    assert (info["max_budget"], info["tpm_limit"]) == (1, 5)


def test_an_update_is_in_force_on_the_next_call(gateway: Gateway):
    key = gateway.generate(models=["gpt-4o-mini"])
    assert gateway.chat(key["key"], model="gpt-4o").status_code == 403

    gateway.update(key["token"], models=["gpt-4o"])

    assert gateway.chat(key["key"], model="gpt-4o").status_code == 200
    assert gateway.chat(key["key"], model="gpt-4o-mini").status_code == 403


def test_null_clears_a_limit(gateway: Gateway):
    limits: dict[str, Any] = {"max_budget": 1, "tpm_limit": 2, "rpm_limit": 3, "budget_duration": "30d"}
    key = gateway.generate(**limits)

    gateway.update(key["token"], **dict.fromkeys(limits))

    info = gateway.info(key["token"])
    assert [info[name] for name in (*limits, "budget_reset_at")] == [None] * 5


def test_a_duration_counts_from_the_update(gateway: Gateway):
    key = gateway.generate(duration="1s")
    before = datetime.now(UTC)

    gateway.update(key["token"], duration="3600s")

    after = datetime.now(UTC)
    expires = datetime.fromisoformat(gateway.info(key["token"])["expires"])
    assert before - timedelta(milliseconds=1) <= expires - timedelta(hours=1) <= after


@pytest.mark.parametrize("duration", [None, "-1"], ids=["null", "-1"])
def test_a_key_can_be_made_to_last_for_ever(duration: str | None, gateway: Gateway):
    key = gateway.generate(duration="1h")

    gateway.update(key["token"], duration=duration)

    assert gateway.info(key["token"])["expires"] is None


def test_the_answer_to_an_update_is_what_was_stored(gateway: Gateway):
    key = gateway.generate(models=["gpt-4o"], tpm_limit=5, metadata={"a": 1}, permissions={"x": True})

    answer = gateway.update(
        key["token"], models=["gpt-4o-mini"], max_budget=2.5, duration="3600s", budget_duration="30d", rpm_limit=None
    )

    info = gateway.info(key["token"])
    names = ("models", "max_budget", "budget_duration", "budget_reset_at", "tpm_limit", "rpm_limit", "expires")
    assert [answer[name] for name in names] == [info[name] for name in names]
    assert (answer["metadata"], answer["permissions"]) == (info["metadata"], info["permissions"])
    assert (answer["tpm_limit"], answer["max_budget"]) == (5, 2.5)


def test_a_soft_budget_is_told_by_info_alone(gateway: Gateway):
    with_one, without = gateway.generate(soft_budget=2), gateway.generate()

    for key in (with_one, without):
        for soft_budget in (3, None, 4):
            answer = gateway.update(key["token"], soft_budget=soft_budget)

            assert answer.get("litellm_budget_table") is None
            assert gateway.info(key["token"])["litellm_budget_table"]["soft_budget"] == soft_budget


def test_clearing_a_soft_budget_that_is_not_there_is_a_200(gateway: Gateway):
    key = gateway.generate()

    gateway.update(key["token"], soft_budget=None, max_budget=1)

    assert (gateway.info(key["token"])["litellm_budget_table"] or {}).get("soft_budget") is None


def test_a_key_over_its_budget_works_again_when_its_spend_is_set_to_nothing(gateway: Gateway):
    key = gateway.generate(models=["gpt-4o-mini"], max_budget=1, spend=2)
    assert gateway.chat(key["key"]).status_code != 200

    answer = gateway.update(key["token"], spend=0)

    assert answer["spend"] == 0
    assert gateway.chat(key["key"]).status_code == 200


def test_a_refusal_names_the_field(gateway: Gateway):
    key = gateway.generate()

    for name, value in {"budget_duration": "yearly", "duration": "xyz", "max_budget": -1}.items():
        answer = gateway.post("/key/update", {"key": key["token"], name: value})

        assert error_of(answer)[:2] == (400, "auth_error")
        assert name in answer.json()["error"]["message"]


def test_an_update_without_changes_is_a_200(gateway: Gateway):
    key = gateway.generate(max_budget=1)

    gateway.update(key["token"])

    assert gateway.info(key["token"])["max_budget"] == 1


def test_spend_alias_and_user_can_be_set(gateway: Gateway):
    key, alias, user_id = gateway.generate(), unique("alias"), unique("user")

    gateway.update(key["token"], spend=0.5, key_alias=alias, user_id=user_id)

    info = gateway.info(key["token"])
    assert (info["spend"], info["key_alias"], info["user_id"]) == (0.5, alias, user_id)


def test_an_update_can_name_the_key_by_alias(gateway: Gateway):
    key = gateway.generate(key_alias=unique("alias"))

    answer = gateway.post("/key/update", {"key_alias": key["key_alias"], "max_budget": 7})

    assert answer.json()["key"] == key["token"]
    assert gateway.info(key["token"])["max_budget"] == 7


def test_a_limit_per_model_joins_the_metadata(gateway: Gateway):
    key = gateway.generate(metadata={"v": 1})

    gateway.update(key["token"], model_rpm_limit={"gpt-4o": 1})

    assert gateway.info(key["token"])["metadata"] == {"v": 1, "model_rpm_limit": {"gpt-4o": 1}}


def test_null_leaves_a_limit_per_model_and_an_empty_object_clears_it(gateway: Gateway):
    key = gateway.generate(model_rpm_limit={"gpt-4o": 1}, model_tpm_limit={"gpt-4o": 2})

    gateway.update(key["token"], model_rpm_limit=None, model_tpm_limit={})

    assert gateway.info(key["token"])["metadata"] == {"model_rpm_limit": {"gpt-4o": 1}, "model_tpm_limit": {}}


def test_limits_per_model_go_with_the_metadata_that_is_replaced(gateway: Gateway):
    key = gateway.generate(model_rpm_limit={"gpt-4o": 1}, metadata={"v": 1})

    gateway.update(key["token"], metadata={"v": 2}, model_rpm_limit=None)

    assert gateway.info(key["token"])["metadata"] == {"v": 2}


def test_limits_per_model_and_metadata_can_be_replaced_at_once(gateway: Gateway):
    key = gateway.generate(model_rpm_limit={"gpt-4o": 1}, metadata={"tags": ["a"]})

    gateway.update(key["token"], metadata={"tags": ["b"]}, model_rpm_limit={"gpt-4o": 3}, permissions={"p": True})

    info = gateway.info(key["token"])
    assert info["metadata"] == {"tags": ["b"], "model_rpm_limit": {"gpt-4o": 3}}
    assert info["permissions"] == {"p": True}


def test_an_alias_of_another_key_is_refused(gateway: Gateway):
    alias = gateway.generate(key_alias=unique("alias"))["key_alias"]
    key = gateway.generate()

    answer = gateway.post("/key/update", {"key": key["token"], "key_alias": alias})

    assert error_of(answer) == (400, "bad_request_error", "key_alias", "400")


def test_its_own_alias_is_no_conflict(gateway: Gateway):
    key = gateway.generate(key_alias=unique("alias"))

    assert gateway.update(key["token"], key_alias=key["key_alias"])["key_alias"] == key["key_alias"]


def test_updating_what_does_not_exist_is_a_404(gateway: Gateway):
    by_hash = gateway.post("/key/update", {"key": "f" * 64, "max_budget": 1})
    by_alias = gateway.post("/key/update", {"key_alias": unique("missing"), "max_budget": 1})

    assert error_of(by_hash) == (404, "not_found_error", "key", "404")
    assert error_of(by_alias) == (404, "not_found_error", "key_alias", "404")


def test_an_update_names_a_key(gateway: Gateway):
    answer = gateway.post("/key/update", {"max_budget": 1})

    assert invalid_fields(answer) == [("value_error", ("body",))]


@pytest.mark.parametrize(
    "change",
    [
        {"max_budget": -1},
        {"duration": "xyz"},
        {"budget_duration": "yearly"},
        {"model_max_budget": {"gpt-4o": {"budget_limit": 1, "time_period": "1d"}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_refused_change_is_a_400_and_changes_nothing(change: dict[str, Any], gateway: Gateway):
    key = gateway.generate(max_budget=5)

    answer = gateway.post("/key/update", {"key": key["token"], "tpm_limit": 9, **change})

    assert error_of(answer) == (400, "auth_error", "None", "400")
    info = gateway.info(key["token"])
    assert (info["max_budget"], info["tpm_limit"]) == (5, None)


def test_models_cannot_be_null(gateway: Gateway):
    key = gateway.generate(models=["gpt-4o"])

    answer = gateway.post("/key/update", {"key": key["token"], "models": None})

    assert error_of(answer) == (400, "auth_error", "None", "400")
    assert gateway.info(key["token"])["models"] == ["gpt-4o"]


def test_no_models_mean_all_models(gateway: Gateway):
    key = gateway.generate(models=["gpt-4o"])

    gateway.update(key["token"], models=[])

    assert gateway.info(key["token"])["models"] == []
    assert gateway.chat(key["key"], model="claude-sonnet").status_code == 200


def test_a_key_is_blocked_and_unblocked_as_often_as_one_likes(gateway: Gateway):
    key = gateway.generate()

    for path, status, blocked in [("/key/block", 401, True)] * 2 + [("/key/unblock", 200, False)] * 2:
        answer = gateway.post(path, {"key": key["token"]})

        assert (answer.status_code, answer.json()["token"], answer.json()["blocked"]) == (200, key["token"], blocked)
        assert gateway.chat(key["key"]).status_code == status


def test_blocking_what_does_not_exist_is_a_404(gateway: Gateway):
    assert error_of(gateway.post("/key/block", {"key": "f" * 64})) == (404, "not_found_error", "key", "404")
    assert error_of(gateway.post("/key/unblock", {"key": "f" * 64})) == (404, "not_found_error", "key", "404")


def test_blocking_wants_a_key_or_a_hash(gateway: Gateway):
    assert error_of(gateway.post("/key/block", {"key": "abc"})) == (400, "bad_request_error", "key", "400")
    assert invalid_fields(gateway.post("/key/block", {"key_alias": "abc"})) == [("missing", ("body", "key"))]


def test_spend_can_be_reset_but_not_raised(gateway: Gateway):
    key = gateway.generate(spend=2, max_budget=3)
    path = f"/key/{key['token']}/reset_spend"

    raised = gateway.post(path, {"reset_to": 5})
    negative = gateway.post(path, {"reset_to": -1})
    reset = gateway.post(path, {"reset_to": 0.5})

    assert [answer.status_code for answer in (raised, negative)] == [400, 400]
    assert "error" in raised.json()["detail"]
    assert reset.json() == {
        "key_hash": key["token"],
        "spend": 0.5,
        "previous_spend": 2,
        "max_budget": 3,
        "budget_reset_at": None,
    }
    assert gateway.info(key["token"])["spend"] == 0.5


def test_resetting_the_spend_of_nothing_is_a_404(gateway: Gateway):
    answer = gateway.post(f"/key/{'f' * 64}/reset_spend", {"reset_to": 0})

    assert answer.status_code == 404
    assert "error" in answer.json()["detail"]
