"""How often a request waits for PostgreSQL and for LiteLLM; connecting is not counted."""

from dataclasses import dataclass
from uuid import uuid4

import pytest

from tests.e2e.conftest import FragileService
from tests.e2e.service import Person


@dataclass(frozen=True)
class Counted:
    """What passed the two proxies since `reset`."""

    service: FragileService

    def reset(self) -> None:
        self.service.database_faults.reset_counts()
        self.service.gateway_faults.forget_calls()

    @property
    def statements(self) -> list[tuple[str, ...]]:
        """The names of the statements of each round trip."""
        return [trip.steps for trip in self.service.database_faults.trips]

    @property
    def calls(self) -> list[tuple[str, str]]:
        return [(call.method, call.path) for call in self.service.gateway_faults.calls]


@pytest.fixture
def counted(fragile_service: FragileService) -> Counted:
    return Counted(fragile_service)


@pytest.fixture
def grace(fragile_service: FragileService) -> Person:
    return fragile_service.person()


def test_a_users_first_create_is_two_round_trips_and_two_calls(counted: Counted, grace: Person):
    counted.reset()

    grace.has_key()

    assert counted.statements == [
        ("register_caller", "begin_create"),
        ("lock_user", "lock_key", "finish_create"),
    ]
    assert counted.calls == [("POST", "/user/new"), ("POST", "/key/generate")]


def test_a_create_is_two_round_trips_and_one_call(counted: Counted, grace: Person):
    grace.has_key()
    counted.reset()

    grace.has_key(modelIds=["gpt-4o", "gpt-4o-mini"], name="second", maxBudget=5, metadata={"a": 1})

    assert counted.statements == [
        ("register_caller", "begin_create"),
        ("lock_user", "lock_key", "finish_create"),
    ]
    assert counted.calls == [("POST", "/key/generate")]


def test_a_refused_create_is_one_round_trip_and_no_call(counted: Counted, grace: Person):
    counted.reset()

    answer = grace.create({"modelIds": ["claude-sonnet"]})

    assert answer.status_code == 400
    assert counted.statements == [("register_caller", "begin_create")]
    assert counted.calls == []


def test_a_malformed_create_is_neither(counted: Counted, grace: Person):
    counted.reset()

    answer = grace.create({"modelIds": []})

    assert answer.status_code == 400
    assert (counted.statements, counted.calls) == ([], [])


def test_a_delete_is_two_round_trips_and_one_call(counted: Counted, grace: Person):
    key = grace.has_key()
    counted.reset()

    assert grace.delete(key["id"]).status_code == 200

    assert counted.statements == [("lock_own_key", "begin_delete"), ("lock_key", "finish_delete")]
    assert counted.calls == [("POST", "/key/delete")]


CHANGE = [("lock_key_to_update", "begin_update"), ("lock_key", "finish_update", "show_key")]


def test_a_change_is_two_round_trips_and_one_call(counted: Counted, grace: Person):
    key = grace.has_key()
    counted.reset()

    wanted = {"tpmLimit": 5, "modelIds": ["gpt-4o-mini"], "name": "changed", "expiresAt": "2033-03-03T03:03:03Z"}
    assert grace.update(key["id"], wanted).status_code == 200

    assert counted.statements == CHANGE
    assert counted.calls == [("POST", "/key/update")]


def test_a_change_of_metadata_is_one_call_more(counted: Counted, grace: Person):
    key = grace.has_key()
    counted.reset()

    assert grace.update(key["id"], {"metadata": {"a": 1}, "tpmLimit": 5}).status_code == 200

    assert counted.statements == CHANGE
    assert [path.partition("?")[0] for _, path in counted.calls] == ["/key/info", "/key/update"]


def test_a_change_of_a_soft_budget_is_two_calls_more(counted: Counted, grace: Person):
    key = grace.has_key()
    counted.reset()

    assert grace.update(key["id"], {"softBudget": 5}).status_code == 200

    assert counted.statements == CHANGE
    assert [path.partition("?")[0] for _, path in counted.calls] == ["/key/info", "/key/update", "/key/info"]


def test_a_change_of_the_name_is_two_round_trips_and_no_call(counted: Counted, grace: Person):
    key = grace.has_key()
    counted.reset()

    assert grace.update(key["id"], {"name": "renamed"}).status_code == 200

    assert (counted.statements, counted.calls) == (CHANGE, [])


def test_a_refused_change_is_one_round_trip_and_no_call(counted: Counted, grace: Person):
    key = grace.has_key()
    counted.reset()

    assert grace.update(key["id"], {"modelIds": ["claude-sonnet"]}).status_code == 400

    assert (counted.statements, counted.calls) == (CHANGE[:1], [])


def test_a_reset_of_spend_is_two_round_trips_and_two_calls(counted: Counted, grace: Person):
    key = grace.has_key()
    counted.reset()

    assert grace.reset_spend(key["id"]).status_code == 200

    assert counted.statements == [("lock_key_to_reset", "begin_reset"), ("lock_key", "finish_update")]
    assert [path.partition("?")[0] for _, path in counted.calls] == ["/key/info", "/key/update"]


@pytest.mark.parametrize("keys", [0, 1, 100])
def test_a_list_is_one_round_trip_and_no_call_whatever_the_number_of_keys(
    counted: Counted, fragile_service: FragileService, grace: Person, keys: int
):
    fragile_service.rows(
        "INSERT INTO api_keys (user_id, key_hash, key_prefix)"
        " SELECT %(user)s, gen_random_uuid()::text, 'sk-made' FROM generate_series(1, %(keys)s)",
        user=grace.user_id,
        keys=keys,
    )
    counted.reset()

    listed = grace.listed("limit=100")

    assert len(listed) == keys
    assert counted.statements == [("list_keys",)]
    assert counted.calls == []


def test_a_list_for_a_newcomer_is_one_round_trip_too(counted: Counted, fragile_service: FragileService):
    newcomer = fragile_service.person(is_known=False)
    counted.reset()

    newcomer.listed()

    assert newcomer.user is not None
    assert counted.statements == [("list_keys",)]


def test_a_repeated_create_is_one_round_trip_and_no_call(counted: Counted, grace: Person):
    once = f"once-{uuid4()}"
    first = grace.create_once(once)
    counted.reset()

    repeated = grace.create_once(once)

    assert repeated.content == first.content
    assert counted.statements == [("register_caller", "begin_create")]
    assert counted.calls == []


def test_a_resumed_create_is_two_round_trips_and_asks_litellm_before_and_after(
    counted: Counted, fragile_service: FragileService, grace: Person
):
    once = f"once-{uuid4()}"
    grace.has_key()
    fragile_service.gateway_faults.inject("/key/generate", "reset_before")
    grace.create_once(once)
    counted.reset()

    resumed = grace.create_once(once)

    assert resumed.status_code == 201
    assert counted.statements == [
        ("register_caller", "begin_create"),
        ("lock_user", "lock_key", "finish_create"),
    ]
    assert [path.partition("?")[0] for _, path in counted.calls] == ["/key/info", "/key/generate", "/key/info"]


ROTATED = [("lock_caller", "lock_own_key", "begin_rotate"), ("lock_user", "lock_key", "finish_rotate")]


def test_a_rotation_with_a_grace_is_two_round_trips_and_two_calls(counted: Counted, grace: Person):
    key = grace.has_key()
    counted.reset()

    assert grace.rotate(key["id"], grace_seconds=60).status_code == 200

    assert counted.statements == ROTATED
    assert [path.partition("?")[0] for _, path in counted.calls] == ["/key/info", "/key/generate"]


def test_without_a_grace_the_end_of_the_old_secret_is_one_more_of_each(counted: Counted, grace: Person):
    key = grace.has_key()
    counted.reset()

    assert grace.rotate(key["id"]).status_code == 200

    assert counted.statements == [*ROTATED, ("lock_key", "finish_retirement")]
    assert [path.partition("?")[0] for _, path in counted.calls] == ["/key/info", "/key/generate", "/key/delete"]


def test_a_repeated_rotation_is_one_round_trip_and_no_call(counted: Counted, grace: Person):
    key, once = grace.has_key(), f"once-{uuid4()}"
    grace.rotate_once(key["id"], once)
    counted.reset()

    assert grace.rotate_once(key["id"], once).status_code == 200

    assert counted.statements == [ROTATED[0]]
    assert counted.calls == []


def test_completing_a_rotation_is_two_round_trips_and_one_call(counted: Counted, grace: Person):
    key = grace.has_key()
    grace.rotate(key["id"], grace_seconds=60)
    counted.reset()

    assert grace.complete(key["id"]).status_code == 200

    assert counted.statements == [("lock_own_key", "begin_completion"), ("lock_key", "finish_retirement")]
    assert counted.calls == [("POST", "/key/delete")]


def test_a_reveal_is_one_round_trip_and_no_call(counted: Counted, grace: Person):
    key = grace.has_key()
    counted.reset()

    assert grace.reveal(key["id"]).status_code == 410

    assert counted.statements == [("lock_caller", "begin_reveal")]
    assert counted.calls == []


def test_a_settled_delete_is_two_round_trips_and_one_call(counted: Counted, settling_service: FragileService):
    grace = settling_service.person()
    key = grace.has_key()
    settling_service.gateway_faults.inject("/key/delete", "reset_before")
    grace.delete(key["id"])
    settling_service.make_due(key["id"])
    counted.reset()

    settling_service.settle()

    assert counted.statements == [
        # Is this the database that LiteLLM's keys were made from?
        ("read_installation",),
        ("read_tokens",),
        ("begin_expiry",),
        ("begin_correction",),
        ("begin_retirements",),
        ("claim_due",),
        ("lock_key", "finish_delete"),
        ("claim_due",),
        ("read_journal_state",),
    ]
    assert [(method, path.partition("?")[0]) for method, path in counted.calls] == [
        ("GET", "/key/list"),
        ("POST", "/key/delete"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "statement"),
    [
        pytest.param("GET", "/api/v1/admin/operations", "list_operations", id="list"),
        pytest.param(
            "POST",
            "/api/v1/admin/operations/99999999-9999-4999-8999-999999999999/retry",
            "retry_operation",
            id="retry",
        ),
    ],
)
def test_the_operators_view_is_one_round_trip(
    counted: Counted, fragile_service: FragileService, method: str, path: str, statement: str
):
    admin = fragile_service.person(roles=["admin"])
    counted.reset()

    fragile_service.call(method, path, token=admin.token)

    assert counted.statements == [(statement,)]
    assert counted.calls == []
