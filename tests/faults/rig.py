"""The running service with a proxy before each of the two systems, time that can pass, and what callers were told."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString, override

import httpx
import psycopg
from psycopg.rows import DictRow, dict_row

from local.seed import insert_models
from local.stack import LocalStack
from local.workers import InvocationFailed
from tests.e2e.service import MODELS, USER_AGENT, Ledger, Person, Row, Service, hash_of
from tests.support.http_faults import FaultProxy
from tests.support.http_faults import Injection as GatewayInjection
from tests.support.postgres_faults import Injection as DatabaseInjection
from tests.support.postgres_faults import PostgresProxy

# As the template has them: time passes in the database instead of on the clock.
LEASE_SECONDS = 60
RESUME_SECONDS = 300
DRAIN_SECONDS = 900
DAY_SECONDS = 24 * 3600

MAX_ACTIVE_KEYS = 5
# Long enough for a busy machine, short enough for hundreds of requests that are never answered.
GATEWAY_BUDGET_SECONDS = 2.0
SETTLER = "SettleOperations"
# What the schedule runs, in this order, until nothing is pending. Reconcile takes its place at the end of this.
QUIET_JOBS = (SETTLER,)


def is_thorough() -> bool:
    """`make faults` sets FAULTS=thorough; `make test` leaves it out."""
    return os.environ.get("FAULTS") == "thorough"


type Injection = GatewayInjection | DatabaseInjection


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A create's 201 or a rotation's 200: the moment's number among all answers, and what it promised."""

    number: int
    subject: str
    key_id: str
    secret: str
    idempotency_key: str | None
    body: Row
    is_replay: bool
    kind: str = "create"

    @property
    def hash(self) -> str:
        return hash_of(self.secret)


@dataclass
class History:
    """What callers were told; it is never taken back."""

    issued: list[Issued] = field(default_factory=list[Issued])
    deleted: dict[str, int] = field(default_factory=dict[str, int])
    """Keys whose delete was answered 200."""
    accepted: dict[str, int] = field(default_factory=dict[str, int])
    """Keys whose delete was answered 202."""
    dead_hashes: set[str] = field(default_factory=set[str])
    """Of tokens that were seen dead."""
    broken_words: list[str] = field(default_factory=list[str])
    """Answers that were untrue the moment they were given."""
    answers: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _count: int = 0

    def number(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    def secrets_of(self, key_id: str) -> set[str]:
        return {issued.secret for issued in self.issued if issued.key_id == key_id}


@dataclass
class Rig(Service):
    gateway_faults: FaultProxy
    database_faults: PostgresProxy
    told: History = field(default_factory=History)
    injected: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Faults that really struck, by kind and step."""
    checked: Counter[str] = field(default_factory=Counter[str])
    """How often each invariant was looked at."""
    user_ids: dict[str, str] = field(default_factory=dict[str, str])
    """By subject; of users that were deleted since, too."""
    held: list[Injection] = field(default_factory=list[Injection])
    """Requests and statements that are still under way, somewhere."""

    _connection: psycopg.Connection[DictRow] | None = None
    _one_reader: threading.RLock = field(default_factory=threading.RLock)

    @override
    def rows(self, query: LiteralString, **parameters: Any) -> list[Row]:
        """On one connection for all: hundreds of tests look often. It is opened again when the server was restarted."""
        with self._one_reader:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.Connection[DictRow].connect(
                    self.stack.admin_dsn, autocommit=True, row_factory=dict_row
                )
            cursor = self._connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def forget_connection(self) -> None:
        """Before the server goes away."""
        with self._one_reader:
            if self._connection is not None:
                self._connection.close()

    # Callers.

    def newcomer(self, *, is_synced: bool = True, models: tuple[str, ...] = ("gpt-4o", "gpt-4o-mini")) -> Person:
        """Somebody new; LiteLLM knows of them unless it is said otherwise."""
        person = self.person(models=models)
        self.user_ids[person.subject] = str(person.user_id)
        if is_synced:
            body = {"user_id": str(person.user_id), "auto_create_key": False, "user_role": "internal_user"}
            answer = self.gateway("POST", "/user/new", json=body)
            assert answer.status_code == 200, answer.text
            self.rows("UPDATE users SET sync_status = 'synced' WHERE oauth_id = %(subject)s", subject=person.subject)
        return person

    def keys_of(self, person: Person) -> list[Row]:
        """The rows, newest first."""
        return self.rows(
            "SELECT * FROM api_keys WHERE user_id = %(user_id)s ORDER BY created_at DESC",
            user_id=self.user_ids[person.subject],
        )

    def create(
        self, person: Person, body: Row, *, idempotency_key: str | None = None, is_alone: bool = True
    ) -> httpx.Response:
        """`is_alone`: nobody deletes the key meanwhile, so that its secret has to work the moment it is answered."""
        headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
        answer = person.create(body, headers=headers)
        self.told.answers["create", answer.status_code] += 1
        if answer.status_code != 201:
            return answer
        self._hear_secret("create", person, answer, body, idempotency_key=idempotency_key, is_alone=is_alone)
        return answer

    def rotate(
        self,
        person: Person,
        key_id: str,
        *,
        grace_seconds: int = 0,
        idempotency_key: str | None = None,
        is_alone: bool = True,
    ) -> httpx.Response:
        """`is_alone`: nobody deletes or rotates the key meanwhile."""
        headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
        answer = person.rotate(key_id, grace_seconds=grace_seconds, headers=headers)
        self.told.answers["rotate", answer.status_code] += 1
        if answer.status_code != 200:
            return answer
        body = {"gracePeriodSeconds": grace_seconds}
        self._hear_secret("rotate", person, answer, body, idempotency_key=idempotency_key, is_alone=is_alone)
        if answer.json()["oldSecret"]["state"] == "ended":
            self._hear_end_of_old_secrets(key_id)
        return answer

    def complete(self, person: Person, key_id: str) -> httpx.Response:
        answer = person.complete(key_id)
        self.told.answers["complete", answer.status_code] += 1
        if answer.status_code == 200:
            self._hear_end_of_old_secrets(key_id)
        return answer

    def _hear_secret(
        self,
        kind: str,
        person: Person,
        answer: httpx.Response,
        body: Row,
        *,
        idempotency_key: str | None,
        is_alone: bool,
    ) -> None:
        key = answer.json()
        issued = Issued(
            number=self.told.number(),
            subject=person.subject,
            key_id=key["id"],
            secret=key["key"],
            idempotency_key=idempotency_key,
            body=body,
            is_replay=answer.headers.get("idempotency-replayed") == "true",
            kind=kind,
        )
        if issued.hash in self.told.dead_hashes:
            self.told.broken_words.append(f"I8: the secret of {issued.key_id} was dead before it was answered")
        self.told.issued.append(issued)
        if is_alone and self.is_refused(issued.secret) is True:
            self.told.broken_words.append(f"I5: the secret answered for {issued.key_id} does not work")

    def _hear_end_of_old_secrets(self, key_id: str) -> None:
        row = self.key_row(key_id)
        for issued in [one for one in self.told.issued if one.key_id == key_id]:
            is_old = row is not None and issued.hash != row["key_hash"]
            if is_old and self.is_refused(issued.secret) is False:
                self.told.broken_words.append(f"I2: an old secret of {key_id} works after it was said to have ended")

    def delete(self, person: Person, key_id: str) -> httpx.Response:
        answer = person.delete(key_id)
        self.told.answers["delete", answer.status_code] += 1
        if answer.status_code == 200:
            self.told.deleted.setdefault(key_id, self.told.number())
            for secret in self.told.secrets_of(key_id):
                if self.is_refused(secret) is False:
                    self.told.broken_words.append(f"I2: {key_id} works after its delete was answered 200")
        elif answer.status_code == 202:
            self.told.accepted.setdefault(key_id, self.told.number())
        return answer

    def update(self, person: Person, key_id: str, body: Row) -> httpx.Response:
        answer = person.update(key_id, body)
        self.told.answers["update", answer.status_code] += 1
        return answer

    def is_refused(self, secret: str) -> bool | None:
        """Whether LiteLLM turns the key away as unknown, blocked or expired; None when LiteLLM cannot be asked."""
        try:
            status = self.use(secret)
        except httpx.HTTPError:
            return None
        return None if status >= 500 else status == 401

    # Faults.

    def killer_of(self, function: str) -> Callable[[], None]:
        """Ends the function's processes as the machine's memory keeper would: at once, whatever they are doing."""

        def kill() -> None:
            for pid in self.stack.worker_pids(function):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        return kill

    def clear_faults(self) -> None:
        self.gateway_faults.clear()
        self.database_faults.clear()

    def release_held(self) -> None:
        """What was under way arrives now. Nothing in LiteLLM is under way for longer than a drain."""
        for injection in self.held:
            injection.release()
        for injection in self.held:
            assert injection.wait(), f"{injection.fault} did not end"
        self.held.clear()

    # Time and jobs.

    def pass_time(self, seconds: float) -> None:
        """Moves everything that waits in the journal into the past. No request may be running."""
        self.rows(
            """
            WITH passed AS (SELECT make_interval(secs => %(seconds)s) AS time),
            operations AS (
                UPDATE api_key_operations
                SET lease_until = lease_until - time, next_attempt_at = next_attempt_at - time,
                    created_at = created_at - time
                FROM passed
                WHERE state = 'pending'
            )
            UPDATE api_key_tokens
            SET unsafe_until = unsafe_until - time, valid_until = valid_until - time,
                settings_unsafe_until = settings_unsafe_until - time
            FROM passed
            WHERE unsafe_until IS NOT NULL OR valid_until IS NOT NULL OR settings_unsafe_until IS NOT NULL
            """,
            seconds=seconds,
        )

    def try_to_settle(self) -> Row | None:
        """What the run says it did; None when it failed."""
        try:
            return self.stack.invoke(SETTLER)
        except InvocationFailed:
            return None

    def _runs(self, job: str) -> bool:
        try:
            self.stack.invoke(job)
        except InvocationFailed:
            return False
        return True

    def pending(self) -> int:
        """Operations, keys that a change may still be undone of, and what the next run begins: keys, and secrets of a
        grace, whose time is over."""
        [row] = self.rows(
            """
            SELECT
                (SELECT count(*) FROM api_key_operations WHERE state = 'pending')
                + (
                    SELECT count(*) FROM api_key_tokens AS t JOIN api_keys AS k ON k.id = t.api_key_id AND k.is_active
                    WHERE t.settings_unsafe_until IS NOT NULL AND t.state = 'live'
                )
                + (SELECT count(*) FROM api_keys WHERE is_active AND revoked_at IS NULL AND expires_at <= now())
                + (SELECT count(*) FROM api_key_tokens WHERE state = 'retiring' AND valid_until <= now()) AS number
            """
        )
        return row["number"]

    def become_quiet(self) -> None:
        """No fault any more, everything under way has arrived, a drain has passed, the jobs have run."""
        self.clear_faults()
        self.release_held()
        for _ in range(10):
            self.pass_time(LEASE_SECONDS + RESUME_SECONDS + DRAIN_SECONDS)
            # One that is given to a process that was killed a moment ago fails; the schedule's next run follows.
            finished = [self._runs(job) for job in QUIET_JOBS]
            if all(finished) and self.pending() == 0:
                return
        raise AssertionError(f"after ten quiet runs of {QUIET_JOBS} {self.pending()} operations are pending")


@contextmanager
def running_rig(
    directory: Path,
    *,
    litellm: tuple[str, str] | None = None,
    parameters: Mapping[str, str] | None = None,
    gateway_budget_seconds: float = GATEWAY_BUDGET_SECONDS,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[Rig]:
    """`litellm`: URL and master key of one that runs already, else a stand-in is started."""
    with ExitStack() as closing:
        # The first stack owns the servers, the second is the one under test, behind the proxies.
        url, master_key = litellm or (None, None)
        behind = closing.enter_context(
            LocalStack.start(
                parameters={"DatabaseName": "behind"},
                litellm_url=url,
                litellm_master_key=master_key,
                log_directory=directory / "servers",
                report=report,
            )
        )
        gateway_faults = closing.enter_context(FaultProxy(behind.litellm_url))
        socket = behind.database.socket_directory / f".s.PGSQL.{behind.database.port}"
        database_faults = closing.enter_context(PostgresProxy(socket))
        logs = directory / "functions"
        stack = closing.enter_context(
            LocalStack.start(
                parameters={
                    "DatabaseHost": str(database_faults.socket_directory),
                    "DatabasePort": str(database_faults.port),
                    "DatabaseName": "faults",
                    "MaxActiveKeys": str(MAX_ACTIVE_KEYS),
                    "OwnersMayResetSpend": "true",
                    **(parameters or {}),
                },
                extra_environment={"LITELLM_BUDGET_SECONDS": str(gateway_budget_seconds)},
                litellm_url=gateway_faults.url,
                litellm_master_key=behind.litellm_master_key,
                database=behind.database,
                aws=behind.aws,
                log_directory=logs,
            )
        )
        # The stand-in's process belongs to the stack that started it; restarting it is this rig's business.
        stack.litellm = behind.litellm
        insert_models(stack.admin_dsn, MODELS)
        # Many threads share it, and httpcore may close an idle connection that another thread has just taken.
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=0)
        http = closing.enter_context(
            httpx.Client(trust_env=False, timeout=60, limits=limits, headers={"user-agent": USER_AGENT})
        )
        ledger = Ledger()
        rig = Rig(
            stack,
            http,
            ledger,
            logs,
            gateway_url=behind.litellm_url,
            gateway_faults=gateway_faults,
            database_faults=database_faults,
        )
        ledger.services.append(rig)
        yield rig
        rig.clear_faults()
        rig.release_held()
        rig.forget_connection()


def error_code(answer: httpx.Response) -> str | None:
    """Of our envelope; None when the answer is not ours: the function died."""
    body: Any = answer.json()
    return body["error"]["code"] if "error" in body else None
