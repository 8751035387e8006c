"""Showing a key's secret once more: nobody may, unless the stack says so, and then only its owner after a login."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from local.seed import insert_models
from local.stack import LocalStack
from tests.e2e.service import MODELS, Ledger, Person, Service, error_of, hash_of

NOWHERE = "99999999-9999-4999-8999-999999999999"


@pytest.fixture(scope="module")
def revealing(
    tmp_path_factory: pytest.TempPathFactory, service: Service, http: httpx.Client, ledger: Ledger
) -> Iterator[Service]:
    """A stack whose policy is recent-login."""
    logs = tmp_path_factory.mktemp("revealing")
    shared = service.stack
    with LocalStack.start(
        parameters={"DatabaseName": "revealing", "RevealPolicy": "recent-login"},
        litellm_url=shared.litellm_url,
        litellm_master_key=shared.litellm_master_key,
        database=shared.database,
        aws=shared.aws,
        log_directory=logs,
    ) as stack:
        insert_models(stack.admin_dsn, MODELS)
        running = Service(stack, http, ledger, logs, gateway_url=shared.litellm_url)
        ledger.services.append(running)
        yield running
        ledger.services.remove(running)
        ledger.keep_texts_of(running)


def logged_in(service: Service, *, seconds_ago: float = 10) -> Person:
    return service.person(auth_time=int(time.time() - seconds_ago))


def again(person: Person, **claims: Any) -> Person:
    """The same person with another token."""
    token = person.service.stack.token(person.subject, **claims)
    return Person(person.service, subject=person.subject, token=token)


def reveals_of(person: Person) -> list[tuple[bool, str | None]]:
    return [
        (record["success"], record["error_message"])
        for record in person.audit()
        if record["action"] == "API_KEY_REVEAL"
    ]


# Where the policy is never.


def test_no_secret_is_shown_a_second_time_unless_the_stack_says_so(alice: Person):
    key = alice.has_key()

    error = error_of(alice.reveal(key["id"]), status=410, code="GONE")

    assert error["message"] == "This service never shows a secret a second time. Rotate the key to get a new one."
    assert error["details"] == {"reason": "never"}
    assert reveals_of(alice) == [(False, "never")]


def test_not_even_after_a_login(service: Service):
    person = logged_in(service)

    error_of(person.reveal(person.has_key()["id"]), status=410, code="GONE")


# Where it is recent-login.


def test_the_owner_sees_the_secret_after_a_login(revealing: Service):
    person = logged_in(revealing)
    key = person.has_key()

    answer = person.reveal(key["id"])

    assert answer.status_code == 200
    assert list(answer.json()) == ["key", "keyType", "retrievedAt"]
    assert (answer.json()["key"], answer.json()["keyType"]) == (key["key"], "litellm")
    assert answer.headers["cache-control"] == "no-store, no-cache, must-revalidate, private"
    assert (answer.headers["pragma"], answer.headers["x-frame-options"]) == ("no-cache", "DENY")
    record = person.audit()[-1]
    assert (record["action"], record["success"], record["resource_id"]) == ("API_KEY_REVEAL", True, key["id"])
    assert (str(record["ip_address"]), record["user_agent"]) == ("127.0.0.1", "e2e-tests/1.0")
    assert record["metadata"]["keyPrefix"] == key["keyPrefix"]


def test_after_a_rotation_it_is_the_new_one(revealing: Service):
    person = logged_in(revealing)
    key = person.has_key()
    rotated = person.rotate(key["id"], grace_seconds=3600).json()

    assert person.reveal(key["id"]).json()["key"] == rotated["key"]


@pytest.mark.parametrize("seconds_ago", [310, 3600, -300], ids=["too old", "much too old", "in the future"])
def test_a_login_that_is_not_recent_does_not_count(revealing: Service, seconds_ago: float):
    person = logged_in(revealing, seconds_ago=seconds_ago)
    key = person.has_key()

    error = error_of(person.reveal(key["id"]), status=403, code="FORBIDDEN")

    assert error["message"] == "Recent authentication required for this operation"
    assert error["details"] == {"suggestion": "Log in again."}
    assert reveals_of(person) == [(False, "oldLogin")]


@pytest.mark.parametrize("claim", [None, "soon", True, "nan"], ids=str)
def test_a_token_that_does_not_say_when_is_refused(revealing: Service, claim: object):
    person = logged_in(revealing)
    key = person.has_key()

    error = error_of(again(person, auth_time=claim).reveal(key["id"]), status=403, code="FORBIDDEN")

    assert error["message"] == "Recent authentication required for this operation"


def test_a_token_without_the_time_of_login_is_told_so(revealing: Service):
    person = revealing.person()

    error = error_of(person.reveal(person.has_key()["id"]), status=403, code="FORBIDDEN")

    assert error["details"]["suggestion"].startswith("The token does not say when you logged in (auth_time).")


def test_somebody_elses_secret_is_not_found(revealing: Service):
    key = logged_in(revealing).has_key()
    stranger = logged_in(revealing)

    error_of(stranger.reveal(key["id"]), status=404, code="NOT_FOUND")
    error_of(
        again(stranger, auth_time=int(time.time()), roles=["admin"]).reveal(key["id"]), status=404, code="NOT_FOUND"
    )


@pytest.mark.parametrize("key_id", [NOWHERE, "zzz"], ids=["missing", "malformed"])
def test_a_key_that_is_not_there_is_not_found(revealing: Service, key_id: str):
    error_of(logged_in(revealing).reveal(key_id), status=404, code="NOT_FOUND")


def test_who_may_only_look_is_refused(revealing: Service):
    person = logged_in(revealing)
    key = person.has_key()

    error_of(
        again(person, auth_time=int(time.time()), roles=["readonly"]).reveal(key["id"]), status=403, code="FORBIDDEN"
    )


def test_an_inactive_key_is_refused(revealing: Service):
    person = logged_in(revealing)
    key = person.has_key()
    revealing.rows("UPDATE api_keys SET is_active = false WHERE id = %(id)s", id=key["id"])

    error = error_of(person.reveal(key["id"]), status=400, code="VALIDATION_ERROR")

    assert error["message"] == "API key is inactive"


def test_an_expired_key_is_refused(revealing: Service):
    person = logged_in(revealing)
    key = person.has_key()
    revealing.rows("UPDATE api_keys SET expires_at = now() WHERE id = %(id)s", id=key["id"])

    error = error_of(person.reveal(key["id"]), status=400, code="VALIDATION_ERROR")

    assert error["message"] == "API key has expired"


def test_a_secret_that_litemaas_made_cannot_be_shown(revealing: Service):
    person = logged_in(revealing)
    [row] = revealing.rows(
        "INSERT INTO api_keys (user_id, key_hash, key_prefix) VALUES (%(user)s, %(hash)s, 'sk-theirs') RETURNING id::text",
        user=person.user_id,
        hash=hash_of(f"sk-of-{person.subject}"),
    )

    error = error_of(person.reveal(row["id"]), status=410, code="GONE")

    assert error["details"] == {"reason": "notDerivable"}


def test_a_secret_that_is_derived_differently_is_not_shown(revealing: Service):
    """As after the stack's key was replaced."""
    person = logged_in(revealing)
    key = person.has_key()
    revealing.rows(
        "UPDATE api_key_tokens SET nonce = %(nonce)s WHERE api_key_id = %(id)s", nonce="0" * 32, id=key["id"]
    )

    error_of(person.reveal(key["id"]), status=410, code="GONE")


def test_the_eleventh_in_five_minutes_is_refused(revealing: Service):
    person = logged_in(revealing)
    keys = [person.has_key() for _ in range(2)]
    for number in range(10):
        assert person.reveal(keys[number % 2]["id"]).status_code == 200

    answer = person.reveal(keys[0]["id"])

    error = error_of(answer, status=429, code="RATE_LIMITED")
    assert error["retry"]["retryAfter"] == int(answer.headers["retry-after"])
    assert 1 <= int(answer.headers["retry-after"]) <= 300
    assert reveals_of(person)[-1] == (False, "tooMany")
    # Nobody else is kept waiting, and after five minutes it is over.
    other = logged_in(revealing)
    assert other.reveal(other.has_key()["id"]).status_code == 200
    revealing.rows(
        "UPDATE audit_logs SET created_at = created_at - interval '5 minutes' WHERE user_id = %(user)s",
        user=person.user_id,
    )
    assert person.reveal(keys[0]["id"]).status_code == 200


def test_ten_of_thirty_at_once_are_shown(revealing: Service):
    person = logged_in(revealing)
    key = person.has_key()

    with ThreadPoolExecutor(30) as threads:
        statuses = list(threads.map(lambda _: person.reveal(key["id"]).status_code, range(30)))

    # 503 when the machine is so busy that one waits too long for the others.
    assert set(statuses) <= {200, 429, 503}
    assert reveals_of(person).count((True, None)) == 10
    assert statuses.count(200) <= 10
