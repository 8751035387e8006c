"""What the tests without processes share: recorded events, a function's environment, what it logs and counts."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keyservice import telemetry, wiring
from tests.unit.scripted_server import ScriptedServer

EVENTS = Path(__file__).parents[2] / "events"

VARIABLES = {
    "FUNCTION_TIMEOUT_SECONDS": "25",
    "LITELLM_BUDGET_SECONDS": "10",
    "OAUTH_PROVIDER": "openshift",
    "SUBJECT_CLAIM": "sub",
    "SUBJECT_COLUMN": "oauth_id",
    "USERNAME_CLAIM": "preferred_username",
    "EMAIL_CLAIM": "email",
    "NAME_CLAIM": "name",
    "ROLES_CLAIM": "roles",
}


@pytest.fixture
def event() -> Callable[[str], dict[str, Any]]:
    """Loads a recorded event by its name; each call a fresh one, to be changed at will."""
    return lambda name: json.loads((EVENTS / f"{name}.json").read_text())


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The variables of a function that reads claims; whoever changes one does so before the first request."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    wiring.settings.cache_clear()
    yield monkeypatch
    wiring.settings.cache_clear()


@pytest.fixture
def log() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The lines logged so far, parsed."""
    written = io.StringIO()
    handler = telemetry.logger.registered_handler
    assert isinstance(handler, telemetry.logging.StreamHandler)
    before = handler.setStream(written)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    handler.setStream(before or io.StringIO())


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server
