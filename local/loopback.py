"""Ports on 127.0.0.1: finding, taking and waiting for them."""

import errno
import socket
import ssl
import time
from pathlib import Path

from local.errors import StartFailed
from local.processes import Child, last_lines

START_SECONDS = 30.0

# For HTTP clients that never meet TLS: loading the public roots takes 25 ms for each client.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def listen(port: int = 0) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises StartFailed when the port is taken."""
    # asyncio turns Nagle's algorithm off only for sockets that name their protocol: without it an answer takes 40 ms more.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} is taken: end the program that listens there, or choose another port"
            raise StartFailed(message) from error
        raise StartFailed(f"port {port} cannot be used: {error.strerror}") from error
    return listener


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return port_of(probe)


def wait_for_port(port: int, *, owner: Child, name: str, log_path: Path, is_open: bool = True) -> None:
    """Until the process takes connections there, or no longer does. Raises StartFailed when it ends or dawdles."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if owner.exit_code() is not None:
            raise StartFailed(f"{name} ended while starting: {last_lines(log_path)}")
        with socket.socket() as probe:
            if (probe.connect_ex(("127.0.0.1", port)) == 0) == is_open:
                return
        time.sleep(0.01)
    raise StartFailed(f"{name} did not {'open' if is_open else 'close'} its port within {START_SECONDS:.0f} s")
