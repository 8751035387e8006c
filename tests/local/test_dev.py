"""`python -m local.dev`."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.loopback import free_port

CHECKOUT = Path(__file__).parent.parent.parent


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("LITELLM_")}


def run_dev(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local.dev", *arguments],
        cwd=CHECKOUT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_taken_port_is_one_line_with_the_remedy(taken_port: int) -> None:
    ended = run_dev("--port", str(taken_port))

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == (
        f"Port {taken_port} is taken. End the program that listens there, "
        f"or choose another: python -m local.dev --port {taken_port + 1}\n"
    )


def test_half_an_outside_litellm_is_refused_in_one_line() -> None:
    ended = run_dev("--port", "0", LITELLM_URL="http://127.0.0.1:9")

    assert ended.returncode == 1
    assert ended.stderr == (
        "The local stack did not start: an outside LiteLLM needs both LITELLM_URL and LITELLM_MASTER_KEY\n"
    )


def test_help_names_the_default_port() -> None:
    assert "default: 8080" in run_dev("--help").stdout


def test_printed_calls_work_as_they_are_and_impatient_ctrl_c_ends_it() -> None:
    port = free_port()
    dev = subprocess.Popen(
        [sys.executable, "-m", "local.dev", "--port", str(port)],
        cwd=CHECKOUT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert dev.stdout is not None
    lines: list[str] = []
    for line in dev.stdout:
        lines.append(line.strip())
        if line.startswith("Ctrl-C"):
            break
    shown = "\n".join(lines)
    token = re.search(r"export TOKEN=(\S+)", shown)
    assert token is not None, shown
    create, listing, delete = (line for line in lines if line.startswith("curl"))

    created = carry_out(create, token=token[1])
    key_id = created["id"]
    listed = carry_out(listing, token=token[1])
    deleted = carry_out(delete.replace("$KEY_ID", key_id), token=token[1])
    dev.send_signal(signal.SIGINT)
    dev.send_signal(signal.SIGINT)
    last_words = dev.stdout.read()
    dev.stdout.close()

    assert created["key"].startswith("sk-")
    assert [key["id"] for key in listed["data"]] == [key_id]
    assert deleted["message"] == "API key deleted successfully"
    assert dev.wait() == 0
    assert last_words.split() == ["ended"]


def carry_out(command: str, *, token: str) -> Any:
    """What curl would do with the line."""
    words = shlex.split(command.partition("; echo")[0].replace("$TOKEN", token))
    headers = [words[index + 1].split(": ", 1) for index, word in enumerate(words) if word == "-H"]
    body = words[words.index("-d") + 1] if "-d" in words else None
    method = words[words.index("-X") + 1] if "-X" in words else ("POST" if body else "GET")
    url = next(word for word in words if word.startswith("http://"))
    return httpx.request(
        method, url, headers=[(name, value) for name, value in headers], content=body, trust_env=False, timeout=30
    ).json()
