"""An AWS on loopback that answers, fails, stays silent or hangs up as a test lays out, and keeps what it was sent."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, cast


@dataclass(frozen=True)
class Sent:
    headers: Mapping[str, str]
    body: Any
    connection: int
    """Which one it came by, counted from 1."""


type Step = Callable[["Handler"], None]


def answer(status: int, body: Any) -> Step:
    """`body` as it is when bytes, else as JSON."""
    return lambda handler: handler.answer(status, body if isinstance(body, bytes) else json.dumps(body).encode())


def silence(handler: "Handler") -> None:
    handler.aws.is_over.wait()
    handler.close_connection = True


def hang_up(handler: "Handler") -> None:
    handler.close_connection = True


def half_an_answer(handler: "Handler") -> None:
    handler.answer(200, b'{"SecretStr', claimed_length=100)
    handler.close_connection = True


def answer_and_hang_up(body: Any) -> Step:
    """Without a word about it, as a server that has kept an idle connection for long enough."""

    def step(handler: "Handler") -> None:
        answer(200, body)(handler)
        handler.close_connection = True

    return step


class ScriptedAws:
    """Each request gets the next step; the last one is repeated."""

    def __init__(self, *steps: Step, tls: ssl.SSLContext | None = None) -> None:
        self.steps = list(steps)
        self.sent: list[Sent] = []
        self.is_over = threading.Event()
        self.hung_up = threading.Semaphore(0)
        self._server = Server(self)
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def take(self, sent: Sent) -> Step:
        self.sent.append(sent)
        return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    connections = 0

    def __init__(self, script: ScriptedAws) -> None:
        self.script = script
        super().__init__(("127.0.0.1", 0), Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        accepted = super().get_request()
        self.connections += 1
        return accepted

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.script.hung_up.release()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def aws(self) -> ScriptedAws:
        return cast(Server, self.server).script

    def setup(self) -> None:
        self.number = cast(Server, self.server).connections
        super().setup()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.aws.take(Sent(headers, body, self.number))(self)

    def answer(self, status: int, body: bytes, *, claimed_length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(claimed_length or len(body)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name for it
        """Nothing: what was sent is kept for the test to read."""
