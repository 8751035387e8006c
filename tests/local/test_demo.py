"""`python -m local.demo`."""

import errno
import io
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from local.demo import StepFailed, Walk
from local.loopback import free_port
from local.narration import Narrator
from local.seed import insert_models, subscribe
from local.stack import LocalStack
from tests.support.fixtures import LiteLLM
from tests.support.http_faults import FaultProxy

CHECKOUT = Path(__file__).parent.parent.parent


@dataclass
class Surroundings:
    """Where a demo runs, so that whatever it leaves behind can be told from everything else."""

    mark: str
    temporary: Path

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LITELLM_")}
        # Of the environment only PATH reaches each process of the stack.
        return kept | {"PATH": f"{os.environ['PATH']}:{self.mark}", "TMPDIR": str(self.temporary)} | variables

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "local.demo"],
            cwd=CHECKOUT,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def leftovers(self) -> list[str]:
        return [*self._processes(), *(str(path) for path in self.temporary.iterdir())]

    def _processes(self) -> list[str]:
        found: list[str] = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (path / "environ").read_bytes():
                    found.append((path / "cmdline").read_text().replace("\0", " ")[:80])
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def surroundings() -> Iterator[Surroundings]:
    # Not pytest's own directory: a unix socket's path is short, and `nobody` must be able to walk there.
    temporary = Path(tempfile.mkdtemp(prefix="d"))
    temporary.chmod(0o711)
    yield Surroundings(mark=f"/marked-by-{temporary.name}", temporary=temporary)
    temporary.rmdir()


@pytest.fixture(scope="module")
def finished(surroundings: Surroundings) -> subprocess.CompletedProcess[str]:
    """A demo with the stand-in that it starts itself."""
    return surroundings.run()


def outside(url: str, litellm: LiteLLM) -> dict[str, str]:
    return {"LITELLM_URL": url, "LITELLM_MASTER_KEY": litellm.master_key}


def statuses_by_step(shown: str) -> list[list[str]]:
    """The HTTP statuses answered in each step, in the order shown; the steps must be numbered from 1."""
    parts = re.split(r"(?m)^(\d+)\. ", shown)
    assert parts[1::2] == [str(number) for number in range(1, len(parts) // 2 + 1)]
    return [re.findall(r"(?m)^ .* < (\d{3}) ", part) for part in parts[2::2]]


def keys_in(litellm: LiteLLM, *, user_id: str) -> list[str]:
    answer = httpx.get(
        f"{litellm.url}/key/list",
        params={"user_id": user_id},
        headers={"authorization": f"Bearer {litellm.master_key}"},
        trust_env=False,
    )
    return answer.raise_for_status().json()["keys"]


def user_of(shown: str) -> str:
    [user_id] = re.findall(r"its user\s+([0-9a-f-]{36}) stays there", shown)
    return user_id


def test_every_step_holds_in_its_order(finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.stderr == ""
    assert finished.returncode == 0
    assert statuses_by_step(finished.stdout) == [
        ["401", "200"],  # sign in
        ["201"],  # create
        ["200"],  # use
        ["200"],  # list
        ["200"],  # look into PostgreSQL and LiteLLM
        ["200"],  # delete
        ["401"],  # use again
        ["200"],  # look again
        [],  # the audit records
        ["201", "202", "200", "200", "200"],  # delete while LiteLLM is down
    ]
    assert finished.stdout.count("   ok: ") == 10
    assert re.search(r"\nAll 10 steps held: .*\n\Z", finished.stdout)


def test_secret_is_shown_once(finished: subprocess.CompletedProcess[str]) -> None:
    [secret] = re.findall(r'"key": "(sk-[^"]+)"', finished.stdout)

    assert finished.stdout.count(secret) == 1


def test_piped_output_is_plain_text_of_100_columns(finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.stdout.isascii()
    assert "\x1b" not in finished.stdout
    assert max(len(line) for line in finished.stdout.splitlines()) <= 100


def test_nothing_is_left_behind(finished: subprocess.CompletedProcess[str], surroundings: Surroundings) -> None:
    assert finished.returncode == 0
    assert surroundings.leftovers() == []


def test_outside_litellm_keeps_no_key_and_is_not_stopped(litellm: LiteLLM, surroundings: Surroundings) -> None:
    ended = surroundings.run(**outside(litellm.url, litellm))

    assert ended.returncode == 0
    assert len(statuses_by_step(ended.stdout)) == 9
    assert litellm.master_key not in ended.stdout + ended.stderr
    assert keys_in(litellm, user_id=user_of(ended.stdout)) == []


def test_litellm_that_only_claims_to_delete_fails_the_next_use(
    litellm: LiteLLM, gateway_faults: FaultProxy, surroundings: Surroundings
) -> None:
    claim: dict[str, list[str]] = {}

    def repeat_what_is_asked(body: Any) -> bool:
        claim["deleted_keys"] = body["keys"]
        return True

    gateway_faults.inject("/key/delete", "status", status=200, body=claim, times=0, matches=repeat_what_is_asked)

    ended = surroundings.run(**outside(gateway_faults.url, litellm))

    assert ended.returncode == 1
    assert statuses_by_step(ended.stdout)[5:] == [["200"], ["200"]]
    assert "   FAILED: step 7 did not hold\n   expected   401 Unauthorized\n   came       200 OK, " in ended.stdout
    assert "steps held" not in ended.stdout
    [hash_left] = claim["deleted_keys"]
    assert re.search(rf"These keys could not be removed from \S+\s+{hash_left}\n", ended.stdout)
    assert surroundings.leftovers() == []


def test_secret_in_any_column_fails_the_look_inside() -> None:
    models = ["gpt-4o", "gpt-4o-mini"]
    with LocalStack.start() as stack, httpx.Client(trust_env=False) as http:
        insert_models(stack.admin_dsn, models)
        subscribe(stack.admin_dsn, subject="alice", models=models)
        walk = Walk(stack, models=models, http=http, narrator=Narrator(io.StringIO(), is_coloured=False))
        key = walk._create()
        hidden_as_hex = key.secret.removeprefix(key.prefix).encode().hex()
        with psycopg.connect(stack.admin_dsn) as connection:
            connection.execute("UPDATE users SET full_name = %s WHERE id = %s", [hidden_as_hex, key.user_id])

        with pytest.raises(StepFailed, match="no trace of the secret in the dump"):
            walk._look_inside(key)


def test_key_made_without_an_answer_is_removed_from_an_outside_litellm(
    litellm: LiteLLM, gateway_faults: FaultProxy, surroundings: Surroundings
) -> None:
    gateway_faults.inject("/key/generate", "reset_after")

    ended = surroundings.run(**outside(gateway_faults.url, litellm))

    assert ended.returncode == 1
    assert "FAILED: step 2 did not hold\n   expected   201 Created\n   came       503 " in ended.stdout
    assert [call.upstream_status for call in gateway_faults.calls_of("/key/generate")] == [200]
    assert keys_in(litellm, user_id=user_of(ended.stdout)) == []


def test_ctrl_c_on_a_terminal_ends_it_cleanly(litellm: LiteLLM, surroundings: Surroundings) -> None:
    terminal, its_end = pty.openpty()
    demo = subprocess.Popen(
        [sys.executable, "-m", "local.demo"],
        cwd=CHECKOUT,
        env=surroundings.environment(TERM="xterm", **outside(litellm.url, litellm)),
        stdin=subprocess.DEVNULL,
        stdout=its_end,
        stderr=its_end,
    )
    os.close(its_end)
    shown = ""
    while "3. " not in shown:
        shown += os.read(terminal, 65536).decode()
    while_it_runs = "\n".join(surroundings.leftovers())

    demo.send_signal(signal.SIGINT)

    try:
        while part := os.read(terminal, 65536):
            shown += part.decode()
    except OSError:
        pass  # how Linux says that nobody has the other end any more
    os.close(terminal)
    assert demo.wait() == 130
    assert shown.endswith("\r\ninterrupted, everything is stopped\r\n")
    assert "Traceback" not in shown
    assert "\x1b[1m1. " in shown
    assert keys_in(litellm, user_id=user_of(shown)) == []
    for part in ("bin/postgres", "awslambdaric", str(surroundings.temporary)):
        assert part in while_it_runs
    assert surroundings.leftovers() == []


def test_reader_who_leaves_early_sees_no_trace(surroundings: Surroundings) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "local.demo"],
        cwd=CHECKOUT,
        env=surroundings.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert demo.stdout is not None
    assert demo.stderr is not None
    demo.stdout.readline()

    demo.stdout.close()

    assert demo.stderr.read() == b""
    demo.stderr.close()
    assert demo.wait() == 1
    assert surroundings.leftovers() == []


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        pytest.param(
            {"LITELLM_URL": "http://127.0.0.1:9"},
            "LITELLM_URL is set, but LITELLM_MASTER_KEY is not: set both to use your LiteLLM, or neither.",
            id="url alone",
        ),
        pytest.param(
            {"LITELLM_MASTER_KEY": "sk-1"},
            "LITELLM_MASTER_KEY is set, but LITELLM_URL is not: set both to use your LiteLLM, or neither.",
            id="master key alone",
        ),
        pytest.param(
            {"LITELLM_URL": "127.0.0.1:4000", "LITELLM_MASTER_KEY": "sk-1"},
            "LITELLM_URL must begin with http:// or https://, unlike 127.0.0.1:4000",
            id="no scheme",
        ),
        pytest.param(
            {"LITELLM_URL": "http://127.0.0.1:port", "LITELLM_MASTER_KEY": "sk-1"},
            "LiteLLM cannot be reached at http://127.0.0.1:port: Invalid port: 'port'",
            id="port that is no number",
        ),
        pytest.param(
            {"LITELLM_URL": "http://127.0.0.1:9", "LITELLM_MASTER_KEY": "sk-\u00e4"},
            "LITELLM_MASTER_KEY holds a character that no HTTP header can carry.",
            id="master key that cannot be sent",
        ),
    ],
)
def test_unusable_variables_are_one_sentence(
    surroundings: Surroundings, variables: dict[str, str], sentence: str
) -> None:
    ended = surroundings.run(**variables)

    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"{sentence}\n")


def test_unreachable_litellm_is_one_sentence(surroundings: Surroundings) -> None:
    url = f"http://127.0.0.1:{free_port()}"

    ended = surroundings.run(LITELLM_URL=url, LITELLM_MASTER_KEY="sk-1")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"LiteLLM cannot be reached at {url}: [Errno {errno.ECONNREFUSED}] Connection refused\n"


def test_wrong_master_key_is_one_sentence(litellm: LiteLLM, surroundings: Surroundings) -> None:
    ended = surroundings.run(LITELLM_URL=litellm.url, LITELLM_MASTER_KEY="sk-wrong")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"The LiteLLM at {litellm.url} refuses LITELLM_MASTER_KEY.\n"


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        pytest.param(404, {}, "{url}/model/info answers 404: is it the address of a LiteLLM?", id="another server"),
        pytest.param(
            200, ["x"], "{url}/model/info lists no models: is it the address of a LiteLLM?", id="another answer"
        ),
        pytest.param(
            200,
            {
                "data": [
                    {"model_name": "gpt-4o", "model_info": {"mode": "chat"}},
                    {"model_name": "gpt-4o", "model_info": {"mode": "chat"}},
                    {"model_name": "openai/*", "model_info": None},
                    {"model_name": "text-embedding-3-small", "model_info": {"mode": "embedding"}},
                ]
            },
            "The LiteLLM at {url} has fewer than the two chat models that are needed.",
            id="one chat model",
        ),
    ],
)
def test_litellm_without_two_models_is_one_sentence(
    litellm: LiteLLM, gateway_faults: FaultProxy, surroundings: Surroundings, status: int, body: Any, sentence: str
) -> None:
    gateway_faults.inject("/model/info", "status", status=status, body=body)

    ended = surroundings.run(**outside(gateway_faults.url, litellm))

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == sentence.format(url=gateway_faults.url) + "\n"
