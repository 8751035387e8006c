"""A proxy on a unix socket that counts a PostgreSQL client's round trips and breaks chosen ones.

It knows a statement by the comment before it: `/* insert_key */ INSERT ...` is the step `insert_key`.
"""

import re
import shutil
import socket
import struct
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

type Fault = Literal["cut_before", "cut_after", "late", "delay", "call_before", "call_after"]

PORT = 5432
ANY_STEP = "*"
# Longer than any client waits.
FOREVER_SECONDS = 600.0
# What a client may say before it speaks the protocol proper, instead of a protocol version.
CANCEL_REQUEST = 80877102
SSL_REQUEST = 80877103
GSS_ENCRYPTION_REQUEST = 80877104
# Parse, Bind, Describe, Execute, Close: the server answers them when a Sync or Flush follows.
PARTS_OF_A_TRIP = frozenset(b"PBDEC")
STEP = re.compile(r"\s*/\*\s*(\S+?)\s*\*/")
# A client that has not read its earlier answers by then never will.
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class RoundTrip:
    """What one Sync or simple query carried: in a pipeline several statements."""

    statements: tuple[str, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """The names in the statements' comments; statements without one, like BEGIN, have none."""
        return tuple(match[1] for statement in self.statements if (match := STEP.match(statement)))


@dataclass
class Injection:
    """A fault that waits for its round trip, or has had it."""

    fault: Fault
    step: str
    nth: int
    times: int
    seconds: float
    call: Callable[[], object]
    seen: int = 0
    hits: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)

    def wait(self, *, timeout_seconds: float = 30.0) -> bool:
        """True as soon as its last round trip is over: a `late` one when the server has carried it out."""
        return self._over.wait(timeout_seconds)

    def release(self) -> None:
        """Go on now: `late` statements are carried out, a delayed answer is passed on, however many seconds are left."""
        self._released.set()

    def pause(self) -> None:
        self._released.wait(self.seconds)

    def takes(self, trip: RoundTrip) -> bool:
        if self.step != ANY_STEP and self.step not in trip.steps:
            return False
        self.seen += 1
        if self.seen < self.nth:
            return False
        self.hits += 1
        return True

    def is_used_up(self) -> bool:
        return self.hits == self.times

    def one_is_over(self) -> None:
        if self.is_used_up():
            self._over.set()


class PostgresProxy:
    """Forwards everything between clients and the server whose socket file is given, until told otherwise.

    Transparent for libpq: extended protocol, pipelines, COPY, cancel requests; a wish for TLS is declined.
    """

    def __init__(self, server_socket_path: Path | str) -> None:
        self._server_socket_path = str(server_socket_path)
        # In /tmp, because a unix socket's path has about a hundred characters at most.
        self.socket_directory = Path(tempfile.mkdtemp(prefix="ks-pgfaults-", dir="/tmp"))
        self.port = PORT
        self._lock = threading.Lock()
        self._round_trips: list[RoundTrip] = []
        self._injections: list[Injection] = []
        self._taken: list[Injection] = []
        self._links: set[_Link] = set()
        self._connection_count = 0
        self._refuses = False
        self.closing = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket_directory / f".s.PGSQL.{PORT}"))
        self._listener.listen(256)
        self._thread = threading.Thread(target=self._accept, name="postgres-faults", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def round_trips(self) -> int:
        """How often clients waited for the server since `reset_counts`, logging in apart."""
        return len(self.trips)

    @property
    def trips(self) -> list[RoundTrip]:
        with self._lock:
            return list(self._round_trips)

    @property
    def steps(self) -> list[str]:
        """The names of all statements, in their order."""
        return [step for trip in self.trips for step in trip.steps]

    @property
    def connections(self) -> int:
        """How many connections clients have opened since `reset_counts`."""
        return self._connection_count

    def reset_counts(self) -> None:
        with self._lock:
            self._round_trips.clear()
            self._connection_count = 0

    def inject(
        self,
        fault: Fault,
        step: str = ANY_STEP,
        *,
        nth: int = 1,
        times: int = 1,
        seconds: float = FOREVER_SECONDS,
        call: Callable[[], object] = lambda: None,
    ) -> Injection:
        """Break the round trips from the `nth` that has this step on, `times` of them (0: all).

        cut_before   the connection ends; the server never sees the statements
        cut_after    the server finishes, commit included; the connection ends before the client hears of it
        late         the connection ends at once; the server gets the statements `seconds` later and carries them out
        delay        the answer is passed on `seconds` after the server gave it
        call_before  `call` runs before the statements are forwarded
        call_after   `call` runs when the server has finished, before the client hears of it

        `call` runs with the other faults, too, at the same moments. Several for one trip: the oldest first.
        """
        injection = Injection(fault, step, nth, times, seconds, call)
        with self._lock:
            self._injections.append(injection)
        return injection

    def cut_before(self, step: str = ANY_STEP, *, nth: int = 1, times: int = 1) -> Injection:
        return self.inject("cut_before", step, nth=nth, times=times)

    def cut_after(self, step: str = ANY_STEP, *, nth: int = 1, times: int = 1) -> Injection:
        return self.inject("cut_after", step, nth=nth, times=times)

    def delay(
        self, seconds: float = FOREVER_SECONDS, step: str = ANY_STEP, *, nth: int = 1, times: int = 1
    ) -> Injection:
        return self.inject("delay", step, nth=nth, times=times, seconds=seconds)

    def clear(self) -> None:
        """No fault from now on, and connections are welcome again."""
        with self._lock:
            self._injections.clear()
            self._refuses = False

    def refuse_connections(self) -> None:
        """New ones end before a word is said, until `clear`; those that are open stay."""
        self._refuses = True

    def cut_all(self) -> None:
        """End every open connection, as a failover or an idle timeout on the way does."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()

    def close(self) -> None:
        """Late statements that still wait for their time are never carried out."""
        self.closing.set()
        with self._lock:
            for injection in self._taken:
                injection.release()
        # A listener that is shut down wakes the thread that waits for it; one that is closed does not.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()
            link.join()
        shutil.rmtree(self.socket_directory, ignore_errors=True)

    def take_injection(self, trip: RoundTrip) -> Injection | None:
        with self._lock:
            self._round_trips.append(trip)
            for injection in self._injections:
                if injection.takes(trip):
                    self._taken.append(injection)
                    if injection.is_used_up():
                        self._injections.remove(injection)
                    return injection
        return None

    def connect_to_server(self) -> socket.socket:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._server_socket_path)
        except OSError:
            server.close()
            raise
        return server

    def forget_link(self, link: "_Link") -> None:
        with self._lock:
            self._links.discard(link)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.closing.is_set():
                client.close()
                return
            if self._refuses:
                client.close()
                continue
            link = _Link(self, client)
            with self._lock:
                self._links.add(link)
            link.start()

    def count_connection(self) -> None:
        with self._lock:
            self._connection_count += 1


class _EndOfStreamError(Exception):
    pass


class _Stream:
    """A socket read message by message."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._buffer = bytearray()

    def read(self, count: int) -> bytes:
        while len(self._buffer) < count:
            received = self.connection.recv(65536)
            if not received:
                raise _EndOfStreamError
            self._buffer += received
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def read_untyped(self) -> bytes:
        """A message of the time before the login: length and content."""
        length = self.read(4)
        return length + self.read(struct.unpack("!I", length)[0] - 4)

    def read_message(self) -> bytes:
        """Type, length and content."""
        return self.read(1) + self.read_untyped()

    def has_more(self) -> bool:
        return bool(self._buffer)


@dataclass
class _Awaited:
    injection: Injection | None
    answer: bytearray = field(default_factory=bytearray)

    @property
    def is_withheld(self) -> bool:
        return self.injection is not None and self.injection.fault in ("cut_after", "late", "delay", "call_after")


class _Link:
    """One client's connection and its counterpart to the server."""

    def __init__(self, proxy: PostgresProxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = _Stream(client)
        self._server: _Stream | None = None
        # The round trips that the server has not finished, in their order.
        self._awaited: deque[_Awaited] = deque()
        self._changed = threading.Condition()
        self._statement_of_name: dict[bytes, str] = {}
        self._from_client = threading.Thread(target=self._run, name="postgres-faults-client", daemon=True)
        self._from_server: threading.Thread | None = None

    def start(self) -> None:
        self._from_client.start()

    def join(self) -> None:
        for thread in (self._from_client, self._from_server):
            if thread is not None and thread is not threading.current_thread():
                thread.join()

    def cut(self) -> None:
        for stream in (self._client, self._server):
            if stream is not None:
                _end(stream.connection)

    def _run(self) -> None:
        try:
            if self._log_in():
                self._forward_requests()
        except (_EndOfStreamError, OSError):
            pass
        finally:
            # A late round trip goes on without its client.
            with self._changed:
                keeps_server = any(awaited.injection and awaited.injection.fault == "late" for awaited in self._awaited)
            if not keeps_server:
                self.cut()
            if self._from_server is not None:
                self._from_server.join()
            self.cut()
            for stream in (self._client, self._server):
                if stream is not None:
                    stream.connection.close()
            self._proxy.forget_link(self)

    def _log_in(self) -> bool:
        """False when the connection was only there to cancel another's statement."""
        while True:
            message = self._client.read_untyped()
            code = struct.unpack("!I", message[4:8])[0]
            if code not in (SSL_REQUEST, GSS_ENCRYPTION_REQUEST):
                break
            self._client.connection.sendall(b"N")
        self._server = _Stream(self._proxy.connect_to_server())
        self._server.connection.sendall(message)
        if code == CANCEL_REQUEST:
            # The server answers by closing; so does this end, then.
            with suppress(_EndOfStreamError):
                self._server.read(1)
            return False
        self._proxy.count_connection()
        self._from_server = threading.Thread(
            target=self._forward_answers, args=(self._server,), name="postgres-faults-server", daemon=True
        )
        self._from_server.start()
        return True

    # From the client to the server.

    def _forward_requests(self) -> None:
        assert self._server is not None
        unsent = bytearray()
        statements: list[str] = []
        ends_copy = False
        while True:
            message = self._client.read_message()
            kind = message[:1]
            unsent += message
            if (statement := self._statement_in(message)) is not None:
                statements.append(statement)
            if message[0] in PARTS_OF_A_TRIP:
                ends_copy = False
                continue
            if kind == b"Q" or (kind == b"S" and not ends_copy):
                trip = RoundTrip(tuple(statements))
                statements.clear()
                if not self._send_trip(trip, bytes(unsent)):
                    return
            else:
                self._server.connection.sendall(unsent)
            # After COPY in the extended protocol comes a Sync of its own, for the same answer as the one before it.
            ends_copy = kind in (b"c", b"f")
            unsent.clear()

    def _statement_in(self, message: bytes) -> str | None:
        content = message[5:]
        if message[:1] == b"Q":
            return content.split(b"\0")[0].decode()
        if message[:1] == b"P":
            name, statement = content.split(b"\0")[:2]
            self._statement_of_name[name] = statement.decode()
            return None
        if message[:1] == b"B":
            _portal, name = content.split(b"\0")[:2]
            return self._statement_of_name.get(name)
        return None

    def _send_trip(self, trip: RoundTrip, content: bytes) -> bool:
        """False when it ended the connection."""
        assert self._server is not None
        injection = self._proxy.take_injection(trip)
        if injection is not None and injection.fault in ("cut_before", "call_before"):
            injection.call()
            if injection.fault == "cut_before":
                self._wait_until_answered()
                injection.one_is_over()
                return False
            injection.one_is_over()
            injection = None
        with self._changed:
            self._awaited.append(_Awaited(injection))
        if injection is not None and injection.fault == "late":
            self._wait_until_answered(but=1)
            injection.call()
            _end(self._client.connection)
            injection.pause()
            if self._proxy.closing.is_set():
                _end(self._server.connection)
            else:
                self._server.connection.sendall(content)
            return False
        self._server.connection.sendall(content)
        return True

    def _wait_until_answered(self, *, but: int = 0) -> None:
        """Faults wait for the answers of earlier round trips of the same pipeline."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._awaited) <= but, PATIENCE_SECONDS)

    # From the server to the client.

    def _forward_answers(self, server: _Stream) -> None:
        unsent = bytearray()
        try:
            while True:
                message = server.read_message()
                is_last_of_trip = message[:1] == b"Z"
                # Nobody is awaited while the client logs in, and when the server speaks unasked.
                awaited = self._awaited[0] if self._awaited else None
                if awaited is not None and awaited.is_withheld:
                    awaited.answer += message
                else:
                    unsent += message
                if is_last_of_trip and awaited is not None and not self._finish_trip(awaited, unsent):
                    return
                if unsent and not server.has_more():
                    self._client.connection.sendall(unsent)
                    unsent.clear()
        except (_EndOfStreamError, OSError):
            with suppress(OSError):
                self._client.connection.sendall(unsent)
        finally:
            self.cut()

    def _finish_trip(self, awaited: _Awaited, unsent: bytearray) -> bool:
        """False when the connection shall end."""
        injection = awaited.injection
        if injection is not None:
            if injection.fault == "delay":
                injection.pause()
            if injection.fault != "late":
                injection.call()
            unsent += awaited.answer
            injection.one_is_over()
        with self._changed:
            self._awaited.popleft()
            self._changed.notify_all()
        return injection is None or injection.fault in ("delay", "call_after")


def _end(connection: socket.socket) -> None:
    # Shut down, not closed: another thread may be reading from it.
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
