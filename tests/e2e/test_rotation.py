"""Both secrets change while requests come in: nothing is deployed, no process ends, and no request has another fault than 503."""

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg
import pytest
from psycopg import sql

from local.roles import APP
from local.seed import insert_models
from local.stack import LocalStack
from tests.e2e.service import MODELS, Ledger, Person, Service, hash_of

FUNCTIONS = ["CreateApiKey", "ListApiKeys", "DeleteApiKey"]


@pytest.fixture
def own_service(tmp_path: Path, http: httpx.Client) -> Iterator[Service]:
    """Other stacks log in as the same role, with a secret of theirs: the rotation is for this one alone."""
    with LocalStack.start(log_directory=tmp_path) as stack:
        insert_models(stack.admin_dsn, MODELS)
        yield Service(stack, http, Ledger(), tmp_path, gateway_url=stack.litellm_url)


@dataclass
class Load:
    """People who make, list and delete keys, one after the other, until they are stopped."""

    people: list[Person]
    stopped: threading.Event = field(default_factory=threading.Event)
    is_rotated: threading.Event = field(default_factory=threading.Event)
    during: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    after: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    rounds_after: int = 0

    def run(self, person: Person) -> None:
        while not self.stopped.is_set():
            told = self.after if self.is_rotated.is_set() else self.during
            created = person.create({"modelIds": ["gpt-4o"]})
            told.add(("create", created.status_code))
            told.add(("list", person.get().status_code))
            if created.status_code == 201:
                told.add(("delete", person.delete(created.json()["id"]).status_code))
            self.rounds_after += told is self.after

    def wait_for_rounds(self, count: int) -> None:
        while self.rounds_after < count and not self.stopped.wait(0.02):
            pass


def rotate_database_password(service: Service) -> None:
    password = secrets.token_urlsafe(16)
    with psycopg.connect(service.stack.admin_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(APP), sql.Literal(password)))
    service.stack.aws.change_secret(
        service.stack.secret_arns["DatabaseSecretArn"], {"username": APP, "password": password}
    )
    # A living connection needs no password: only now is the new one needed.
    assert service.end_database_connections() > 0


def rotate_master_key(service: Service) -> None:
    key = f"sk-rotated-{secrets.token_hex(12)}"
    assert service.stack.litellm is not None
    service.stack.litellm.restart(master_key=key)
    service.stack.aws.change_secret(service.stack.secret_arns["LiteLLMSecretArn"], {"masterKey": key})
    service.stack.litellm_master_key = key


def test_secrets_rotated_under_load_are_used_without_a_deployment(own_service: Service):
    service = own_service
    old = service.stack.litellm_master_key
    load = Load([service.person() for _ in range(3)])
    [kept] = [load.people[0].has_key()]
    before = {name: service.stack.worker_pids(name) for name in FUNCTIONS}

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(load.run, person) for person in load.people]
        try:
            rotate_database_password(service)
            rotate_master_key(service)
            load.is_rotated.set()
            load.wait_for_rounds(6)
        finally:
            load.stopped.set()
        for each in running:
            each.result()

    assert load.after == {("create", 201), ("list", 200), ("delete", 200)}
    assert {status for _, status in load.during} <= {200, 201, 202, 503}
    assert {name: set(before[name]) <= set(service.stack.worker_pids(name)) for name in FUNCTIONS} == dict.fromkeys(
        FUNCTIONS, True
    )
    assert service.gateway("GET", "/key/list", key=old).status_code == 401
    assert service.gateway_key(hash_of(kept["key"])) is not None
