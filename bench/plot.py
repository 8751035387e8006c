"""The results as a picture: four panels of bars, as SVG."""
# pyright: reportUnknownMemberType=false
# matplotlib leaves the keywords that its functions hand on without types.

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.cold_start import ColdStart
from bench.many_keys import Found
from bench.operations import Measured, by_one_client
from bench.reference import COLD_START_MS, LITEMAAS, LITEMAAS_START_MS

_COLOURS = ("#1b6ac9", "#86b6ec", "#9a9a9a")
# Text stays text, which readers of any system have a font for, and the same results give the same file.
_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9}


class Row(NamedTuple):
    """Bars that belong together, one for each series of its panel; None where there is none."""

    label: str
    values: Sequence[float | None]


class Panel(NamedTuple):
    title: str
    series: Sequence[str]
    rows: Sequence[Row]


def draw(path: Path, *, measured: Sequence[Measured], cold: Sequence[ColdStart], keys: Found) -> None:
    panels = [_processor(measured), _waits(measured), _starts(cold), _pages(keys)]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10.5, 7.5), layout="constrained")
        for place, panel in enumerate(panels, start=1):
            _fill(figure.add_subplot(2, 2, place), panel)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _processor(measured: Sequence[Measured]) -> Panel:
    return Panel(
        title="Processor time of one request, ms",
        series=("this service", "LiteMaaS"),
        rows=[
            Row(one.operation, (one.cpu_ms, LITEMAAS[one.operation].cpu_ms if one.operation in LITEMAAS else None))
            for one in by_one_client(measured).values()
        ],
    )


def _waits(measured: Sequence[Measured]) -> Panel:
    found = {
        (one.operation, one.clients): one for one in measured if one.litellm_delay_ms == 0 == one.database_delay_ms
    }
    rows: list[Row] = []
    for operation, theirs in LITEMAAS.items():
        for clients, their_median in ((1, theirs.one_client_ms), (8, theirs.eight_clients_ms)):
            ours = found[operation, clients]
            rows.append(Row(f"{operation}, {clients} at once", (ours.own.median, ours.wall.median, their_median)))
    return Panel(
        title="What a request takes, p50 in ms",
        series=("in the function", "at the client of the local gateway", "at a client of LiteMaaS"),
        rows=rows,
    )


def _starts(cold: Sequence[ColdStart]) -> Panel:
    rows = [Row(one.function, (one.first_answer.median, COLD_START_MS.get(one.function), None)) for one in cold]
    return Panel(
        title="From no process to the first answer, ms",
        series=("this service", "at most", "LiteMaaS"),
        rows=[*rows, Row("LiteMaaS", (None, None, LITEMAAS_START_MS))],
    )


def _pages(keys: Found) -> Panel:
    shown = (
        "list, 10 keys",
        "list, by cursor",
        "list, one model, by cursor",
        "all keys, by cursor",
        "audit, by cursor",
    )
    return Panel(
        title=f"A page among {keys.keys:,} keys, ms",
        series=("p50", "p99"),
        rows=[Row(page.name, (page.own.median, page.own.p99)) for page in keys.pages if page.name in shown],
    )


def _fill(axes: Axes, panel: Panel) -> None:
    thickness = 0.8 / len(panel.series)
    for number, (name, colour) in enumerate(zip(panel.series, _COLOURS, strict=False)):
        bars = [(row, value) for row, one in enumerate(panel.rows) if (value := one.values[number]) is not None]
        drawn = axes.barh(
            [row - 0.4 + thickness * (number + 0.5) for row, _ in bars],
            [value for _, value in bars],
            height=thickness,
            color=colour,
            label=name,
        )
        axes.bar_label(drawn, labels=[shown(value) for _, value in bars], padding=3, fontsize=7)
    axes.set_yticks(range(len(panel.rows)), labels=[row.label for row in panel.rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
