"""Who may call, who a caller is, and what every answer tells them about their request."""

import re
from typing import Any
from uuid import uuid4

import pytest

from tests.e2e.service import KEYS, OPERATIONS, Person, Service, error_of

ROUTES = [
    pytest.param("POST", KEYS, id="create"),
    pytest.param("GET", KEYS, id="list"),
    pytest.param("DELETE", f"{KEYS}/99999999-9999-4999-8999-999999999999", id="delete"),
    pytest.param("GET", OPERATIONS, id="operations"),
    pytest.param("POST", f"{OPERATIONS}/99999999-9999-4999-8999-999999999999/retry", id="retry"),
]
CORRELATION_ID = "7d444840-9dc0-41d1-b245-5ffdce74fad2"


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "claims",
    [
        pytest.param({"issuer": "https://elsewhere.example"}, id="a foreign issuer"),
        pytest.param({"audience": "another-service"}, id="a wrong audience"),
        pytest.param({"audience": None}, id="no audience"),
        pytest.param({"ttl_seconds": -60}, id="expired"),
        pytest.param({"forged": True}, id="a forged signature"),
        pytest.param({"key_id": "somebody-elses"}, id="an unknown signing key"),
    ],
)
def test_a_token_that_is_not_for_us_is_refused(service: Service, method: str, path: str, claims: dict[str, Any]):
    token = service.stack.token("eve", **claims)

    answer = service.call(method, path, token=token, json={"modelIds": ["gpt-4o"]} if method == "POST" else None)

    assert answer.status_code == 401
    assert answer.json() == {"message": "Unauthorized"}
    assert service.rows("SELECT * FROM users WHERE oauth_id = 'eve'") == []


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="no header"),
        pytest.param({"authorization": ""}, id="an empty header"),
        pytest.param({"authorization": "Bearer nonsense"}, id="no token at all"),
        pytest.param({"authorization": "Basic YWxpY2U6cGFzc3dvcmQ="}, id="a password"),
    ],
)
def test_without_a_token_nothing_is_answered(service: Service, method: str, path: str, headers: dict[str, str]):
    answer = service.call(method, path, headers=headers, json={"modelIds": ["gpt-4o"]} if method == "POST" else None)

    assert answer.status_code == 401
    assert answer.json() == {"message": "Unauthorized"}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_an_unknown_route_is_api_gateways_own_404(service: Service, alice: Person, method: str):
    answer = service.call(method, KEYS, token=alice.token)

    assert answer.status_code == 404
    assert answer.json() == {"message": "Not Found"}


def test_the_first_request_registers_the_caller(service: Service):
    carol = service.person(is_known=False, username="carol.jones", email="carol.jones@example.org", name="Carol Jones")
    service.ledger.emails.add("carol.jones@example.org")

    answer = carol.get()

    user = carol.user
    assert answer.status_code == 200
    assert user is not None
    assert user["username"] == "carol.jones"
    assert user["email"] == "carol.jones@example.org"
    assert user["full_name"] == "Carol Jones"
    assert user["oauth_provider"] == "openshift"
    assert user["roles"] == ["user"]
    assert user["is_active"] is True
    assert user["last_login_at"] is not None


def test_a_create_registers_the_caller_too_even_when_it_is_refused(service: Service):
    carol = service.person(is_known=False)

    answer = carol.create({"modelIds": ["gpt-4o"]})

    assert answer.status_code == 400
    assert carol.user is not None
    assert carol.user["username"] == carol.subject


@pytest.mark.parametrize("route", ["create", "list"])
def test_a_token_without_email_and_username_gets_substitutes(service: Service, route: str):
    service_account = service.person(is_known=False, username=None, email=None)

    answer = service_account.get() if route == "list" else service_account.create({"modelIds": ["gpt-4o"]})

    user = service_account.user
    assert answer.status_code in (200, 400)
    assert user is not None
    assert user["username"] == f"openshift:{service_account.subject}"
    assert user["email"] == f"openshift:{service_account.subject}"


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param("   ", id="blank"),
        pytest.param("s" * 256, id="256 characters"),
        pytest.param("a\x00b", id="with NUL"),
    ],
)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_token_without_a_usable_subject_is_nobodys(service: Service, method: str, path: str, subject: str | None):
    token = service.stack.token(subject, username="nobody-known", email=None)

    answer = service.call(method, path, token=token, json={"modelIds": ["gpt-4o"]} if method == "POST" else None)

    error = error_of(answer, status=401, code="UNAUTHORIZED")
    assert error["details"] == {}
    assert service.rows("SELECT * FROM users WHERE username = 'nobody-known'") == []


@pytest.mark.parametrize("claim", ["username", "email"])
@pytest.mark.parametrize("route", ["create", "list"])
def test_a_username_or_email_of_somebody_else_is_a_conflict(service: Service, alice: Person, claim: str, route: str):
    taken = {"username": alice.subject, "email": alice.email}[claim]
    impostor = service.person(is_known=False, **{claim: taken})

    answer = impostor.create({"modelIds": ["gpt-4o"]}) if route == "create" else impostor.get()

    error = error_of(answer, status=409, code="IDENTITY_CONFLICT")
    assert taken not in answer.text
    assert error["details"] == {}
    assert impostor.user is None
    assert alice.audit() == []


def test_somebody_known_keeps_their_keys_when_their_token_changes_its_email(service: Service, alice: Person):
    key = alice.has_key()
    renamed = Person(service, subject=alice.subject, token=service.stack.token(alice.subject, email="new@example.com"))

    listed = renamed.listed()

    assert [listed_key["id"] for listed_key in listed] == [key["id"]]


def test_an_inactive_user_is_refused_everywhere(service: Service, alice: Person):
    key = alice.has_key()
    service.rows("UPDATE users SET is_active = false WHERE id = %(id)s", id=alice.user_id)

    answers = [alice.create({"modelIds": ["gpt-4o"]}), alice.get(), alice.delete(key["id"])]

    for answer in answers:
        error = error_of(answer, status=403, code="FORBIDDEN")
        assert error["message"] == "This account is not active. Ask an administrator."
    assert service.use(key["key"]) == 200
    assert [(str(row["id"]), row["is_active"]) for row in alice.key_rows()] == [(key["id"], True)]
    assert [(record["action"], record["success"]) for record in alice.audit()] == [
        ("API_KEY_CREATE", True),
        ("API_KEY_CREATE", False),
    ]


# What an answer says about its request.


@pytest.mark.parametrize("route", ["create", "list", "delete", "an error"])
def test_the_ids_of_a_request_are_echoed(alice: Person, route: str):
    headers = {"x-request-id": "req-from-client", "x-correlation-id": CORRELATION_ID}

    match route:
        case "create":
            answer = alice.create({"modelIds": ["gpt-4o"]}, headers=headers)
        case "list":
            answer = alice.get(headers=headers)
        case "delete":
            answer = alice.delete(alice.has_key()["id"], headers=headers)
        case _:
            answer = alice.create({}, headers=headers)

    assert answer.headers["x-request-id"] == "req-from-client"
    assert answer.headers["x-correlation-id"] == CORRELATION_ID
    assert answer.headers["cache-control"] == "no-store"


def test_an_error_carries_both_ids_in_its_envelope(alice: Person):
    answer = alice.create({}, headers={"x-request-id": "req-from-client", "x-correlation-id": CORRELATION_ID})

    error = error_of(answer, status=400, code="VALIDATION_ERROR")
    assert error["requestId"] == "req-from-client"
    assert error["correlationId"] == CORRELATION_ID
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", error["timestamp"])


@pytest.mark.parametrize(
    "correlation_id",
    [
        pytest.param("7d444840-9dc0-11d1-b245-5ffdce74fad2", id="a UUID v1"),
        pytest.param("7d4448409dc041d1b2455ffdce74fad2", id="without hyphens"),
        pytest.param("{7d444840-9dc0-41d1-b245-5ffdce74fad2}", id="in braces"),
        pytest.param("order-5", id="no UUID"),
    ],
)
def test_a_correlation_id_that_is_no_uuid_v4_is_ignored(alice: Person, correlation_id: str):
    answer = alice.create({}, headers={"x-correlation-id": correlation_id})

    error = error_of(answer, status=400, code="VALIDATION_ERROR")
    assert "correlationId" not in error
    assert "x-correlation-id" not in answer.headers


@pytest.mark.parametrize(
    "request_id", [pytest.param("r" * 129, id="129 characters"), pytest.param("two words", id="with a blank")]
)
def test_a_request_id_that_cannot_be_echoed_is_replaced(alice: Person, request_id: str):
    answer = alice.get(headers={"x-request-id": request_id})

    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == answer.headers["apigw-requestid"]


@pytest.mark.parametrize(
    ("user_agent", "kept"),
    [
        pytest.param("u" * 600, "u" * 512, id="600 characters"),
        pytest.param(b"caf\xe9/1.0", "café/1.0", id="not ASCII"),
        pytest.param("", None, id="empty"),
    ],
)
def test_any_user_agent_fits_the_audit_record(alice: Person, user_agent: Any, kept: str | None):
    alice.create({"modelIds": ["gpt-4o"]}, headers={"user-agent": user_agent})

    assert [record["user_agent"] for record in alice.audit()] == [kept]


def test_each_request_writes_one_log_line_that_names_the_caller_and_the_key(service: Service, alice: Person):
    request_id = f"log-{uuid4()}"

    key = alice.create({"modelIds": ["gpt-4o"]}, headers={"x-request-id": request_id}).json()

    [line] = [line for line in service.stack.log_path.read_text().splitlines() if request_id in line]
    assert '"message":"request served"' in line
    assert '"route":"POST /api/v1/api-keys"' in line
    assert '"status":201' in line
    assert f'"user_id":"{key["userId"]}"' in line
    assert f'"key_id":"{key["id"]}"' in line
    assert alice.email not in line
