"""/team/new, /team/info, and keys of a team."""

import pytest

from tests.contract.gateway import Gateway, error_of, unique


@pytest.fixture
def team_id(gateway: Gateway) -> str:
    answer = gateway.post("/team/new", {"team_id": unique("team")})
    assert answer.status_code == 200, answer.text
    return answer.json()["team_id"]


def test_a_team_is_found_by_its_id(team_id: str, gateway: Gateway):
    answer = gateway.get("/team/info", {"team_id": team_id})

    assert answer.status_code == 200
    assert answer.json()["team_id"] == team_id


def test_a_missing_team_is_a_404_of_litellms_own(gateway: Gateway):
    answer = gateway.get("/team/info", {"team_id": unique("team")})

    assert error_of(answer) == (404, "auth_error", "None", "404")


def test_a_key_of_a_team_works_although_its_user_is_not_in_the_team(team_id: str, gateway: Gateway):
    key = gateway.generate(team_id=team_id, user_id=gateway.new_user())

    assert gateway.info(key["token"])["team_id"] == team_id
    assert gateway.chat(key["key"]).status_code == 200


def test_a_key_of_a_missing_team_is_made_and_works_for_nothing(gateway: Gateway):
    key = gateway.generate(team_id=unique("team"))

    assert gateway.chat(key["key"]).status_code == 404


def test_an_update_takes_the_same_team_again_and_no_other_that_the_user_is_not_in(team_id: str, gateway: Gateway):
    key = gateway.generate(team_id=team_id, user_id=gateway.new_user())
    other = gateway.post("/team/new", {"team_id": unique("team")}).json()["team_id"]

    gateway.update(key["token"], team_id=team_id, max_budget=3)
    refused = gateway.post("/key/update", {"key": key["token"], "team_id": other})

    assert error_of(refused) == (403, "auth_error", "None", "403")
    assert gateway.info(key["token"])["team_id"] == team_id


def test_an_update_with_null_takes_a_key_out_of_its_team(team_id: str, gateway: Gateway):
    key = gateway.generate(team_id=team_id)

    gateway.update(key["token"], team_id=None)

    assert gateway.info(key["token"])["team_id"] is None
