"""The stand-in as a program; what it answers is tested in tests/contract."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

CHECKOUT = Path(__file__).parents[2]
MASTER_KEY = "sk-stand-in-master"
COMMAND = [sys.executable, "-m", "local.litellm"]


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """The process, and a client with the master key for the URL of its ready line."""
    command = [*COMMAND, "--master-key", MASTER_KEY, *arguments]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("LiteLLM stand-in ready: ").strip()
            with httpx.Client(
                base_url=url, headers={"Authorization": f"Bearer {MASTER_KEY}"}, trust_env=False
            ) as client:
                yield process, client
        finally:
            process.terminate()
            process.wait(30)


def refusal(*arguments: str) -> tuple[int, str]:
    finished = subprocess.run([*COMMAND, *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False, env={})
    return finished.returncode, finished.stderr


def test_it_takes_calls_from_its_ready_line_on():
    with running() as (_, client):
        assert client.get("/health/readiness").json() == {"status": "healthy", "db": "connected"}


def test_it_ends_when_asked_to_while_a_client_is_connected():
    with running() as (process, client):
        client.get("/health/liveliness")

        process.terminate()

        assert process.wait(30) is not None


def test_it_offers_the_models_it_is_told():
    with running("--models", "one", "two") as (_, client):
        models = client.get("/model/info").json()["data"]
        answer = client.post("/chat/completions", json={"model": "two", "messages": []})

    assert [model["model_name"] for model in models] == ["one", "two"]
    assert answer.json()["choices"][0]["message"]["content"] == "mock answer from two"


def test_without_a_state_file_it_forgets():
    with running() as (_, client):
        token = client.post("/key/generate", json={}).json()["token"]
    with running() as (_, client):
        answer = client.get("/key/info", params={"key": token})

    assert answer.status_code == 404


def test_a_state_file_keeps_keys_deletions_users_and_their_order_across_a_kill(tmp_path: Path):
    state = ("--state", str(tmp_path / "state.sqlite"))
    with running(*state) as (process, client):
        keys = [client.post("/key/generate", json={"key_alias": alias, "user_id": "u"}).json() for alias in "abc"]
        client.post("/key/update", json={"key": keys[0]["token"], "key_alias": "renamed", "max_budget": 5})
        client.post("/key/delete", json={"keys": [keys[1]["token"]]})
        client.post("/user/new", json={"user_id": "u", "auto_create_key": False})
        process.kill()
        process.wait(30)

    with running(*state) as (_, client):
        listed = client.get("/key/list", params={"user_id": "u", "return_full_object": "true"}).json()["keys"]
        deleted = client.get("/key/info", params={"key": keys[1]["key"]}).json()["info"]
        used = client.post(
            "/chat/completions",
            json={"model": "gpt-4o", "messages": []},
            headers={"Authorization": f"Bearer {keys[0]['key']}"},
        )
        taken = client.post("/key/generate", json={"key_alias": "renamed"})
        free = client.post("/key/generate", json={"key_alias": "a"})
        user = client.post("/user/new", json={"user_id": "u", "auto_create_key": False})

    assert [(key["key_alias"], key["max_budget"]) for key in listed] == [("c", None), ("renamed", 5)]
    assert deleted["status"] == "deleted"
    assert used.status_code == 200
    assert (taken.status_code, free.status_code, user.status_code) == (400, 200, 409)


def test_a_port_that_is_taken_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        exit_code, message = refusal("--port", str(port), "--master-key", MASTER_KEY)

    assert exit_code == 1
    assert message == f"cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_without_a_master_key_it_does_not_start():
    exit_code, message = refusal()

    assert exit_code == 2
    assert "a master key is needed" in message
