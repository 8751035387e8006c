"""POST /key/delete."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract.gateway import Gateway, error_of, hash_of, invalid_fields, unique


def test_a_key_is_deleted_by_its_hash(gateway: Gateway):
    key = gateway.generate()

    answer = gateway.post("/key/delete", {"keys": [key["token"]]})

    assert (answer.status_code, answer.json()) == (200, {"deleted_keys": [key["token"]]})
    assert gateway.chat(key["key"]).status_code == 401


def test_a_key_is_deleted_by_its_value(gateway: Gateway):
    key = gateway.generate()

    answer = gateway.post("/key/delete", {"keys": [key["key"]]})

    assert (answer.status_code, answer.json()) == (200, {"deleted_keys": [key["key"]]})


def test_keys_are_deleted_by_alias(gateway: Gateway):
    alias = unique("alias")
    key = gateway.generate(key_alias=alias)

    answer = gateway.post("/key/delete", {"key_aliases": [alias]})

    assert (answer.status_code, answer.json()) == (200, {"deleted_keys": [alias]})
    assert gateway.info(key["token"])["status"] == "deleted"


def test_deleting_twice_is_a_404(gateway: Gateway):
    token = gateway.generate()["token"]
    gateway.delete(token)

    answer = gateway.post("/key/delete", {"keys": [token]})

    assert error_of(answer) == (404, "internal_server_error", None, "404")


@pytest.mark.parametrize("keys", [["f" * 64], ["sk-never-existed-000"], ["nonsense"]], ids=["hash", "key", "nonsense"])
def test_deleting_what_never_existed_is_a_404(keys: list[str], gateway: Gateway):
    answer = gateway.post("/key/delete", {"keys": keys})

    assert error_of(answer) == (404, "internal_server_error", None, "404")


def test_one_existing_key_makes_the_missing_ones_look_deleted(gateway: Gateway):
    token = gateway.generate()["token"]

    answer = gateway.post("/key/delete", {"keys": [token, "f" * 64]})

    assert (answer.status_code, answer.json()) == (200, {"deleted_keys": [token, "f" * 64]})


def test_with_keys_the_aliases_are_ignored(gateway: Gateway):
    one, other = gateway.generate(), gateway.generate(key_alias=unique("alias"))

    gateway.post("/key/delete", {"keys": [one["token"]], "key_aliases": [other["key_alias"]]})

    assert gateway.info(one["token"])["status"] == "deleted"
    assert gateway.info(other["token"])["status"] == "active"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, ("value_error", ("body",))),
        ({"keys": []}, ("value_error", ("body",))),
        ({"keys": "sk-x"}, ("list_type", ("body", "keys"))),
        ({"keys": [1]}, ("string_type", ("body", "keys", 0))),
    ],
    ids=["nothing", "no keys", "no list", "no text"],
)
def test_a_request_without_keys_is_a_422(body: dict[str, Any], problem: tuple[str, Any], gateway: Gateway):
    answer = gateway.post("/key/delete", body)

    assert invalid_fields(answer) == [problem]


def test_deletes_at_once_are_each_200_or_404_and_the_key_is_gone(gateway: Gateway):
    key = gateway.generate()

    with ThreadPoolExecutor(6) as threads:
        statuses = list(
            threads.map(lambda _: gateway.post("/key/delete", {"keys": [key["token"]]}).status_code, range(6))
        )

    assert 200 in statuses
    assert set(statuses) <= {200, 404}
    assert gateway.chat(key["key"]).status_code == 401


def test_a_deleted_key_still_has_an_info_that_says_so(gateway: Gateway):
    key = gateway.generate(models=["gpt-4o"], max_budget=2, metadata={"v": 1}, key_alias=unique("alias"))
    gateway.delete(key["token"])

    for asked in (key["token"], key["key"]):
        info = gateway.info(asked)

        assert info["status"] == "deleted"
        assert info["deleted_at"] is not None
        assert info["deleted_by_api_key"] == "litellm_proxy_master_key"
        assert (info["key_alias"], info["models"], info["max_budget"]) == (key["key_alias"], ["gpt-4o"], 2)


def test_a_live_key_has_no_deletion_in_its_info(gateway: Gateway):
    info = gateway.info(gateway.generate()["token"])

    assert "deleted_at" not in info


def test_after_a_delete_the_key_is_neither_listed_nor_changed(gateway: Gateway):
    key = gateway.generate()
    gateway.delete(key["token"])

    assert gateway.get("/key/list", {"key_hash": key["token"]}).json()["total_count"] == 0
    assert error_of(gateway.post("/key/update", {"key": key["token"], "max_budget": 1}))[0] == 404
    assert error_of(gateway.post("/key/block", {"key": key["token"]}))[0] == 404


def test_hashes_are_lower_case(gateway: Gateway):
    key = gateway.generate()

    assert key["token"] == hash_of(key["key"])
    assert gateway.post("/key/delete", {"keys": [key["token"].upper()]}).status_code == 404
