"""An HTTP proxy on loopback that breaks chosen calls on their way to a LiteLLM, the stand-in or a real one."""

import http.client
import json
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self, cast
from urllib.parse import urlsplit

type Fault = Literal["status", "hang", "late", "reset_before", "reset_after", "delay", "call_before", "call_after"]

# LiteLLM closes idle connections after 5.0 s.
KEEP_ALIVE_SECONDS = 5.0
# Longer than any caller waits.
FOREVER_SECONDS = 600.0
UPSTREAM_SECONDS = 60.0
# Belong to one connection, not to the message.
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"})


@dataclass(frozen=True)
class Call:
    """One request that reached the proxy. `status` is what the client was answered, `upstream_status` what it was before."""

    method: str
    path: str
    body: Any
    status: int | None = None
    upstream_status: int | None = None
    fault: Fault | None = None


@dataclass
class Injection:
    """A fault that waits for its calls, or has had them."""

    fault: Fault
    path: str
    method: str | None
    times: int
    status: int
    body: Any
    seconds: float
    call: Callable[[], object]
    matches: Callable[[Any], bool]
    hits: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)

    def wait(self, *, timeout_seconds: float = 30.0) -> bool:
        """True as soon as its last call is over: a `late` one when the upstream has answered it."""
        return self._over.wait(timeout_seconds)

    def release(self) -> None:
        """Go on now: a `late` call is carried out, a delayed answer passed on, however many seconds are left."""
        self._released.set()

    def pause(self) -> None:
        self._released.wait(self.seconds)

    def is_meant_for(self, call: Call) -> bool:
        return (
            _is_same_path(call.path, wanted=self.path)
            and self.method in (None, call.method)
            and self.matches(call.body)
        )

    def one_is_over(self) -> None:
        if self.hits == self.times:
            self._over.set()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    content: bytes


class FaultProxy:
    """Forwards everything to `target_url` until told otherwise by `inject`."""

    def __init__(self, target_url: str, *, keep_alive_seconds: float = KEEP_ALIVE_SECONDS) -> None:
        self._target = urlsplit(target_url)
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._injections: list[Injection] = []
        self._taken: list[Injection] = []
        self._late_threads: list[threading.Thread] = []
        self.keep_alive_seconds = keep_alive_seconds
        self.closing = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="http-faults", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def calls(self) -> list[Call]:
        """What arrived and is over, in the order of its end; a `late` call is over when it was carried out."""
        with self._lock:
            return list(self._calls)

    def calls_of(self, path: str, *, method: str | None = None) -> list[Call]:
        """Those to the path, whatever their query."""
        return [call for call in self.calls if _is_same_path(call.path, wanted=path) and method in (None, call.method)]

    def forget_calls(self) -> None:
        with self._lock:
            self._calls.clear()

    def inject(
        self,
        path: str,
        fault: Fault,
        *,
        method: str | None = None,
        times: int = 1,
        status: int = 500,
        body: Any = None,
        seconds: float = FOREVER_SECONDS,
        call: Callable[[], object] = lambda: None,
        matches: Callable[[Any], bool] = lambda _: True,
    ) -> Injection:
        """Break the next `times` calls (0: all) of `path`; "*" is any path, "/key/*" any that begins so.

        status         answer `status` and `body`; never forwarded
        hang           no answer for `seconds`, then the connection is cut; never forwarded
        late           no answer; forwarded after `seconds`, when the client may have given up long ago
        reset_before   the connection is reset; never forwarded
        reset_after    forwarded and answered upstream, then the connection is reset
        delay          forwarded and answered upstream, the answer is passed on after `seconds`
        call_before    `call` runs before the call is forwarded
        call_after     `call` runs between the upstream's answer and ours

        `call` runs with every other fault, too: at its last moment before the client notices. `matches` is asked
        with the request's JSON. Several injections for one call: the oldest first.
        """
        shape = {"error": {"message": "injected", "type": "internal_server_error", "param": None, "code": str(status)}}
        injection = Injection(
            fault, path, method, times, status, shape if body is None else body, seconds, call, matches
        )
        with self._lock:
            self._injections.append(injection)
        return injection

    def clear(self) -> None:
        """No fault from now on; calls that are being broken already stay so."""
        with self._lock:
            self._injections.clear()

    def retarget(self, target_url: str) -> None:
        self._target = urlsplit(target_url)

    def wait_for_late_calls(self, *, timeout_seconds: float = 30.0) -> bool:
        """True when all of them have been carried out."""
        with self._lock:
            threads = list(self._late_threads)
        for thread in threads:
            thread.join(timeout_seconds)
        return not any(thread.is_alive() for thread in threads)

    def close(self) -> None:
        """Late calls that still wait for their time are never carried out."""
        self.closing.set()
        with self._lock:
            for injection in self._taken:
                injection.release()
        self._server.shutdown()
        self._server.close_connections()
        self._server.server_close()
        self._thread.join()
        self.wait_for_late_calls()

    def take_injection(self, call: Call) -> Injection | None:
        with self._lock:
            for injection in self._injections:
                if injection.is_meant_for(call):
                    injection.hits += 1
                    self._taken.append(injection)
                    if injection.hits == injection.times:
                        self._injections.remove(injection)
                    return injection
        return None

    def forward(self, call: Call, *, headers: dict[str, str], content: bytes) -> Answer:
        """On a connection of its own: a kept one might be closed by the upstream at this very moment."""
        assert self._target.hostname is not None
        connection = http.client.HTTPConnection(self._target.hostname, self._target.port, timeout=UPSTREAM_SECONDS)
        try:
            connection.request(call.method, call.path, body=content or None, headers=headers | {"Connection": "close"})
            response = connection.getresponse()
            kept = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP]
            return Answer(response.status, kept, response.read())
        finally:
            connection.close()

    def forward_late(self, call: Call, injection: Injection, *, headers: dict[str, str], content: bytes) -> None:
        def carry_out() -> None:
            upstream_status = None
            injection.pause()
            if not self.closing.is_set():
                with suppress(OSError, http.client.HTTPException):
                    upstream_status = self.forward(call, headers=headers, content=content).status
            self.record(call, injection, upstream_status=upstream_status)

        thread = threading.Thread(target=carry_out, name="late-call", daemon=True)
        with self._lock:
            self._late_threads.append(thread)
        thread.start()

    def record(
        self, call: Call, injection: Injection | None, *, status: int | None = None, upstream_status: int | None = None
    ) -> None:
        fault = injection.fault if injection else None
        with self._lock:
            self._calls.append(Call(call.method, call.path, call.body, status, upstream_status, fault))
        if injection is not None:
            injection.one_is_over()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        # The base class would say goodbye first, and a goodbye is not a reset.
        if request.fileno() >= 0 and request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == _RESET:
            request.close()
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about; anything else is a bug of the proxy."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def close_connections(self) -> None:
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


# Linger on, for no time: closing then sends RST instead of FIN.
_RESET = struct.pack("ii", 1, 0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def proxy(self) -> FaultProxy:
        return cast(_Server, self.server).proxy

    def setup(self) -> None:
        super().setup()
        # The base class closes the connection when the next request takes longer.
        self.connection.settimeout(self.proxy.keep_alive_seconds)

    def do_GET(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        call = Call(self.command, self.path, _json_or_none(content))
        injection = self.proxy.take_injection(call)
        if injection is None:
            self._pass_on(call, None, headers=headers, content=content)
        elif injection.fault in ("status", "hang", "late", "reset_before"):
            self._keep_back(call, injection, headers=headers, content=content)
        else:
            self._pass_on(call, injection, headers=headers, content=content)

    do_POST = do_DELETE = do_GET  # noqa: N815 - http.server looks for these names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name for it
        """Nothing: the calls are kept for the test to read."""

    def _keep_back(self, call: Call, injection: Injection, *, headers: dict[str, str], content: bytes) -> None:
        injection.call()
        if injection.fault == "status":
            self.proxy.record(call, injection, status=injection.status)
            self._send(
                Answer(injection.status, [("Content-Type", "application/json")], json.dumps(injection.body).encode())
            )
            return
        if injection.fault == "late":
            self.proxy.forward_late(call, injection, headers=headers, content=content)
            self._wait_for_client_to_leave(seconds=FOREVER_SECONDS)
        else:
            self.proxy.record(call, injection)
        if injection.fault == "hang":
            self._wait_for_client_to_leave(seconds=injection.seconds)
        self._reset()

    def _pass_on(self, call: Call, injection: Injection | None, *, headers: dict[str, str], content: bytes) -> None:
        fault = injection.fault if injection else None
        if injection and fault == "call_before":
            injection.call()
        try:
            answer = self.proxy.forward(call, headers=headers, content=content)
        except (OSError, http.client.HTTPException):
            # The upstream is down, or cut us off: the client shall see just that.
            self.proxy.record(call, injection)
            self._reset()
            return
        if injection and fault == "delay":
            injection.pause()
        if injection and fault != "call_before":
            injection.call()
        if fault == "reset_after":
            self.proxy.record(call, injection, upstream_status=answer.status)
            self._reset()
            return
        # Before the client has its answer, so that a test that has it finds the call.
        self.proxy.record(call, injection, status=answer.status, upstream_status=answer.status)
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    def _reset(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _wait_for_client_to_leave(self, *, seconds: float) -> None:
        # Readable with nothing sent means that the other side, or close_connections, has ended the connection.
        select.select([self.connection], [], [], seconds)


def _is_same_path(path: str, *, wanted: str) -> bool:
    path = path.partition("?")[0]
    return path.startswith(wanted[:-1]) if wanted.endswith("*") else path == wanted


def _json_or_none(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None
