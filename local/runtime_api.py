"""Lambda's Runtime API: what a worker process asks for its next event and hands its answer to."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from local.serving import Receive, Scope, Send, answer, read_body

PREFIX = "/2018-06-01/runtime/"
# Lambda's limit for a synchronous answer: 6 MB and 100 bytes.
LARGEST_ANSWER_BYTES = 6 * 1024 * 1024 + 100

_JSON = [("content-type", "application/json")]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """An event with what the function's context says about it."""

    request_id: str
    event: bytes
    function_arn: str
    deadline_epoch_seconds: float


class Environment(Protocol):
    """The execution environment that one worker process lives in, as its Runtime API sees it."""

    async def next_assignment(self) -> Assignment | None:
        """Waits for an event; None when there will be no more."""
        ...

    def answered(self, request_id: str, body: bytes) -> None: ...

    def raised(self, request_id: str, error: Mapping[str, Any]) -> None: ...

    def could_not_start(self, error: Mapping[str, Any]) -> None: ...


class RuntimeApi:
    """One application for all workers: the variable AWS_LAMBDA_RUNTIME_API has no path, so each has its own port."""

    def __init__(self) -> None:
        self._environments: dict[int, Environment] = {}

    def attach(self, port: int, environment: Environment) -> None:
        self._environments[port] = environment

    def detach(self, port: int) -> None:
        del self._environments[port]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        environment = self._environments.get(scope["server"][1])
        action = str(scope["path"]).removeprefix(PREFIX)
        if environment is None:
            await answer(send, status=410, headers=_JSON)
        elif action == "invocation/next":
            await _send_assignment(send, await environment.next_assignment())
        elif action == "restore/next":
            await answer(send, status=200, headers=_JSON)
        else:
            status = await _take_report(environment, action, receive)
            await answer(send, status=status, headers=_JSON, body=b'{"status":"OK"}' if status == 202 else b"{}")


async def _send_assignment(send: Send, assignment: Assignment | None) -> None:
    if assignment is None:
        await answer(send, status=410, headers=_JSON)
        return
    headers = [
        # Without its content type awslambdaric 4.2.2 ends with a segmentation fault.
        *_JSON,
        ("lambda-runtime-aws-request-id", assignment.request_id),
        ("lambda-runtime-deadline-ms", str(int(assignment.deadline_epoch_seconds * 1000))),
        ("lambda-runtime-invoked-function-arn", assignment.function_arn),
        ("lambda-runtime-trace-id", f"Root=1-{int(time.time()):08x}-{assignment.request_id.replace('-', '')[:24]}"),
    ]
    await answer(send, status=200, headers=headers, body=assignment.event)


async def _take_report(environment: Environment, action: str, receive: Receive) -> int:
    body = await read_body(receive, limit=LARGEST_ANSWER_BYTES)
    match action.split("/"):
        case ["invocation", request_id, "response"]:
            if body is None:
                error = {
                    "errorType": "Function.ResponseSizeTooLarge",
                    "errorMessage": f"Response payload size exceeded the allowed {LARGEST_ANSWER_BYTES} bytes.",
                }
                environment.raised(request_id, error)
                return 413
            environment.answered(request_id, body)
        case ["invocation", request_id, "error"]:
            environment.raised(request_id, json.loads(body or b"{}"))
        case ["init" | "restore", "error"]:
            environment.could_not_start(json.loads(body or b"{}"))
        case _:
            return 404
    return 202
