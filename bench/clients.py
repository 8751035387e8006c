"""Callers of the API in a process of their own, so that they do not share an interpreter with the gateway.

`python -m bench.clients` reads one Plan as JSON from stdin and writes one list of Answers as JSON to stdout.
"""

import http.client
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

type Operation = Literal["list", "get", "create", "update", "rotate", "delete"]

KEYS = "/api/v1/api-keys"
_SEED = 20260704


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """One of those who call at once: a person with keys that nobody else touches."""

    token: str
    key_ids: list[str] = []


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`mix`: the operations by weight. It ends after so many requests of each caller, or so many seconds."""

    url: str
    callers: list[Caller]
    mix: dict[Operation, int]
    requests_each: int | None = None
    seconds: float | None = None
    path_of_list: str = KEYS


class Answer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """`milliseconds` from the request's first byte to the answer's last; `key_id` of a create; status 0: no answer."""

    operation: Operation
    status: int
    milliseconds: float
    key_id: str | None = None


_BODIES: dict[Operation, dict[str, Any] | None] = {
    "list": None,
    "get": None,
    "create": {"modelIds": ["gpt-4o", "gpt-4o-mini"], "name": "bench", "maxBudget": 10, "tpmLimit": 1000},
    "update": {"tpmLimit": 2000},
    "rotate": {"gracePeriodSeconds": 3600},
    "delete": None,
}
_METHODS: dict[Operation, str] = {
    "list": "GET",
    "get": "GET",
    "create": "POST",
    "update": "PATCH",
    "rotate": "POST",
    "delete": "DELETE",
}


class _Session:
    """One caller's connection."""

    def __init__(self, plan: Plan, caller: Caller, *, seed: int) -> None:
        self._plan = plan
        self._caller = caller
        self._choice = random.Random(seed)  # noqa: S311 - a fixed seed makes two runs the same
        self._key_ids = list(caller.key_ids)
        self._connection = self._connected()
        self.answers: list[Answer] = []

    def run(self) -> None:
        for _ in _turns(self._plan):
            [operation] = self._choice.choices(list(self._plan.mix), weights=list(self._plan.mix.values()))
            # A delete with nothing to delete makes something first.
            self._call("create" if operation == "delete" and not self._key_ids else operation)

    def _call(self, operation: Operation) -> None:
        key_id = self._key_ids.pop(0) if self._key_ids and operation not in ("list", "create") else ""
        body = _BODIES[operation]
        headers = {"authorization": f"Bearer {self._caller.token}"}
        if body is not None:
            headers["content-type"] = "application/json"
        started = time.perf_counter()
        try:
            self._connection.request(
                _METHODS[operation],
                self._path_of(operation, key_id),
                body=None if body is None else msgspec.json.encode(body),
                headers=headers,
            )
            response = self._connection.getresponse()
            content, status = response.read(), response.status
        except (OSError, http.client.HTTPException):
            content, status = b"", 0
            self._connection.close()
            self._connection = self._connected()
        elapsed = (time.perf_counter() - started) * 1000
        made = msgspec.json.decode(content)["id"] if operation == "create" and status == 201 else None
        if made is not None:
            self._key_ids.append(made)
        elif key_id and operation != "delete":
            self._key_ids.append(key_id)
        self.answers.append(Answer(operation=operation, status=status, milliseconds=elapsed, key_id=made))

    def _path_of(self, operation: Operation, key_id: str) -> str:
        match operation:
            case "list":
                return self._plan.path_of_list
            case "create":
                return KEYS
            case "rotate":
                return f"{KEYS}/{key_id}/rotate"
            case _:
                return f"{KEYS}/{key_id}"

    def _connected(self) -> http.client.HTTPConnection:
        target = urlsplit(self._plan.url)
        return http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)


def _turns(plan: Plan) -> Iterator[None]:
    ends_at = time.monotonic() + (plan.seconds or float("inf"))
    count = 0
    while time.monotonic() < ends_at and (plan.requests_each is None or count < plan.requests_each):
        count += 1
        yield


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sessions = [_Session(plan, caller, seed=_SEED + number) for number, caller in enumerate(plan.callers)]
    threads = [threading.Thread(target=session.run) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.buffer.write(msgspec.json.encode([answer for session in sessions for answer in session.answers]))


if __name__ == "__main__":
    main()
