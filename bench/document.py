"""The tables of docs/scaling.md that are made of results."""

import re
from collections.abc import Sequence
from pathlib import Path

from bench.cost import Cost
from bench.sizes import MEMORY_MEGABYTES, Sized

DOCUMENT = Path(__file__).parent.parent / "docs/scaling.md"


def rewritten(text: str, *, costs: Sequence[Cost], sized: Sequence[Sized]) -> str:
    """The same with the tables between their marks made anew."""
    for name, table in (("costs", _costs(costs)), ("memory", _memory(sized))):
        place = re.compile(rf"(<!-- make bench: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = place.subn(rf"\1{table}\2", text)
        if count != 1:
            raise ValueError(f"{DOCUMENT.name} has {count} places for {name}")
    return text


def _costs(costs: Sequence[Cost]) -> str:
    by = {(one.operation, one.memory_megabytes): one for one in costs}
    rows = [
        [
            operation,
            str(by[operation, MEMORY_MEGABYTES[0]].billed_ms),
            *(f"{by[operation, memory].dollars_per_million:.2f}" for memory in MEMORY_MEGABYTES),
        ]
        for operation in dict.fromkeys(one.operation for one in costs)
    ]
    return _table(["operation", "billed, ms", *(f"{memory:,} MB" for memory in MEMORY_MEGABYTES)], rows)


def _memory(sized: Sequence[Sized]) -> str:
    by = {(one.operation, one.memory_megabytes): one for one in sized}
    operations = list(dict.fromkeys(one.operation for one in sized))
    rows = [
        [
            f"{memory:,} MB",
            *(f"{by[operation, memory].first_answer.median:.0f}" for operation in operations),
            *(f"{by[operation, memory].request.median:.1f}" for operation in operations),
        ]
        for memory in MEMORY_MEGABYTES
    ]
    return _table(
        ["memory", *(f"{one}, cold" for one in operations), *(f"{one}, warm" for one in operations)],
        rows,
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace(" --- ", "---")
