"""Each operation by itself: wall time, the function's own time, processor time, and how often it waits for whom."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench.clients import Answer, Caller, Operation, Plan
from bench.figures import Spread, spread_of, table_of
from bench.stage import FUNCTIONS, Stage, running_stage
from tests.support.http_faults import FaultProxy
from tests.support.postgres_faults import PostgresProxy

LITELLM_DELAYS = (0.0, 0.020)
CLIENTS = (1, 8)
# So many that each worker has had one: the first asks for secrets, connects and has its statements prepared.
_WARM_UP_REQUESTS = 15
# Whoever lists has the first keys only, and no key that is deleted was rotated: it would have two secrets to end.
ORDER: Sequence[Operation] = ("list", "get", "create", "update", "delete", "rotate")
# As many as LiteMaaS's list was measured with.
_LISTED_KEYS = 10


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds. `own` is inside the function without LiteLLM, KMS and Secrets Manager."""

    operation: Operation
    litellm_delay_ms: float
    database_delay_ms: float = 0
    clients: int
    wall: Spread
    own: Spread
    litellm: Spread
    derivation: Spread
    cpu_ms: float
    requests_per_second: float
    failures: int


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What one request waits for: counted, so the same on every machine."""

    operation: Operation
    round_trips: int
    litellm_calls: int


def by_one_client(measured: Sequence[Measured]) -> dict[Operation, Measured]:
    """Of one client, with nothing far away."""
    return {
        one.operation: one
        for one in measured
        if one.clients == 1 and one.litellm_delay_ms == 0 and one.database_delay_ms == 0
    }


class _BehindProxies(NamedTuple):
    stage: Stage
    database: PostgresProxy
    litellm: FaultProxy


@contextmanager
def _behind_proxies(beside: Stage, directory: Path, *, database_name: str) -> Generator[_BehindProxies]:
    server = beside.stack.database
    with (
        PostgresProxy(server.socket_directory / f".s.PGSQL.{server.port}") as database,
        FaultProxy(beside.stack.litellm_url) as litellm,
        running_stage(
            directory,
            parameters={
                "DatabaseHost": str(database.socket_directory),
                "DatabasePort": str(database.port),
                "DatabaseName": database_name,
            },
            beside=beside,
            litellm_url=litellm.url,
            workers_per_function=1,
        ) as stage,
    ):
        yield _BehindProxies(stage, database, litellm)


def count_work(beside: Stage, directory: Path, operations: Sequence[Operation]) -> list[Work]:
    """One request of each through counting proxies, after one that opened the connections."""
    with _behind_proxies(beside, directory, database_name="counted") as (stage, database, litellm):
        [caller] = stage.people(1, name="counted")
        found: list[Work] = []
        for operation in operations:
            key_ids: list[str] = []
            if operation != "create":
                key_ids = _made(stage.run(_plan(stage, [caller], "create", requests_each=2)))
            asking = msgspec.structs.replace(caller, key_ids=key_ids)
            if operation == "delete":
                asking = msgspec.structs.replace(asking, key_ids=key_ids[:1])
            _require_success(stage.run(_plan(stage, [asking], operation, requests_each=1)))
            database.reset_counts()
            litellm.forget_calls()
            asking = msgspec.structs.replace(asking, key_ids=key_ids[1:])
            _require_success(stage.run(_plan(stage, [asking], operation, requests_each=1)))
            found.append(Work(operation=operation, round_trips=len(database.trips), litellm_calls=len(litellm.calls)))
        return found


def measure_far_from_the_database(
    beside: Stage,
    directory: Path,
    *,
    database_delay_seconds: float,
    requests: int,
    operations: Sequence[Operation],
    report: Callable[[str], None],
) -> list[Measured]:
    """By one client, where every round trip to PostgreSQL takes so much longer, as one to another machine does."""
    with _behind_proxies(beside, directory, database_name="far") as (stage, database, _):
        database.inject("delay", seconds=database_delay_seconds, times=0)
        return measure(
            stage,
            litellm_delay_seconds=0,
            database_delay_seconds=database_delay_seconds,
            clients=1,
            requests=requests,
            operations=operations,
            report=report,
        )


def measure(
    stage: Stage,
    *,
    litellm_delay_seconds: float,
    database_delay_seconds: float = 0,
    clients: int,
    requests: int,
    operations: Sequence[Operation],
    report: Callable[[str], None],
) -> list[Measured]:
    """`requests` of each operation over so many clients, each with keys of their own, after a few of others that warm up;
    a quarter of them where LiteLLM takes its time."""
    others = _with_keys_to_list(stage, stage.people(clients, name=f"first-{clients}"))
    for operation in operations:
        # As many at once as will be, so that the workers are there before the clock runs.
        others = _with_keys_for(stage, others, operation, requests_each=_WARM_UP_REQUESTS)
        others = with_keys(others, stage.run(_plan(stage, others, operation, requests_each=_WARM_UP_REQUESTS)))
    callers = _with_keys_to_list(stage, stage.people(clients, name=f"of-{clients}-{litellm_delay_seconds}"))
    each = max(1, requests // clients // (4 if litellm_delay_seconds else 1))
    found: list[Measured] = []
    for operation in operations:
        callers = _with_keys_for(stage, callers, operation, requests_each=each)
        report(
            f"{operation}, LiteLLM + {litellm_delay_seconds * 1000:.0f} ms,"
            f" PostgreSQL + {database_delay_seconds * 1000:.0f} ms, clients: {clients}"
        )
        function = FUNCTIONS[operation]
        cpu_before = stage.cpu_seconds([function])
        with stage.listening() as told:
            answers = stage.run(_plan(stage, callers, operation, requests_each=each))
        cpu = stage.cpu_seconds([function]) - cpu_before
        callers = with_keys(callers, answers)
        milliseconds = [answer.milliseconds for answer in answers]
        # What the callers waited, together, is what they could not ask meanwhile.
        seconds = sum(milliseconds) / 1000 / clients
        found.append(
            Measured(
                operation=operation,
                litellm_delay_ms=litellm_delay_seconds * 1000,
                database_delay_ms=database_delay_seconds * 1000,
                clients=clients,
                wall=_spread(milliseconds),
                own=_spread([one.own for one in told]),
                litellm=_spread([one.litellm for one in told]),
                derivation=_spread([one.derivation for one in told]),
                cpu_ms=round(cpu * 1000 / len(answers), 3),
                requests_per_second=round(len(answers) / seconds, 1),
                failures=sum(not 200 <= answer.status < 300 for answer in answers),
            )
        )
    return found


def show(measured: Sequence[Measured], work: Sequence[Work]) -> str:
    counts = {one.operation: one for one in work}
    return table_of(
        [
            *("operation", "LiteLLM +ms", "PostgreSQL +ms", "clients", "p50 ms", "p99 ms", "min-max ms", "requests/s"),
            *("own p50 ms", "own p99 ms", "CPU ms", "round trips", "LiteLLM calls", "failed"),
        ],
        [
            (
                *(one.operation, f"{one.litellm_delay_ms:.0f}", f"{one.database_delay_ms:.0f}", one.clients),
                *(one.wall.median, one.wall.p99),
                *(f"{one.wall.least:.1f}-{one.wall.most:.1f}", one.requests_per_second),
                *(one.own.median, one.own.p99, one.cpu_ms),
                *(counts[one.operation].round_trips, counts[one.operation].litellm_calls, one.failures),
            )
            for one in measured
        ],
    )


def _plan(stage: Stage, callers: Sequence[Caller], operation: Operation, *, requests_each: int) -> Plan:
    return Plan(url=stage.stack.url, callers=list(callers), mix={operation: 1}, requests_each=requests_each)


def _with_keys_to_list(stage: Stage, callers: Sequence[Caller]) -> list[Caller]:
    return with_keys(callers, stage.run(_plan(stage, callers, "create", requests_each=_LISTED_KEYS)))


def _with_keys_for(
    stage: Stage, callers: Sequence[Caller], operation: Operation, *, requests_each: int
) -> Sequence[Caller]:
    """Each request that changes a key finds one that no other has changed in this way."""
    missing = requests_each - min(len(caller.key_ids) for caller in callers)
    if operation not in ("update", "delete", "rotate") or missing <= 0:
        return callers
    return with_keys(callers, stage.run(_plan(stage, callers, "create", requests_each=missing)))


def with_keys(callers: Sequence[Caller], answers: Sequence[Answer]) -> list[Caller]:
    """With the keys that they have after it. The answers stand in the callers' order, as many for each."""
    each = len(answers) // len(callers)
    return [
        msgspec.structs.replace(caller, key_ids=_kept(caller, answers[number * each : (number + 1) * each]))
        for number, caller in enumerate(callers)
    ]


def _kept(caller: Caller, answers: Sequence[Answer]) -> list[str]:
    deleted = sum(answer.operation == "delete" for answer in answers)
    return caller.key_ids[deleted:] + _made(answers)


def _made(answers: Sequence[Answer]) -> list[str]:
    return [answer.key_id for answer in answers if answer.key_id is not None]


def _require_success(answers: Sequence[Answer]) -> None:
    for answer in answers:
        if not 200 <= answer.status < 300:
            raise RuntimeError(f"{answer.operation} was answered {answer.status}")


def _spread(values: Sequence[float]) -> Spread:
    found = spread_of(values)
    if found is None:
        raise RuntimeError("nothing was measured")
    return found
