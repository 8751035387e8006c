"""Child processes and private directories that never outlive this process, however it ends."""

import atexit
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from local import guardian

# A unix socket's path may have 107 characters on Linux and 103 on macOS.
LONGEST_TEMPORARY_ROOT = 50


class _Guardian:
    """The one process that cleans up when this one dies without doing so itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def tell(self, **order: object) -> None:
        with self._lock:
            # After a fork the pipe still belongs to the forking process.
            if self._process is None or self._owner != os.getpid():
                self._process = self._start()
                self._owner = os.getpid()
                atexit.register(self.dismiss)
            orders = self._process.stdin
            assert orders is not None
            orders.write(json.dumps(order).encode() + b"\n")
            orders.flush()

    def dismiss(self) -> None:
        """Let it do what is left to do, and wait for it."""
        with self._lock:
            if self._process is not None and self._owner == os.getpid():
                self._process.communicate()
                self._process = None

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guardian.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env=base_environment(),
            start_new_session=True,
        )


_guardian = _Guardian()


class Child:
    """A running child process in a process group of its own."""

    def __init__(self, process: subprocess.Popen[bytes], *, end_signal: signal.Signals) -> None:
        self._process = process
        self._end_signal = end_signal

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        code = self._process.poll()
        if code is not None:
            _guardian.tell(forget=self.pid)
        return code

    def is_running(self) -> bool:
        """True until its end, even when another thread waits for it (exit_code() may learn of the end later)."""
        if self._process.returncode is not None:
            return False
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def wait(self, *, timeout_seconds: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired when it still runs after the time."""
        code = self._process.wait(timeout_seconds)
        _guardian.tell(forget=self.pid)
        return code

    def signal(self, number: signal.Signals) -> None:
        """Reaches the child's whole process group; a child already gone is no error."""
        if self.is_running():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def ask_to_end(self) -> None:
        self.signal(self._end_signal)

    def end(self, *, grace_seconds: float = 5.0) -> None:
        """Ask first, kill after the grace; returns when it is gone."""
        end_all([self], grace_seconds=grace_seconds)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def when_exited(self, react: Callable[[int], None]) -> None:
        """Calls `react` with the exit code, on a thread of its own."""
        threading.Thread(target=lambda: react(self.wait()), name=f"wait-{self.pid}", daemon=True).start()


def end_all(children: Iterable[Child], *, grace_seconds: float = 5.0) -> None:
    """End several at once, so that their graces run side by side."""
    still_there = list(children)
    for child in still_there:
        child.ask_to_end()
    deadline = time.monotonic() + grace_seconds
    for child in still_there:
        try:
            child.wait(timeout_seconds=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()


def spawn(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: IO[bytes],
    directory: Path | None = None,
    user_id: int | None = None,
    group_id: int | None = None,
    end_signal: signal.Signals = signal.SIGTERM,
) -> Child:
    """Start a program that cannot outlive this process, not even when this process is killed at this very line."""
    process = subprocess.Popen(
        # The program begins only when the guardian knows it: if we die before that, `read` meets the end of the pipe.
        # What the shell adds to the environment is not the program's.
        ["/bin/sh", "-c", 'unset PWD OLDPWD SHLVL; read -r _ && exec "$@" </dev/null', "sh", *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        cwd=directory,
        user=user_id,
        group=group_id,
        extra_groups=[] if user_id is not None else None,
        start_new_session=True,
    )
    child = Child(process, end_signal=end_signal)
    _guardian.tell(watch=process.pid, signal=int(end_signal))
    assert process.stdin is not None
    # Broken when the shell itself was killed meanwhile; whoever waits for the child sees its exit code.
    with suppress(BrokenPipeError), process.stdin as gate:
        gate.write(b"go\n")
    return child


def private_directory(*, name: str) -> Path:
    """A new directory that only its owner can list; removed after this process, if not before."""
    root = tempfile.gettempdir()
    if len(root) > LONGEST_TEMPORARY_ROOT:
        root = "/tmp"  # noqa: S108 - the directory itself is new and private
    path = Path(root, f"{name}-{secrets.token_hex(6)}")
    # Told before it exists: killed in between, nobody would know of it.
    _guardian.tell(remove=str(path))
    path.mkdir(mode=0o700)
    return path


def remove_directory(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def last_lines(log_path: Path, *, count: int = 1) -> str:
    """Where a program usually says what is wrong."""
    lines = log_path.read_text(errors="replace").strip().splitlines()
    return " ".join(lines[-count:]) or "it gave no reason"


def base_environment() -> dict[str, str]:
    """What any child needs from this process's environment, and nothing of a person's settings."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
