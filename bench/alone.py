"""Warm functions by themselves: invoked as Lambda invokes them, one request after the other, with no gateway and no client
that share the processors with them. A function that does nothing shows what Lambda's runtime client takes of it, and the
libraries are measured one by one."""

import json
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.events import CALLER, create_event, delete_event, list_event
from bench.figures import table_of
from bench.stage import BARE, CHECKOUT, INTERPRETER, Stage, bare_stage, running_stage

_REQUESTS = 200
_WARM_UP = 10


class Alone(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds: `own`, the median inside the function without LiteLLM, KMS and Secrets Manager, is None of the function
    that does nothing and says nothing; `cpu_ms` is the mean of all that its process used."""

    function: str
    own_ms: float | None
    cpu_ms: float


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Of a delete: `cpu_ms` each time, so many times."""

    name: str
    cpu_ms: float
    times: int


def measure_parts(directory: Path, *, bare_cpu_ms: float, report: Callable[[str], None]) -> list[Part]:
    """What a delete takes of the processor before the service's own code has done anything."""
    report("libraries by themselves")
    with running_stage(directory, workers_per_function=1) as stage:
        done = subprocess.run(
            [str(INTERPRETER), str(CHECKOUT / "bench/parts.py")],
            env=stage.stack.environment("DeleteApiKey"),
            stdout=subprocess.PIPE,
            check=True,
        )
    round_trip, call, telemetry = json.loads(done.stdout).items()
    return [
        Part(name="being invoked (Lambda's runtime client)", cpu_ms=bare_cpu_ms, times=1),
        *(
            Part(name=name, cpu_ms=cpu_ms, times=times)
            for (name, cpu_ms), times in ((round_trip, 2), (call, 1), (telemetry, 1))
        ),
    ]


def measure(directory: Path, *, report: Callable[[str], None]) -> list[Alone]:
    report("warm functions by themselves")
    with running_stage(directory, workers_per_function=1) as stage, bare_stage(stage, directory / "bare") as bare:
        stage.people(1, name=CALLER)
        nothing, _ = _invoked(bare, BARE, [list_event(stage)] * _REQUESTS)
        listed, _ = _invoked(stage, "ListApiKeys", [list_event(stage)] * _REQUESTS)
        created, answers = _invoked(stage, "CreateApiKey", [create_event(stage)] * _REQUESTS)
        ends = [delete_event(stage, json.loads(answer["body"])["id"]) for answer in answers]
        deleted, _ = _invoked(stage, "DeleteApiKey", ends)
        return [nothing, listed, created, deleted]


def _invoked(stage: Stage, function: str, events: Sequence[dict[str, Any]]) -> tuple[Alone, list[dict[str, Any]]]:
    """And the answers."""
    answers = [stage.stack.invoke(function, event) for event in events[:_WARM_UP]]
    cpu_before = stage.cpu_seconds([function])
    with stage.listening() as told:
        answers += [stage.stack.invoke(function, event) for event in events[_WARM_UP:]]
    cpu_ms = (stage.cpu_seconds([function]) - cpu_before) * 1000 / (len(events) - _WARM_UP)
    if failed := [answer for answer in answers if not 200 <= answer["statusCode"] < 300]:
        raise RuntimeError(f"{function} answered {failed[0]['statusCode']}: {failed[0]['body'][:200]}")
    own_ms = round(statistics.median(one.own for one in told), 2) if told else None
    return Alone(function=function, own_ms=own_ms, cpu_ms=round(cpu_ms, 2)), answers


def show_parts(parts: Sequence[Part]) -> str:
    return table_of(
        ["a delete's libraries by themselves", "CPU ms", "times", "together"],
        [
            *((part.name, part.cpu_ms, part.times, part.cpu_ms * part.times) for part in parts),
            ("sum", "", "", sum(part.cpu_ms * part.times for part in parts)),
        ],
    )


def show(found: Sequence[Alone]) -> str:
    return table_of(
        ["warm function by itself", "own p50 ms", "CPU ms"], [(one.function, one.own_ms, one.cpu_ms) for one in found]
    )
