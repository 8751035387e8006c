"""Every step of an operation, as the code takes it, with every fault before and after it.

The steps are not written down anywhere: an undisturbed run through the proxies tells them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from tests.faults.invariants import violations
from tests.faults.rig import LEASE_SECONDS, RESUME_SECONDS, Injection, Rig
from tests.faults.scenarios import Scenario, Situation
from tests.support.http_faults import Call
from tests.support.postgres_faults import RoundTrip

type System = Literal["LiteLLM", "PostgreSQL"]
# What comes after the fault: the caller asks again, or nobody does.
type Variant = Literal["repeat", "settle"]

# How often a caller repeats a request before a test calls it lost, a lease apart.
REPETITIONS = 4
ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Step:
    """One round trip to PostgreSQL, named after its last statement, or one LiteLLM path; `nth` of its name in the run."""

    system: System
    name: str
    nth: int = 1
    statements: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name if self.nth == 1 else f"{self.name}, {self.nth}"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`kind` as the proxies know it; `kills` the function's process at the same moment."""

    kind: Any
    kills: bool = False
    times: int = 1


FAULTS: dict[System, dict[str, Fault]] = {
    "LiteLLM": {
        "times out and does it later": Fault(kind="late"),
        "answers 500": Fault(kind="status"),
        "resets, not done": Fault(kind="reset_before"),
        "resets, done": Fault(kind="reset_after"),
        "SIGKILL before": Fault(kind="reset_before", kills=True),
        "SIGKILL after": Fault(kind="call_after", kills=True),
        "SIGKILL, done later": Fault(kind="late", kills=True),
    },
    "PostgreSQL": {
        "drops before commit": Fault(kind="cut_before"),
        "drops after commit": Fault(kind="cut_after"),
        "drops after commit, twice": Fault(kind="cut_after", times=2),
        "drops, commits later": Fault(kind="late"),
        "SIGKILL before": Fault(kind="cut_before", kills=True),
        "SIGKILL after": Fault(kind="call_after", kills=True),
        "SIGKILL, commits later": Fault(kind="late", kills=True),
    },
}
VARIANTS: Sequence[Variant] = ("repeat", "settle")


def record_steps(rig: Rig, scenario: Scenario) -> list[Step]:
    """What an undisturbed run does. Again when the machine is so busy that it does not end as the scenario says."""
    answer: object = None
    for _ in range(ATTEMPTS):
        situation = scenario.begin(rig)
        rig.gateway_faults.forget_calls()
        rig.database_faults.reset_counts()
        answer = scenario.act(situation)
        trips, calls = rig.database_faults.trips, rig.gateway_faults.calls
        rig.become_quiet()
        if _is_as_said(scenario, answer):
            return _steps_of(scenario, trips, calls)
    raise AssertionError(f"undisturbed it ended with {answer}")


def _is_as_said(scenario: Scenario, answer: object) -> bool:
    return answer.status_code == scenario.answer if isinstance(answer, httpx.Response) else answer is not None


def _steps_of(scenario: Scenario, trips: Sequence[RoundTrip], calls: Sequence[Call]) -> list[Step]:
    seen: Counter[str] = Counter()
    steps: list[Step] = []
    for trip in trips:
        assert trip.steps, f"a round trip without a name: {trip.statements}"
        seen[trip.steps[-1]] += 1
        steps.append(Step(system="PostgreSQL", name=trip.steps[-1], nth=seen[trip.steps[-1]], statements=trip.steps))
    for call in calls:
        name = call.path.partition("?")[0]
        seen[name] += 1
        # What the scenario broke itself cannot be broken a second time.
        if call.fault in (None, "call_before"):
            steps.append(Step(system="LiteLLM", name=name, nth=seen[name]))
    return [step for step in steps if scenario.only is None or step.name in scenario.only]


def run_cell(rig: Rig, scenario: Scenario, step: Step, fault: Fault, variant: Variant) -> list[str]:
    """What is wrong after the operation met the fault at the step and was repeated, or settled, and all is quiet.

    A busy machine may be so slow that LiteLLM's budget runs out before the step: then the cell begins anew.
    """
    for _ in range(ATTEMPTS):
        found = _try_cell(rig, scenario, step, fault, variant)
        if found is not None:
            return found
    return [f"{step} was never reached"]


def _try_cell(rig: Rig, scenario: Scenario, step: Step, fault: Fault, variant: Variant) -> list[str] | None:
    situation = scenario.begin(rig)
    injection = _inject(rig, scenario, step, fault)
    answers = [scenario.act(situation)]
    if injection.hits == 0:
        rig.become_quiet()
        return None
    rig.injected[_name_of(step.system, fault), str(step)] += 1
    if fault.kind == "late":
        rig.held.append(injection)
    rig.clear_faults()
    if variant == "repeat":
        answers += _repeat(rig, scenario, situation, is_over=_succeeded(scenario, answers[0]))
    else:
        rig.pass_time(LEASE_SECONDS + RESUME_SECONDS)
        rig.try_to_settle()
    # Whatever was under way arrives after the first attempt to finish, and still within the drain.
    rig.release_held()
    rig.become_quiet()
    found = violations(rig, subjects=[situation.person.subject])
    rig.told.broken_words.clear()
    found += _unkept(rig, scenario, situation, answers, variant)
    return found


def cells(steps: list[Step], scenario: Scenario, *, thorough: bool) -> Iterator[tuple[Step, str, Fault, Variant]]:
    """Thorough: each fault at each step, once repeated and once settled; else the two take turns, and a killed
    function's request is either done or not, but not done later."""
    variants = VARIANTS if scenario.repeat is not None else VARIANTS[1:]
    turn = 0
    for step in steps:
        for name, fault in FAULTS[step.system].items():
            if thorough:
                for variant in variants:
                    yield step, name, fault, variant
            elif not (fault.kills and fault.kind == "late"):
                yield step, name, fault, variants[turn % len(variants)]
                turn += 1


def _inject(rig: Rig, scenario: Scenario, step: Step, fault: Fault) -> Injection:
    kill: Callable[[], object] = rig.killer_of(scenario.function) if fault.kills else lambda: None
    if step.system == "PostgreSQL":
        return rig.database_faults.inject(fault.kind, step.name, nth=step.nth, times=fault.times, call=kill)
    return rig.gateway_faults.inject(step.name, fault.kind, call=kill, matches=_from_the_nth(step.nth))


def _from_the_nth(nth: int) -> Callable[[Any], bool]:
    seen = 0

    def matches(_body: Any) -> bool:
        nonlocal seen
        seen += 1
        return seen >= nth

    return matches


def _name_of(system: System, fault: Fault) -> str:
    return next(
        f"{system} {name}" if not fault.kills else name for name, known in FAULTS[system].items() if known == fault
    )


def _succeeded(scenario: Scenario, answer: object) -> bool:
    return isinstance(answer, httpx.Response) and answer.status_code in scenario.succeeds


def _repeat(rig: Rig, scenario: Scenario, situation: Situation, *, is_over: bool) -> list[object]:
    assert scenario.repeat is not None
    answers: list[object] = []
    for _ in range(1 if is_over else REPETITIONS):
        rig.pass_time(LEASE_SECONDS)
        answers.append(scenario.repeat(situation))
        if _succeeded(scenario, answers[-1]):
            break
    return answers


def _unkept(
    rig: Rig, scenario: Scenario, situation: Situation, answers: list[object], variant: Variant
) -> Iterator[str]:
    """What this operation's own caller may expect, beside the invariants."""
    if variant == "repeat" and not _succeeded(scenario, answers[-1]):
        said = [answer.status_code for answer in answers if isinstance(answer, httpx.Response)]
        yield f"repeating never succeeded: {said}"
    rows = rig.keys_of(situation.person)
    keys = situation.person.gateway_keys()
    if len(rows) > 1 or len(keys) not in scenario.secrets_left:
        yield f"{len(rows)} rows and {len(keys)} LiteLLM keys came of one request"
    is_kept = any(row["is_active"] for row in rows)
    if min(scenario.secrets_left) > 0 and not is_kept:
        yield "the key was lost"
    if max(scenario.secrets_left) == 0 and is_kept:
        yield "the key was left behind"
    if variant == "repeat" and any(row[name] != value for row in rows for name, value in scenario.row_says.items()):
        yield f"the repeated change is not what the row says: {rows}"
    if scenario.repeat is not None and variant == "repeat" and scenario.is_there_after_repeating is True:
        if len(keys) != max(scenario.secrets_left):
            yield f"the repeated request left {len(keys)} LiteLLM keys"
        answer = scenario.repeat(situation)
        if not _succeeded(scenario, answer) or answer.json()["id"] != str(rows[0]["id"] if rows else None):
            yield f"the request repeated once more was answered {answer.status_code}: {answer.text[:200]}"
    if variant == "repeat" and scenario.is_there_after_repeating is False and (rows or keys):
        yield f"{len(rows)} rows and {len(keys)} LiteLLM keys are left"
    issued = [one for one in rig.told.issued if one.subject == situation.person.subject]
    if (
        scenario.function == "CreateApiKey"
        and issued
        and not any(one.key_id == str(row["id"]) for one in issued for row in rows)
    ):
        yield "a key was issued, and taken back without a delete"
