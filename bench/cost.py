"""Dollars for a million of one operation, by the memory that a function is given.

Prices are AWS's list prices for us-east-1 as known in mid-2025, the same as in docs/scaling.md; nothing looks them up.
"""

import math
from collections.abc import Sequence

import msgspec

from bench.figures import table_of
from bench.operations import Measured, by_one_client
from bench.sizes import MEMORY_MEGABYTES

_GIGABYTE_SECOND_ARM64 = 0.0000133334
_REQUESTS_PER_MILLION = 0.20
_GATEWAY_PER_MILLION = 1.00
_LOGS_PER_MILLION = 1.00
_KMS_PER_MILLION_CALLS = 3.00
# What a real LiteLLM and KMS take of each call in a region, where the stand-ins here answer at once.
_LITELLM_MS = 110.0
_KMS_MS = 8.0
LITELLM_CALLS = {"create": 1, "list": 0, "get": 0, "update": 1, "rotate": 2, "delete": 1}
KMS_CALLS = {"create": 1, "list": 0, "get": 0, "update": 0, "rotate": 1, "delete": 0}


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """`billed_ms`: whole milliseconds, as Lambda bills them."""

    operation: str
    memory_megabytes: int
    billed_ms: int
    dollars_per_million: float


def costs_of(measured: Sequence[Measured]) -> list[Cost]:
    """Of one client and a LiteLLM that answers at once: the rest is added. Memory makes starts shorter, not the few milliseconds
    of a request (bench/sizes.py measures both)."""
    return [_cost(one, memory) for one in by_one_client(measured).values() for memory in MEMORY_MEGABYTES]


def _cost(one: Measured, memory: int) -> Cost:
    outside = LITELLM_CALLS[one.operation] * _LITELLM_MS + KMS_CALLS[one.operation] * _KMS_MS
    billed = math.ceil(one.own.median + outside)
    compute = billed / 1000 * memory / 1024 * _GIGABYTE_SECOND_ARM64 * 1_000_000
    fixed = _REQUESTS_PER_MILLION + _GATEWAY_PER_MILLION + _LOGS_PER_MILLION
    keys = KMS_CALLS[one.operation] * _KMS_PER_MILLION_CALLS
    return Cost(
        operation=one.operation,
        memory_megabytes=memory,
        billed_ms=billed,
        dollars_per_million=round(compute + fixed + keys, 2),
    )


def show(costs: Sequence[Cost]) -> str:
    by = {(cost.operation, cost.memory_megabytes): cost for cost in costs}
    return table_of(
        ["operation", "billed ms", *(f"$ a million at {memory} MB" for memory in MEMORY_MEGABYTES)],
        [
            (
                operation,
                by[operation, MEMORY_MEGABYTES[0]].billed_ms,
                *(by[operation, memory].dollars_per_million for memory in MEMORY_MEGABYTES),
            )
            for operation in dict.fromkeys(cost.operation for cost in costs)
        ],
    )
