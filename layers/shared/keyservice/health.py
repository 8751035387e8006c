"""Whether each backend answers: up or down, within a second, and nothing else about it."""

import asyncio
import time
from collections.abc import Awaitable
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
        self._litellm_url = litellm_url
        self._known: Health | None = None
        self._known_until = 0.0

    def check(self) -> Health:
        if self._known is None or time.monotonic() >= self._known_until:
            self._known = asyncio.run(self._ask())
            self._known_until = time.monotonic() + _KEEP_SECONDS
        return self._known

    async def _ask(self) -> Health:
        database_state, litellm_state = await asyncio.gather(
            self._database_state(), _within_a_second(litellm.is_ready(self._litellm_url))
        )
        status = "unhealthy" if database_state == "down" else "degraded" if litellm_state == "down" else "healthy"
        return Health(status=status, database=database_state, litellm=litellm_state)

    async def _database_state(self) -> State:
        try:
            # Not timed: the first read of the secret imports boto3, which says nothing about the database.
            parameters = database.connection_parameters(self._settings, self._secret_values)
        except SecretUnavailable:
            return "down"
        return await _within_a_second(database.is_ready(parameters))


async def _within_a_second(question: Awaitable[bool]) -> State:
    try:
        return "up" if await asyncio.wait_for(question, CHECK_TIMEOUT_SECONDS) else "down"
    except TimeoutError:
        return "down"
