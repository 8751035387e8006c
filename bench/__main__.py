"""`python -m bench`: runs all parts, or those named, and writes what they found."""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench import cold_start, many_keys, operations, under_load
from bench.clients import Operation
from bench.stage import FUNCTIONS, running_stage

RESULTS = Path(__file__).parent / "results.json"
PARTS = ("operations", "cold", "load", "keys")


def main() -> None:
    arguments = _parser().parse_args()
    started = time.monotonic()

    def report(doing: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {doing}", file=sys.stderr, flush=True)

    results: dict[str, Any] = {
        "machine": {"cpus": _cpus(), "python": platform.python_version(), "system": platform.platform()},
    }
    with tempfile.TemporaryDirectory(prefix="ks-bench-") as name:
        directory = Path(name)
        for part in arguments.parts or PARTS:
            report(f"== {part}")
            results[part] = _RUN[part](directory / part, arguments, report)
    if not arguments.parts:
        RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
        report(f"written: {RESULTS}")


def _operations(directory: Path, arguments: argparse.Namespace, report: Callable[[str], None]) -> Any:
    measured: list[operations.Measured] = []
    work: list[operations.Work] = []
    for delay in operations.LITELLM_DELAYS:
        with running_stage(directory / f"{delay}", litellm_delay_seconds=delay) as stage:
            known: list[Operation] = [operation for operation in operations.ORDER if stage.has(FUNCTIONS[operation])]
            work = work or operations.count_work(stage, directory / "counted", known)
            for clients in operations.CLIENTS:
                measured += operations.measure(
                    stage,
                    litellm_delay_seconds=delay,
                    clients=clients,
                    requests=arguments.requests,
                    operations=known,
                    report=report,
                )
    print(operations.show(measured, work), flush=True)
    return {"measured": measured, "work": work}


def _cold(directory: Path, arguments: argparse.Namespace, report: Callable[[str], None]) -> Any:
    found = cold_start.measure(directory, starts=arguments.starts, report=report)
    print(cold_start.show(found), flush=True)
    return found


def _load(directory: Path, arguments: argparse.Namespace, report: Callable[[str], None]) -> Any:
    found = under_load.measure(directory, seconds=arguments.seconds, report=report)
    print(under_load.show(found), flush=True)
    return found


def _keys(directory: Path, arguments: argparse.Namespace, report: Callable[[str], None]) -> Any:
    found = many_keys.measure(directory, keys=arguments.keys, audit_records=arguments.audit_records, report=report)
    print(many_keys.show(found), flush=True)
    return found


_RUN: dict[str, Callable[[Path, argparse.Namespace, Callable[[str], None]], Any]] = {
    "operations": _operations,
    "cold": _cold,
    "load": _load,
    "keys": _keys,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures the service on this machine.")
    parser.add_argument("parts", nargs="*", help="all of them when none is named")
    parser.add_argument("--requests", type=int, default=200, help="of each operation (default: %(default)s)")
    parser.add_argument("--starts", type=int, default=9, help="cold starts of each function (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of each load (default: %(default)s)")
    parser.add_argument("--keys", type=int, default=1_000_000, help="rows of keys (default: %(default)s)")
    parser.add_argument("--audit-records", type=int, default=10_000_000, help="(default: %(default)s)")
    return parser


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
