"""What happens to a create when something else happens while LiteLLM works on it."""

from collections.abc import Callable
from typing import LiteralString

import pytest

from tests.e2e.conftest import FragileService
from tests.e2e.service import Person, Row, error_of
from tests.support.http_faults import Injection


@pytest.fixture
def henry(fragile_service: FragileService) -> Person:
    """Somebody whom LiteLLM knows already."""
    person = fragile_service.person()
    assert person.delete(person.has_key(name="from before")["id"]).status_code == 200
    return person


def while_litellm_works(service: FragileService, act: Callable[[], object]) -> Injection:
    """`act` happens when LiteLLM has made the next key and before the function hears of it."""
    return service.gateway_faults.inject("/key/generate", "call_after", call=act)


def last_audit(person: Person) -> Row:
    return person.audit()[-1]


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        pytest.param("UPDATE users SET is_active = false WHERE id = %(user)s", 403, "FORBIDDEN", id="deactivated"),
        pytest.param(
            "UPDATE subscriptions SET status = 'suspended' WHERE user_id = %(user)s",
            400,
            "VALIDATION_ERROR",
            id="unsubscribed",
        ),
        pytest.param(
            "UPDATE api_keys SET expires_at = now() WHERE user_id = %(user)s", 400, "VALIDATION_ERROR", id="expired"
        ),
    ],
)
def test_a_create_that_is_no_longer_allowed_is_undone(
    fragile_service: FragileService, henry: Person, change: LiteralString, status: int, code: str
):
    user_id = henry.user_id
    while_litellm_works(fragile_service, lambda: fragile_service.rows(change, user=user_id))

    answer = henry.create({"modelIds": ["gpt-4o"], "name": "undone"})

    record = last_audit(henry)
    error_of(answer, status=status, code=code)
    assert henry.key_rows() == henry.gateway_keys() == []
    assert (record["action"], record["success"], record["metadata"]["name"]) == ("API_KEY_CREATE", False, "undone")
    assert fragile_service.operations_of(record["resource_id"]) == [("create", "failed")]
    assert fragile_service.token_of(record["resource_id"])["state"] == "dead"


def test_a_create_whose_row_vanishes_meanwhile_is_undone(fragile_service: FragileService, henry: Person):
    user_id = henry.user_id
    while_litellm_works(
        fragile_service,
        lambda: fragile_service.rows("DELETE FROM api_keys WHERE user_id = %(user)s", user=user_id),
    )

    answer = henry.create({"modelIds": ["gpt-4o"], "name": "vanished"})

    record = last_audit(henry)
    error_of(answer, status=409, code="OPERATION_SUPERSEDED")
    assert henry.gateway_keys() == []
    assert (record["action"], record["success"], record["metadata"]["name"]) == ("API_KEY_CREATE", False, "vanished")
    assert fragile_service.operations_of(record["resource_id"]) == [("create", "failed")]
    assert fragile_service.token_of(record["resource_id"])["state"] == "dead"


def test_a_delete_wins_over_the_create_it_overtakes(fragile_service: FragileService, henry: Person):
    deletes: list[int] = []
    ids: list[str] = []

    def delete() -> None:
        ids.append(str(henry.key_rows()[0]["id"]))
        deletes.append(henry.delete(ids[0]).status_code)

    while_litellm_works(fragile_service, delete)

    created = henry.create({"modelIds": ["gpt-4o"]})
    finished = henry.delete(ids[0])

    error_of(created, status=409, code="OPERATION_SUPERSEDED")
    assert deletes == [202]
    assert finished.status_code == 200
    assert henry.key_rows() == henry.gateway_keys() == []
    assert fragile_service.operations_of(ids[0]) == [("create", "superseded"), ("delete", "done")]
    assert fragile_service.audit_of_key(ids[0]) == [("API_KEY_CREATE", False), ("API_KEY_DELETE", True)]


def test_a_function_that_dies_leaves_a_pending_key_that_can_be_deleted(fragile_service: FragileService, henry: Person):
    killing = while_litellm_works(fragile_service, lambda: fragile_service.kill_workers("CreateApiKey"))

    died = henry.create({"modelIds": ["gpt-4o"], "name": "unfinished"})
    assert killing.wait()
    next_key = henry.has_key(name="next")

    [unfinished] = [key for key in henry.listed() if key["name"] == "unfinished"]
    assert (died.status_code, died.json()) == (500, {"message": "Internal Server Error"})
    assert fragile_service.use(next_key["key"]) == 200
    assert unfinished["status"] == "pending"
    assert len(henry.gateway_keys()) == 2
    assert henry.delete(unfinished["id"]).status_code == 202
    assert henry.status_of(unfinished["id"]) == "deleting"
    assert len(henry.gateway_keys()) == 1
