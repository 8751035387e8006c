"""Every case of compatibility.py, asked of this service; docs/litemaas-compatibility.md says the same."""

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, LiteralString

import httpx
import pytest

from tests.e2e.compatibility import CASES, DOCUMENT, Ask, Case, document
from tests.e2e.conftest import FragileService
from tests.e2e.service import Person, Service

NOWHERE = "99999999-9999-4999-8999-999999999999"
MAXIMUMS: LiteralString = (
    '{"defaults": {}, "maximums": {"maxBudget": 50, "tpmLimit": 5000, "rpmLimit": 100, "expirationDays": 30}}'
)
DEFAULTS: LiteralString = (
    '{"defaults": {"maxBudget": 5, "rpmLimit": 10, "budgetDuration": "monthly"},'
    ' "maximums": {"maxBudget": 50, "tpmLimit": 5000, "rpmLimit": 100, "expirationDays": 30}}'
)
CASES_BY_ID = [
    pytest.param(route, case, id=f"{route}: {case.name}".replace("`", ""))
    for route, cases in CASES.items()
    for case in cases
]


@dataclass
class Scene:
    """What has to be there before a case's request is made, made when it is first asked for."""

    service: Service
    ask: Ask

    @cached_property
    def caller(self) -> Person:
        match self.ask.who:
            case "an administrator":
                return self.service.person(roles=["admin"])
            case "an unknown user":
                return self.service.person(is_known=False)
            case "expired":
                return self.service.person(ttl_seconds=-60)
            case "forged":
                return self.service.person(forged=True)
            case _:
                # Who may change nothing becomes it only when their key is made.
                return self.service.person()

    @cached_property
    def another(self) -> Person:
        return self.service.person()

    def answer(self, route: str) -> httpx.Response:
        method, path = route.split(" ")
        path = path.replace("{id}", self._key_id() if self._needs_key(path) else "")
        if self.ask.query:
            path = f"{path}?{self._filled(self.ask.query)}"
        with self._given():
            headers = {**self.ask.headers, **self._authorization()}
            content = self.ask.content
            if self.ask.body is not None:
                headers["content-type"], content = "application/json", json.dumps(self._filled(self.ask.body))
            with self._trouble():
                return self.service.call(method, path, headers=headers, content=content)

    def _needs_key(self, path: str) -> bool:
        return "{id}" in path or self.ask.key not in ("own", "missing")

    def _key_id(self) -> str:
        match self.ask.key:
            case "missing":
                return NOWHERE
            case "malformed":
                return "zzz"
            case "NUL":
                return "%00"
            case "another's":
                return self.another.has_key()["id"]
            case "own":
                return self._own()
            case "revoked":
                return self._own("UPDATE api_keys SET is_active = false, revoked_at = now() WHERE id = %(id)s")
            case "expired":
                return self._own("UPDATE api_keys SET expires_at = now() - interval '1 day' WHERE id = %(id)s")
            case "gone in LiteLLM":
                key_id = self._own()
                token_hash = self.service.token_of(key_id)["hash"]
                assert self.service.gateway("POST", "/key/delete", json={"keys": [token_hash]}).status_code == 200
                return key_id
            case "deleted":
                key_id = self._own()
                assert self.caller.delete(key_id).status_code == 200
                return key_id

    def _own(self, change: LiteralString | None = None) -> str:
        owner = self.caller if self.ask.who not in ("forged", "expired") else self.another
        key_id: str = owner.has_key(modelIds=["gpt-4o", "gpt-4o-mini"])["id"]
        if change is not None:
            self.service.rows(change, id=key_id)
        return key_id

    def _authorization(self) -> Mapping[str, str]:
        match self.ask.who:
            case "nobody":
                return {}
            case "garbage":
                token = "garbage"
            case "a browser":
                return {"user-agent": "Mozilla/5.0 Chrome/120", "origin": "http://localhost:3000"}
            case "a key of LiteMaaS's administrator":
                token = "ltm_admin_0123456789abcdef"
            case "a secret of a key":
                token = self.caller.has_key()["key"]
            case "readonly" | "admin-readonly" as role:
                token = self.service.stack.token(self.caller.subject, roles=[role])
                self.service.ledger.secrets[token] = "a bearer token"
            case "an inactive user":
                self.service.rows("UPDATE users SET is_active = false WHERE id = %(id)s", id=self.caller.user_id)
                token = self.caller.token
            case _:
                token = self.caller.token
        return {"authorization": f"Bearer {token}"}

    @contextmanager
    def _given(self) -> Generator[None]:
        match self.ask.given:
            case "ten keys":
                for _ in range(10):
                    self.caller.has_key()
            case "two keys, one expired":
                self._own("UPDATE api_keys SET expires_at = now() - interval '1 day' WHERE id = %(id)s")
                self._own()
            case "maximums":
                with self.service.settings(MAXIMUMS):
                    yield
                return
            case "maximums and defaults":
                with self.service.settings(DEFAULTS):
                    yield
                return
            case _:
                pass
        yield

    @contextmanager
    def _trouble(self) -> Generator[None]:
        faults = self.service.gateway_faults if isinstance(self.service, FragileService) else None
        match self.ask.trouble:
            case "PostgreSQL down":
                self.service.stack.database.stop()
                try:
                    yield
                finally:
                    self.service.stack.database.start()
                return
            case "PostgreSQL restarted":
                self.service.stack.database.restart("fast")
            case "LiteLLM unreachable":
                assert faults
                faults.inject("*", "reset_before", times=0)
            case "LiteLLM answers 500":
                assert faults
                faults.inject("*", "status", times=0, status=500)
            case "LiteLLM answers 400":
                assert faults
                for path in ("/key/generate", "/key/delete", "/key/update"):
                    faults.inject(path, "status", times=0, status=400)
            case "LiteLLM answers 502 without JSON":
                assert faults
                faults.inject("*", "status", times=0, status=502, body="Bad Gateway")
            case None:
                pass
        yield

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._filled(part) for name, part in value.items()}
        if not isinstance(value, str) or "{" not in value:
            return value
        known: Mapping[str, Callable[[], str]] = {
            "{subscription}": lambda: subscription_of(self.caller),
            "{another's subscription}": lambda: subscription_of(self.another),
            "{suspended subscription}": lambda: subscription_of(self.caller, status="suspended"),
            "{missing}": lambda: NOWHERE,
            "{secret}": lambda: self.caller.has_key()["key"],
            "{in ten days}": (datetime.now(UTC) + timedelta(days=10)).isoformat,
        }
        for name, make in known.items():
            if name in value:
                value = value.replace(name, make())
        return value


def subscription_of(person: Person, *, status: str = "active") -> str:
    [row] = person.service.rows(
        "UPDATE subscriptions SET status = %(status)s WHERE user_id = %(user)s AND model_id = 'gpt-4o' RETURNING id::text",
        user=person.user_id,
        status=status,
    )
    return row["id"]


def said(answer: httpx.Response) -> str:
    """Status and code, as the cases write them."""
    body = answer.json()
    if answer.status_code < 400:
        return str(answer.status_code)
    if "error" in body:
        return f"{answer.status_code} {body['error']['code']}"
    assert list(body) == ["message"]
    return f"{answer.status_code} of API Gateway"


@pytest.fixture
def chosen_service(service: Service, request: pytest.FixtureRequest) -> Service:
    """Only where LiteLLM is in trouble does a proxy stand before it."""
    [case] = [value for value in request.node.callspec.params.values() if isinstance(value, Case)]
    is_of_litellm = (case.ask.trouble or "").startswith("LiteLLM")
    return request.getfixturevalue("fragile_service") if is_of_litellm else service


@pytest.mark.parametrize(("route", "case"), CASES_BY_ID)
def test_the_answer_is_the_one_in_the_table(chosen_service: Service, route: str, case: Case):
    answer = Scene(chosen_service, case.ask).answer(route)

    assert said(answer) == case.ours, answer.text
    assert case.ask.holds is None or case.ask.holds(answer.json()), answer.text


def test_whatever_differs_says_why():
    silent = [
        (route, case.name)
        for route, cases in CASES.items()
        for case in cases
        if case.theirs != case.ours and not case.why
    ]

    assert silent == []


def test_the_document_says_what_the_cases_say():
    assert DOCUMENT.read_text() == document(), "run: python -m tests.e2e.compatibility"
