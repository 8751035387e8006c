"""Who may call which route: every route with every role, given by the token and given by the database."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.architecture.translation import read_template
from tests.e2e.routes import ROUTES
from tests.e2e.service import KEYS, Person, Service, error_of

NOWHERE = "99999999-9999-4999-8999-999999999999"
INACTIVE = "This account is not active. Ask an administrator."
READ_ONLY = "This account may look, but change nothing. Ask an administrator."
NO_ADMINISTRATOR = "This needs an administrator's role."
ROLES = ("none", "user", "readonly", "admin-readonly", "admin")
# The status for each role, in the order of ROLES. The operation that is tried again does not exist: 404 is a yes.
ALLOWED = {
    "create": (201, 201, 403, 403, 201),
    "list": (200, 200, 200, 200, 200),
    "get": (200, 200, 200, 200, 200),
    "stats": (200, 200, 200, 200, 200),
    "delete": (200, 200, 403, 403, 200),
    "update": (200, 200, 403, 403, 200),
    "update of a user": (403, 403, 403, 403, 200),
    "reset spend": (403, 403, 403, 403, 200),
    "rotate": (200, 200, 403, 403, 200),
    # There is nothing to complete, and the policy shows nobody a secret: but these may ask.
    "complete": (409, 409, 403, 403, 409),
    "reveal": (410, 410, 403, 403, 410),
    "list all": (403, 403, 403, 200, 200),
    "list of a user": (403, 403, 403, 200, 200),
    "create for a user": (403, 403, 403, 403, 201),
    "delete of a user": (403, 403, 403, 403, 200),
    "clean up": (403, 403, 403, 403, 200),
    "validate": (403, 403, 403, 200, 200),
    "read defaults": (200, 200, 200, 200, 200),
    "read defaults as admin": (403, 403, 403, 200, 200),
    "set defaults": (403, 403, 403, 403, 200),
    "audit": (403, 403, 403, 200, 200),
    "operations": (403, 403, 403, 200, 200),
    "retry": (403, 403, 403, 403, 404),
}
OF_A_KEY = {
    "get",
    "rotate",
    "complete",
    "reveal",
    "delete",
    "delete of a user",
    "update",
    "update of a user",
    "reset spend",
}
CASES = [
    pytest.param(route, role, status, id=f"{route} as {role}")
    for route, statuses in ALLOWED.items()
    for role, status in zip(ROLES, statuses, strict=True)
]


@pytest.fixture(autouse=True)
def defaults_unset_again(service: Service) -> Iterator[None]:
    yield
    service.rows("DELETE FROM system_settings")


def call(person: Person, route: str, *, key_id: str = NOWHERE) -> Any:
    asked = ROUTES[route]
    path = asked.path.replace("{id}", key_id).replace("{userId}", str(person.user_id))
    arguments = {} if asked.body is None else {"json": asked.body}
    return person.service.call(asked.method, path, token=person.token, **arguments)


def with_claim(person: Person, *roles: str) -> Person:
    return Person(
        person.service, subject=person.subject, token=person.service.stack.token(person.subject, roles=list(roles))
    )


def set_roles(person: Person, roles: list[str] | None) -> None:
    person.service.rows("UPDATE users SET roles = %(roles)s WHERE id = %(id)s", roles=roles, id=person.user_id)


def own_key(person: Person, route: str) -> str:
    return person.has_key()["id"] if route in OF_A_KEY else NOWHERE


def test_every_route_that_asks_for_a_token_is_in_the_table():
    events = [
        event["Properties"]
        for resource in read_template()["Resources"].values()
        for event in resource.get("Properties", {}).get("Events", {}).values()
        if event["Type"] == "HttpApi"
    ]
    routes = {(event["Method"], event["Path"]) for event in events if "Auth" not in event}

    assert {(route.method, route.path) for route in ROUTES.values()} == routes
    assert ALLOWED.keys() == ROUTES.keys()


@pytest.mark.parametrize(("route", "role", "status"), CASES)
def test_a_role_of_the_token_counts(service: Service, alice: Person, route: str, role: str, status: int):
    key_id = own_key(alice, route)
    caller = with_claim(alice, *([] if role == "none" else [role]))

    answer = call(caller, route, key_id=key_id)

    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(("route", "role", "status"), CASES)
def test_a_role_of_the_database_counts(service: Service, alice: Person, route: str, role: str, status: int):
    key_id = own_key(alice, route)
    set_roles(alice, None if role == "none" else [role])

    answer = call(alice, route, key_id=key_id)

    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("route", ROUTES)
def test_an_inactive_administrator_may_do_nothing(service: Service, alice: Person, route: str):
    key_id = own_key(alice, route)
    service.rows("UPDATE users SET is_active = false WHERE id = %(id)s", id=alice.user_id)

    answer = call(with_claim(alice, "admin"), route, key_id=key_id)

    assert error_of(answer, status=403, code="FORBIDDEN")["message"] == INACTIVE


@pytest.mark.parametrize(
    ("database", "token", "may_create", "may_see_all"),
    [
        pytest.param(["user"], ["admin", "user"], True, True, id="admin and user"),
        pytest.param(["admin"], ["readonly"], True, True, id="admin wins over readonly"),
        pytest.param(["admin-readonly"], ["admin"], True, True, id="admin wins over admin-readonly"),
        pytest.param(["user"], ["readonly"], False, False, id="readonly wins over user"),
        pytest.param(["readonly"], ["user"], False, False, id="readonly of the database as well"),
        pytest.param(["admin-readonly", "user"], [], False, True, id="admin-readonly wins over user"),
        pytest.param(["user"], ["offline_access", "uma_authorization"], True, False, id="words of others"),
        pytest.param(["developer"], [], True, False, id="none of our words"),
        pytest.param([], [], True, False, id="no word at all"),
    ],
)
def test_words_of_token_and_database_count_together(
    alice: Person, database: list[str], token: list[str], *, may_create: bool, may_see_all: bool
):
    set_roles(alice, database)
    caller = with_claim(alice, *token)

    assert call(caller, "create").status_code == (201 if may_create else 403)
    assert call(caller, "list all").status_code == (200 if may_see_all else 403)


def test_a_create_that_a_role_forbids_is_audited_and_leaves_nothing(service: Service, alice: Person):
    answer = call(with_claim(alice, "readonly"), "create")

    error = error_of(answer, status=403, code="FORBIDDEN")
    assert error["message"] == READ_ONLY
    assert error["details"] == {}
    assert alice.key_rows() == []
    assert alice.gateway_keys() == []
    [record] = alice.audit()
    assert (record["action"], record["success"], record["error_message"]) == (
        "API_KEY_CREATE",
        False,
        "user: readOnly",
    )


def test_a_secret_is_not_given_again_to_somebody_who_may_only_look(alice: Person):
    headers = {"idempotency-key": f"roles-{alice.subject}"}
    key = alice.create({"modelIds": ["gpt-4o"]}, headers=headers).json()
    limited = with_claim(alice, "readonly")

    answer = limited.create({"modelIds": ["gpt-4o"]}, headers=headers)

    error_of(answer, status=403, code="FORBIDDEN")
    assert key["key"] not in answer.text
    assert [str(row["id"]) for row in alice.key_rows()] == [key["id"]]


def test_a_key_that_may_not_be_deleted_goes_on_working(service: Service, alice: Person):
    key = alice.has_key()

    answer = with_claim(alice, "admin-readonly").delete(key["id"])

    assert error_of(answer, status=403, code="FORBIDDEN")["message"] == READ_ONLY
    assert service.use(key["key"]) == 200
    assert alice.status_of(key["id"]) == "active"
    assert service.operations_of(key["id"]) == [("create", "done")]


def test_who_is_no_administrator_is_told_so(alice: Person):
    answer = call(alice, "operations")

    assert error_of(answer, status=403, code="FORBIDDEN")["message"] == NO_ADMINISTRATOR


def test_an_administrators_first_request_registers_them(service: Service):
    newcomer = service.person(is_known=False, roles=["admin"])

    answer = service.call("GET", f"{KEYS}/admin/all?limit=1", token=newcomer.token)

    assert answer.status_code == 200
    assert newcomer.user is not None
    assert newcomer.user["roles"] == ["user"]
