"""The boundary of jobs, scheduled or invoked by an operator: a function of a Deadline, and of what it was invoked with,
becomes a Lambda handler that logs one line of what it did."""

import time
from collections.abc import Callable
from typing import Any

import msgspec

from keyservice import snapshot, telemetry
from keyservice.endpoint import LambdaContext
from keyservice.errors import Unavailable, reason
from keyservice.models import Deadline

# What a job keeps back of its time to write down where it stands.
_RESERVED_SECONDS = 3.0


class JobFailed(Exception):
    """Says that a job failed unexpectedly, and of what type the failure was. Lambda writes what a handler raises into the
    log by itself, and the message of, say, a driver may quote a row."""


class NotUnderstood(Exception):
    """The payload a job was invoked with is not one it knows; the message says what it knows."""


def job[T: msgspec.Struct](
    operation: str,
) -> Callable[[Callable[[Deadline], T]], Callable[[object, LambdaContext], Any]]:
    """Makes a handler; whatever the job raises ends the invocation as failed, so that Lambda's Errors count it."""

    def decorate(work: Callable[[Deadline], T]) -> Callable[[object, LambdaContext], Any]:
        snapshot.register()

        def handler(_event: object, context: LambdaContext) -> Any:
            return _carry_out(operation, work, context)

        return handler

    return decorate


def requested_job[R: msgspec.Struct, T: msgspec.Struct](
    operation: str, request: type[R], *, usage: str
) -> Callable[[Callable[[R, Deadline], T]], Callable[[object, LambdaContext], Any]]:
    """As `job`, of one that is told what to do. Its handler raises NotUnderstood for a payload of another shape."""

    def decorate(work: Callable[[R, Deadline], T]) -> Callable[[object, LambdaContext], Any]:
        def handler(event: object, context: LambdaContext) -> Any:
            try:
                asked = msgspec.convert(event, request)
            except msgspec.ValidationError:
                raise NotUnderstood(f"{operation} was not invoked with {usage}; nothing was done") from None
            return _carry_out(operation, lambda deadline: work(asked, deadline), context)

        return handler

    return decorate


def _carry_out[T: msgspec.Struct](operation: str, work: Callable[[Deadline], T], context: LambdaContext) -> Any:
    started = time.perf_counter()
    telemetry.begin_request()
    outcome = "error"
    try:
        report = msgspec.to_builtins(work(Deadline(context.get_remaining_time_in_millis() / 1000 - _RESERVED_SECONDS)))
        outcome = "success"
    except Unavailable as trouble:
        telemetry.logger.error("job could not be done", extra={"job": operation, "reason": reason(trouble)})
        raise
    except Exception as error:  # noqa: BLE001 - what it says must not reach Lambda's own log line
        telemetry.log_unexpected(operation, error)
        raise JobFailed(f"{operation}: {type(error).__name__}") from None
    finally:
        duration_ms = (time.perf_counter() - started) * 1000
        telemetry.write_request(operation=operation, outcome=outcome, duration_ms=duration_ms)
    telemetry.logger.info("job done", extra={"job": operation, "duration_ms": round(duration_ms, 2), **report})
    return report
