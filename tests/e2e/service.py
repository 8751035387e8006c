"""The service as people meet it: its callers over HTTP, its operator from behind, in PostgreSQL and in LiteLLM."""

import hashlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

import httpx
import psycopg
from psycopg.rows import DictRow, dict_row

from local.roles import APP, MIGRATOR
from local.seed import subscribe
from local.stack import LocalStack

KEYS = "/api/v1/api-keys"
OPERATIONS = "/api/v1/admin/operations"
AUDIT = "/api/v1/admin/audit"
MODELS = ["gpt-4o", "gpt-4o-mini", "claude-sonnet"]
USER_AGENT = "e2e-tests/1.0"

_numbers = itertools.count(1)

type Row = dict[str, Any]


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True)
class Text:
    """Something that was written down or sent, and where it can be found again."""

    where: str
    content: str


@dataclass
class Ledger:
    """Every secret a run has handled, and every answer it was given without the one field that shows a secret."""

    secrets: dict[str, str] = field(default_factory=dict[str, str])
    """What must stand nowhere, with what it is."""
    emails: set[str] = field(default_factory=set[str])
    answers: list[Text] = field(default_factory=list[Text])
    services: list["Service"] = field(default_factory=list["Service"])
    """Those that still run; of the others the texts are kept."""
    texts: list[Text] = field(default_factory=list[Text])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, answer: httpx.Response) -> None:
        content = answer.text
        # What a create, a rotation and a reveal answer with, and nothing else.
        shows_a_secret = answer.status_code == 201 or (
            answer.status_code == 200 and answer.url.path.endswith(("/rotate", "/reveal"))
        )
        if shows_a_secret:
            secret = answer.json()["key"]
            with self._lock:
                self.secrets[secret] = "an issued key"
            # The one place of the one answer where a secret may stand.
            content = content.replace(f'"key":"{secret}"', '"key":""', 1)
        headers = "\n".join(f"{name}: {value}" for name, value in answer.headers.items())
        with self._lock:
            self.answers.append(
                Text(f"answer {answer.status_code} to {answer.request.method} {answer.url}", f"{headers}\n\n{content}")
            )

    def keep_texts_of(self, service: "Service") -> None:
        """Before it ends."""
        self.secrets |= service.own_secrets()
        self.texts += service.texts()


@dataclass
class Service:
    """A running stack with the windows a test looks through."""

    stack: LocalStack
    http: httpx.Client
    ledger: Ledger
    log_directory: Path
    gateway_url: str
    """LiteLLM itself, whatever stands between it and the functions."""

    def person(
        self,
        *,
        models: Sequence[str] = ("gpt-4o", "gpt-4o-mini"),
        subject: str | None = None,
        is_known: bool = True,
        **claims: Any,
    ) -> "Person":
        """Somebody new, with active subscriptions; `is_known=False` has no row in `users` either."""
        subject = subject or f"person-{next(_numbers)}"
        if is_known:
            subscribe(self.stack.admin_dsn, subject=subject, models=models)
        token = self.stack.token(subject, **claims)
        self.ledger.secrets[token] = "a bearer token"
        self.ledger.emails.add(f"{subject}@example.com")
        return Person(self, subject=subject, token=token)

    def call(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> httpx.Response:
        authorization = {} if token is None else {"authorization": f"Bearer {token}"}
        answer = self.http.request(
            method,
            f"{self.stack.url}{path}",
            headers=httpx.Headers({**authorization, **(headers or {})}, encoding="utf-8"),
            **arguments,
        )
        self.ledger.keep(answer)
        return answer

    # PostgreSQL, as the superuser.

    def rows(self, query: LiteralString, **parameters: Any) -> list[Row]:
        """On a connection of its own: some tests stop the server."""
        with psycopg.Connection[DictRow].connect(
            self.stack.admin_dsn, autocommit=True, row_factory=dict_row
        ) as connection:
            cursor = connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def transaction(self) -> Generator[psycopg.Connection[Any]]:
        """Somebody else's, rolled back at the end."""
        with psycopg.connect(self.stack.admin_dsn) as connection:
            yield connection
            connection.rollback()

    def key_row(self, key_id: str) -> Row | None:
        rows = self.rows("SELECT * FROM api_keys WHERE id = %(key_id)s", key_id=key_id)
        return rows[0] if rows else None

    def token_of(self, key_id: str) -> Row:
        [row] = self.rows("SELECT * FROM api_key_tokens WHERE api_key_id = %(key_id)s", key_id=key_id)
        return row

    def operations_of(self, key_id: str) -> list[tuple[str, str]]:
        """Kind and state, in their order."""
        rows = self.rows(
            "SELECT kind, state FROM api_key_operations WHERE api_key_id = %(key_id)s ORDER BY created_at",
            key_id=key_id,
        )
        return [(row["kind"], row["state"]) for row in rows]

    def audit_of_key(self, key_id: str) -> list[tuple[str, bool]]:
        """Action and success, in their order."""
        rows = self.rows(
            "SELECT action, success FROM audit_logs WHERE resource_id = %(key_id)s ORDER BY created_at", key_id=key_id
        )
        return [(row["action"], row["success"]) for row in rows]

    # LiteLLM, as its administrator.

    def gateway(self, method: str, path: str, *, key: str | None = None, **arguments: Any) -> httpx.Response:
        """With the master key, or the virtual key given."""
        key = key or self.stack.litellm_master_key
        return self.http.request(
            method, f"{self.gateway_url}{path}", headers={"authorization": f"Bearer {key}"}, **arguments
        )

    def gateway_key(self, token_hash: str) -> Row | None:
        """What LiteLLM knows of a key that it has not deleted."""
        answer = self.gateway("GET", "/key/info", params={"key": token_hash})
        assert answer.status_code in (200, 404), answer.text
        known = answer.json()["info"] if answer.status_code == 200 else None
        return None if known is None or known["status"] == "deleted" else known

    def use(self, secret: str, *, model: str = "gpt-4o") -> int:
        """The status LiteLLM answers a completion with this key with."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        return self.gateway("POST", "/chat/completions", key=secret, json=body).status_code

    # The operator, and time.

    def settle(self) -> Row:
        """What one run of settle_operations reports."""
        return self.stack.invoke("SettleOperations")

    def make_due(self, key_id: str) -> None:
        """Whoever had begun the key's operation has no time left for it, and the wait for the next attempt is over."""
        self.rows(
            "UPDATE api_key_operations SET next_attempt_at = now(), lease_until = now()"
            " WHERE api_key_id = %(id)s AND state = 'pending'",
            id=key_id,
        )

    def end_drain(self, key_id: str) -> None:
        """From now on no request to LiteLLM that was never answered can be carried out any more."""
        self.rows("UPDATE api_key_tokens SET unsafe_until = now() WHERE api_key_id = %(id)s", id=key_id)

    @contextmanager
    def litellm_down(self) -> Generator[None]:
        litellm = self.stack.litellm
        assert litellm is not None
        litellm.stop()
        try:
            yield
        finally:
            litellm.start()

    def kill_workers(self, function: str) -> None:
        """Returns when no later request can be given to one of them."""
        killed = self.stack.worker_pids(function)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while set(killed) & set(self.stack.worker_pids(function)):
            assert time.monotonic() < deadline, "the end of the workers is not noticed"
            time.sleep(0.02)

    def end_database_connections(self) -> int:
        """How many of the functions' connections were ended."""
        return len(
            self.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'keyservice' AND datname = current_database()"
            )
        )

    def wait_until_blocked(self, *, statements: int) -> None:
        """Returns as soon as so many statements of the functions wait for locks."""
        deadline = time.monotonic() + 30
        while self._blocked_statements() < statements:
            assert time.monotonic() < deadline, "the statements do not wait for locks"
            time.sleep(0.02)

    def _blocked_statements(self) -> int:
        return len(
            self.rows(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'keyservice'"
                " AND datname = current_database() AND wait_event_type = 'Lock'"
            )
        )

    @contextmanager
    def settings(self, value: LiteralString) -> Generator[None]:
        """system_settings.api_key_defaults, for a while."""
        self.rows("INSERT INTO system_settings (key, value) VALUES ('api_key_defaults', %(value)s)", value=value)
        try:
            yield
        finally:
            self.rows("DELETE FROM system_settings")

    def texts(self) -> list[Text]:
        """All that is kept of this service: a dump of its database and every log."""
        name = self.stack.database_name
        logs = [path for path in sorted(self.log_directory.iterdir()) if path.is_file()]
        return [
            Text(f"dump of {name}", self.stack.database.dump(name)),
            *(Text(f"{self.log_directory.name}/{path.name}", path.read_text(errors="replace")) for path in logs),
        ]

    def own_secrets(self) -> dict[str, str]:
        """What the stack itself holds, with what it is."""
        database = self.stack.database
        return {
            self.stack.litellm_master_key: "LiteLLM's master key",
            # Both roles exist: this tells their passwords and changes nothing.
            database.create_login(APP): "the app role's password",
            database.create_login(MIGRATOR): "the migrator role's password",
        }


@dataclass
class Person:
    """A caller with a token of their own."""

    service: Service
    subject: str
    token: str

    @property
    def email(self) -> str:
        return f"{self.subject}@example.com"

    @property
    def user(self) -> Row | None:
        rows = self.service.rows("SELECT * FROM users WHERE oauth_id = %(subject)s", subject=self.subject)
        return rows[0] if rows else None

    @property
    def user_id(self) -> UUID:
        assert self.user is not None
        return self.user["id"]

    def create(self, body: Any, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return self.service.call("POST", KEYS, token=self.token, json=body, headers=headers)

    def post(self, content: str | bytes, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """A body that no JSON encoder would write."""
        return self.service.call(
            "POST",
            KEYS,
            token=self.token,
            content=content,
            headers={"content-type": "application/json", **(headers or {})},
        )

    def get(self, query: str = "", *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """`query` as it stands in the URL, encoded."""
        return self.service.call("GET", f"{KEYS}?{query}" if query else KEYS, token=self.token, headers=headers)

    def delete(self, key_id: str, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return self.service.call("DELETE", f"{KEYS}/{key_id}", token=self.token, headers=headers)

    def update(self, key_id: str, body: Any, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return self.service.call("PATCH", f"{KEYS}/{key_id}", token=self.token, json=body, headers=headers)

    def reset_spend(self, key_id: str) -> httpx.Response:
        return self.service.call("POST", f"{KEYS}/{key_id}/reset-spend", token=self.token)

    def rotate(
        self, key_id: str, *, grace_seconds: int | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Without a body unless a grace is asked for."""
        body = {} if grace_seconds is None else {"json": {"gracePeriodSeconds": grace_seconds}}
        return self.service.call("POST", f"{KEYS}/{key_id}/rotate", token=self.token, headers=headers, **body)

    def rotate_once(self, key_id: str, idempotency_key: str, *, grace_seconds: int | None = None) -> httpx.Response:
        """A rotation that may be repeated."""
        self.service.ledger.secrets[idempotency_key] = "an Idempotency-Key"
        return self.rotate(key_id, grace_seconds=grace_seconds, headers={"idempotency-key": idempotency_key})

    def complete(self, key_id: str) -> httpx.Response:
        return self.service.call("POST", f"{KEYS}/{key_id}/rotate/complete", token=self.token)

    def reveal(self, key_id: str) -> httpx.Response:
        return self.service.call("POST", f"{KEYS}/{key_id}/reveal", token=self.token)

    def create_once(self, idempotency_key: str, **fields: Any) -> httpx.Response:
        """A create that may be repeated."""
        self.service.ledger.secrets[idempotency_key] = "an Idempotency-Key"
        return self.create({"modelIds": ["gpt-4o"], **fields}, headers={"idempotency-key": idempotency_key})

    def has_key(self, **fields: Any) -> Row:
        """A new key: the answer's body."""
        answer = self.create({"modelIds": ["gpt-4o"], **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def only_key(self) -> str:
        """The id of the one key the person has."""
        [row] = self.key_rows()
        return str(row["id"])

    def listed(self, query: str = "") -> list[Row]:
        answer = self.get(query)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def status_of(self, key_id: str) -> str | None:
        """As the list shows it; None when the key is not in it."""
        return next((key["status"] for key in self.listed("limit=100") if key["id"] == key_id), None)

    def key_rows(self) -> list[Row]:
        """The rows, newest first."""
        return self.service.rows(
            "SELECT k.* FROM api_keys AS k JOIN users AS u ON u.id = k.user_id"
            " WHERE u.oauth_id = %(subject)s ORDER BY k.created_at DESC",
            subject=self.subject,
        )

    def audit(self) -> list[Row]:
        return self.service.rows(
            "SELECT a.* FROM audit_logs AS a JOIN users AS u ON u.id = a.user_id"
            " WHERE u.oauth_id = %(subject)s ORDER BY a.created_at",
            subject=self.subject,
        )

    def gateway_keys(self) -> list[str]:
        """The hashes of all keys LiteLLM has for this user."""
        answer = self.service.gateway("GET", "/key/list", params={"user_id": str(self.user_id), "size": 100})
        assert answer.status_code == 200, answer.text
        return answer.json()["keys"]


def error_of(answer: httpx.Response, *, status: int, code: str) -> Row:
    """The error of an answer that is the documented envelope, with its keys in their order."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert list(answer.json()) == ["error"]
    error: Row = answer.json()["error"]
    optional = {"correlationId", "retry"} - error.keys()
    order = ["code", "message", "statusCode", "details", "correlationId", "timestamp", "requestId", "retry"]
    assert list(error) == [name for name in order if name not in optional]
    assert error["code"] == code
    assert error["statusCode"] == status
    assert error["requestId"] == answer.headers["x-request-id"]
    return error


def violations_of(answer: httpx.Response) -> list[tuple[str, str]]:
    """Field and code of every violation of a 400."""
    error = error_of(answer, status=400, code="VALIDATION_ERROR")
    return [(violation["field"], violation["code"]) for violation in error["details"]["validation"]]


def assert_asks_to_retry(answer: httpx.Response) -> None:
    """503 of our own, with both ways of saying when to come again."""
    error = error_of(answer, status=503, code="SERVICE_UNAVAILABLE")
    assert error["retry"] == {"retryable": True, "retryAfter": 5}
    assert answer.headers["retry-after"] == "5"
