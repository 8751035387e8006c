"""What a function's memory does to it: Lambda gives processor time in proportion, so a start takes longer on less."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.clients import Operation
from bench.cold_start import started
from bench.events import CALLER, create_event, delete_event, list_event
from bench.figures import Spread, spread_of, table_of
from bench.processor_share import WHOLE_PROCESSOR_MEGABYTES, processor_share
from bench.stage import FUNCTIONS, INTERPRETER, Stage, running_stage

MEMORY_MEGABYTES = (256, 512, 1024, WHOLE_PROCESSOR_MEGABYTES)
_STARTS = 2
_REQUESTS = 25
# In which a share that was used up is given out anew. Requests that follow on one another without a pause would wait for that.
_PAUSE_SECONDS = 0.025


class Sized(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds: `first_answer` of a process that did not exist; `request` inside the function, with what LiteLLM and KMS
    took of it, who have all of the processor here."""

    operation: Operation
    memory_megabytes: int
    first_answer: Spread
    request: Spread


def measure(directory: Path, *, report: Callable[[str], None]) -> list[Sized]:
    """Nothing where no process can be limited."""
    directory.mkdir(parents=True, exist_ok=True)
    found: list[Sized] = []
    with processor_share(directory, interpreter=INTERPRETER) as share:
        if share is None:
            report("functions of less memory: left out, as a process cannot be limited to a share of a processor here")
            return []
        with running_stage(directory, workers_per_function=1, interpreter=share.interpreter) as stage:
            stage.people(1, name=CALLER)
            for memory in MEMORY_MEGABYTES:
                report(f"functions of {memory} MB")
                share.limit_to(memory)
                found += _measured(stage, memory)
    return found


def _measured(stage: Stage, memory: int) -> list[Sized]:
    count = _STARTS + _REQUESTS
    created, answers = _sized(stage, "create", memory, [create_event(stage)] * count)
    listed, _ = _sized(stage, "list", memory, [list_event(stage)] * count)
    deleted, _ = _sized(
        stage, "delete", memory, [delete_event(stage, json.loads(one["body"])["id"]) for one in answers]
    )
    return [created, listed, deleted]


def _sized(
    stage: Stage, operation: Operation, memory: int, events: Sequence[Mapping[str, Any]]
) -> tuple[Sized, list[dict[str, Any]]]:
    """And the answers."""
    function = FUNCTIONS[operation]
    answers: list[dict[str, Any]] = []
    firsts: list[float] = []
    for event in events[:_STARTS]:
        answer, milliseconds = started(stage.stack, function, event)
        firsts.append(milliseconds)
        answers.append(answer)
    with stage.listening() as told:
        for event in events[_STARTS:]:
            time.sleep(_PAUSE_SECONDS)
            answers.append(stage.stack.invoke(function, event))
    first_answer = spread_of(firsts)
    request = spread_of([one.total - one.secrets for one in told])
    assert first_answer is not None
    assert request is not None
    return Sized(operation=operation, memory_megabytes=memory, first_answer=first_answer, request=request), answers


def show(found: Sequence[Sized]) -> str:
    return table_of(
        ["operation", "memory MB", "first answer p50 ms", "request p50 ms", "request p99 ms"],
        [
            (one.operation, one.memory_megabytes, one.first_answer.median, one.request.median, one.request.p99)
            for one in found
        ],
    )
