"""Runs one function in genuine awslambdaric processes, started on demand, one event at a time each, as Lambda does."""

import asyncio
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Any

from local.aws import ACCOUNT_ID, CREDENTIALS, REGION
from local.loopback import port_of
from local.processes import Child, base_environment, spawn
from local.runtime_api import Assignment, RuntimeApi
from local.template import Function

# Lambda cuts an initialisation after this and repeats it within the function's timeout: together as long as both.
INITIALISATION_SECONDS = 10.0
# Enough for coverage to save its data, too short for a function to do anything that matters.
GRACE_SECONDS = 0.5
LARGEST_EVENT_BYTES = 6 * 1024 * 1024


class InvocationFailed(Exception):
    """The function gave no answer: it raised, could not start, ran out of time, died or said too much."""

    def __init__(self, error_type: str, error_message: str) -> None:
        super().__init__(f"{error_type}: {error_message}")
        self.error_type = error_type
        self.error_message = error_message


class _State(Enum):
    STARTING = auto()
    IDLE = auto()
    BUSY = auto()
    # Has answered and is about to ask for the next event.
    RETURNING = auto()
    ENDING = auto()


class _Invocation:
    def __init__(self, event: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self.request_id = str(uuid.uuid4())
        self.event = event
        self.answer: asyncio.Future[bytes] = loop.create_future()

    def succeed(self, answer: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, failure: InvocationFailed) -> None:
        if not self.answer.done():
            self.answer.set_exception(failure)


class _Worker:
    """One execution environment: a process, its port and the event it works on."""

    def __init__(self, pool: "WorkerPool", *, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self.port = port
        self.child: Child | None = None
        self.state = _State.STARTING
        self.current: _Invocation | None = None
        # Why it was ended or reported that it cannot start, if it did not just die.
        self.failure: InvocationFailed | None = None
        self._next: asyncio.Future[_Invocation | None] | None = None
        self._clock: asyncio.TimerHandle | None = None

    async def next_assignment(self) -> Assignment | None:
        self._next = self._loop.create_future()
        self.stop_clock()
        if self.state is not _State.ENDING:
            self._pool.asks_for_work(self)
        invocation = await self._next
        if invocation is None:
            return None
        self.start_clock(self._pool.function.timeout_seconds)
        return Assignment(
            request_id=invocation.request_id,
            event=invocation.event,
            function_arn=self._pool.arn,
            deadline_epoch_seconds=time.time() + self._pool.function.timeout_seconds,
        )

    def is_running(self) -> bool:
        return self.child is not None and self.child.is_running()

    def assign(self, invocation: _Invocation | None) -> None:
        """Give it work, or None for no more work."""
        if invocation is not None:
            self.state, self.current = _State.BUSY, invocation
        if self._next is not None and not self._next.done():
            self._next.set_result(invocation)

    def answered(self, request_id: str, body: bytes) -> None:
        if invocation := self._finish(request_id):
            invocation.succeed(body)

    def raised(self, request_id: str, error: Mapping[str, Any]) -> None:
        if invocation := self._finish(request_id):
            invocation.fail(_failure(error))

    def could_not_start(self, error: Mapping[str, Any]) -> None:
        self.failure = _failure(error)

    def start_clock(self, seconds: float) -> None:
        self._clock = self._loop.call_later(seconds, self._pool.ran_out_of_time, self, seconds)

    def stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()

    def _finish(self, request_id: str) -> _Invocation | None:
        """The invocation it has just finished; None when it is too late, because it is being ended."""
        if self.state is not _State.BUSY or self.current is None or self.current.request_id != request_id:
            return None
        self.stop_clock()
        invocation, self.current = self.current, None
        self.state = _State.RETURNING
        return invocation


class WorkerPool:
    """All workers of one function. Everything but `pids` and `children` happens on the event loop."""

    def __init__(
        self,
        function: Function,
        *,
        name: str,
        environment: Mapping[str, str],
        listeners: list[socket.socket],
        runtime_api: RuntimeApi,
        log_path: Path,
        loop: asyncio.AbstractEventLoop,
        interpreter: Path,
    ) -> None:
        """`listeners`: a listening socket, served by the Runtime API, for each worker there may be at once."""
        self.function = function
        self.arn = f"arn:aws:lambda:{REGION}:{ACCOUNT_ID}:function:{name}:live"
        self.environment = {**worker_environment(function, name=name), **environment}
        self._runtime_api = runtime_api
        self._log_path = log_path
        self._loop = loop
        self._interpreter = interpreter
        self._free_ports = [port_of(listener) for listener in listeners]
        self._workers: list[_Worker] = []
        self._waiting: deque[_Invocation] = deque()
        self._is_closed = False

    def pids(self) -> list[int]:
        return [child.pid for child in self.children()]

    def children(self) -> list[Child]:
        return [worker.child for worker in list(self._workers) if worker.child is not None]

    async def invoke(self, event: bytes) -> bytes:
        """The function's answer, as it gave it. Waits while all workers are busy. Raises InvocationFailed."""
        if len(event) > LARGEST_EVENT_BYTES:
            raise InvocationFailed("RequestTooLarge", f"Request must be smaller than {LARGEST_EVENT_BYTES} bytes")
        invocation = _Invocation(event, self._loop)
        if self._is_closed:
            raise InvocationFailed("ServiceException", "the local stack is ending")
        self._waiting.append(invocation)
        self._distribute()
        return await invocation.answer

    async def retire(self) -> None:
        """End the workers that have nothing to do, so that the next event meets a cold start."""
        for worker in self._workers:
            if worker.state in {_State.IDLE, _State.RETURNING}:
                self._end(worker, None)

    async def close(self) -> None:
        """Take no more work. The caller ends the children."""
        self._is_closed = True
        while self._waiting:
            self._waiting.popleft().fail(InvocationFailed("ServiceException", "the local stack is ending"))
        for worker in self._workers:
            worker.stop_clock()

    def asks_for_work(self, worker: _Worker) -> None:
        worker.state = _State.IDLE
        self._distribute()

    def ran_out_of_time(self, worker: _Worker, seconds: float) -> None:
        invocation = worker.current
        if invocation is None:
            failure = InvocationFailed("Sandbox.Timedout", f"Error: Init timed out after {seconds:.2f} seconds")
        else:
            message = f"RequestId: {invocation.request_id} Error: Task timed out after {seconds:.2f} seconds"
            failure = InvocationFailed("Sandbox.Timedout", message)
        self._end(worker, failure)

    def _distribute(self) -> None:
        """Match what waits with who is idle, and start workers for the rest."""
        # Nobody waits any more for an invocation whose future was cancelled.
        self._waiting = deque(invocation for invocation in self._waiting if not invocation.answer.cancelled())
        idle = [worker for worker in self._workers if worker.state is _State.IDLE and worker.is_running()]
        while self._waiting and idle:
            # The most recently used one, as Lambda prefers it.
            idle.pop().assign(self._waiting.popleft())
        # A worker that is about to ask takes one: a cold one started for it would be idle for ever.
        expected = sum(worker.state in {_State.STARTING, _State.RETURNING} for worker in self._workers)
        for _ in range(min(len(self._waiting) - expected, len(self._free_ports))):
            self._start_worker()

    def _start_worker(self) -> None:
        worker = _Worker(self, port=self._free_ports.pop(), loop=self._loop)
        self._runtime_api.attach(worker.port, worker)
        self._workers.append(worker)
        with self._log_path.open("ab") as log:
            worker.child = spawn(
                [str(self._interpreter), "-m", "awslambdaric", self.function.handler],
                environment=self.environment | {"AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{worker.port}"},
                output=log,
                directory=self.function.code,
            )
        worker.start_clock(INITIALISATION_SECONDS + self.function.timeout_seconds)

        def tell_loop(code: int) -> None:
            # A loop that is closed has nobody left who waits for this worker.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._exited, worker, code)

        worker.child.when_exited(tell_loop)

    def _end(self, worker: _Worker, failure: InvocationFailed | None) -> None:
        """The failure reaches the caller only when the process is gone and can do no more."""
        worker.failure, worker.state = failure, _State.ENDING
        if worker.child is not None:
            worker.child.ask_to_end()
            self._loop.call_later(GRACE_SECONDS, worker.child.signal, SIGKILL)

    def _exited(self, worker: _Worker, code: int) -> None:
        worker.stop_clock()
        worker.assign(None)
        self._workers.remove(worker)
        self._runtime_api.detach(worker.port)
        self._free_ports.append(worker.port)
        victim = worker.current
        if victim is None and worker.state is _State.STARTING and self._waiting:
            victim = self._waiting.popleft()
        was_unasked = worker.state is not _State.ENDING or worker.failure is not None
        if was_unasked and not self._is_closed:
            failure = worker.failure or _sudden_end(victim, code)
            self._log(failure.error_message)
            if victim is not None:
                victim.fail(failure)
        elif victim is not None:
            victim.fail(InvocationFailed("ServiceException", "the local stack is ending"))
        if not self._is_closed:
            self._distribute()

    def _log(self, message: str) -> None:
        """What Lambda itself writes into a function's log."""
        with self._log_path.open("a") as log:
            log.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {self.function.name}: {message}\n")


def worker_environment(function: Function, *, name: str) -> dict[str, str]:
    """What Lambda sets (Lambda developer guide, defined runtime environment variables) and the template adds."""
    python_path = os.pathsep.join(str(path) for path in [function.code, *function.layers])
    return {
        **base_environment(),
        # By these coverage's `patch = subprocess` hands its settings to a child.
        **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")},
        **CREDENTIALS,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{function.runtime}",
        "AWS_LAMBDA_FUNCTION_NAME": name,
        "AWS_LAMBDA_FUNCTION_VERSION": "1",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_megabytes),
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": "local",
        "LAMBDA_TASK_ROOT": str(function.code),
        "PYTHONPATH": python_path,
        "TZ": ":UTC",
        "_HANDLER": function.handler,
        **function.environment,
    }


def _failure(error: Mapping[str, Any]) -> InvocationFailed:
    return InvocationFailed(str(error.get("errorType", "")), str(error.get("errorMessage", "")))


def _sudden_end(invocation: _Invocation | None, code: int) -> InvocationFailed:
    how = f"signal: {Signals(-code).name}" if code < 0 else f"exit status {code}"
    request = f"RequestId: {invocation.request_id} " if invocation else ""
    return InvocationFailed("Runtime.ExitError", f"{request}Error: Runtime exited with error: {how}")
