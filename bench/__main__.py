"""`python -m bench`: runs all parts, or those named, and writes what they found."""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from bench import alone, cold_start, cost, many_keys, operations, plot, sizes, targets, under_load
from bench.alone import Alone, Part
from bench.clients import Operation
from bench.cold_start import ColdStart
from bench.cost import Cost
from bench.document import DOCUMENT, rewritten
from bench.many_keys import Found
from bench.sizes import Sized
from bench.stage import FUNCTIONS, INTERPRETER, running_stage
from bench.targets import Target
from bench.under_load import Load

RESULTS = Path(__file__).parent / "results.json"
PLOT = Path(__file__).parent / "results.svg"
PARTS = ("operations", "cold", "sizes", "load", "keys")

type Report = Callable[[str], None]


class Results(msgspec.Struct, kw_only=True):
    """Of the parts that ran."""

    machine: dict[str, Any]
    measured: list[operations.Measured] = []
    work: list[operations.Work] = []
    cold: list[ColdStart] = []
    alone: list[Alone] = []
    parts: list[Part] = []
    sized: list[Sized] = []
    load: list[Load] = []
    memory: dict[str, float] = {}
    keys: Found | None = None
    targets: list[Target] = []
    costs: list[Cost] = []


def main() -> None:
    arguments = _parser().parse_args()
    if not INTERPRETER.exists():
        sys.exit("The functions' own interpreter is not there yet: run `make bench`, which makes it.")
    started = time.monotonic()

    def report(doing: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {doing}", file=sys.stderr, flush=True)

    results = Results(
        machine={"cpus": _cpus(), "python": platform.python_version(), "system": platform.platform()},
    )
    with tempfile.TemporaryDirectory(prefix="ks-bench-") as name:
        directory = Path(name)
        for part in arguments.parts or PARTS:
            report(f"== {part}")
            results.targets += _RUN[part](directory / part, arguments, report, results)
    print(targets.show(results.targets), flush=True)
    if results.keys is not None and not arguments.parts:
        RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
        plot.draw(PLOT, measured=results.measured, cold=results.cold, keys=results.keys)
        if results.sized:
            DOCUMENT.write_text(rewritten(DOCUMENT.read_text(), costs=results.costs, sized=results.sized))
        report(f"written: {RESULTS}, {PLOT} and the tables of {DOCUMENT}")


def _operations(directory: Path, arguments: argparse.Namespace, report: Report, results: Results) -> Iterable[Target]:
    with running_stage(directory / "near") as stage:
        assert stage.litellm is not None
        for delay in operations.LITELLM_DELAYS:
            stage.litellm.restart(delay_seconds=delay)
            known: list[Operation] = [operation for operation in operations.ORDER if stage.has(FUNCTIONS[operation])]
            results.work = results.work or operations.count_work(stage, directory / "counted", known)
            for clients in operations.CLIENTS:
                results.measured += operations.measure(
                    stage,
                    litellm_delay_seconds=delay,
                    clients=clients,
                    requests=arguments.requests,
                    operations=known,
                    report=report,
                )
            if arguments.database_delay_ms and not delay:
                results.measured += operations.measure_far_from_the_database(
                    stage,
                    directory / "far",
                    database_delay_seconds=arguments.database_delay_ms / 1000,
                    requests=arguments.requests,
                    operations=known,
                    report=report,
                )
    results.costs = cost.costs_of(results.measured)
    print(operations.show(results.measured, results.work), cost.show(results.costs), sep="\n\n", flush=True)
    return targets.of_operations(results.measured)


def _cold(directory: Path, arguments: argparse.Namespace, report: Report, results: Results) -> Iterable[Target]:
    results.cold = cold_start.measure(directory / "starts", starts=arguments.starts, report=report)
    results.alone = alone.measure(directory / "alone", report=report)
    results.parts = alone.measure_parts(directory / "parts", bare_cpu_ms=results.alone[0].cpu_ms, report=report)
    print(
        cold_start.show(results.cold),
        alone.show(results.alone),
        alone.show_parts(results.parts),
        sep="\n\n",
        flush=True,
    )
    return targets.of_cold_starts(results.cold)


def _sizes(directory: Path, _: argparse.Namespace, report: Report, results: Results) -> Iterable[Target]:
    results.sized = sizes.measure(directory, report=report)
    print(sizes.show(results.sized), flush=True)
    return []


def _load(directory: Path, arguments: argparse.Namespace, report: Report, results: Results) -> Iterable[Target]:
    results.load, results.memory = under_load.measure(directory, seconds=arguments.seconds, report=report)
    print(under_load.show(results.load), under_load.show_memory(results.memory), sep="\n\n", flush=True)
    return targets.of_load(results.load)


def _keys(directory: Path, arguments: argparse.Namespace, report: Report, results: Results) -> Iterable[Target]:
    results.keys = many_keys.measure(
        directory, keys=arguments.keys, audit_records=arguments.audit_records, report=report
    )
    print(many_keys.show(results.keys), flush=True)
    return targets.of_many_keys(results.keys)


_RUN: dict[str, Callable[[Path, argparse.Namespace, Report, Results], Iterable[Target]]] = {
    "operations": _operations,
    "cold": _cold,
    "sizes": _sizes,
    "load": _load,
    "keys": _keys,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures the service on this machine.")
    parser.add_argument("parts", nargs="*", help="all of them when none is named")
    parser.add_argument("--requests", type=int, default=200, help="of each operation (default: %(default)s)")
    parser.add_argument(
        "--database-delay-ms",
        type=float,
        default=0,
        help="measure the operations also with so much longer round trips to PostgreSQL (default: not)",
    )
    parser.add_argument("--starts", type=int, default=5, help="cold starts of each function (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of each load (default: %(default)s)")
    parser.add_argument("--keys", type=int, default=1_000_000, help="rows of keys (default: %(default)s)")
    parser.add_argument("--audit-records", type=int, default=10_000_000, help="(default: %(default)s)")
    return parser


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
