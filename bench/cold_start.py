"""From a process that does not exist to its first answer, as Lambda's runtime starts it."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.events import CALLER, create_event, delete_event, list_event
from bench.figures import Spread, spread_of, table_of
from bench.stage import BARE, Stage, Told, bare_stage, running_stage
from local.stack import LocalStack

_PAUSE_SECONDS = 0.3


class ColdStart(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds from spawning the process to its answer; `secrets` of them were Secrets Manager, and `derivation` KMS.
    `without_secrets` is the rest of the first."""

    function: str
    first_answer: Spread
    without_secrets: Spread
    secrets_ms: float
    derivation_ms: float
    litellm_ms: float


def measure(directory: Path, *, starts: int, report: Callable[[str], None]) -> list[ColdStart]:
    with running_stage(directory, workers_per_function=2) as stage:
        stage.people(1, name=CALLER)
        found = [_measured(stage, function, event, starts=starts, report=report) for function, event in _EVENTS.items()]
        report(f"a function that does nothing, {starts} cold starts")
        with bare_stage(stage, directory / "bare") as bare:
            totals = [started(bare.stack, BARE, {})[1] for _ in range(starts)]
        return [_cold_start("nothing", totals, []), *found]


def _measured(
    stage: Stage,
    function: str,
    event: Callable[[Stage], dict[str, Any]],
    *,
    starts: int,
    report: Callable[[str], None],
) -> ColdStart:
    report(f"{function}, {starts} cold starts")
    with stage.listening() as told:
        totals = [started(stage.stack, function, event(stage))[1] for _ in range(starts)]
    return _cold_start(function, totals, told[-starts:])


def started(stack: LocalStack, function: str, event: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """The answer of the next process, when there is none any more, and the milliseconds from spawning it until then."""
    stack.retire_workers()
    while stack.worker_pids(function):
        time.sleep(0.02)
    time.sleep(_PAUSE_SECONDS)
    started = time.perf_counter()
    answer = stack.invoke(function, event)
    elapsed = (time.perf_counter() - started) * 1000
    if not 200 <= answer["statusCode"] < 300:
        raise RuntimeError(f"{function} answered {answer['statusCode']}: {answer['body'][:200]}")
    return answer, elapsed


def _cold_start(function: str, totals: Sequence[float], told: Sequence[Told]) -> ColdStart:
    """`told`: what each start said of its parts; nothing of a function that has none."""
    first_answer = spread_of(totals)
    without = (
        spread_of([total - one.secrets for total, one in zip(totals, told, strict=True)]) if told else first_answer
    )
    assert first_answer is not None
    assert without is not None
    return ColdStart(
        function=function,
        first_answer=first_answer,
        without_secrets=without,
        secrets_ms=_median([one.secrets for one in told]),
        derivation_ms=_median([one.derivation for one in told]),
        litellm_ms=_median([one.litellm for one in told]),
    )


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 1) if values else 0.0


def _delete_of_a_new_key(stage: Stage) -> dict[str, Any]:
    made = json.loads(stage.stack.invoke("CreateApiKey", create_event(stage))["body"])
    return delete_event(stage, made["id"])


_EVENTS: dict[str, Callable[[Stage], dict[str, Any]]] = {
    "ListApiKeys": list_event,
    "CreateApiKey": create_event,
    "DeleteApiKey": _delete_of_a_new_key,
}


def show(found: Sequence[ColdStart]) -> str:
    return table_of(
        [
            "function",
            "first answer p50 ms",
            "min-max ms",
            "without secrets p50 ms",
            "secrets ms",
            "KMS ms",
            "LiteLLM ms",
        ],
        [
            (
                *(one.function, one.first_answer.median, f"{one.first_answer.least:.0f}-{one.first_answer.most:.0f}"),
                *(one.without_secrets.median, one.secrets_ms, one.derivation_ms, one.litellm_ms),
            )
            for one in found
        ],
    )
