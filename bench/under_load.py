"""Many callers at once for a minute, and the same while LiteLLM is slow: who waits, who fails, what is lost."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
import msgspec

from bench.clients import Answer, Operation, Plan
from bench.figures import Spread, spread_of, table_of
from bench.operations import with_keys
from bench.stage import FUNCTIONS, Stage, running_stage
from tests.support.http_faults import FaultProxy

CLIENTS = (8, 32, 128)
MIX: dict[Operation, int] = {"list": 70, "create": 20, "delete": 10}
# As many environments of a function as Lambda would start for so many callers would not fit on a small machine; requests
# wait for one of these instead, which is in the figures.
WORKERS = 8
# Within what a request may take of LiteLLM's time, and far beyond.
SLOWER_SECONDS = (5, 30)
SLOW_CLIENTS = 8
_KEYS_BEFORE = 3
_LISTS_BEFORE = 10


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """`waits`: milliseconds by operation; `only_lists`: of lists by the same callers before. `statuses` over all;
    `connections`: the most PostgreSQL had of the functions. `workers`: processes there are then, as many as Lambda would
    start, up to the limit here. `pending`: operations in the journal. `lost`, after everything has been answered: keys of one
    system that the other does not know, and changes that were not confirmed to their callers and nobody is going to finish."""

    clients: int
    litellm_slower_seconds: int
    requests: int
    requests_per_second: float
    only_lists: Spread
    waits: dict[str, Spread]
    statuses: dict[str, int]
    workers: dict[str, int]
    all_workers: int
    connections: int
    pending: int
    lost: int


def measure(directory: Path, *, seconds: float, report: Callable[[str], None]) -> tuple[list[Load], dict[str, float]]:
    """And what a process of each function has needed at most, in MB."""
    found: list[Load] = []
    with running_stage(directory, workers_per_function=WORKERS) as stage:
        for clients in CLIENTS:
            report(f"{clients} clients for {seconds:.0f} s")
            found.append(_loaded(stage, clients=clients, seconds=seconds))
        memory = {FUNCTIONS[operation]: stage.peak_megabytes(FUNCTIONS[operation]) for operation in MIX}
        for slower in SLOWER_SECONDS:
            report(f"{SLOW_CLIENTS} clients for {seconds / 6:.0f} s, LiteLLM {slower} s slower")
            with (
                FaultProxy(stage.stack.litellm_url) as proxy,
                running_stage(
                    directory / f"slower-{slower}",
                    parameters={"DatabaseName": f"slower_{slower}"},
                    beside=stage,
                    litellm_url=proxy.url,
                    workers_per_function=WORKERS,
                ) as slowed,
            ):
                found.append(
                    _loaded(
                        slowed,
                        clients=SLOW_CLIENTS,
                        seconds=seconds / 6,
                        slower=slower,
                        slow=proxy,
                        litellm_url=stage.stack.litellm_url,
                    )
                )
    return found, memory


def _loaded(
    stage: Stage,
    *,
    clients: int,
    seconds: float,
    slower: int = 0,
    slow: FaultProxy | None = None,
    litellm_url: str | None = None,
) -> Load:
    """Of callers whom LiteLLM knows. `slow` is its slow way to LiteLLM, once all have keys; `litellm_url` the fast one."""
    url = stage.stack.url
    callers = stage.people(clients, name=f"load-{clients}")
    callers = with_keys(
        callers, stage.run(Plan(url=url, callers=callers, mix={"create": 1}, requests_each=_KEYS_BEFORE))
    )
    stage.run(Plan(url=url, callers=callers, mix={"list": 1}, requests_each=1))
    lists = stage.run(Plan(url=url, callers=callers, mix={"list": 1}, requests_each=_LISTS_BEFORE))
    if slow is not None:
        slow.inject("*", "delay", seconds=slower, times=0)
    answers = stage.run(Plan(url=url, callers=callers, mix=MIX, seconds=seconds))
    [row] = stage.rows(
        "SELECT count(*) AS connections FROM pg_stat_activity WHERE datname = %(name)s AND application_name = 'keyservice'",
        name=stage.stack.database_name,
    )
    [journal] = stage.rows("SELECT count(*) AS pending FROM api_key_operations WHERE state = 'pending'")
    unconfirmed = sum(one.operation != "list" and one.status not in (200, 201) for one in answers)
    return Load(
        clients=clients,
        litellm_slower_seconds=slower,
        requests=len(answers),
        requests_per_second=round(len(answers) / seconds, 1),
        only_lists=_required(lists),
        waits={
            operation: _required([one for one in answers if one.operation == operation])
            for operation in MIX
            if any(one.operation == operation for one in answers)
        },
        statuses=_statuses(answers),
        workers={FUNCTIONS[operation]: len(stage.stack.worker_pids(FUNCTIONS[operation])) for operation in MIX},
        all_workers=sum(len(stage.stack.worker_pids(function)) for function in stage.stack.function_names),
        connections=row["connections"],
        pending=journal["pending"],
        lost=_lost(stage, litellm_url or stage.stack.litellm_url) + max(0, unconfirmed - journal["pending"]),
    )


def _required(answers: Sequence[Answer]) -> Spread:
    spread = spread_of([one.milliseconds for one in answers])
    assert spread is not None
    return spread


def _statuses(answers: Sequence[Answer]) -> dict[str, int]:
    counted = Counter(f"{answer.operation} {answer.status}" for answer in answers)
    return dict(sorted(counted.items()))


def _lost(stage: Stage, litellm_url: str) -> int:
    """Living tokens that LiteLLM does not know or whose row is not there or off, keys of LiteLLM whose token does not live, and
    active rows without one; what is pending is not lost."""
    known = _hashes_known_to_litellm(stage, litellm_url)
    tokens = stage.rows(
        """
        SELECT t.hash, t.state IN ('live', 'retiring') AS lives, coalesce(k.is_active, false) AS is_wanted, EXISTS (
            SELECT FROM api_key_operations AS o WHERE o.api_key_id = t.api_key_id AND o.state = 'pending'
        ) AS is_pending
        FROM api_key_tokens AS t
        LEFT JOIN api_keys AS k ON k.id = t.api_key_id
        """
    )
    living = {token["hash"] for token in tokens if token["lives"]}
    unwanted = {token["hash"] for token in tokens if token["lives"] and not token["is_wanted"]}
    pending = {token["hash"] for token in tokens if token["is_pending"]}
    [rows] = stage.rows(
        """
        SELECT count(*) AS without_token FROM api_keys AS k
        WHERE k.is_active
        AND NOT EXISTS (SELECT FROM api_key_tokens AS t WHERE t.api_key_id = k.id AND t.state = 'live')
        AND NOT EXISTS (SELECT FROM api_key_operations AS o WHERE o.api_key_id = k.id AND o.state = 'pending')
        """
    )
    return len((living ^ known | unwanted) - pending) + rows["without_token"]


def _hashes_known_to_litellm(stage: Stage, litellm_url: str) -> set[str]:
    """Of the keys that bear the mark of the stage's database."""
    [installation] = stage.rows("SELECT mark FROM keyservice_installation")
    query: dict[str, str | int] = {"key_alias": f"{installation['mark']}:", "substring_matching": "true", "size": 100}
    found: set[str] = set()
    page, pages = 0, 1
    with httpx.Client(base_url=litellm_url, trust_env=False, timeout=60) as client:
        client.headers["authorization"] = f"Bearer {stage.stack.litellm_master_key}"
        while page < pages:
            page += 1
            answer = client.get("/key/list", params={**query, "page": page}).raise_for_status().json()
            found.update(answer["keys"])
            pages = answer["total_pages"]
    return found


def show(found: Sequence[Load]) -> str:
    return table_of(
        [
            *("clients", "LiteLLM +s", "requests/s", "only lists p50 ms", "list p50 ms", "list p99 ms"),
            *("create p50 ms", "create p99 ms", "delete p50 ms", "delete p99 ms"),
            *("workers", "connections", "pending", "lost", "statuses"),
        ],
        [
            (
                *(one.clients, one.litellm_slower_seconds, one.requests_per_second, one.only_lists.median),
                *(
                    figure
                    for operation in MIX
                    for spread in (one.waits.get(operation),)
                    for figure in ((spread.median, spread.p99) if spread else (None, None))
                ),
                "+".join(str(count) for count in one.workers.values()),
                *(one.connections, one.pending, one.lost),
                ", ".join(f"{name}: {count}" for name, count in one.statuses.items()),
            )
            for one in found
        ],
    )


def show_memory(memory: Mapping[str, float]) -> str:
    return table_of(["function", "most resident memory, MB"], list(memory.items()))
