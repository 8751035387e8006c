"""What was to be reached, beside what was."""

from collections.abc import Iterator, Sequence

import msgspec

from bench.cold_start import ColdStart
from bench.figures import table_of
from bench.many_keys import Found
from bench.operations import Measured, by_one_client
from bench.reference import (
    COLD_START_MS,
    CURSOR_FACTOR,
    LITELLM_BUDGET_SECONDS,
    LITEMAAS,
    OWN_MS,
    SLOW_CREATE_SECONDS,
    SLOW_LIST_FACTOR,
)
from bench.under_load import Load


class Target(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    at_most: float
    measured: float

    @property
    def is_met(self) -> bool:
        return self.measured <= self.at_most


def of_operations(measured: Sequence[Measured]) -> Iterator[Target]:
    """By one client and a LiteLLM that answers at once."""
    of = by_one_client(measured)
    for operation, at_most in OWN_MS.items():
        yield Target(name=f"{operation}: own time, p50 ms", at_most=at_most, measured=of[operation].own.median)
    for operation, theirs in LITEMAAS.items():
        yield Target(
            name=f"{operation}: processor time, half of LiteMaaS's, ms",
            at_most=theirs.cpu_ms / 2,
            measured=of[operation].cpu_ms,
        )


def of_cold_starts(found: Sequence[ColdStart]) -> Iterator[Target]:
    for one in found:
        if one.function in COLD_START_MS:
            yield Target(
                name=f"{one.function}: cold start without the secrets, p50 ms",
                at_most=COLD_START_MS[one.function],
                measured=one.without_secrets.median,
            )


def of_load(found: Sequence[Load]) -> Iterator[Target]:
    for one in found:
        slower = one.litellm_slower_seconds
        name = f"{one.clients} clients, LiteLLM + {slower} s" if slower else f"{one.clients} clients"
        if slower < LITELLM_BUDGET_SECONDS:
            failed = sum(count for status, count in one.statuses.items() if status.split()[1][0] != "2")
            yield Target(name=f"{name}: requests that failed", at_most=0, measured=failed)
        if slower:
            yield Target(
                name=f"{name}: lists beside those when all only list, p50, factor",
                at_most=SLOW_LIST_FACTOR,
                measured=round(one.waits["list"].median / one.only_lists.median, 2),
            )
            yield Target(
                name=f"{name}: creates answered, the longest, s",
                at_most=SLOW_CREATE_SECONDS,
                measured=round(one.waits["create"].most / 1000, 1),
            )
        yield Target(name=f"{name}: keys and changes lost", at_most=0, measured=one.lost)
        yield Target(
            name=f"{name}: connections, one for each worker",
            at_most=one.all_workers,
            measured=one.connections,
        )


def of_many_keys(found: Found) -> Iterator[Target]:
    pages = {page.name: page.own for page in found.pages}
    for name, of_few in (
        ("list, by cursor", "list, 10 keys"),
        ("list, isActive=true, by cursor", "list, 10 keys"),
        ("list, one model, by cursor", "list, 10 keys"),
        ("all keys, by cursor", "all keys, 30 keys, by cursor"),
        ("audit, by cursor", "audit, 30 records, by cursor"),
    ):
        yield Target(
            name=f"{name}: p99 beside that of {of_few}, factor",
            at_most=CURSOR_FACTOR,
            measured=round(pages[name].p99 / pages[of_few].p99, 2),
        )


def show(targets: Sequence[Target]) -> str:
    table = table_of(
        ["target", "at most", "measured", ""],
        [(one.name, one.at_most, one.measured, "met" if one.is_met else "NOT MET") for one in targets],
    )
    if any("processor time" in one.name and not one.is_met for one in targets):
        return f"{table}\n\nWhere the processor time goes that is above its target: docs/decisions.md, under Speed."
    return table
