"""What the libraries of a delete take of the processor, each by itself: run in a function's environment, prints JSON.

In a loop each finds the processor's caches as it left them; in a request others ran meanwhile, and it takes up to twice as
long.
"""

import json
import os
import sys
import time
import uuid
from collections.abc import Callable

from keyservice import telemetry, wiring
from keyservice.deletion_store import finish_delete
from keyservice.models import Deadline

_REPETITIONS = 500


def main() -> None:
    # What telemetry writes goes nowhere.
    answer = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    found = {
        "a round trip to PostgreSQL, two statements (psycopg)": _cpu_ms(_round_trip),
        "a call of LiteLLM (httpx)": _cpu_ms(_call),
        "a log line and metrics (Powertools)": _cpu_ms(_telemetry),
    }
    os.write(answer, json.dumps(found).encode())


def _cpu_ms(act: Callable[[], object]) -> float:
    for _ in range(_REPETITIONS // 10):
        act()
    before = time.process_time()
    for _ in range(_REPETITIONS):
        act()
    return round((time.process_time() - before) * 1000 / _REPETITIONS, 3)


def _round_trip() -> None:
    """T2 of a delete that nobody began."""
    finish_delete(
        wiring.database(), operation_id=uuid.uuid4(), epoch=1, api_key_id=uuid.uuid4(), gone_hashes=["0" * 64]
    )


def _call() -> None:
    wiring.litellm().delete("0" * 64, deadline=Deadline(20))


def _telemetry() -> None:
    telemetry.begin_request()
    telemetry.identify(user_id="user", key_id="key")
    telemetry.logger.info(
        "request served", extra={"route": "DELETE /", "status": 200, "code": "OK", "duration_ms": 1.0}
    )
    telemetry.write_request(operation="delete_api_key", outcome="success", duration_ms=1.0)


if __name__ == "__main__":
    main()
