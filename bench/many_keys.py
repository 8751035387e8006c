"""What a page costs when there are a million keys, beside the same page of somebody with ten."""

import http.client
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import psycopg

from bench.clients import KEYS, Plan
from bench.crowd import ADMINISTRATOR, FEW, MANY, fill, insert_users
from bench.figures import Spread, spread_of, table_of
from bench.stage import CHECKOUT, Stage, running_stage
from local.postgres import PostgresServer

# Of each page; fewer of one that takes long, and no fewer than the least.
_REPETITIONS = 100
_LEAST_REPETITIONS = 5
_SECONDS_OF_ONE = 3.0
# A server with some memory, and tables that are filled without a log of what is in them.
_SERVER = {
    "shared_buffers": "2GB",
    "maintenance_work_mem": "1GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
}
_AUDIT = "/api/v1/admin/audit"
_ALL = f"{KEYS}/admin/all?limit=10"
_EARLY = 30


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """`own`: milliseconds inside the function."""

    name: str
    own: Spread


class Reconciled(msgspec.Struct, frozen=True, kw_only=True):
    keys: int
    runs: int
    seconds: float
    peak_megabytes: float


class Found(msgspec.Struct, frozen=True, kw_only=True):
    keys: int
    audit_records: int
    pages: list[Page]
    reconciled: Reconciled


class _Reader:
    """Somebody who reads; each answer has to be a 200."""

    def __init__(self, stage: Stage, subject: str) -> None:
        target = urlsplit(stage.stack.url)
        self._stage = stage
        self._token = stage.stack.token(subject, ttl_seconds=24 * 3600)
        self._connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)

    def get(self, path: str) -> Any:
        # The gateway ends a connection that nobody uses for some seconds.
        self._connection.close()
        self._connection.request("GET", path, headers={"authorization": f"Bearer {self._token}"})
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path} was answered {response.status}: {content[:200]!r}")
        return msgspec.json.decode(content)

    def timed(self, name: str, path: str) -> Page:
        self.get(path)
        ends_at = time.monotonic() + _SECONDS_OF_ONE
        count = 0
        with self._stage.listening() as told:
            while count < _LEAST_REPETITIONS or (count < _REPETITIONS and time.monotonic() < ends_at):
                self.get(path)
                count += 1
        return _page(name, [one.own for one in told])

    def to_the_end(self, name: str, path: str) -> Page:
        """Page after page by cursor."""
        with self._stage.listening() as told:
            cursor: str | None = self.get(path)["pagination"]["nextCursor"]
            while cursor is not None:
                cursor = self.get(f"{path}&cursor={quote(cursor)}")["pagination"].get("nextCursor")
        return _page(name, [one.own for one in told[1:]])

    def after(self, path: str, *, pages: int) -> str:
        """The path of the page that follows so many."""
        cursor = self.get(path)["pagination"]["nextCursor"]
        for _ in range(pages):
            cursor = self.get(f"{path}&cursor={quote(cursor)}")["pagination"]["nextCursor"]
        return f"{path}&cursor={quote(cursor)}"


def measure(directory: Path, *, keys: int, audit_records: int, report: Callable[[str], None]) -> Found:
    with (
        PostgresServer(settings=_SERVER) as server,
        running_stage(directory, database=server) as stage,
    ):
        insert_users(stage)
        few, many, administrator = (_Reader(stage, subject) for subject in (FEW, MANY, ADMINISTRATOR))
        report("reading where there is little")
        stage.run(
            Plan(url=stage.stack.url, callers=stage.people(1, name="early"), mix={"create": 1}, requests_each=_EARLY)
        )
        pages = [
            administrator.timed("all keys, 30 keys, by cursor", administrator.after(_ALL, pages=1)),
            administrator.timed("audit, 30 records, by cursor", administrator.after(f"{_AUDIT}?limit=10", pages=1)),
        ]
        fill(stage, keys=keys, audit_records=audit_records, report=report)
        report("reading")
        pages += [
            few.timed("list, 10 keys", f"{KEYS}?limit=10"),
            many.timed("list, first page, counted", f"{KEYS}?limit=10"),
            many.timed("list, by cursor", many.after(f"{KEYS}?limit=10", pages=3)),
            many.to_the_end("list, by cursor to the end", f"{KEYS}?limit=100"),
            many.timed("list, isActive=true, by cursor", many.after(f"{KEYS}?limit=10&isActive=true", pages=3)),
            many.timed("list, one model, by cursor", many.after(f"{KEYS}?limit=10&modelIds=gpt-4o", pages=3)),
            few.timed("stats, 10 keys", f"{KEYS}/stats"),
            many.timed("stats", f"{KEYS}/stats"),
            administrator.timed("all keys, first page, counted", _ALL),
            administrator.timed("all keys, one model, first page, counted", f"{_ALL}&modelIds=gpt-4o"),
            administrator.timed("all keys, by cursor", administrator.after(_ALL, pages=3)),
            administrator.timed("audit, newest", f"{_AUDIT}?limit=10"),
            administrator.timed("audit, by cursor", administrator.after(f"{_AUDIT}?limit=10", pages=3)),
            administrator.timed("audit, one action", f"{_AUDIT}?limit=10&action=LOGIN"),
            administrator.timed("audit, failures, of which there are none", f"{_AUDIT}?limit=10&success=false"),
            administrator.timed("audit, search, one record in 50,000", f"{_AUDIT}?limit=10&search=team%2012345"),
            administrator.timed("audit, search, no record", f"{_AUDIT}?limit=10&search=nobody"),
        ]
        return Found(
            keys=keys,
            audit_records=audit_records,
            pages=pages,
            reconciled=_reconciled(stage, directory, report=report),
        )


def _reconciled(stage: Stage, directory: Path, *, report: Callable[[str], None]) -> Reconciled:
    """A whole pass in as many runs as it takes."""
    keys = directory / "keys.jsonl"
    report("telling LiteLLM of the keys")
    # COPY's text format would double a backslash; nothing in these lines holds one.
    with (
        keys.open("wb") as file,
        psycopg.connect(stage.stack.admin_dsn) as connection,
        connection.cursor().copy(
            """
            COPY (
                SELECT json_build_object(
                    'token', t.hash, 'key_alias', t.alias, 'models', json_build_array(m.model_id), 'max_budget', 10,
                    'tpm_limit', 1000, 'metadata', json_build_object(
                        'keyservice', json_build_object('mark', i.mark), 'user', json_build_object()
                    )
                )
                FROM api_key_tokens AS t
                JOIN api_key_models AS m ON m.api_key_id = t.api_key_id
                CROSS JOIN keyservice_installation AS i
                WHERE t.state = 'live'
                ORDER BY t.hash COLLATE "C"
            ) TO STDOUT
            """
        ) as lines,
    ):
        for block in lines:
            file.write(block)
    with (
        _litellm_of(keys) as url,
        running_stage(
            directory / "reconcile",
            parameters={"DatabaseName": stage.stack.database_name},
            beside=stage,
            litellm_url=url,
            workers_per_function=1,
        ) as other,
    ):
        # The database says where its keys were made; this LiteLLM speaks for that one.
        stage.rows("UPDATE keyservice_installation SET litellm_url = %(url)s", url=url)
        runs, started = 0, time.monotonic()
        while True:
            runs += 1
            said = other.stack.invoke("Reconcile")
            report(f"reconcile, run {runs}: {said['keysCompared']:,} keys compared")
            if said["isComplete"] or said["interruption"] != "no time left":
                break
        seconds = time.monotonic() - started
        if not said["isComplete"] or said["findings"]:
            raise RuntimeError(
                f"reconcile ended with {said['interruption']}, brake {said['brake']}, {said['findings']}"
            )
        return Reconciled(
            keys=said["keysCompared"],
            runs=runs,
            seconds=round(seconds, 1),
            peak_megabytes=other.peak_megabytes("Reconcile"),
        )


@contextmanager
def _litellm_of(keys: Path) -> Generator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.litellm_pages", str(keys)], stdout=subprocess.PIPE, text=True, cwd=CHECKOUT
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _page(name: str, values: Sequence[float]) -> Page:
    own = spread_of(values)
    if own is None:
        raise RuntimeError(f"{name}: nothing was measured")
    return Page(name=name, own=own)


def show(found: Found) -> str:
    pages = table_of(
        [f"{found.keys:,} keys, {found.audit_records:,} audit records", "p50 ms", "p99 ms", "min-max ms", "requests"],
        [
            (page.name, page.own.median, page.own.p99, f"{page.own.least:.1f}-{page.own.most:.1f}", page.own.count)
            for page in found.pages
        ],
    )
    done = found.reconciled
    return (
        f"{pages}\n\nreconcile: {done.keys:,} keys in {done.seconds:.0f} s and {done.runs} runs,"
        f" at most {done.peak_megabytes:.0f} MB"
    )
