"""PostgreSQL is stopped, restarted, or cuts a connection: nothing is lost, nothing is done twice."""

from collections.abc import Generator
from contextlib import contextmanager

import pytest

from local.postgres import ShutdownMode
from tests.e2e.conftest import FragileService
from tests.e2e.service import Person, Service, assert_asks_to_retry, hash_of


@contextmanager
def database_down(service: Service) -> Generator[None]:
    service.stack.database.stop()
    try:
        yield
    finally:
        service.stack.database.start()


def test_while_postgresql_is_down_nothing_is_changed_and_afterwards_all_works(service: Service, alice: Person):
    key = alice.has_key()

    with database_down(service):
        answers = [alice.create({"modelIds": ["gpt-4o"]}), alice.get(), alice.delete(key["id"])]
        used = service.use(key["key"])

    for answer in answers:
        assert_asks_to_retry(answer)
    assert (
        answers[0].json()["error"]["message"]
        == "The database is not available. Nothing was changed; try again shortly."
    )
    assert used == 200
    assert [listed["id"] for listed in alice.listed()] == [key["id"]]
    assert alice.gateway_keys() == [hash_of(key["key"])]
    assert alice.has_key()["isActive"] is True
    assert alice.delete(key["id"]).status_code == 200
    assert service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_the_first_request_after_a_restart_of_postgresql_works(service: Service, alice: Person, mode: ShutdownMode):
    key, listed = alice.has_key(), alice.listed()
    deletable = alice.has_key()
    alice.delete(deletable["id"])

    service.stack.database.restart(mode)

    assert alice.listed() == listed
    assert alice.has_key()["isActive"] is True
    assert alice.delete(key["id"]).status_code == 200


@pytest.mark.parametrize("route", ["create", "list", "delete"])
def test_a_connection_that_was_ended_while_idle_is_not_noticed(service: Service, alice: Person, route: str):
    key, other = alice.has_key(), alice.has_key()
    alice.listed()
    alice.delete(other["id"])

    ended = service.end_database_connections()
    match route:
        case "create":
            answer = alice.create({"modelIds": ["gpt-4o"]})
        case "list":
            answer = alice.get()
        case _:
            answer = alice.delete(key["id"])

    # One for each of the three functions at least.
    assert ended >= 3
    assert answer.status_code == {"create": 201, "list": 200, "delete": 200}[route]


# The connection breaks in the middle of a request.


@pytest.mark.parametrize("cut", ["cut_before", "cut_after"])
@pytest.mark.parametrize("step", ["begin_create", "finish_create"])
def test_a_create_survives_a_connection_that_breaks(fragile_service: FragileService, cut: str, step: str):
    frank = fragile_service.person()
    frank.has_key(name="from before")
    broken = getattr(fragile_service.database_faults, cut)(step)

    answer = frank.create({"modelIds": ["gpt-4o"], "name": "survivor"})

    key = answer.json()
    assert answer.status_code == 201, answer.text
    assert broken.hits == 1
    assert fragile_service.use(key["key"]) == 200
    assert len(frank.key_rows()) == len(frank.gateway_keys()) == 2
    assert fragile_service.operations_of(key["id"]) == [("create", "done")]
    assert fragile_service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True)]


@pytest.mark.parametrize("cut", ["cut_before", "cut_after"])
@pytest.mark.parametrize("step", ["begin_delete", "finish_delete"])
def test_a_delete_survives_a_connection_that_breaks(fragile_service: FragileService, cut: str, step: str):
    frank = fragile_service.person()
    key = frank.has_key()
    broken = getattr(fragile_service.database_faults, cut)(step)

    answer = frank.delete(key["id"])

    assert answer.status_code == 200, answer.text
    assert broken.hits == 1
    assert frank.key_rows() == frank.gateway_keys() == []
    assert fragile_service.operations_of(key["id"]) == [("create", "done"), ("delete", "done")]
    assert fragile_service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


@pytest.mark.parametrize("cut", ["cut_before", "cut_after"])
def test_a_list_whose_connection_breaks_asks_to_retry(fragile_service: FragileService, cut: str):
    frank = fragile_service.person()
    key = frank.has_key()
    getattr(fragile_service.database_faults, cut)("list_keys")

    broken, next_answer = frank.get(), frank.get()

    assert_asks_to_retry(broken)
    assert [listed["id"] for listed in next_answer.json()["data"]] == [key["id"]]


def test_a_database_that_is_lost_after_litellm_made_the_key_leaves_it_pending(fragile_service: FragileService):
    frank = fragile_service.person()
    frank.has_key(name="from before")
    fragile_service.database_faults.cut_before("finish_create", times=0)
    fragile_service.database_faults.cut_before("release", times=0)

    answer = frank.create({"modelIds": ["gpt-4o"], "name": "half made"})
    fragile_service.database_faults.clear()

    half_made, _ = frank.listed()
    assert_asks_to_retry(answer)
    assert (half_made["name"], half_made["status"], half_made["isActive"]) == ("half made", "pending", False)
    assert fragile_service.operations_of(half_made["id"]) == [("create", "pending")]
    assert fragile_service.audit_of_key(half_made["id"]) == []
    assert frank.delete(half_made["id"]).status_code == 202
    # The token is marked as one that a lost request may still make, so the delete goes on until that is over.
    assert len(frank.gateway_keys()) == 1


def test_a_lock_that_is_not_released_ends_in_a_503_and_changes_nothing(service: Service, alice: Person):
    key = alice.has_key()
    service.rows("ALTER ROLE keyservice_app SET lock_timeout = '200ms'")
    service.end_database_connections()
    try:
        with service.transaction() as other:
            other.execute("SELECT id FROM api_keys WHERE id = %(id)s FOR UPDATE", {"id": key["id"]})
            refused = alice.delete(key["id"])
    finally:
        service.rows("ALTER ROLE keyservice_app SET lock_timeout = '4s'")
        service.end_database_connections()

    assert_asks_to_retry(refused)
    assert alice.status_of(key["id"]) == "active"
    assert alice.delete(key["id"]).status_code == 200
