"""What the benchmark says of what it measured; the measuring itself is `make bench`."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest

from bench import cost, plot, targets
from bench.__main__ import RESULTS, Results
from bench.clients import Operation
from bench.document import DOCUMENT, rewritten
from bench.figures import Spread, spread_of, table_of
from bench.operations import Measured
from bench.processor_share import processor_share
from bench.under_load import Load


@pytest.fixture(scope="module")
def kept() -> Results:
    """The results in the repository."""
    return msgspec.json.decode(RESULTS.read_bytes(), type=Results)


def spread(milliseconds: float) -> Spread:
    found = spread_of([milliseconds])
    assert found is not None
    return found


def measured(operation: Operation, *, own: float, cpu: float, clients: int = 1, far: float = 0) -> Measured:
    return Measured(
        operation=operation,
        litellm_delay_ms=0,
        database_delay_ms=far,
        clients=clients,
        wall=spread(own + 1),
        own=spread(own),
        litellm=spread(0),
        derivation=spread(0),
        cpu_ms=cpu,
        requests_per_second=100,
        failures=0,
    )


def load(
    *,
    statuses: dict[str, int],
    lost: int = 0,
    connections: int = 3,
    slower: int = 0,
    lists: float = 3,
    creates: float = 40,
) -> Load:
    return Load(
        clients=8,
        litellm_slower_seconds=slower,
        requests=10,
        requests_per_second=1,
        only_lists=spread(3),
        waits={"list": spread(lists), "create": spread(creates)},
        statuses=statuses,
        workers={"ListApiKeys": 3},
        all_workers=3,
        connections=connections,
        pending=0,
        lost=lost,
    )


class TestFigures:
    def test_nothing_was_measured(self):
        assert spread_of([]) is None

    def test_the_percentile_is_one_of_the_values(self):
        found = spread_of([float(n) for n in range(200, 0, -1)])

        assert found == Spread(count=200, median=100.5, p99=198.0, least=1.0, most=200.0)

    def test_one_value_is_all_of_them(self):
        assert spread_of([7.0]) == Spread(count=1, median=7.0, p99=7.0, least=7.0, most=7.0)

    def test_columns_are_as_wide_as_what_is_in_them(self):
        table = table_of(["name", "ms"], [("a longer name", 1.5), ("b", None), ("c", 1234.5)])

        assert table.splitlines() == [
            "name             ms",
            "-------------  ----",
            "a longer name  1.50",
            "b                 -",
            "c              1234",
        ]


class TestTargets:
    def test_only_one_client_with_nothing_far_away_counts(self):
        found = targets.of_operations(
            [
                *(measured(operation, own=1, cpu=0.5) for operation in ("create", "list", "delete")),
                *(measured(operation, own=99, cpu=99, clients=8) for operation in ("create", "list", "delete")),
                *(measured(operation, own=99, cpu=99, far=1) for operation in ("create", "list", "delete")),
            ]
        )

        assert all(target.is_met for target in found)

    def test_what_takes_longer_is_not_met(self):
        found = {
            target.name: target.is_met
            for target in targets.of_operations(
                [
                    measured("create", own=3.1, cpu=3.0),
                    measured("list", own=1.5, cpu=2.1),
                    measured("delete", own=3.0, cpu=0.9),
                ]
            )
        }

        assert [name for name, is_met in found.items() if not is_met] == [
            "create: own time, p50 ms",
            "list: processor time, half of LiteMaaS's, ms",
        ]

    @pytest.mark.parametrize(
        ("found", "missed"),
        [
            (load(statuses={"list 200": 7, "create 201": 2, "delete 202": 1}), []),
            (load(statuses={"list 200": 9, "create 503": 1}), ["8 clients: requests that failed"]),
            (load(statuses={"list 200": 9, "list 0": 1}), ["8 clients: requests that failed"]),
            (load(statuses={"list 200": 1}, lost=1), ["8 clients: keys and changes lost"]),
            (load(statuses={"list 200": 1}, connections=4), ["8 clients: connections, one for each worker"]),
            (load(statuses={"list 200": 9}, lists=60), []),
            (load(statuses={"list 200": 9}, slower=5, lists=6, creates=13_000), []),
            (
                load(statuses={"list 200": 9}, slower=5, lists=6.1),
                ["8 clients, LiteLLM + 5 s: lists beside those when all only list, p50, factor"],
            ),
            (
                load(statuses={"list 200": 9, "create 503": 1}, slower=5, creates=13_100),
                [
                    "8 clients, LiteLLM + 5 s: requests that failed",
                    "8 clients, LiteLLM + 5 s: creates answered, the longest, s",
                ],
            ),
            # It cannot answer in time.
            (load(statuses={"list 200": 9, "create 503": 1}, slower=30), []),
        ],
    )
    def test_load(self, found: Load, missed: list[str]):
        assert [target.name for target in targets.of_load([found]) if not target.is_met] == missed


class TestCost:
    def test_a_list_at_512_megabytes(self):
        [found] = [one for one in cost.costs_of([measured("list", own=1.2, cpu=2.0)]) if one.memory_megabytes == 512]

        assert found.billed_ms == 2
        # The gateway 1.00, the request 0.20, its log 1.00, and 2 ms of half a GB.
        assert found.dollars_per_million == pytest.approx(2.20 + 0.002 * 0.5 * 13.3334, abs=0.006)

    def test_a_create_also_pays_for_its_key_and_waits_for_litellm(self):
        costs = {
            (one.operation, one.memory_megabytes): one
            for one in cost.costs_of([measured("list", own=1, cpu=1), measured("create", own=1, cpu=1)])
        }

        difference = costs["create", 1769].dollars_per_million - costs["list", 1769].dollars_per_million
        assert costs["create", 1769].billed_ms - costs["list", 1769].billed_ms == 118
        assert difference == pytest.approx(3 + 0.118 * 1769 / 1024 * 13.3334, abs=0.011)


class TestProcessorShare:
    def test_a_function_of_little_memory_is_made_to_wait(self, tmp_path: Path):
        busy = "import time\nwhile time.process_time() < 0.2: pass"
        with processor_share(tmp_path, interpreter=Path(sys.executable)) as share:
            if share is None:
                pytest.skip("a process cannot be limited to a share of a processor here")
            share.limit_to(512)

            subprocess.run([str(share.interpreter), "-c", busy], check=True)

            waits = dict(line.split() for line in (share.group / "cpu.stat").read_text().splitlines())
            assert int(waits["nr_throttled"]) > 0


class TestWhatIsKept:
    def test_it_is_of_a_whole_run(self, kept: Results):
        assert kept.measured
        assert kept.work
        assert kept.cold
        assert kept.alone
        assert kept.parts
        assert kept.sized
        assert kept.load
        assert kept.keys is not None
        assert (kept.keys.keys, kept.keys.audit_records) == (1_000_000, 10_000_000)

    def test_it_has_a_picture(self, kept: Results, tmp_path: Path):
        assert kept.keys is not None
        path = tmp_path / "results.svg"

        plot.draw(path, measured=kept.measured, cold=kept.cold, keys=kept.keys)

        written = {text.text for text in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")}
        assert {"Processor time of one request, ms", "LiteMaaS", "ListApiKeys"} <= written
        assert plot.shown(kept.cold[0].first_answer.median) in written

    def test_it_is_in_the_document(self, kept: Results):
        text = DOCUMENT.read_text()

        assert text == rewritten(text, costs=kept.costs, sized=kept.sized)
