"""A small HTTP server on loopback that gives the answers a test lays out, and keeps what it was asked."""

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, cast

MASTER_KEY = "sk-master-of-the-test"


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    body: Any
    authorization: str | None


class ScriptedServer:
    """Secrets Manager under "/", which always gives MASTER_KEY; everything else gets the next answer laid out."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.secret: str = json.dumps({"masterKey": MASTER_KEY})
        self.secret_reads = 0
        self.answers: list[tuple[int, bytes]] = []
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def will_answer(self, status: int, body: Any) -> None:
        """`body` as it is when bytes, else as JSON. The last answer laid out is given again and again."""
        self.answers.append((status, body if isinstance(body, bytes) else json.dumps(body).encode()))

    def next_answer(self, asked: Asked) -> tuple[int, bytes]:
        if asked.path == "/":
            self.secret_reads += 1
            return 200, json.dumps({"Name": "litellm", "SecretString": self.secret}).encode()
        self.asked.append(asked)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, script: ScriptedServer) -> None:
        self.script = script
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = Asked(self.command, self.path, json.loads(content or b"null"), self.headers.get("Authorization"))
        status, body = cast(_Server, self.server).script.next_answer(asked)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815 - http.server looks for these names

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name for it
        """Nothing: what was asked is kept for the test to read."""
