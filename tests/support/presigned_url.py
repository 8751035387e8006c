"""What CloudFormation waits at for the answer of a custom resource: a URL on loopback that takes a PUT, as S3 does."""

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, cast


@dataclass(frozen=True)
class Put:
    path: str
    content_type: str | None
    body: bytes

    @property
    def answer(self) -> dict[str, Any]:
        return json.loads(self.body)


class PresignedUrl:
    """Keeps what is put. `statuses` are given one after the other, 0 ends the connection without one; then 200."""

    def __init__(self, *statuses: int) -> None:
        self.puts: list[Put] = []
        self.statuses = list(statuses)
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return (
            f"http://127.0.0.1:{self._server.server_address[1]}/arn%3Aaws/stack?X-Amz-Signature=0123&X-Amz-Expires=7200"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, owner: PresignedUrl) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        owner = cast(_Server, self.server).owner
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        owner.puts.append(Put(self.path, self.headers.get("Content-Type"), body))
        status = owner.statuses.pop(0) if owner.statuses else 200
        if status:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name for it
        """Nothing: what was put is kept for the test to read."""
