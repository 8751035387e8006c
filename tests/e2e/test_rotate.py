"""Rotating a key: what its owner asks for, is told, and can rely on."""

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e.conftest import FragileService
from tests.e2e.service import Person, Row, Service, assert_asks_to_retry, error_of, hash_of, violations_of

GENERATE = "/key/generate"
DELETE = "/key/delete"
INFO = "/key/info"
NOWHERE = "99999999-9999-4999-8999-999999999999"
DAY_SECONDS = 24 * 3600


def tokens_of(service: Service, key_id: str) -> list[tuple[int, str]]:
    """Number and state."""
    rows = service.rows(
        "SELECT number, state FROM api_key_tokens WHERE api_key_id = %(id)s ORDER BY number, created_at", id=key_id
    )
    return [(row["number"], row["state"]) for row in rows]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def has_rotated(person: Person, key: Row, *, grace_seconds: int | None = None) -> Row:
    answer = person.rotate(key["id"], grace_seconds=grace_seconds)
    assert answer.status_code == 200, answer.text
    return answer.json()


def end_grace(service: Service, key_id: str) -> None:
    service.rows(
        "UPDATE api_key_tokens SET valid_until = now() WHERE api_key_id = %(id)s AND state = 'retiring'", id=key_id
    )


# What it answers, and what is true afterwards.


def test_the_answer_is_litemaas_own_with_what_becomes_of_the_old_secret(alice: Person):
    key = alice.has_key()

    answer = alice.rotate(key["id"])

    rotated = answer.json()
    assert answer.status_code == 200
    assert list(rotated) == ["id", "key", "keyPrefix", "rotatedAt", "oldPrefix", "oldSecret"]
    assert (rotated["id"], rotated["oldPrefix"]) == (key["id"], key["keyPrefix"])
    assert rotated["key"] != key["key"]
    assert rotated["key"].startswith(rotated["keyPrefix"])
    assert list(rotated["oldSecret"]) == ["state", "effectiveBy"]
    assert rotated["oldSecret"]["state"] == "ended"
    assert answer.headers["cache-control"] == "no-store"
    assert "idempotency-replayed" not in answer.headers
    # GatewayCacheSeconds is 60.
    waits = moment(rotated["oldSecret"]["effectiveBy"]) - moment(rotated["rotatedAt"])
    assert timedelta(seconds=60) <= waits < timedelta(seconds=75)


def test_without_a_grace_the_new_secret_works_and_the_old_one_does_not(service: Service, alice: Person):
    key = alice.has_key()

    rotated = has_rotated(alice, key)

    assert service.use(rotated["key"]) == 200
    assert service.use(key["key"]) == 401
    assert tokens_of(service, key["id"]) == [(1, "dead"), (2, "live")]
    assert service.operations_of(key["id"]) == [("create", "done"), ("rotate", "done"), ("retire", "done")]
    assert service.audit_of_key(key["id"]) == [
        ("API_KEY_CREATE", True),
        ("API_KEY_ROTATE", True),
        ("API_KEY_ROTATE_COMPLETE", True),
    ]
    assert alice.gateway_keys() == [hash_of(rotated["key"])]


def test_the_key_stays_what_it_is(service: Service, alice: Person):
    settings = {
        "name": "ci",
        "modelIds": ["gpt-4o", "gpt-4o-mini"],
        "maxBudget": 12.5,
        "softBudget": 10,
        "budgetDuration": "yearly",
        "tpmLimit": 1000,
        "rpmLimit": 100,
        "maxParallelRequests": 5,
        "expiresAt": "2033-03-03T03:03:03Z",
        "metadata": {"team": "blue"},
    }
    key = alice.has_key(**settings)
    [before] = alice.listed()
    old = service.gateway_key(hash_of(key["key"]))
    assert old is not None

    rotated = has_rotated(alice, key)

    [after] = alice.listed()
    new = service.gateway_key(hash_of(rotated["key"]))
    assert new is not None
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"keyPrefix", "spendAsOf"}
    assert after["keyPrefix"] == rotated["keyPrefix"]
    carried = ("models", "max_budget", "budget_duration", "tpm_limit", "rpm_limit", "max_parallel_requests", "user_id")
    assert {name: new[name] for name in carried} == {name: old[name] for name in carried}
    assert (new["metadata"], new["allowed_routes"]) == (old["metadata"], ["llm_api_routes"])
    assert abs(moment(new["expires"]) - moment(old["expires"])) < timedelta(seconds=30)
    assert new["key_alias"] == old["key_alias"].removesuffix(":1") + ":2"
    row = service.key_row(key["id"])
    assert row is not None
    assert (row["key_hash"], row["lite_llm_key_id"]) == (hash_of(rotated["key"]), hash_of(rotated["key"]))
    assert (row["litellm_key_alias"], row["sync_status"]) == (new["key_alias"], "synced")


def test_what_was_spent_stays_spent(service: Service, alice: Person):
    key = alice.has_key(maxBudget=5)
    service.gateway("POST", "/key/update", json={"key": hash_of(key["key"]), "spend": 4.5})

    rotated = has_rotated(alice, key)

    new = service.gateway_key(hash_of(rotated["key"]))
    assert new is not None
    assert (new["spend"], new["max_budget"]) == (4.5, 5)
    assert [listed["currentSpend"] for listed in alice.listed()] == [4.5]
    assert service.use(rotated["key"]) == 200


def test_over_budget_stays_over_budget(service: Service, alice: Person):
    key = alice.has_key(maxBudget=5)
    service.gateway("POST", "/key/update", json={"key": hash_of(key["key"]), "spend": 5.5})
    assert service.use(key["key"]) == 422

    rotated = has_rotated(alice, key)

    assert service.use(rotated["key"]) == 422


def test_the_record_says_what_was_replaced_and_for_how_long_it_goes_on(service: Service, alice: Person):
    key = alice.has_key(name="ci")

    rotated = has_rotated(alice, key, grace_seconds=3600)

    record = alice.audit()[-1]
    metadata = record["metadata"]
    assert (record["action"], record["success"], record["resource_id"]) == ("API_KEY_ROTATE", True, key["id"])
    assert record["user_agent"] == "e2e-tests/1.0"
    assert (metadata["name"], metadata["keyPrefix"], metadata["oldPrefix"]) == (
        "ci",
        rotated["keyPrefix"],
        key["keyPrefix"],
    )
    assert (metadata["gracePeriodSeconds"], metadata["models"]) == (3600, ["gpt-4o"])


# A grace.


def test_in_a_grace_both_secrets_work(service: Service, alice: Person):
    key = alice.has_key()

    rotated = has_rotated(alice, key, grace_seconds=3600)

    assert (service.use(key["key"]), service.use(rotated["key"])) == (200, 200)
    assert tokens_of(service, key["id"]) == [(1, "retiring"), (2, "live")]
    assert service.operations_of(key["id"]) == [("create", "done"), ("rotate", "done")]
    old = rotated["oldSecret"]
    assert (list(old), old["state"]) == (["state", "validUntil"], "valid")
    assert moment(old["validUntil"]) - moment(rotated["rotatedAt"]) == timedelta(hours=1)
    assert alice.status_of(key["id"]) == "active"


def test_a_grace_ends_by_itself(service: Service, alice: Person):
    key = alice.has_key()
    rotated = has_rotated(alice, key, grace_seconds=3600)
    service.settle()
    assert service.use(key["key"]) == 200

    end_grace(service, key["id"])
    service.settle()
    service.settle()

    assert (service.use(key["key"]), service.use(rotated["key"])) == (401, 200)
    assert tokens_of(service, key["id"]) == [(1, "dead"), (2, "live")]
    assert service.audit_of_key(key["id"])[2:] == [("API_KEY_ROTATE_COMPLETE", True)]


def test_a_grace_can_be_ended_early(service: Service, alice: Person):
    key = alice.has_key()
    rotated = has_rotated(alice, key, grace_seconds=3600)

    answer = alice.complete(key["id"])

    assert answer.status_code == 200
    assert list(answer.json()) == ["message", "completedAt", "effectiveBy"]
    waits = moment(answer.json()["effectiveBy"]) - moment(answer.json()["completedAt"])
    assert waits == timedelta(seconds=60)
    assert (service.use(key["key"]), service.use(rotated["key"])) == (401, 200)
    assert service.operations_of(key["id"])[2:] == [("retire", "done")]
    assert service.audit_of_key(key["id"])[2:] == [("API_KEY_ROTATE_COMPLETE", True)]


def test_there_is_nothing_to_complete_twice(alice: Person):
    key = alice.has_key()
    has_rotated(alice, key, grace_seconds=3600)
    alice.complete(key["id"])

    answer = alice.complete(key["id"])

    message = error_of(answer, status=409, code="OPERATION_OVER")["message"]
    assert message == "Only the newest secret of this key works: there is nothing to complete."


@pytest.mark.parametrize("key_id", [NOWHERE, "zzz"], ids=["missing", "malformed"])
def test_completing_a_key_that_is_not_there_is_not_found(alice: Person, key_id: str):
    error_of(alice.complete(key_id), status=404, code="NOT_FOUND")


def test_somebody_elses_grace_is_not_found(service: Service, alice: Person, bob: Person):
    key = alice.has_key()
    has_rotated(alice, key, grace_seconds=3600)

    error_of(bob.complete(key["id"]), status=404, code="NOT_FOUND")

    assert service.use(key["key"]) == 200


def test_rotating_again_ends_an_earlier_grace_with_its_own(service: Service, alice: Person):
    key = alice.has_key()
    first = has_rotated(alice, key, grace_seconds=7 * DAY_SECONDS)

    second = has_rotated(alice, key)

    assert [service.use(secret) for secret in (key["key"], first["key"], second["key"])] == [401, 401, 200]
    assert tokens_of(service, key["id"]) == [(1, "dead"), (2, "dead"), (3, "live")]


def test_an_earlier_grace_is_not_made_longer(service: Service, alice: Person):
    key = alice.has_key()
    has_rotated(alice, key, grace_seconds=60)

    has_rotated(alice, key, grace_seconds=3600)

    rows = service.rows(
        "SELECT extract(epoch FROM valid_until - now()) AS rest FROM api_key_tokens"
        " WHERE api_key_id = %(id)s AND state = 'retiring' ORDER BY number",
        id=key["id"],
    )
    assert [round(row["rest"] / 60) for row in rows] == [1, 60]


def test_a_delete_in_a_grace_takes_both_secrets(service: Service, alice: Person):
    key = alice.has_key()
    rotated = has_rotated(alice, key, grace_seconds=3600)

    answer = alice.delete(key["id"])

    assert answer.status_code == 200
    assert (service.use(key["key"]), service.use(rotated["key"])) == (401, 401)
    assert tokens_of(service, key["id"]) == [(1, "dead"), (2, "dead")]
    assert alice.gateway_keys() == []


def test_a_key_that_expires_in_a_grace_takes_both_secrets(service: Service, alice: Person):
    key = alice.has_key()
    rotated = has_rotated(alice, key, grace_seconds=3600)
    service.rows("UPDATE api_keys SET expires_at = now() WHERE id = %(id)s", id=key["id"])

    service.settle()

    assert (service.use(key["key"]), service.use(rotated["key"])) == (401, 401)
    assert tokens_of(service, key["id"]) == [(1, "dead"), (2, "dead")]


def test_a_row_that_vanishes_in_a_grace_takes_both_secrets(service: Service, alice: Person):
    key = alice.has_key()
    rotated = has_rotated(alice, key, grace_seconds=3600)

    service.rows("DELETE FROM api_keys WHERE id = %(id)s", id=key["id"])
    service.settle()

    assert (service.use(key["key"]), service.use(rotated["key"])) == (401, 401)
    assert tokens_of(service, key["id"]) == [(1, "dead"), (2, "dead")]


# What it refuses.


@pytest.mark.parametrize("key_id", [NOWHERE, "zzz"], ids=["missing", "malformed"])
def test_a_key_that_is_not_there_is_not_found(alice: Person, key_id: str):
    error_of(alice.rotate(key_id), status=404, code="NOT_FOUND")


def test_somebody_elses_key_is_not_found_and_goes_on_working(service: Service, alice: Person, bob: Person):
    key = alice.has_key()

    error_of(bob.rotate(key["id"]), status=404, code="NOT_FOUND")

    assert service.use(key["key"]) == 200
    assert bob.audit() == []


@pytest.mark.parametrize(
    ("change", "message", "reason"),
    [
        pytest.param("is_active = false", "API key is inactive", "inactive", id="inactive"),
        pytest.param("revoked_at = now(), is_active = false", "API key is inactive", "inactive", id="revoked"),
        pytest.param("expires_at = now()", "API key has expired", "expired", id="expired"),
    ],
)
def test_a_key_that_is_not_active_is_refused_and_that_is_recorded(
    service: Service, alice: Person, change: str, message: str, reason: str
):
    key = alice.has_key()
    service.rows(f"UPDATE api_keys SET {change} WHERE id = %(id)s", id=key["id"])  # pyright: ignore[reportArgumentType]

    answer = alice.rotate(key["id"])

    assert error_of(answer, status=400, code="VALIDATION_ERROR")["message"] == message
    record = alice.audit()[-1]
    assert (record["action"], record["success"], record["error_message"]) == ("API_KEY_ROTATE", False, reason)
    assert record["resource_id"] == key["id"]
    assert len(alice.gateway_keys()) == 1


def test_a_key_without_models_is_refused(service: Service, alice: Person):
    """LiteLLM would take none for all."""
    key = alice.has_key()
    service.rows("DELETE FROM api_key_models WHERE api_key_id = %(id)s", id=key["id"])

    answer = alice.rotate(key["id"])

    error_of(answer, status=400, code="VALIDATION_ERROR")
    assert alice.gateway_keys() == [hash_of(key["key"])]


@pytest.mark.parametrize(
    ("body", "violation"),
    [
        pytest.param({"gracePeriodSeconds": -1}, ("gracePeriodSeconds", "minimum"), id="negative"),
        pytest.param({"gracePeriodSeconds": 604801}, ("gracePeriodSeconds", "maximum"), id="longer than a week"),
        pytest.param({"gracePeriodSeconds": 1.5}, ("gracePeriodSeconds", "type"), id="not whole"),
        pytest.param({"gracePeriodSeconds": "60"}, ("gracePeriodSeconds", "type"), id="text"),
        pytest.param({"grace": 60}, ("grace", "additionalProperties"), id="unknown field"),
        pytest.param([], ("body", "type"), id="no object"),
    ],
)
def test_a_wrong_body_is_refused_by_name(service: Service, alice: Person, body: Any, violation: tuple[str, str]):
    key = alice.has_key()

    answer = service.call("POST", f"/api/v1/api-keys/{key['id']}/rotate", token=alice.token, json=body)

    assert violations_of(answer) == [violation]
    assert service.use(key["key"]) == 200


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"gracePeriodSeconds": null}', b'{"gracePeriodSeconds": 0}'], ids=str
)
def test_a_body_need_not_say_anything(service: Service, alice: Person, content: bytes):
    key = alice.has_key()

    answer = service.call(
        "POST",
        f"/api/v1/api-keys/{key['id']}/rotate",
        token=alice.token,
        content=content,
        headers={"content-type": "application/json"},
    )

    assert answer.status_code == 200
    assert answer.json()["oldSecret"]["state"] == "ended"


def test_a_week_of_grace_is_the_longest(alice: Person):
    key = alice.has_key()

    rotated = has_rotated(alice, key, grace_seconds=604800)

    assert moment(rotated["oldSecret"]["validUntil"]) - moment(rotated["rotatedAt"]) == timedelta(days=7)


def test_a_key_that_litellm_has_lost_gets_no_new_secret(service: Service, alice: Person):
    key = alice.has_key()
    service.gateway("POST", DELETE, json={"keys": [hash_of(key["key"])]})

    answer = alice.rotate(key["id"])

    error_of(answer, status=410, code="GONE")
    assert alice.gateway_keys() == []
    assert service.operations_of(key["id"])[1:] == [("rotate", "failed")]
    assert service.audit_of_key(key["id"])[1:] == [("API_KEY_ROTATE", False)]
    assert tokens_of(service, key["id"]) == [(1, "live"), (2, "dead")]


def test_a_key_that_is_blocked_in_litellm_gets_no_new_secret(service: Service, alice: Person):
    key = alice.has_key()
    service.gateway("POST", "/key/update", json={"key": hash_of(key["key"]), "blocked": True})

    answer = alice.rotate(key["id"])

    error = error_of(answer, status=403, code="FORBIDDEN")
    assert error["message"] == "This key is blocked in LiteLLM. Ask an administrator."
    assert alice.gateway_keys() == [hash_of(key["key"])]
    assert service.operations_of(key["id"])[1:] == [("rotate", "failed")]


# Keys of LiteMaaS's own.


def test_a_key_that_litemaas_made_gets_a_secret_of_ours(service: Service, alice: Person):
    secret = f"sk-{uuid4().hex}"
    service.ledger.secrets[secret] = "a key of LiteMaaS's"
    team_id = f"team-{uuid4()}"
    service.gateway("POST", "/team/new", json={"team_id": team_id})
    made = {"key": secret, "key_alias": f"litemaas-{uuid4()}", "models": ["gpt-4o"], "spend": 1.5, "team_id": team_id}
    service.gateway("POST", GENERATE, json=made | {"user_id": str(alice.user_id)})
    [row] = service.rows(
        "INSERT INTO api_keys (user_id, name, key_hash, key_prefix, litellm_key_alias, max_budget, sync_status)"
        " VALUES (%(user)s, 'theirs', %(hash)s, 'sk-theirs', %(alias)s, 10, 'synced') RETURNING id::text",
        user=alice.user_id,
        hash=hash_of(secret),
        alias=made["key_alias"],
    )
    service.rows("INSERT INTO api_key_models (api_key_id, model_id) VALUES (%(id)s, 'gpt-4o')", id=row["id"])

    rotated = has_rotated(alice, row, grace_seconds=3600)

    new = service.gateway_key(hash_of(rotated["key"]))
    assert new is not None
    assert (new["spend"], new["max_budget"], rotated["oldPrefix"]) == (1.5, 10, "sk-theirs")
    assert new["team_id"] == team_id
    assert (service.use(secret), service.use(rotated["key"])) == (200, 200)
    assert tokens_of(service, row["id"]) == [(1, "retiring"), (2, "live")]
    assert alice.complete(row["id"]).status_code == 200
    assert (service.use(secret), service.use(rotated["key"])) == (401, 200)


# An Idempotency-Key.


def test_repeated_it_gives_the_same_secret(service: Service, alice: Person):
    key, once = alice.has_key(), f"once-{uuid4()}"
    first = alice.rotate_once(key["id"], once)

    again = alice.rotate_once(key["id"], once)

    assert (first.status_code, again.status_code) == (200, 200)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert alice.gateway_keys() == [hash_of(first.json()["key"])]
    assert len(service.audit_of_key(key["id"])) == 3


def test_repeated_it_tells_what_has_become_of_the_old_secret_meanwhile(service: Service, alice: Person):
    key, once = alice.has_key(), f"once-{uuid4()}"
    first = alice.rotate_once(key["id"], once, grace_seconds=3600).json()

    in_grace = alice.rotate_once(key["id"], once, grace_seconds=3600).json()
    end_grace(service, key["id"])
    past_its_grace = alice.rotate_once(key["id"], once, grace_seconds=3600).json()
    service.settle()
    ended = alice.rotate_once(key["id"], once, grace_seconds=3600).json()

    assert in_grace == first
    assert past_its_grace["oldSecret"]["state"] == "ending"
    assert (ended["oldSecret"]["state"], list(ended["oldSecret"])) == ("ended", ["state", "effectiveBy"])


def test_another_body_or_another_key_is_refused(alice: Person):
    key, other, once = alice.has_key(), alice.has_key(), f"once-{uuid4()}"
    alice.rotate_once(key["id"], once)

    error_of(alice.rotate_once(key["id"], once, grace_seconds=60), status=422, code="IDEMPOTENCY_KEY_REUSED")
    error_of(alice.rotate_once(other["id"], once), status=422, code="IDEMPOTENCY_KEY_REUSED")


def test_the_same_idempotency_key_may_create_and_rotate(alice: Person):
    once = f"once-{uuid4()}"
    key = alice.create_once(once).json()

    assert alice.rotate_once(key["id"], once).status_code == 200
    # The secret that the create made is no more.
    error_of(alice.create_once(once), status=410, code="GONE")


def test_after_another_rotation_it_is_gone(alice: Person):
    key, once = alice.has_key(), f"once-{uuid4()}"
    alice.rotate_once(key["id"], once)
    has_rotated(alice, key, grace_seconds=60)

    error = error_of(alice.rotate_once(key["id"], once), status=410, code="GONE")

    assert error["message"].startswith("The secret that this Idempotency-Key made is no more.")


def test_after_a_delete_it_is_gone(alice: Person):
    key, once = alice.has_key(), f"once-{uuid4()}"
    alice.rotate_once(key["id"], once)
    alice.delete(key["id"])

    error_of(alice.rotate_once(key["id"], once), status=410, code="GONE")


def test_after_24_hours_it_rotates_anew(service: Service, alice: Person):
    key, once = alice.has_key(), f"once-{uuid4()}"
    first = alice.rotate_once(key["id"], once).json()
    service.rows(
        "UPDATE api_key_operations SET created_at = now() - interval '25 hours' WHERE api_key_id = %(id)s", id=key["id"]
    )

    second = alice.rotate_once(key["id"], once)

    assert second.status_code == 200
    assert second.json()["key"] != first["key"]
    assert service.use(first["key"]) == 401


# When LiteLLM fails.


@pytest.fixture
def grace(fragile_service: FragileService) -> Person:
    return fragile_service.person()


@pytest.mark.parametrize("path", [INFO, GENERATE])
@pytest.mark.parametrize("fault", ["reset_before", "status"])
def test_unconfirmed_it_answers_503_and_the_old_secret_goes_on(
    fragile_service: FragileService, grace: Person, path: str, fault: Any
):
    key = grace.has_key()
    fragile_service.gateway_faults.inject(path, fault)

    answer = grace.rotate(key["id"])

    assert_asks_to_retry(answer)
    assert "the old one goes on working" in answer.json()["error"]["message"]
    assert fragile_service.use(key["key"]) == 200
    assert grace.status_of(key["id"]) == "active"
    assert fragile_service.operations_of(key["id"])[1:] == [("rotate", "pending")]


@pytest.mark.parametrize("fault", ["reset_before", "reset_after"])
def test_with_its_idempotency_key_it_goes_on(fragile_service: FragileService, grace: Person, fault: Any):
    key, once = grace.has_key(), f"once-{uuid4()}"
    fragile_service.gateway_faults.inject(GENERATE, fault)
    assert_asks_to_retry(grace.rotate_once(key["id"], once))
    fragile_service.gateway_faults.clear()

    answer = grace.rotate_once(key["id"], once)

    assert answer.status_code == 200
    assert answer.headers["idempotency-replayed"] == "true"
    assert (fragile_service.use(key["key"]), fragile_service.use(answer.json()["key"])) == (401, 200)
    assert fragile_service.operations_of(key["id"])[1:] == [("rotate", "done"), ("retire", "done")]


def test_while_it_is_unfinished_another_change_waits(fragile_service: FragileService, grace: Person):
    key = grace.has_key()
    fragile_service.gateway_faults.inject(GENERATE, "reset_before")
    grace.rotate_once(key["id"], f"once-{uuid4()}")

    for answer in (grace.rotate(key["id"]), grace.rotate_once(key["id"], f"once-{uuid4()}"), grace.complete(key["id"])):
        error_of(answer, status=409, code="OPERATION_IN_PROGRESS")
        assert answer.headers["retry-after"] == "5"


def test_nobody_came_back_for_it_so_the_key_stays_as_it_was(settling_service: FragileService):
    grace = settling_service.person()
    key = grace.has_key()
    settling_service.gateway_faults.inject(GENERATE, "reset_after")
    grace.rotate(key["id"])
    assert len(grace.gateway_keys()) == 2

    settling_service.make_due(key["id"])
    settling_service.end_drain(key["id"])
    settling_service.settle()

    assert settling_service.use(key["key"]) == 200
    assert grace.gateway_keys() == [hash_of(key["key"])]
    assert tokens_of(settling_service, key["id"]) == [(1, "live"), (2, "dead")]
    assert settling_service.operations_of(key["id"]) == [("create", "done"), ("rotate", "failed")]
    assert settling_service.audit_of_key(key["id"])[1:] == [("API_KEY_ROTATE", False)]
    assert grace.status_of(key["id"]) == "active"
    assert has_rotated(grace, key)["oldSecret"]["state"] == "ended"


def test_litellm_refuses_the_settings(fragile_service: FragileService, grace: Person):
    key = grace.has_key()
    refusal = {"error": {"message": "tpm_limit", "type": "bad_request_error", "param": "None", "code": "400"}}
    fragile_service.gateway_faults.inject(GENERATE, "status", status=400, body=refusal)

    answer = grace.rotate(key["id"])

    assert violations_of(answer) == [("tpmLimit", "gatewayRefused")]
    assert fragile_service.use(key["key"]) == 200
    assert fragile_service.operations_of(key["id"])[1:] == [("rotate", "failed")]
    assert tokens_of(fragile_service, key["id"]) == [(1, "live"), (2, "dead")]


def test_an_old_secret_that_litellm_does_not_confirm_is_ended_by_settling(settling_service: FragileService):
    grace = settling_service.person()
    key = grace.has_key()
    settling_service.gateway_faults.inject(DELETE, "reset_before")

    rotated = has_rotated(grace, key)

    assert rotated["oldSecret"] == {"state": "ending"}
    assert settling_service.use(rotated["key"]) == 200
    settling_service.gateway_faults.clear()
    settling_service.make_due(key["id"])
    settling_service.settle()
    assert (settling_service.use(key["key"]), settling_service.use(rotated["key"])) == (401, 200)
    assert settling_service.audit_of_key(key["id"])[1:] == [
        ("API_KEY_ROTATE", True),
        ("API_KEY_ROTATE_COMPLETE", True),
    ]


def test_completing_without_an_answer_is_accepted_and_settled(settling_service: FragileService):
    grace = settling_service.person()
    key = grace.has_key()
    has_rotated(grace, key, grace_seconds=3600)
    settling_service.gateway_faults.inject(DELETE, "status", status=500)

    answer = grace.complete(key["id"])

    assert (answer.status_code, answer.json()["status"]) == (202, "pending")
    assert list(answer.json()) == ["message", "status"]
    settling_service.gateway_faults.clear()
    settling_service.make_due(key["id"])
    settling_service.settle()
    assert settling_service.use(key["key"]) == 401


def test_a_pending_end_of_a_grace_does_not_stop_a_delete(fragile_service: FragileService, grace: Person):
    key = grace.has_key()
    rotated = has_rotated(grace, key, grace_seconds=3600)
    fragile_service.gateway_faults.inject(DELETE, "status", status=500)
    grace.complete(key["id"])
    fragile_service.gateway_faults.clear()

    answer = grace.delete(key["id"])

    assert answer.status_code == 200
    assert (fragile_service.use(key["key"]), fragile_service.use(rotated["key"])) == (401, 401)
    assert fragile_service.operations_of(key["id"])[2:] == [("retire", "superseded"), ("delete", "done")]
    assert fragile_service.audit_of_key(key["id"])[2:] == [("API_KEY_ROTATE_COMPLETE", False), ("API_KEY_DELETE", True)]


@pytest.mark.parametrize(
    ("statement", "status"),
    [
        pytest.param("UPDATE users SET is_active = false WHERE id = %(user)s", 403, id="its user"),
        pytest.param("UPDATE api_keys SET is_active = false WHERE user_id = %(user)s", 400, id="the key"),
        pytest.param("UPDATE api_keys SET expires_at = now() WHERE user_id = %(user)s", 400, id="its time"),
    ],
)
def test_what_ends_while_it_is_made_takes_the_new_secret_back(
    fragile_service: FragileService, grace: Person, statement: Any, status: int
):
    key = grace.has_key()
    user_id = grace.user_id
    fragile_service.gateway_faults.inject(
        GENERATE, "call_before", call=lambda: fragile_service.rows(statement, user=user_id)
    )

    answer = grace.rotate(key["id"])

    assert answer.status_code == status
    assert grace.gateway_keys() == [hash_of(key["key"])]
    assert fragile_service.operations_of(key["id"])[1:] == [("rotate", "failed")]
    assert tokens_of(fragile_service, key["id"]) == [(1, "live"), (2, "dead")]
    row = fragile_service.key_row(key["id"])
    assert row is not None
    assert row["key_hash"] == hash_of(key["key"])


def test_a_row_that_vanishes_while_it_is_made_takes_both_secrets(settling_service: FragileService):
    grace = settling_service.person()
    key = grace.has_key()
    settling_service.gateway_faults.inject(
        GENERATE,
        "call_after",
        call=lambda: settling_service.rows("DELETE FROM api_keys WHERE id = %(id)s", id=key["id"]),
    )

    answer = grace.rotate(key["id"])

    error_of(answer, status=409, code="OPERATION_SUPERSEDED")
    settling_service.settle()
    assert grace.gateway_keys() == []
    assert settling_service.operations_of(key["id"])[1:] == [("rotate", "superseded"), ("delete", "done")]
    assert settling_service.audit_of_key(key["id"])[1:] == [("API_KEY_ROTATE", False), ("API_KEY_DELETE", True)]
