"""Lambda SnapStart under the genuine runtime client: before_snapshot, /runtime/restore/next, after_restore, and a request."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from local.seed import insert_models
from local.stack import LocalStack
from tests.e2e.service import MODELS, Ledger, Person, Service

PROBE = Path(__file__).parent / "snapshot" / "template.yaml"
# As Lambda gives them to a function with SnapStart: no access key in the environment, an address to ask for one instead.
ACCESS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


class Credentials(ThreadingHTTPServer):
    """Gives credentials to whoever shows the token."""

    daemon_threads = True
    asked = 0

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{self.server_address[1]}/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": "the-token",
        }


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        is_known = self.headers.get("Authorization") == "the-token"
        cast(Credentials, self.server).asked += is_known
        body = json.dumps(
            {
                "AccessKeyId": "ASIAEXAMPLE",
                "SecretAccessKey": "made-up",
                "Token": "made-up",
                "Expiration": "2099-01-01T00:00:00Z",
            }
        ).encode()
        self.send_response(200 if is_known else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name for it
        """Nothing: how often it was asked is what counts."""


@pytest.fixture
def credentials() -> Iterator[Credentials]:
    with Credentials(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def snapped(
    service: Service, credentials: Credentials, tmp_path: Path, http: httpx.Client, ledger: Ledger
) -> Iterator[Service]:
    """The whole service with SnapStart=on."""
    with LocalStack.start(
        parameters={"DatabaseName": "snapped"},
        extra_environment={"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start", **credentials.environment},
        litellm_url=service.stack.litellm_url,
        litellm_master_key=service.stack.litellm_master_key,
        database=service.stack.database,
        aws=service.stack.aws,
        workers_per_function=1,
        log_directory=tmp_path,
    ) as stack:
        insert_models(stack.admin_dsn, MODELS)
        without_access_keys(stack)
        running = Service(stack, http, ledger, tmp_path, gateway_url=stack.litellm_url)
        yield running
        ledger.keep_texts_of(running)


def without_access_keys(stack: LocalStack) -> None:
    for pool in stack._pools.values():
        for name in ACCESS_KEYS:
            pool.environment = {k: v for k, v in pool.environment.items() if k != name}


def test_what_was_opened_before_the_snapshot_is_closed_and_opened_afresh(
    service: Service, credentials: Credentials, tmp_path: Path
):
    with LocalStack.start(
        template=PROBE,
        parameters={"DatabaseName": service.stack.database_name},
        extra_environment=credentials.environment,
        litellm_url=service.stack.litellm_url,
        litellm_master_key=service.stack.litellm_master_key,
        database=service.stack.database,
        aws=service.stack.aws,
        log_directory=tmp_path,
    ) as stack:
        without_access_keys(stack)
        told = stack.invoke("Probe", {})
        again = stack.invoke("Probe", {})
        asked = credentials.asked

    assert told["wasClosed"]
    assert told["isConnected"]
    assert told["now"]["pid"] != told["start"]["pid"]
    assert told["now"]["secrets"] != told["start"]["secrets"]
    assert again["now"] == told["now"]
    # Nothing of the service asked for these: the hook before the snapshot has imported them.
    assert told["imported"] == ["httpx", "keyservice.creation", "keyservice.litellm"]
    assert told["accessKeys"] == []
    assert asked >= 1


def test_a_keys_life_is_the_same_from_a_snapshot(snapped: Service):
    alice: Person = snapped.person()

    created = alice.create({"modelIds": ["gpt-4o"]})
    listed = alice.listed()
    deleted = alice.delete(created.json()["id"])

    assert (created.status_code, deleted.status_code) == (201, 200)
    assert [key["id"] for key in listed] == [created.json()["id"]]
    assert snapped.use(created.json()["key"]) == 401
