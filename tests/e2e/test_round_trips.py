"""How often a request waits for PostgreSQL and for LiteLLM; connecting is not counted."""

from dataclasses import dataclass

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

    assert counted.statements == [("register_caller", "begin_create"), ("lock_user", "lock_key", "finish_create")]
    assert counted.calls == [("POST", "/user/new"), ("POST", "/key/generate")]


def test_a_create_is_two_round_trips_and_one_call(counted: Counted, grace: Person):
    grace.has_key()
    counted.reset()

    grace.has_key(modelIds=["gpt-4o", "gpt-4o-mini"], name="second", maxBudget=5, metadata={"a": 1})

    assert counted.statements == [("register_caller", "begin_create"), ("lock_user", "lock_key", "finish_create")]
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
