"""The sums in docs/scaling.md are the sums of its own quantities and prices."""

import re
from decimal import Decimal

import pytest

from tests.architecture.translation import ROOT

TEXT = (ROOT / "docs/scaling.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows under a heading, without the table's own head."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("*") for cell in row] for row in rows[2:]]


def number(cell: str) -> Decimal:
    return Decimal(cell.replace(",", ""))


def cents(value: Decimal) -> Decimal:
    return value.quantize(Decimal("0.01"))


@pytest.mark.parametrize("heading", ["When nobody calls", "For each million requests"])
def test_each_line_is_quantity_times_price_and_the_sum_is_theirs(heading: str) -> None:
    *lines, total = table(heading)

    assert [
        name for name, quantity, price, told in lines if cents(number(quantity) * number(price)) != number(told)
    ] == []
    assert sum(number(line[3]) for line in lines) == number(total[3])


def test_a_month_is_what_the_formula_says() -> None:
    formula = re.search(
        r"cost = ([\d.]+) \+ ([\d.]+) . millions of requests \+ ([\d.]+) . 2 . \(ACU on average . 0.5\)", TEXT
    )
    assert formula is not None
    idle, per_million, acu = (Decimal(part) for part in formula.groups())
    rows = table("A month")

    assert idle == number(table("When nobody calls")[-1][3])
    assert per_million == number(table("For each million requests")[-1][3])
    assert [
        cents(idle + per_million * number(requests) / 1_000_000 + acu * 2 * (number(average) - Decimal("0.5")))
        for requests, _, average, _, _ in rows
    ] == [number(told) for _, _, _, told, _ in rows]
    assert [row[0] for row in rows] == ["1,000", "1,000,000", "100,000,000"]
