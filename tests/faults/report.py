"""`make faults`: the whole matrix, a long walk and a scan for secrets, then a table of what broke and what held."""

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from local.outside_litellm import litellm_of
from tests.faults.invariants import secrets_written_down, violations
from tests.faults.matrix import cells, record_steps, run_cell
from tests.faults.rig import Rig, running_rig
from tests.faults.scenarios import SCENARIOS
from tests.faults.walk import BUDGET_SECONDS, walk


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.report", description=__doc__)
    parser.add_argument("--operations", type=int, default=10_000, help="of the walk")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the matrix as `make test` has it")
    parser.add_argument("--no-matrix", action="store_true")
    arguments = parser.parse_args()
    outside = litellm_of(os.environ)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="ks-faults-") as directory,
        running_rig(
            Path(directory),
            litellm=outside and (outside.url, outside.master_key),
            gateway_budget_seconds=BUDGET_SECONDS,
            report=_say,
        ) as rig,
    ):
        found: list[str] = []
        cell_count = 0
        if not arguments.no_matrix:
            cell_count = _break_every_step(rig, found, thorough=not arguments.quick)
        _say(f"walk: seed {arguments.seed}, {arguments.operations} operations")
        walked = walk(
            rig, seed=arguments.seed, chapters=itertools.count(), operations=arguments.operations, report=_say
        )
        found += walked.found
        found += violations(rig)
        found += secrets_written_down(rig)
        _print_table(rig, cells=cell_count, operations=walked.operations, seconds=time.monotonic() - started)
        for violation in found:
            _say(violation)
        _say(f"violations: {len(found)}")
    sys.exit(bool(found))


def _break_every_step(rig: Rig, found: list[str], *, thorough: bool) -> int:
    count = 0
    for name, scenario in SCENARIOS.items():
        before = count
        for step, fault_name, fault, variant in cells(record_steps(rig, scenario), scenario, thorough=thorough):
            count += 1
            found += [
                f"{name}: {step.system} {fault_name} at {step}, then {variant}: {violation}"
                for violation in run_cell(rig, scenario, step, fault, variant)
            ]
        _say(f"matrix: {name}: {count - before} cells, {len(found)} violations so far")
    return count


def _print_table(rig: Rig, *, cells: int, operations: Counter[str], seconds: float) -> None:
    by_kind: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (kind, step), count in rig.injected.items():
        by_kind[kind][step] += count
    _say("")
    _say(f"{'fault':<42} {'met':>6}   at")
    for kind, steps in sorted(by_kind.items()):
        where = ", ".join(f"{step} {count}" for step, count in steps.most_common(8))
        _say(f"{kind:<42} {steps.total():>6}   {where}")
    _say(f"{'all':<42} {rig.injected.total():>6}")
    _say("")
    _say(f"{'invariant':<42} {'asserted':>8}")
    for invariant, count in sorted(rig.checked.items()):
        _say(f"{invariant:<42} {count:>8}")
    _say("")
    counted = ", ".join(f"{what} {count}" for what, count in operations.most_common())
    answers = ", ".join(f"{what} {status}: {count}" for (what, status), count in sorted(rig.told.answers.items()))
    _say(f"matrix: {cells} cells; walk: {operations.total()} operations ({counted}); {seconds:.0f} s")
    _say(f"answers: {answers}")


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a program that reports to a person


if __name__ == "__main__":
    main()
