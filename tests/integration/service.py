"""How the integration tests drive the service's classes, and look at both systems afterwards."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from types import TracebackType
from typing import Any, LiteralString, Self
from uuid import UUID, uuid4

import httpx
import msgspec
import psycopg
from psycopg.pq import ExecStatus
from psycopg.rows import DictRow, dict_row

from keyservice import database as keyservice_database
from keyservice.alteration import AlterationRules, KeyAlteration
from keyservice.aws import Aws
from keyservice.creation import CreateRules, KeyCreation
from keyservice.deletion import KeyDeletion
from keyservice.derivation import KeyDeriver
from keyservice.ending import EndRules
from keyservice.errors import ServiceError
from keyservice.listing import KeyListing
from keyservice.litellm import LiteLLM
from keyservice.models import (
    Actor,
    Caller,
    CompletedRotation,
    Creation,
    Deadline,
    DeletedKey,
    FoundKey,
    IssuedKey,
    KeyChanges,
    KeyPage,
    NewApiKey,
    PendingCompletion,
    PendingDeletion,
    RevealedKey,
    Rotation,
    RotationRequest,
    Settled,
)
from keyservice.provenance import Deployment
from keyservice.retirement import SecretRetirement
from keyservice.revelation import SecretRevelation
from keyservice.rotation import KeyRotation, RotateRules
from keyservice.secret_values import SecretValues
from keyservice.settings import DatabaseSettings
from keyservice.settlement import Settlement, SettleRules
from local.aws import AwsServer
from local.loopback import NO_TLS
from tests.support import fixtures
from tests.support.http_faults import FaultProxy
from tests.support.postgres_faults import PostgresProxy

LEASE_SECONDS = 30.0
DRAIN_SECONDS = 900.0
RESUME_SECONDS = 300.0
# Of one request, where the test is not about running out of it.
PLENTY_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Cloud:
    aws: AwsServer
    client: Aws
    secret_values: SecretValues
    deriver: KeyDeriver
    database_secret_arn: str
    migrator_secret_arn: str
    litellm_secret_arn: str


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What is left of a key in PostgreSQL."""

    row: tuple[bool, str] | None
    """is_active, sync_status"""
    tokens: list[tuple[str, bool]]
    """state, whether a lost request may still make it"""
    operations: list[tuple[str, str, str]]
    """kind, phase, state; oldest first"""
    audits: list[tuple[str, bool]]
    """action, success; oldest first"""


def caller(name: str = "alice", *, roles: Sequence[str] = ("user",)) -> Caller:
    return Caller(
        provider="openshift",
        subject=name,
        username=name,
        email=f"{name}@example.com",
        full_name=None,
        roles=tuple(roles),
        actor=Actor(ip_address="203.0.113.9", user_agent="test/1.0", request_id=f"request-of-{name}"),
    )


def all_at_once(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each returns, or the ServiceError it raises; all start at the same moment."""
    barrier = Barrier(len(works))

    def outcome(work: Callable[[], Any]) -> Any:
        barrier.wait(30)
        try:
            return work()
        except ServiceError as error:
            return error

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(outcome, works))


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Service:
    """One execution environment: its own connections, made when first used and closed at the end."""

    def __init__(
        self,
        *,
        cloud: Cloud,
        database: fixtures.Database,
        litellm: fixtures.LiteLLM,
        gateway_faults: FaultProxy,
        database_faults: PostgresProxy,
    ) -> None:
        self.cloud = cloud
        self.database_under_test = database
        self.litellm = litellm
        self.gateway_faults = gateway_faults
        self.database_faults = database_faults
        self._databases: list[keyservice_database.Database] = []
        self._clients: list[LiteLLM] = []
        self.database = self.connect_database()
        self.gateway = self.connect_litellm()
        self._admin = psycopg.Connection[DictRow].connect(database.admin_dsn, autocommit=True, row_factory=dict_row)
        self._http = httpx.Client(base_url=litellm.url, trust_env=False, verify=NO_TLS, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for database in self._databases:
            database.close()
        for client in self._clients:
            client._http.close()
        self._admin.close()
        self._http.close()

    # The parts.

    def database_settings(self, *, host: str | None = None, secret_arn: str | None = None) -> DatabaseSettings:
        return DatabaseSettings(
            host=host or str(self.database_faults.socket_directory),
            port=self.database_faults.port,
            name=self.database_under_test.name,
            secret_arn=secret_arn or self.cloud.database_secret_arn,
            ca_bundle="",
        )

    def connect_database(
        self, settings: DatabaseSettings | None = None, secret_values: SecretValues | None = None
    ) -> keyservice_database.Database:
        """Another execution environment's connection."""
        database = keyservice_database.Database(
            settings or self.database_settings(), secret_values or self.cloud.secret_values
        )
        self._databases.append(database)
        return database

    def connect_litellm(self) -> LiteLLM:
        client = LiteLLM(
            url=self.gateway_faults.url,
            secret_arn=self.cloud.litellm_secret_arn,
            secret_values=self.cloud.secret_values,
        )
        self._clients.append(client)
        return client

    def creation(self, *, fresh: bool = False, deriver: KeyDeriver | None = None, **rules: Any) -> KeyCreation:
        """`fresh` gives it connections of its own, for threads."""
        chosen = {
            "model_access": "subscription",
            "max_active_keys": 10,
            "lease_seconds": LEASE_SECONDS,
            "drain_seconds": DRAIN_SECONDS,
            "resume_seconds": RESUME_SECONDS,
        } | rules
        return KeyCreation(
            database=self.connect_database() if fresh else self.database,
            litellm=self.connect_litellm() if fresh else self.gateway,
            deriver=deriver or self.cloud.deriver,
            rules=CreateRules(**chosen),
        )

    def deletion(self, *, fresh: bool = False) -> KeyDeletion:
        return KeyDeletion(
            database=self.connect_database() if fresh else self.database,
            litellm=self.connect_litellm() if fresh else self.gateway,
            rules=EndRules(lease_seconds=LEASE_SECONDS, gateway_cache_seconds=60.0),
        )

    def alteration(self, *, fresh: bool = False, **rules: Any) -> KeyAlteration:
        chosen = {
            "model_access": "subscription",
            "owners_may_reset_spend": True,
            "lease_seconds": LEASE_SECONDS,
            "drain_seconds": DRAIN_SECONDS,
        } | rules
        return KeyAlteration(
            database=self.connect_database() if fresh else self.database,
            litellm=self.connect_litellm() if fresh else self.gateway,
            rules=AlterationRules(**chosen),
        )

    def retirement(self, *, fresh: bool = False) -> SecretRetirement:
        return SecretRetirement(
            database=self.connect_database() if fresh else self.database,
            litellm=self.connect_litellm() if fresh else self.gateway,
            rules=EndRules(lease_seconds=LEASE_SECONDS, gateway_cache_seconds=60.0),
        )

    def rotation(self, *, fresh: bool = False, deriver: KeyDeriver | None = None) -> KeyRotation:
        retirement = self.retirement(fresh=fresh)
        return KeyRotation(
            database=self.connect_database() if fresh else self.database,
            litellm=self.connect_litellm() if fresh else self.gateway,
            deriver=deriver or self.cloud.deriver,
            retirement=retirement,
            rules=RotateRules(lease_seconds=LEASE_SECONDS, drain_seconds=DRAIN_SECONDS, resume_seconds=RESUME_SECONDS),
        )

    @property
    def deployment(self) -> Deployment:
        """What the migrations wrote down, and the stack's parameters still say."""
        return Deployment(stack_name=fixtures.STACK_NAME, litellm_url=fixtures.LITELLM_URL)

    def settlement(self, *, fresh: bool = False, **rules: Any) -> Settlement:
        chosen = {
            "deployment": self.deployment,
            "lease_seconds": LEASE_SECONDS,
            "drain_seconds": DRAIN_SECONDS,
            "gateway_seconds": 1.0,
            "reserve_seconds": 1.0,
            "first_wait_seconds": 60.0,
            "longest_wait_seconds": 900.0,
            "keeps_expired_rows": True,
        } | rules
        return Settlement(
            database=self.connect_database() if fresh else self.database,
            litellm=self.connect_litellm() if fresh else self.gateway,
            rules=SettleRules(**chosen),
        )

    # What a caller does.

    def create(self, subject: str = "alice", /, **request: Any) -> IssuedKey:
        """As `ask_for_key`, where the test is not about repeating it."""
        return self.ask_for_key(subject, **request).key

    def ask_for_key(
        self,
        subject: str = "alice",
        /,
        *,
        idempotency_key: str | None = None,
        seconds: float = PLENTY_SECONDS,
        rules: Mapping[str, Any] | None = None,
        **body: Any,
    ) -> Creation:
        wanted = NewApiKey(**({"model_ids": ["gpt-4o"], "name": "notebook"} | body))
        return self.creation(**(rules or {})).create(
            caller(subject), wanted, idempotency_key=idempotency_key, deadline=Deadline(seconds)
        )

    def rotate(
        self,
        key_id: UUID | str,
        name: str = "alice",
        *,
        grace_seconds: int = 0,
        idempotency_key: str | None = None,
        seconds: float = PLENTY_SECONDS,
    ) -> Rotation:
        return self.rotation().rotate(
            caller(name),
            str(key_id),
            RotationRequest(grace_period_seconds=grace_seconds),
            idempotency_key=idempotency_key,
            deadline=Deadline(seconds),
        )

    def complete(self, key_id: UUID | str) -> CompletedRotation | PendingCompletion:
        return self.retirement().complete(caller(), str(key_id), deadline=Deadline(PLENTY_SECONDS))

    def reveal(self, key_id: UUID | str) -> RevealedKey:
        """Where the stack allows it."""
        revelation = SecretRevelation(database=self.database, deriver=self.cloud.deriver, policy="recent-login")
        asking = msgspec.structs.replace(caller(), authenticated_at=time.time())
        return revelation.reveal(asking, str(key_id))

    def delete(
        self, key_id: UUID | str, name: str = "alice", *, seconds: float = PLENTY_SECONDS
    ) -> DeletedKey | PendingDeletion:
        return self.deletion().delete(caller(name), str(key_id), deadline=Deadline(seconds))

    def update(self, key_id: UUID, name: str = "alice", *, seconds: float = PLENTY_SECONDS, **changes: Any) -> FoundKey:
        return self.alteration().update(caller(name), str(key_id), KeyChanges(**changes), deadline=Deadline(seconds))

    def list_keys(self, name: str = "alice", **parameters: str) -> KeyPage:
        return KeyListing(database=self.database).page(caller(name), parameters)

    def settle(self, *, seconds: float = PLENTY_SECONDS, **rules: Any) -> Settled:
        return self.settlement(**rules).run(deadline=Deadline(seconds))

    # What an administrator sees and does.

    def rows(self, statement: LiteralString, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[DictRow]:
        cursor = self._admin.execute(statement, parameters)
        # A SELECT of no columns has rows as well, but no description.
        has_rows = cursor.pgresult is not None and cursor.pgresult.status == ExecStatus.TUPLES_OK
        return cursor.fetchall() if has_rows else []

    def value(self, statement: LiteralString, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Any:
        [row] = self.rows(statement, parameters)
        [found] = row.values()
        return found

    def subscribe(self, name: str, *, models: Sequence[str]) -> UUID:
        """The id of the user, who is made, as are the models."""
        user_id: UUID = self.value(
            """
            INSERT INTO users (username, email, oauth_provider, oauth_id)
            VALUES (%(name)s, %(email)s, 'openshift', %(name)s)
            ON CONFLICT (oauth_provider, oauth_id) DO UPDATE SET username = EXCLUDED.username
            RETURNING id
            """,
            {"name": name, "email": f"{name}@example.com"},
        )
        for model in models:
            self.rows(
                "INSERT INTO models (id, name, provider) VALUES (%(id)s, %(name)s, 'openai') ON CONFLICT DO NOTHING",
                {"id": model, "name": model},
            )
            self.rows("INSERT INTO subscriptions (user_id, model_id) VALUES (%s, %s)", [user_id, model])
        return user_id

    def make_team(self, *members: str, role: str = "member", gateway_id: str | None = None) -> UUID:
        """The id of a team in LiteMaaS, and in LiteLLM, where its id is another unless given."""
        lite_llm_team_id = f"team-{uuid4()}" if gateway_id is None else gateway_id
        if gateway_id is None:
            assert self._ask("POST", "/team/new", body={"team_id": lite_llm_team_id}).status_code == 200
        team_id: UUID = self.value(
            "INSERT INTO teams (name, lite_llm_team_id) VALUES ('blue', %s) RETURNING id", [lite_llm_team_id]
        )
        for name in members:
            self.rows(
                "INSERT INTO team_members (team_id, user_id, role) SELECT %s, id, %s FROM users WHERE oauth_id = %s",
                [team_id, role, name],
            )
        return team_id

    def let_time_pass(self) -> None:
        """As if an hour had gone by: leases have run out, what waits is due, lost requests can no longer come true."""
        self.rows(
            "UPDATE api_key_tokens SET unsafe_until = unsafe_until - interval '1 hour',"
            " settings_unsafe_until = settings_unsafe_until - interval '1 hour'"
        )
        self.rows(
            "UPDATE api_key_operations SET lease_until = lease_until - interval '1 hour',"
            " next_attempt_at = next_attempt_at - interval '1 hour'"
        )

    def wait_until_somebody_waits(self) -> None:
        """For a lock of the database."""
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        with psycopg.connect(self.database_under_test.admin_dsn, autocommit=True) as connection:
            while connection.execute(waiting).fetchone() == (0,):
                time.sleep(0.01)

    def traces(self, key_id: UUID | None = None) -> Traces:
        """Of the key, or of the only one there ever was."""
        if key_id is None:
            key_id = self.only_key_id()
        row = self.rows("SELECT is_active, sync_status FROM api_keys WHERE id = %s", [key_id])
        tokens = self.rows(
            "SELECT state, coalesce(unsafe_until > now(), false) AS is_unsafe FROM api_key_tokens"
            " WHERE api_key_id = %s ORDER BY number",
            [key_id],
        )
        operations = self.rows(
            "SELECT kind, phase, state FROM api_key_operations WHERE api_key_id = %s ORDER BY created_at, kind",
            [key_id],
        )
        audits = self.rows(
            "SELECT action, success FROM audit_logs WHERE resource_id = %s::text ORDER BY created_at, action", [key_id]
        )
        return Traces(
            row=(row[0]["is_active"], row[0]["sync_status"]) if row else None,
            tokens=[(token["state"], token["is_unsafe"]) for token in tokens],
            operations=[(entry["kind"], entry["phase"], entry["state"]) for entry in operations],
            audits=[(entry["action"], entry["success"]) for entry in audits],
        )

    def only_key_id(self) -> UUID:
        return self.value("SELECT DISTINCT api_key_id FROM api_key_operations")

    def token_hash(self, key_id: UUID | None = None) -> str:
        return self.value("SELECT hash FROM api_key_tokens WHERE api_key_id = %s", [key_id or self.only_key_id()])

    def is_live(self, token_hash: str) -> bool:
        """Whether LiteLLM itself, asked past the proxy, has the key and has not deleted it."""
        answer = self._ask("GET", "/key/info", query={"key": token_hash})
        assert answer.status_code in (200, 404), answer.text
        return answer.status_code == 200 and answer.json()["info"].get("status") != "deleted"

    def gateway_key(self, token_hash: str) -> dict[str, Any]:
        answer = self._ask("GET", "/key/info", query={"key": token_hash})
        assert answer.status_code == 200, answer.text
        return answer.json()["info"]

    def make_gateway_key(self, secret: str, **settings: Any) -> str:
        """A key that somebody else made in LiteLLM; its hash."""
        answer = self._ask("POST", "/key/generate", body={"key": secret, **settings})
        assert answer.status_code == 200, answer.text
        return hash_of(secret)

    def chat(self, secret: str) -> int:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
        return self._ask("POST", "/chat/completions", body=body, key=secret).status_code

    def _ask(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None, key: str | None = None
    ) -> httpx.Response:
        headers = {"authorization": f"Bearer {key or self.litellm.master_key}"}
        return self._http.request(method, path, params=query, json=body, headers=headers)
