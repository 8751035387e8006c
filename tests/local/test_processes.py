"""Whatever ends the process that started a stack, nothing of the stack is left: no process, no file."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from local.processes import base_environment

CHECKOUT = Path(__file__).parent.parent.parent
SAMPLE = Path(__file__).parent / "sample" / "template.yaml"

PROGRAM = f"""
import sys, threading
from pathlib import Path
from local.stack import LocalStack

with LocalStack.start(template=Path({str(SAMPLE)!r}), report=lambda step: print(step, flush=True)) as stack:
    stack.invoke("Echo")
    print("up", *stack.worker_pids("Echo"), flush=True)
    threading.Event().wait()
"""


@dataclass
class Victim:
    """A process that starts a stack, and a way to find everything that came of it."""

    process: subprocess.Popen[str]
    mark: str
    temporary: Path

    def wait_for(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line
        pytest.fail(f"the process ended before it said {word!r}")

    def processes(self) -> list[str]:
        """Everything alive with our mark in its environment, by command."""
        found: list[str] = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (path / "environ").read_bytes():
                    found.append((path / "cmdline").read_text().replace("\0", " ")[:80])
            except OSError:
                continue
        return found

    def wait_until_nothing_is_left(self) -> None:
        """The test's own time limit ends it, with the list in the trace, when that never happens."""
        while left := [*self.processes(), *self.temporary.iterdir()]:
            time.sleep(0.02)
            del left


@pytest.fixture
def victim() -> Iterator[Victim]:
    temporary = Path(tempfile.mkdtemp(prefix="v"))
    temporary.chmod(0o711)
    mark = f"/marked-by-{temporary.name}"
    environment = {
        **os.environ,
        **base_environment(),
        "PATH": f"{os.environ['PATH']}:{mark}",
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(CHECKOUT),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    victim = Victim(process=process, mark=mark, temporary=temporary)
    yield victim
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    victim.wait_until_nothing_is_left()
    temporary.rmdir()


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=["killed", "terminated", "interrupted"]
)
def test_nothing_is_left_of_a_start_that_is_cut_short(victim: Victim, number: signal.Signals) -> None:
    victim.wait_for("starting")

    victim.process.send_signal(number)

    victim.process.wait()
    victim.wait_until_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_nothing_is_left_of_a_stack_whose_starter_ends(victim: Victim, number: signal.Signals) -> None:
    victim.wait_for("up")
    commands = "\n".join(victim.processes())

    victim.process.send_signal(number)

    victim.process.wait()
    victim.wait_until_nothing_is_left()
    # Else the search would prove nothing.
    for part in ("guardian.py", "bin/postgres", "local.aws_server", "local.litellm", "awslambdaric"):
        assert part in commands
