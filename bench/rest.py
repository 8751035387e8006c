"""What it costs a process to be woken: the same requests one right after the other, and each after a rest.

A processor that has done something else meanwhile has the process's code and data no longer at hand. Between two requests
of one client it does: the client, the gateway and PostgreSQL share two processors with the function here.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.cold_start import create_event, delete_event, list_event
from bench.figures import table_of
from bench.stage import BARE, Stage, bare_stage, running_stage

# About as long as the client and the gateway take between two requests.
_RESTS_SECONDS = (0.0, 0.003)
_REQUESTS = 200
_WARM_UP = 10


class Rested(msgspec.Struct, frozen=True, kw_only=True):
    """Medians and means in milliseconds: `own` is inside the function without LiteLLM, KMS and Secrets Manager, None of the
    function that does nothing and says nothing; `cpu_ms` is all that its process used."""

    function: str
    rest_ms: float
    own_ms: float | None
    cpu_ms: float


def measure(directory: Path, *, report: Callable[[str], None]) -> list[Rested]:
    with running_stage(directory, workers_per_function=1) as stage:
        stage.people(1, name="cold")
        found: list[Rested] = []
        with bare_stage(stage, directory / "bare") as bare:
            for rest in _RESTS_SECONDS:
                report(f"requests to warm functions after a rest of {rest * 1000:.0f} ms")
                for where, function in ((bare, BARE), (stage, "ListApiKeys")):
                    found.append(_rested(where, function, [list_event(stage)] * _REQUESTS, rest_seconds=rest)[0])
                created, answers = _rested(stage, "CreateApiKey", [create_event(stage)] * _REQUESTS, rest_seconds=rest)
                ends = [delete_event(stage, json.loads(answer["body"])["id"]) for answer in answers]
                found += [created, _rested(stage, "DeleteApiKey", ends, rest_seconds=rest)[0]]
        return found


def _rested(
    stage: Stage, function: str, events: Sequence[dict[str, Any]], *, rest_seconds: float
) -> tuple[Rested, list[dict[str, Any]]]:
    answers = [stage.stack.invoke(function, event) for event in events[:_WARM_UP]]
    cpu_before = stage.cpu_seconds([function])
    with stage.listening() as told:
        for event in events[_WARM_UP:]:
            time.sleep(rest_seconds)
            answers.append(stage.stack.invoke(function, event))
    cpu_ms = (stage.cpu_seconds([function]) - cpu_before) * 1000 / (len(events) - _WARM_UP)
    if failed := [answer for answer in answers if not 200 <= answer["statusCode"] < 300]:
        raise RuntimeError(f"{function} answered {failed[0]['statusCode']}: {failed[0]['body'][:200]}")
    return (
        Rested(
            function=function,
            rest_ms=rest_seconds * 1000,
            own_ms=round(statistics.median(one.own for one in told), 2) if told else None,
            cpu_ms=round(cpu_ms, 2),
        ),
        answers,
    )


def show(found: Sequence[Rested]) -> str:
    return table_of(
        ["warm function", "rest ms", "own p50 ms", "CPU ms"],
        [(one.function, f"{one.rest_ms:.0f}", one.own_ms, one.cpu_ms) for one in found],
    )
