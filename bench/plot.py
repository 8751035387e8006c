"""The results as a picture: four panels of bars, as SVG."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from bench.cold_start import ColdStart
from bench.many_keys import Found
from bench.operations import Measured
from bench.reference import COLD_START_MS, LITEMAAS

_WIDTH, _PANEL_HEIGHT = 960, 250
_LABELS, _BARS, _ROW = 128, 250, 16
_COLOURS = ("#1b6ac9", "#86b6ec", "#9a9a9a", "#d0d0d0")
_START_OF_LITEMAAS_MS = 1300.0


class Row(NamedTuple):
    """Bars that belong together, one for each series of its panel; None where there is none."""

    label: str
    values: Sequence[float | None]


class Panel(NamedTuple):
    title: str
    series: Sequence[str]
    rows: Sequence[Row]


def drawn(measured: Sequence[Measured], cold: Sequence[ColdStart], keys: Found) -> str:
    panels = [_processor(measured), _waits(measured), _starts(cold), _pages(keys)]
    height = 2 * _PANEL_HEIGHT
    parts = [_panel(panel, x=_WIDTH // 2 * (n % 2), y=_PANEL_HEIGHT * (n // 2)) for n, panel in enumerate(panels)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _processor(measured: Sequence[Measured]) -> Panel:
    alone = [one for one in measured if one.clients == 1 and one.litellm_delay_ms == 0]
    return Panel(
        title="Processor time of one request, ms",
        series=("this service", "LiteMaaS"),
        rows=[
            Row(one.operation, (one.cpu_ms, LITEMAAS[one.operation].cpu_ms if one.operation in LITEMAAS else None))
            for one in alone
        ],
    )


def _waits(measured: Sequence[Measured]) -> Panel:
    waits = {(one.operation, one.clients): one.wall for one in measured if one.litellm_delay_ms == 0}
    rows: list[Row] = []
    for operation, theirs in LITEMAAS.items():
        for clients, their_median in ((1, theirs.one_client_ms), (8, theirs.eight_clients_ms)):
            ours = waits[operation, clients]
            rows.append(Row(f"{operation}, {clients} at once", (ours.median, ours.p99, their_median)))
    return Panel(
        title="What a client waits for, ms (through the local gateway)",
        series=("this service, p50", "p99", "LiteMaaS, p50"),
        rows=rows,
    )


def _starts(cold: Sequence[ColdStart]) -> Panel:
    rows = [Row(one.function, (one.first_answer.median, COLD_START_MS.get(one.function))) for one in cold]
    return Panel(
        title="From no process to the first answer, ms",
        series=("this service", "target"),
        rows=[*rows, Row("LiteMaaS", (_START_OF_LITEMAAS_MS, None))],
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
        title=f"A page among {keys.keys:,} keys and {keys.audit_records:,} audit records, ms",
        series=("p50", "p99"),
        rows=[Row(page.name, (page.own.median, page.own.p99)) for page in keys.pages if page.name in shown],
    )


def _panel(panel: Panel, *, x: int, y: int) -> str:
    longest = max(value for row in panel.rows for value in row.values if value is not None)
    thickness = min(_ROW, (_PANEL_HEIGHT - 70) // (len(panel.rows) * len(panel.series) + len(panel.rows)))
    parts = [f'<text x="16" y="24" font-size="14" font-weight="bold" fill="#222">{escape(panel.title)}</text>']
    at = 16
    for name, colour in zip(panel.series, _COLOURS, strict=False):
        parts.append(f'<rect x="{at}" y="34" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{at + 14}" y="43" fill="#555">{escape(name)}</text>')
        at += 30 + 7 * len(name)
    top = 56
    for row in panel.rows:
        middle = top + thickness * len(panel.series) / 2 + 4
        parts.append(
            f'<text x="{_LABELS + 24}" y="{middle:.0f}" text-anchor="end" fill="#222">{escape(row.label)}</text>'
        )
        for value, colour in zip(row.values, _COLOURS, strict=False):
            if value is not None:
                length = max(1.0, value / longest * _BARS)
                parts.append(
                    f'<rect x="{_LABELS + 32}" y="{top}" width="{length:.1f}" height="{thickness - 1}" fill="{colour}"/>'
                    f'<text x="{_LABELS + 36 + length:.1f}" y="{top + thickness - 2}" font-size="10" fill="#555">'
                    f"{value:,.3g}</text>"
                )
            top += thickness
        top += thickness
    return f'<g transform="translate({x} {y})">' + "\n".join(parts) + "</g>"
