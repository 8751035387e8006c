"""Samples and what is said of them."""

import statistics
from collections.abc import Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Of one sample, in the sample's unit."""

    count: int
    median: float
    p99: float
    least: float
    most: float


def spread_of(values: Sequence[float]) -> Spread | None:
    """None of an empty sample. p99 is the nearest-rank percentile: a value that was measured."""
    if not values:
        return None
    ordered = sorted(values)
    return Spread(
        count=len(ordered),
        median=round(statistics.median(ordered), 3),
        p99=round(ordered[max(0, -(-len(ordered) * 99 // 100) - 1)], 3),
        least=round(ordered[0], 3),
        most=round(ordered[-1], 3),
    )


def table_of(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they need to be; the first to the left, the others to the right."""
    cells = [list(headings), *([_shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in cells)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _shown(cell: object) -> str:
    match cell:
        case None:
            return "-"
        case float():
            return f"{cell:.2f}" if abs(cell) < 100 else f"{cell:.0f}"
        case _:
            return str(cell)
