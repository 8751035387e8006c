"""Whether each backend answers: up or down, within a second, and nothing else about it."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from msgspec import Struct

from keyservice import database, litellm
from keyservice.errors import SecretUnavailable
from keyservice.secret_values import SecretValues
from keyservice.settings import DatabaseSettings

CHECK_TIMEOUT_SECONDS = 1.0
_KEEP_SECONDS = 5.0

type State = Literal["up", "down"]


class Health(Struct, frozen=True, kw_only=True):
    """`degraded`: keys can be listed, but LiteLLM does not answer, so they cannot be changed."""

    status: Literal["healthy", "degraded", "unhealthy"]
    database: State
    litellm: State


class HealthCheck:
    """Asks both backends at once over connections of its own; an answer is kept for five seconds."""

    def __init__(self, *, settings: DatabaseSettings, secret_values: SecretValues, litellm_url: str) -> None:
        self._settings = settings
        self._secret_values = secret_values
        self._database = _Question(self._ask_database)
        self._litellm = _Question(lambda: litellm.is_ready(litellm_url, timeout_seconds=CHECK_TIMEOUT_SECONDS))
        self._known: Health | None = None
        self._known_until = 0.0

    def check(self) -> Health:
        if self._known is None or time.monotonic() >= self._known_until:
            self._known = self._ask()
            self._known_until = time.monotonic() + _KEEP_SECONDS
        return self._known

    def _ask(self) -> Health:
        # Not timed: how long the secret takes says nothing about the database. When it fails, the question below finds the
        # same and answers down.
        with suppress(SecretUnavailable):
            database.connection_parameters(self._settings, self._secret_values)
        for question in (self._database, self._litellm):
            question.ask()
        until = time.monotonic() + CHECK_TIMEOUT_SECONDS
        database_state, litellm_state = self._database.state(until=until), self._litellm.state(until=until)
        return Health(
            status="unhealthy" if database_state == "down" else "degraded" if litellm_state == "down" else "healthy",
            database=database_state,
            litellm=litellm_state,
        )

    def _ask_database(self) -> bool:
        try:
            parameters = database.connection_parameters(self._settings, self._secret_values)
        except SecretUnavailable:
            return False
        return database.is_ready(parameters)


class _Question:
    """Asked in a thread: a backend that hangs is left hanging there, and counts as down until it lets go."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask = ask
        self._thread: threading.Thread | None = None
        self._is_up = False

    def ask(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._is_up = False
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def state(self, *, until: float) -> State:
        if self._thread is not None:
            self._thread.join(max(0.0, until - time.monotonic()))
        return "up" if self._is_up else "down"

    def _run(self) -> None:
        self._is_up = self._ask()
