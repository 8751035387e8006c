"""Fixtures every test may ask for; nothing starts before one does."""

import os
import signal
from pathlib import Path

import pytest

# Read when telemetry is first imported, by whichever test's directory that is; as the template sets them.
os.environ.setdefault("POWERTOOLS_SERVICE_NAME", "keyservice")
os.environ.setdefault("POWERTOOLS_METRICS_NAMESPACE", "KeyService")

pytest_plugins = ["tests.support.fixtures"]

# Started in the background of a shell, this process ignores SIGINT, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Their tests share running stacks, and the last of them looks at what all others have left.
ONE_PROCESS = ("e2e", "faults")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (`make test`): which tests have to stay together in one."""
    for item in items:
        path = item.path.relative_to(Path(__file__).parent)
        group = path.parts[0] if path.parts[0] in ONE_PROCESS else str(path)
        item.add_marker(pytest.mark.xdist_group(group))
