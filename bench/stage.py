"""The running service under measurement: who calls it, and what its functions say of each request."""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import msgspec
import psycopg
from psycopg.rows import DictRow, dict_row

from bench.clients import Answer, Caller, Operation, Plan
from local.function_log import objects_in
from local.litellm_process import LiteLLMProcess
from local.postgres import PostgresServer
from local.seed import insert_models, subscribe
from local.stack import LocalStack

CHECKOUT = Path(__file__).parent.parent
# With nothing but what a function has in Lambda: httpx imports click and rich where they are, which costs a start 100 ms.
INTERPRETER = CHECKOUT / ".tools/lambda/bin/python"
MODELS = ["gpt-4o", "gpt-4o-mini"]
# The function that does nothing.
BARE = "Bare"
FUNCTIONS: dict[Operation, str] = {
    "list": "ListApiKeys",
    "get": "GetApiKey",
    "create": "CreateApiKey",
    "update": "UpdateApiKey",
    "rotate": "RotateApiKey",
    "delete": "DeleteApiKey",
}
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a function wrote of one request, in milliseconds; the parts are 0 where nothing was asked."""

    operation: str
    total: float
    litellm: float
    derivation: float
    secrets: float

    @property
    def own(self) -> float:
        """Without LiteLLM, KMS and Secrets Manager: the code and PostgreSQL."""
        return self.total - self.litellm - self.derivation - self.secrets


@dataclass
class Stage:
    stack: LocalStack
    directory: Path
    # The stand-in, where this stage owns it.
    litellm: LiteLLMProcess | None = None

    def has(self, function: str) -> bool:
        return function in self.stack.function_names

    def people(self, count: int, *, name: str) -> list[Caller]:
        """Each with a subscription to every model."""
        subjects = [f"{name}-{number}" for number in range(count)]
        for subject in subjects:
            subscribe(self.stack.admin_dsn, subject=subject, models=MODELS)
        return [Caller(token=self.stack.token(subject, ttl_seconds=24 * 3600)) for subject in subjects]

    def run(self, plan: Plan) -> list[Answer]:
        """Callers in a process of their own. Raises CalledProcessError."""
        done = subprocess.run(
            [sys.executable, "-m", "bench.clients"],
            input=msgspec.json.encode(plan),
            stdout=subprocess.PIPE,
            check=True,
            cwd=CHECKOUT,
        )
        return msgspec.json.decode(done.stdout, type=list[Answer])

    def rows(self, query: LiteralString, **parameters: Any) -> list[DictRow]:
        with psycopg.Connection[DictRow].connect(
            self.stack.admin_dsn, autocommit=True, row_factory=dict_row
        ) as connection:
            cursor = connection.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def execute(self, *statements: LiteralString, **parameters: Any) -> None:
        """As an import would: no trigger or foreign key looks at every row."""
        with psycopg.connect(self.stack.admin_dsn, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            for statement in statements:
                connection.execute(statement, parameters or None)

    @contextmanager
    def listening(self) -> Generator[list[Told]]:
        """What the functions say of the requests within the block; filled when it ends."""
        start = self.stack.log_path.stat().st_size
        told: list[Told] = []
        yield told
        with self.stack.log_path.open("rb") as log:
            log.seek(start)
            written = log.read().decode()
        told.extend(one for metrics in objects_in(written) if (one := _told(metrics)) is not None)

    def cpu_seconds(self, functions: Sequence[str]) -> float:
        """That the functions' living processes have used so far, in user and kernel mode."""
        return sum(_cpu_seconds(pid) for function in functions for pid in self.stack.worker_pids(function))

    def peak_megabytes(self, function: str) -> float:
        """The most that one of the function's living processes has had resident: VmHWM of proc_pid_status(5), in kB."""
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in self.stack.worker_pids(function)]
        return round(max(int(kilobytes) for text in texts for kilobytes in _PEAK.findall(text)) / 1024, 1)


def _told(metrics: Mapping[str, Any]) -> Told | None:
    """None of what is not the metrics of one request by its operation."""
    if "operation" not in metrics or "Latency" not in metrics:
        return None
    return Told(
        operation=metrics["operation"],
        total=sum(metrics["Latency"]),
        litellm=sum(metrics.get("LiteLLMLatency", [])),
        derivation=sum(metrics.get("DerivationLatency", [])),
        secrets=sum(metrics.get("SecretLatency", [])),
    )


def _cpu_seconds(pid: int) -> float:
    # Fields 14 and 15 of proc_pid_stat(5), counted after the name, which may hold spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def running_stage(
    directory: Path,
    *,
    parameters: dict[str, str] | None = None,
    workers_per_function: int = 8,
    litellm_url: str | None = None,
    beside: Stage | None = None,
    database: PostgresServer | None = None,
    interpreter: Path = INTERPRETER,
) -> Generator[Stage]:
    """`beside` lends its PostgreSQL and AWS; `litellm_url` is a way to the stand-in that somebody else owns; `database` is
    a server that somebody else ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as closing:
        litellm = None
        if beside is not None and litellm_url is not None:
            master_key = beside.stack.litellm_master_key
        else:
            master_key = f"sk-bench-{secrets.token_hex(8)}"
            litellm = LiteLLMProcess(
                master_key=master_key,
                state_path=directory / "litellm.sqlite",
                log_path=directory / "litellm.log",
            )
            closing.callback(litellm.stop)
            litellm.wait_until_ready()
            litellm_url = litellm.url
        stack = closing.enter_context(
            LocalStack.start(
                # As many as the template allows: nobody here is to be refused for having enough.
                parameters={"MaxActiveKeys": "1000", **(parameters or {})},
                litellm_url=litellm_url,
                litellm_master_key=master_key,
                database=database or (beside and beside.stack.database),
                aws=beside and beside.stack.aws,
                workers_per_function=workers_per_function,
                log_directory=directory,
                interpreter=interpreter,
            )
        )
        insert_models(stack.admin_dsn, MODELS)
        yield Stage(stack, directory, litellm)


@contextmanager
def bare_stage(beside: Stage, directory: Path) -> Generator[Stage]:
    """With the function that does nothing, on the same PostgreSQL and AWS."""
    with LocalStack.start(
        template=CHECKOUT / "bench/floor/template.yaml",
        litellm_url=beside.stack.litellm_url,
        litellm_master_key=beside.stack.litellm_master_key,
        database=beside.stack.database,
        aws=beside.stack.aws,
        interpreter=INTERPRETER,
        log_directory=directory,
    ) as stack:
        yield Stage(stack, directory)
