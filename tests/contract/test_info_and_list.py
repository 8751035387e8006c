"""GET /key/info, POST /v2/key/info, GET /key/list."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.contract.gateway import Gateway, error_of, invalid_fields, unique


def test_info_echoes_what_was_asked_and_holds_no_hash(gateway: Gateway):
    key = gateway.generate()

    by_hash = gateway.get("/key/info", {"key": key["token"]}).json()
    by_value = gateway.get("/key/info", {"key": key["key"]}).json()

    assert by_hash["key"] == key["token"]
    assert by_value["key"] == key["key"]
    assert by_hash["info"] == by_value["info"]
    assert "token" not in by_hash["info"]


@pytest.mark.parametrize("key", ["f" * 64, "sk-never-existed-000", "nonsense", ""], ids=["hash", "key", "nonsense", ""])
def test_info_of_what_never_existed_is_a_404(key: str, gateway: Gateway):
    answer = gateway.get("/key/info", {"key": key})

    assert error_of(answer) == (404, "not_found_error", "key", "404")


def test_the_status_tells_active_blocked_expired_and_deleted_keys_apart(gateway: Gateway):
    active, blocked, expired, deleted = (gateway.generate(duration=text) for text in ("1h", "1h", "0s", "1h"))
    gateway.post("/key/block", {"key": blocked["token"]})
    gateway.delete(deleted["token"])

    statuses = [gateway.info(key["token"])["status"] for key in (active, blocked, expired, deleted)]

    assert statuses == ["active", "revoked", "expired", "deleted"]


def test_the_info_of_many_leaves_out_missing_and_deleted_keys(gateway: Gateway):
    live, deleted = gateway.generate(key_alias=unique("alias")), gateway.generate()
    gateway.delete(deleted["token"])
    asked = [live["token"], deleted["token"], "f" * 64]

    answer = gateway.post("/v2/key/info", {"keys": asked}).json()

    assert answer["key"] == asked
    assert [info["key_alias"] for info in answer["info"]] == [live["key_alias"]]


@pytest.fixture(scope="module")
def listed(gateway: Gateway) -> list[dict[str, Any]]:
    """Three keys of one user, the oldest first."""
    user_id, mark = unique("User"), unique("Mark")
    return [
        gateway.generate(user_id=user_id, key_alias=f"{mark}:{number}", metadata={"keyservice": {"mark": mark}})
        for number in range(3)
    ]


def tokens(keys: list[dict[str, Any]]) -> list[str]:
    return [key["token"] for key in keys]


def test_a_list_is_newest_first_and_holds_hashes(listed: list[dict[str, Any]], gateway: Gateway):
    answer = gateway.get("/key/list", {"user_id": listed[0]["user_id"]}).json()

    assert answer == {"keys": tokens(listed)[::-1], "total_count": 3, "current_page": 1, "total_pages": 1}


def test_a_list_is_paged_by_offset(listed: list[dict[str, Any]], gateway: Gateway):
    user_id = listed[0]["user_id"]

    pages = [gateway.get("/key/list", {"user_id": user_id, "page": page, "size": 2}).json() for page in (1, 2, 9)]

    assert [page["keys"] for page in pages] == [tokens(listed)[:0:-1], tokens(listed)[:1], []]
    assert [(page["total_count"], page["total_pages"]) for page in pages] == [(3, 2)] * 3


def test_a_list_of_full_objects_holds_hash_alias_and_metadata(listed: list[dict[str, Any]], gateway: Gateway):
    query = {"user_id": listed[0]["user_id"], "return_full_object": "true", "size": 1}

    (key,) = gateway.get("/key/list", query).json()["keys"]

    newest = listed[-1]
    assert (key["token"], key["key_alias"], key["metadata"]) == (
        newest["token"],
        newest["key_alias"],
        newest["metadata"],
    )
    assert (key["models"], key["spend"], key["max_budget"], key["expires"]) == ([], 0, None, None)
    assert "key" not in key or key["key"] is None


@pytest.mark.parametrize("spelling", [str, str.lower, str.upper], ids=["as it is", "lower", "upper"])
def test_a_part_of_an_alias_is_found_in_any_case(spelling: Any, listed: list[dict[str, Any]], gateway: Gateway):
    part = listed[0]["key_alias"][2:-1]

    answer = gateway.get("/key/list", {"key_alias": spelling(part), "substring_matching": "true"}).json()

    assert answer["keys"] == tokens(listed)[::-1]


def test_a_part_of_an_alias_is_a_pattern_in_which_underscore_is_any_letter(
    listed: list[dict[str, Any]], gateway: Gateway
):
    alias = listed[0]["key_alias"]
    pattern = alias.replace("-", "_")

    answer = gateway.get("/key/list", {"key_alias": pattern, "substring_matching": "true"}).json()

    assert answer["keys"] == [listed[0]["token"]]


def test_without_substring_matching_an_alias_is_exact(listed: list[dict[str, Any]], gateway: Gateway):
    alias = listed[1]["key_alias"]

    assert gateway.get("/key/list", {"key_alias": alias}).json()["keys"] == [listed[1]["token"]]
    assert gateway.get("/key/list", {"key_alias": alias.lower()}).json()["keys"] == []
    assert gateway.get("/key/list", {"key_alias": alias[:-1]}).json()["keys"] == []


def test_a_list_by_hash_finds_the_one_key(listed: list[dict[str, Any]], gateway: Gateway):
    answer = gateway.get("/key/list", {"key_hash": listed[1]["token"]}).json()

    assert answer["keys"] == [listed[1]["token"]]


def test_a_list_can_be_sorted(listed: list[dict[str, Any]], gateway: Gateway):
    query = {"user_id": listed[0]["user_id"], "sort_by": "key_alias", "sort_order": "asc"}

    assert gateway.get("/key/list", query).json()["keys"] == tokens(listed)


def test_a_list_can_be_narrowed_to_a_status(gateway: Gateway):
    user_id = unique("user")
    keys = {
        "active": gateway.generate(user_id=user_id),
        "revoked": gateway.generate(user_id=user_id, blocked=True),
        "expired": gateway.generate(user_id=user_id, duration="0s"),
        "deleted": gateway.generate(user_id=user_id),
    }
    gateway.delete(keys["deleted"]["token"])

    for status, key in keys.items():
        answer = gateway.get("/key/list", {"user_id": user_id, "status": status}).json()

        assert answer["keys"] == [key["token"]], status


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ({"size": 101}, ("less_than_equal", ("query", "size"))),
        ({"size": 0}, ("greater_than_equal", ("query", "size"))),
        ({"page": 0}, ("greater_than_equal", ("query", "page"))),
        ({"page": "x"}, ("int_parsing", ("query", "page"))),
        ({"return_full_object": "x"}, ("bool_parsing", ("query", "return_full_object"))),
    ],
    ids=["size 101", "size 0", "page 0", "page x", "flag x"],
)
def test_a_list_out_of_bounds_is_a_422(query: dict[str, Any], problem: tuple[str, Any], gateway: Gateway):
    assert invalid_fields(gateway.get("/key/list", query)) == [problem]


@pytest.mark.parametrize("query", [{"sort_by": "nope"}, {"sort_by": "token", "sort_order": "nope"}, {"status": "nope"}])
def test_a_list_by_an_unknown_word_is_a_400(query: dict[str, str], gateway: Gateway):
    assert error_of(gateway.get("/key/list", query)) == (400, "internal_server_error", "None", "400")


@pytest.fixture(scope="module")
def mark() -> str:
    return unique("lmk")


@pytest.fixture(scope="module")
def marked(mark: str, gateway: Gateway) -> list[dict[str, Any]]:
    """Active, blocked and expired ones, the oldest first; beside them a deleted one and three of others."""
    metadata = {"keyservice": {"mark": mark, "api_key_id": "a"}, "user": {"team": "x"}}
    settings: list[dict[str, Any]] = [{}, {"blocked": True}, {"duration": "0s"}, {"duration": "1h"}, {}]
    keys = [
        gateway.generate(key_alias=f"{mark}:{number}:1", metadata=metadata, **setting)
        for number, setting in enumerate(settings)
    ]
    gateway.delete(gateway.generate(key_alias=f"{mark}:deleted:1", metadata=metadata)["token"])
    for alias in (f"{mark}2:0:1", f"other:{mark}", f"{mark}-0:1"):
        gateway.generate(key_alias=alias, metadata=metadata)
    return keys


class TestListOfAMark:
    """What comparing all keys of one mark with a database stands on."""

    def page(self, gateway: Gateway, mark: str, **query: Any) -> dict[str, Any]:
        chosen = {
            "key_alias": f"{mark}:",
            "substring_matching": "true",
            "return_full_object": "true",
            "sort_by": "token",
            "sort_order": "asc",
            "size": "2",
            **query,
        }
        answer = gateway.get("/key/list", chosen)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def test_its_pages_go_up_by_hash_and_hold_every_live_key_once(
        self, mark: str, marked: list[dict[str, Any]], gateway: Gateway
    ):
        pages = [self.page(gateway, mark, page=number) for number in (1, 2, 3, 4)]

        assert [len(page["keys"]) for page in pages] == [2, 2, 1, 0]
        assert [key["token"] for page in pages for key in page["keys"]] == sorted(tokens(marked))
        assert [(page["total_count"], page["total_pages"]) for page in pages] == [(5, 3)] * 4

    def test_its_newest_come_first_when_asked_for(self, mark: str, marked: list[dict[str, Any]], gateway: Gateway):
        page = self.page(gateway, mark, sort_by="created_at", sort_order="desc")

        assert tokens(page["keys"]) == tokens(marked)[:2:-1]

    def test_it_tells_what_is_compared(self, mark: str, marked: list[dict[str, Any]], gateway: Gateway):
        told = {key["token"]: key for key in self.page(gateway, mark, size="100")["keys"]}

        assert [told[key["token"]]["blocked"] for key in marked] == [None, True, None, None, None]
        assert [told[key["token"]]["expires"] is None for key in marked] == [True, True, False, False, True]
        assert all(key["metadata"]["keyservice"]["mark"] == mark for key in told.values())

    def test_one_that_nobody_bears_is_empty(self, gateway: Gateway):
        page = self.page(gateway, unique("nobody"))

        assert (page["keys"], page["total_count"], page["total_pages"]) == ([], 0, 0)


def spend_of(gateway: Gateway, key: dict[str, Any]) -> dict[str, Any]:
    """What a list of full objects tells of the key's use; times read."""
    query = {"key_hash": key["token"], "return_full_object": "true"}
    (listed,) = gateway.get("/key/list", query).json()["keys"]
    times = {name: listed[name] and datetime.fromisoformat(listed[name]) for name in ("budget_reset_at", "last_active")}
    return {"spend": listed["spend"], **times}


def test_a_list_of_full_objects_holds_spend_and_the_end_of_the_budgets_window(gateway: Gateway):
    plain, budgeted = gateway.generate(), gateway.generate(spend=3.25, max_budget=5, budget_duration="30d")

    assert spend_of(gateway, plain) == {"spend": 0, "budget_reset_at": None, "last_active": None}
    told = spend_of(gateway, budgeted)
    assert (told["spend"], told["last_active"]) == (3.25, None)
    assert told["budget_reset_at"] == datetime.fromisoformat(gateway.info(budgeted["token"])["budget_reset_at"])
    assert told["budget_reset_at"] > datetime.now(UTC)


def test_a_list_of_full_objects_tells_what_was_spent_and_when_the_key_was_last_used(gateway: Gateway):
    key, before = gateway.generate(), datetime.now(UTC)
    gateway.chat(key["key"])

    deadline = time.monotonic() + 30
    # LiteLLM writes both to its database some seconds later.
    while (told := spend_of(gateway, key))["spend"] == 0 and time.monotonic() < deadline:
        time.sleep(0.2)

    assert 1e-6 < told["spend"] < 1e-4
    # Milliseconds are kept, and some clocks are coarser.
    assert before - timedelta(seconds=1) < told["last_active"] < datetime.now(UTC) + timedelta(seconds=1)


def test_an_administrators_list_by_hash_holds_the_keys_of_all_users_in_order(gateway: Gateway):
    made = {key["token"] for key in (gateway.generate(), gateway.generate(user_id=unique("user")), gateway.generate())}
    query = {"return_full_object": "true", "sort_by": "token", "sort_order": "asc", "size": 100}
    first = gateway.get("/key/list", {**query, "page": 1}).json()

    pages = [gateway.get("/key/list", {**query, "page": page}).json() for page in range(1, first["total_pages"] + 1)]

    tokens_listed = [key["token"] for page in pages for key in page["keys"]]
    assert made <= set(tokens_listed)
    # Twice is possible: others may make keys meanwhile, and pages are counted off.
    assert tokens_listed == sorted(tokens_listed)
