"""What it takes to let requests meet at a chosen point."""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from tests.e2e.service import Person
from tests.faults.invariants import violations
from tests.faults.rig import Rig

BODY = {"modelIds": ["gpt-4o"]}
WAIT_SECONDS = 20.0


class Gate:
    """Holds a request inside a proxy until it is let go."""

    def __init__(self) -> None:
        self._arrived, self._open = threading.Event(), threading.Event()

    def hold(self) -> None:
        self._arrived.set()
        self._open.wait(WAIT_SECONDS)

    def wait_for_arrival(self) -> None:
        assert self._arrived.wait(WAIT_SECONDS), "nobody came"

    def let_go(self) -> None:
        self._open.set()


def together[T](*actions: Callable[[], T]) -> list[T]:
    with ThreadPoolExecutor(max_workers=len(actions)) as pool:
        return [future.result() for future in [pool.submit(action) for action in actions]]


@contextmanager
def started[T](action: Callable[[], T]) -> Generator[Future[T]]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        yield pool.submit(action)


def assert_quiet_and_kept(rig: Rig, person: Person) -> None:
    rig.become_quiet()
    assert violations(rig, subjects=[person.subject]) == []
