"""settle_operations: whatever was interrupted is finished, without anyone asking."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from local.function_log import objects_in
from local.workers import InvocationFailed
from tests.e2e.conftest import FragileService
from tests.e2e.service import Person, Row, Service


@pytest.fixture
def rita(settling_service: FragileService) -> Person:
    """Somebody whom LiteLLM knows already."""
    person = settling_service.person()
    assert person.delete(person.has_key(name="from before")["id"]).status_code == 200
    return person


def operation_of(service: Service, key_id: str) -> Row:
    """The key's latest."""
    rows = service.rows(
        "SELECT * FROM api_key_operations WHERE api_key_id = %(id)s ORDER BY created_at DESC LIMIT 1", id=key_id
    )
    return rows[0]


def has_pending_delete(person: Person, **fields: Any) -> Row:
    """A key whose delete LiteLLM has not confirmed."""
    assert isinstance(person.service, FragileService)
    key = person.has_key(**fields)
    person.service.gateway_faults.inject("/key/delete", "reset_before")
    assert person.delete(key["id"]).status_code == 202
    return key


def has_pending_create(person: Person, fault: str) -> str:
    """The id of a key that LiteLLM has not confirmed."""
    assert isinstance(person.service, FragileService)
    person.service.gateway_faults.inject("/key/generate", fault)  # pyright: ignore[reportArgumentType]
    assert person.create({"modelIds": ["gpt-4o"]}).status_code == 503
    return person.only_key()


def test_a_run_with_nothing_to_do_says_so(settling_service: FragileService):
    report = settling_service.settle()

    assert (report["expired"], report["attempted"], report["settled"]) == (0, 0, 0)


def test_a_delete_is_finished_when_litellm_is_back(service: Service, alice: Person):
    key = alice.has_key()
    with service.litellm_down():
        accepted = alice.delete(key["id"])
        service.make_due(key["id"])
        service.settle()
        in_vain = operation_of(service, key["id"])
    service.make_due(key["id"])

    service.settle()

    assert accepted.status_code == 202
    assert (in_vain["state"], in_vain["attempts"]) == ("pending", 2)
    assert in_vain["last_error"] == "key/delete: not connected"
    assert in_vain["next_attempt_at"] > in_vain["updated_at"]
    assert service.use(key["key"]) == 401
    assert alice.key_rows() == alice.gateway_keys() == []
    assert service.token_of(key["id"])["state"] == "dead"
    assert service.operations_of(key["id"]) == [("create", "done"), ("delete", "done")]
    assert service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]
    assert alice.delete(key["id"]).status_code == 404


def test_the_audit_record_of_a_settled_delete_names_who_asked_for_it(rita: Person):
    key = has_pending_delete(rita, name="ci")
    rita.service.make_due(key["id"])

    rita.service.settle()

    record = rita.audit()[-1]
    assert record["action"] == "API_KEY_DELETE"
    assert record["user_id"] == rita.user_id
    assert (record["metadata"]["name"], record["metadata"]["models"]) == ("ci", ["gpt-4o"])


@pytest.mark.parametrize("fault", ["status", "reset_before", "reset_after"])
def test_a_create_that_was_never_confirmed_is_undone(settling_service: FragileService, rita: Person, fault: str):
    key_id = has_pending_create(rita, fault)
    settling_service.make_due(key_id)

    settling_service.settle()
    draining, row, told = operation_of(settling_service, key_id), rita.status_of(key_id), rita.gateway_keys()
    settling_service.end_drain(key_id)
    settling_service.make_due(key_id)
    settling_service.settle()

    # Deleted at once, but until no lost request can come true it may come back.
    assert (told, row) == ([], "pending")
    assert (draining["state"], draining["phase"]) == ("pending", "undo")
    assert draining["last_error"] == "an earlier request to LiteLLM may still make the key"
    assert draining["next_attempt_at"] > datetime.now(UTC) + timedelta(seconds=600)
    assert rita.key_rows() == rita.gateway_keys() == []
    assert settling_service.operations_of(key_id) == [("create", "failed")]
    assert settling_service.audit_of_key(key_id) == [("API_KEY_CREATE", False)]
    assert settling_service.token_of(key_id)["state"] == "dead"


def test_a_key_that_litellm_makes_while_its_create_is_being_undone_is_deleted_again(
    settling_service: FragileService, rita: Person
):
    late = settling_service.gateway_faults.inject("/key/generate", "late")
    rita.create({"modelIds": ["gpt-4o"]})
    key_id = rita.only_key()
    settling_service.make_due(key_id)
    settling_service.settle()
    late.release()
    assert late.wait()
    made_late = rita.gateway_keys()

    settling_service.end_drain(key_id)
    settling_service.make_due(key_id)
    settling_service.settle()

    assert made_late == [settling_service.token_of(key_id)["hash"]]
    assert rita.gateway_keys() == []
    assert settling_service.operations_of(key_id) == [("create", "failed")]


def test_a_create_waits_five_minutes_to_be_asked_for_again(settling_service: FragileService, rita: Person):
    key_id = has_pending_create(rita, "reset_before")

    report = settling_service.settle()

    operation = operation_of(settling_service, key_id)
    assert report["attempted"] == 0
    assert operation["next_attempt_at"] - operation["created_at"] == timedelta(minutes=5)


def test_an_operation_that_is_not_due_is_left_alone(settling_service: FragileService, rita: Person):
    key = has_pending_delete(rita)
    settling_service.make_due(key["id"])
    settling_service.gateway_faults.inject("/key/delete", "status", status=500)
    first = settling_service.settle()

    second = settling_service.settle()

    assert (first["attempted"], first["settled"]) == (1, 0)
    assert (second["attempted"], second["settled"]) == (0, 0)
    assert operation_of(settling_service, key["id"])["attempts"] == 2


def test_an_operation_that_somebody_holds_is_left_alone(settling_service: FragileService, rita: Person):
    key = rita.has_key()
    reports: list[Row] = []

    def settle() -> None:
        settling_service.rows(
            "UPDATE api_key_operations SET next_attempt_at = now() WHERE api_key_id = %(id)s", id=key["id"]
        )
        reports.append(settling_service.settle())

    settling_service.gateway_faults.inject("/key/delete", "call_before", call=settle)

    answer = rita.delete(key["id"])

    assert answer.status_code == 200
    assert reports[0]["attempted"] == 0
    assert settling_service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


def test_an_operation_that_a_transaction_locks_does_not_hold_up_the_others(
    settling_service: FragileService, rita: Person
):
    locked, other = has_pending_delete(rita), has_pending_delete(rita)
    for key in (locked, other):
        settling_service.make_due(key["id"])

    with settling_service.transaction() as somebody:
        somebody.execute("SELECT id FROM api_key_operations WHERE api_key_id = %(id)s FOR UPDATE", {"id": locked["id"]})
        report = settling_service.settle()

    assert (report["attempted"], report["settled"]) == (1, 1)
    assert rita.only_key() == locked["id"]


def test_one_that_always_fails_does_not_hold_up_the_others(settling_service: FragileService, rita: Person):
    poisoned, *others = [has_pending_delete(rita) for _ in range(3)]
    poisoned_hash = settling_service.token_of(poisoned["id"])["hash"]
    settling_service.gateway_faults.inject(
        "/key/delete",
        "status",
        times=0,
        body={"deleted_keys": None},
        status=200,
        matches=lambda body: poisoned_hash in body["keys"],
    )
    for key in (poisoned, *others):
        settling_service.make_due(key["id"])

    report = settling_service.settle()

    assert (report["attempted"], report["settled"]) == (3, 2)
    assert rita.only_key() == poisoned["id"]
    assert operation_of(settling_service, poisoned["id"])["last_error"] is not None


def test_a_settler_that_dies_is_followed_by_another(settling_service: FragileService, rita: Person):
    key = has_pending_delete(rita)
    settling_service.make_due(key["id"])
    killing = settling_service.gateway_faults.inject(
        "/key/delete", "call_after", call=lambda: settling_service.kill_workers("SettleOperations")
    )

    with pytest.raises(InvocationFailed):
        settling_service.settle()
    assert killing.wait()
    too_early = settling_service.settle()
    settling_service.make_due(key["id"])
    report = settling_service.settle()

    assert too_early["attempted"] == 0
    assert (report["attempted"], report["settled"]) == (1, 1)
    assert rita.key_rows() == []
    assert settling_service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


def test_two_settlers_at_once_share_the_work(settling_service: FragileService, rita: Person):
    keys = [has_pending_delete(rita) for _ in range(6)]
    for key in keys:
        settling_service.make_due(key["id"])

    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(lambda _: settling_service.settle(), range(2)))

    assert sum(report["attempted"] for report in reports) == 6
    assert sum(report["settled"] for report in reports) == 6
    assert rita.key_rows() == rita.gateway_keys() == []
    for key in keys:
        assert settling_service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


def test_a_run_logs_one_line_and_its_metrics(settling_service: FragileService, rita: Person):
    settled, waiting = has_pending_delete(rita), has_pending_delete(rita)
    settling_service.make_due(settled["id"])
    settling_service.rows(
        "UPDATE api_key_operations SET created_at = now() - interval '1 hour' WHERE id = %(id)s",
        id=operation_of(settling_service, waiting["id"])["id"],
    )
    log = settling_service.stack.log_path
    before = len(log.read_text())

    report = settling_service.settle()

    lines: list[Row] = list(objects_in(log.read_text()[before:]))
    [line] = [line for line in lines if line.get("message") == "job done"]
    [numbers] = [line for line in lines if "OldestPendingAge" in line]
    pending = {line["kind"]: line["PendingOperations"] for line in lines if "PendingOperations" in line}
    [request] = [line for line in lines if "Requests" in line]
    assert (line["level"], line["job"]) == ("INFO", "settle_operations")
    assert {name: line[name] for name in report} == report
    assert (report["attempted"], report["settled"]) == (1, 1)
    assert report["pendingDeletes"] >= 1
    assert report["oldestPendingSeconds"] >= 3600
    assert (numbers["Attempts"], numbers["Settled"], numbers["Expired"]) == ([1], [1], [0])
    assert numbers["OldestPendingAge"] == [round(report["oldestPendingSeconds"], 1)]
    assert pending == {
        "create": [report["pendingCreates"]],
        "delete": [report["pendingDeletes"]],
        "update": [report["pendingUpdates"]],
        "rotate": [report["pendingRotates"]],
        "retire": [report["pendingRetires"]],
    }
    assert (request["operation"], request["outcome"]) == ("settle_operations", "success")
    assert settled["key"] not in repr(lines)
