"""One thread with an event loop that serves the stack's ASGI applications on loopback."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

import uvicorn

type Scope = MutableMapping[str, Any]
type Message = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[Message]]
type Send = Callable[[Message], Awaitable[None]]
type AsgiApplication = Callable[[Scope, Receive, Send], Awaitable[None]]

# Whoever still waits for an answer then is cut off.
STOP_SECONDS = 1.0


async def read_body(receive: Receive, *, limit: int | None = None) -> bytes | None:
    """The whole request body; None as soon as it is longer than the limit, in bytes."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if limit is not None and len(body) > limit:
            return None
    return bytes(body)


async def answer(send: Send, *, status: int, headers: list[tuple[str, str]], body: bytes = b"") -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
            + [(b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})


class ServerThread:
    """Runs coroutines and servers until `close`; every method may be called from any thread but its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._servers: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []
        self._thread = threading.Thread(target=self._run, name="local-stack", daemon=True)
        self._thread.start()

    def run[T](self, work: Coroutine[Any, Any, T], *, timeout_seconds: float | None = None) -> T:
        """Waits for the result of work that is done on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_seconds)

    def serve(self, application: AsgiApplication, listeners: list[socket.socket]) -> None:
        """Returns when connections are answered. The listeners are closed with the thread, not before."""
        self.run(self._serve(application, listeners))

    def close(self) -> None:
        """Cut all connections and end the thread."""
        if self._thread.is_alive():
            self.run(self._shut_down())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def _serve(self, application: AsgiApplication, listeners: list[socket.socket]) -> None:
        config = uvicorn.Config(
            application, log_level="warning", access_log=False, lifespan="off", ws="none", server_header=False
        )
        server = uvicorn.Server(config)
        self._servers.append((server, asyncio.create_task(server.serve(sockets=listeners))))
        # uvicorn has no event to wait for, only this flag.
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def _shut_down(self) -> None:
        for server, _ in self._servers:
            server.should_exit = server.force_exit = True
        tasks = [task for _, task in self._servers]
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)
        leftovers = asyncio.all_tasks(self.loop) - {asyncio.current_task()}
        for task in leftovers:
            task.cancel()
        await asyncio.gather(*leftovers, return_exceptions=True)
        await self.loop.shutdown_default_executor()
