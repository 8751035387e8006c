"""The drop-in's template: LiteMaaS's own tokens open the API, for the rows of `users` that they name and for no other."""

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from local import litemaas_template
from local.function_log import objects_in
from local.record_events import EVENTS
from local.seed import insert_models, subscribe
from local.stack import LocalStack
from local.workers import InvocationFailed
from tests.e2e.routes import ROUTES
from tests.e2e.service import AUDIT, KEYS, MODELS, Ledger, Row, Service, error_of

REFUSED_BY_THE_GATEWAY = (401, {"message": "Unauthorized"})


@dataclass
class DropIn(Service):
    """The service behind LiteMaaS's tokens, with what a test asks of it in one line."""

    def user(self, subject: str) -> UUID:
        """The id of a row that LiteMaaS made when somebody logged in, with subscriptions."""
        subscribe(self.stack.admin_dsn, subject=subject, models=MODELS)
        return self.rows("SELECT id FROM users WHERE oauth_id = %(subject)s", subject=subject)[0]["id"]

    def token(self, user_id: object, *, ttl_seconds: float = 3600, **changes: object) -> str:
        token = self.stack.litemaas_token(user_id, ttl_seconds=ttl_seconds, **changes)
        self.ledger.secrets[token] = "a LiteMaaS token"
        return token

    def get(self, token: str | None, path: str = KEYS) -> httpx.Response:
        return self.call("GET", path, token=token)

    def users(self) -> list[Row]:
        return self.rows("SELECT * FROM users ORDER BY id")


@pytest.fixture(scope="module")
def drop_in(
    tmp_path_factory: pytest.TempPathFactory, service: Service, http: httpx.Client, ledger: Ledger
) -> Iterator[DropIn]:
    logs: Path = tmp_path_factory.mktemp("drop-in")
    template = tmp_path_factory.mktemp("template") / "template-litemaas.yaml"
    litemaas_template.write(template)
    shared = service.stack
    with LocalStack.start(
        template=template,
        parameters={"DatabaseName": "dropin"},
        litellm_url=shared.litellm_url,
        litellm_master_key=shared.litellm_master_key,
        database=shared.database,
        aws=shared.aws,
        workers_per_function=2,
        log_directory=logs,
    ) as stack:
        insert_models(stack.admin_dsn, MODELS)
        running = DropIn(stack, http, ledger, logs, gateway_url=shared.litellm_url)
        ledger.services.append(running)
        yield running


def resigned(token: str, **header: object) -> str:
    """The token's claims under another header, with the signature of the first: what an attacker can make."""
    _, payload, signature = token.split(".")
    return f"{encoded(header)}.{payload}.{signature}"


def encoded(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def test_a_token_acts_for_the_row_that_it_names(drop_in: DropIn):
    user_id = drop_in.user("carol")
    token = drop_in.token(user_id)

    created = drop_in.call("POST", KEYS, token=token, json={"modelIds": ["gpt-4o"], "name": "mine"})
    listed = drop_in.get(token)
    deleted = drop_in.call("DELETE", f"{KEYS}/{created.json()['id']}", token=token)

    assert created.status_code == 201, created.text
    assert created.json()["userId"] == str(user_id)
    assert [(key["id"], key["userId"]) for key in listed.json()["data"]] == [(created.json()["id"], str(user_id))]
    assert deleted.status_code == 200, deleted.text
    assert drop_in.audit_of_key(created.json()["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


def test_the_row_is_left_as_litemaas_keeps_it(drop_in: DropIn):
    user_id = drop_in.user("dave")
    before = [row for row in drop_in.users() if row["id"] == user_id]
    token = drop_in.token(user_id, username="another", email="another@example.com")

    drop_in.get(token)
    drop_in.call("POST", KEYS, token=token, json={"modelIds": ["no-such-model"]})

    assert [row for row in drop_in.users() if row["id"] == user_id] == before


def test_the_scheme_word_may_be_left_out_as_litemaas_allows(drop_in: DropIn):
    token = drop_in.token(drop_in.user("erin"))

    answer = drop_in.call("GET", KEYS, headers={"authorization": token})

    assert answer.status_code == 200, answer.text


def test_two_users_do_not_see_each_others_keys(drop_in: DropIn):
    frank, grace = drop_in.token(drop_in.user("frank")), drop_in.token(drop_in.user("grace"))
    key_id = drop_in.call("POST", KEYS, token=frank, json={"modelIds": ["gpt-4o"]}).json()["id"]

    listed = drop_in.get(grace)
    deleted = drop_in.call("DELETE", f"{KEYS}/{key_id}", token=grace)

    assert listed.json()["data"] == []
    assert error_of(deleted, status=404, code="NOT_FOUND")
    assert drop_in.key_row(key_id) is not None


@pytest.mark.parametrize("name", ROUTES)
def test_a_token_for_a_row_that_is_not_there_is_401_and_makes_none(name: str, drop_in: DropIn):
    route, token, before = ROUTES[name], drop_in.token(uuid4()), drop_in.users()
    path = route.path.replace("{id}", str(uuid4())).replace("{userId}", str(uuid4()))

    answer = drop_in.call(route.method, path, token=token, json=route.body)

    assert error_of(answer, status=401, code="UNAUTHORIZED")
    assert drop_in.users() == before


def test_a_row_whose_oauth_id_looks_like_the_id_is_not_the_one(drop_in: DropIn):
    stranger = uuid4()
    drop_in.user(str(stranger))

    answer = drop_in.get(drop_in.token(stranger))

    assert error_of(answer, status=401, code="UNAUTHORIZED")


def test_an_inactive_row_is_403(drop_in: DropIn):
    user_id = drop_in.user("heidi")
    drop_in.rows("UPDATE users SET is_active = false WHERE id = %(id)s", id=user_id)

    answer = drop_in.get(drop_in.token(user_id))

    assert error_of(answer, status=403, code="FORBIDDEN")


def test_roles_are_those_of_the_row_not_of_the_token(drop_in: DropIn):
    user_id, admin_id = drop_in.user("ivan"), drop_in.user("judy")
    drop_in.rows("UPDATE users SET roles = '{user,admin}' WHERE id = %(id)s", id=admin_id)
    paths = ("/api/v1/admin/operations", AUDIT, f"{KEYS}/admin/all")

    claimed = [drop_in.get(drop_in.token(user_id, roles=["admin"]), path) for path in paths]
    stored = [drop_in.get(drop_in.token(admin_id, roles=["user"]), path) for path in paths]

    assert [answer.status_code for answer in claimed] == [403, 403, 403]
    assert [answer.status_code for answer in stored] == [200, 200, 200]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"userId": None}, id="no userId"),
        pytest.param({"userId": "carol"}, id="a userId that is no UUID"),
        pytest.param({"userId": 7}, id="a userId that is no text"),
        pytest.param({"iat": None}, id="no iat"),
        pytest.param({"exp": None}, id="no exp"),
        pytest.param({"exp": "9999999999"}, id="an exp that is no number"),
        pytest.param({"exp": True}, id="an exp that is a boolean"),
        pytest.param({"exp": 1}, id="expired long ago"),
        pytest.param({"iat": 9999999999}, id="made in the future"),
        pytest.param({"nbf": 9999999999}, id="not valid yet"),
    ],
)
def test_a_signed_token_with_wrong_claims_is_refused(change: dict[str, Any], drop_in: DropIn):
    answer = drop_in.get(drop_in.token(drop_in.user("kim"), **change))

    assert (answer.status_code, answer.json()) == REFUSED_BY_THE_GATEWAY


@pytest.mark.parametrize(
    "header",
    [
        pytest.param({"alg": "none"}, id="alg none"),
        pytest.param({"alg": "HS512"}, id="HS512"),
        pytest.param({"alg": "RS256"}, id="RS256 in the header alone"),
        pytest.param({"alg": "hs256"}, id="in lower case"),
        pytest.param({"typ": "JWT"}, id="no alg"),
        pytest.param({"alg": "HS256", "typ": "at+jwt"}, id="another header than the signed one"),
    ],
)
def test_a_header_of_the_callers_choosing_is_refused(header: dict[str, object], drop_in: DropIn):
    token = drop_in.token(drop_in.user("lena"))

    answer = drop_in.get(resigned(token, **header))

    assert (answer.status_code, answer.json()) == REFUSED_BY_THE_GATEWAY


def test_a_token_without_a_signature_is_refused(drop_in: DropIn):
    header, payload, _ = drop_in.token(drop_in.user("mallory")).split(".")

    answers = [drop_in.get(token) for token in (f"{header}.{payload}.", f"{encoded({'alg': 'none'})}.{payload}.")]

    assert [(answer.status_code, answer.json()) for answer in answers] == [REFUSED_BY_THE_GATEWAY] * 2


def test_a_token_of_an_openid_issuer_is_refused(drop_in: DropIn):
    token = drop_in.stack.token("nina", userId=str(drop_in.user("nina")))

    answer = drop_in.get(token)

    assert (answer.status_code, answer.json()) == REFUSED_BY_THE_GATEWAY


def test_a_token_signed_with_another_secret_is_refused(drop_in: DropIn, service: Service):
    token = service.stack.litemaas_token(drop_in.user("oscar"))

    answer = drop_in.get(token)

    assert (answer.status_code, answer.json()) == REFUSED_BY_THE_GATEWAY


@pytest.mark.parametrize(
    "garbage", ["x", "a.b.c", "..", "Bearer", f"sk-{'0' * 64}", "e30." + "A" * 5000 + f".{'A' * 43}"]
)
def test_garbage_is_refused(garbage: str, drop_in: DropIn):
    answer = drop_in.call("GET", KEYS, headers={"authorization": garbage})

    assert (answer.status_code, answer.json()) == REFUSED_BY_THE_GATEWAY


def test_no_token_is_401(drop_in: DropIn):
    answer = drop_in.get(None)

    assert (answer.status_code, answer.json()) == REFUSED_BY_THE_GATEWAY


def test_health_needs_no_token(drop_in: DropIn):
    assert drop_in.get(None, "/health").status_code == 200


def test_a_token_that_ends_while_the_gateway_remembers_it_is_refused_by_the_function(drop_in: DropIn):
    token = drop_in.token(drop_in.user("peggy"), ttl_seconds=3)
    expires_at = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["exp"]
    while_it_lasts = drop_in.get(token)
    time.sleep(max(0.0, expires_at - time.time()) + 0.05)

    afterwards = drop_in.get(token)

    assert while_it_lasts.status_code == 200, while_it_lasts.text
    assert error_of(afterwards, status=401, code="UNAUTHORIZED")


def test_a_token_that_has_ended_before_it_was_seen_is_refused_at_the_door(drop_in: DropIn):
    answer = drop_in.get(drop_in.token(drop_in.user("quentin"), ttl_seconds=-1))

    assert (answer.status_code, answer.json()) == REFUSED_BY_THE_GATEWAY


def test_a_new_secret_is_taken_up_with_the_first_token_it_signs(drop_in: DropIn):
    user_id = drop_in.user("rupert")
    before = drop_in.get(drop_in.token(user_id))
    old_unseen = drop_in.token(user_id, ttl_seconds=1800)
    time.sleep(1)  # a forged token of another test may have had the secret read again just now

    drop_in.stack.change_litemaas_secret()
    after = drop_in.get(drop_in.token(user_id, ttl_seconds=2400))
    old = drop_in.get(old_unseen)

    assert (before.status_code, after.status_code) == (200, 200), after.text
    assert (old.status_code, old.json()) == REFUSED_BY_THE_GATEWAY


def test_why_a_token_was_refused_stands_in_the_log_without_the_token(drop_in: DropIn):
    user_id = drop_in.user("sybil")
    expired, good = drop_in.token(user_id, ttl_seconds=-7), drop_in.token(user_id)
    tokens = [expired, f"{good.rpartition('.')[0]}.{'A' * 43}", resigned(good, alg="none")]

    for token in tokens:
        drop_in.get(token)

    log = drop_in.stack.log_path.read_text()
    lines = [line for line in objects_in(log) if line.get("message") == "token refused"]
    assert {"expired", "signature", "algorithm"} <= {line["reason"] for line in lines}
    assert [token for token in tokens if token in log] == []


def test_the_recorded_event_of_the_authorizer_is_taken(drop_in: DropIn):
    event = json.loads((EVENTS / "authorize_litemaas_token.json").read_text())
    user_id = uuid4()

    admitted = drop_in.stack.invoke(
        "AuthorizeLiteMaaSToken", event | {"identitySource": [f"Bearer {drop_in.token(user_id)}"]}
    )
    with pytest.raises(InvocationFailed) as refused:
        drop_in.stack.invoke("AuthorizeLiteMaaSToken", event)

    assert (admitted["isAuthorized"], admitted["context"]["userId"]) == (True, str(user_id))
    assert refused.value.error_message == "Unauthorized"
