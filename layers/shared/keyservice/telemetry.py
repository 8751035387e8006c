"""The one logger and the one set of metrics of an execution environment."""

import logging
import threading
import time
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit

logger = Logger()
metrics = Metrics()

# httpx writes an INFO line with the URL for every call; the request line of `endpoint` is the only one we want.
logging.getLogger("httpx").setLevel(logging.WARNING)
# psycopg warns, naming host and user, of what it then raises anyway.
logging.getLogger("psycopg").setLevel(logging.ERROR)


# Powertools writes and empties its metrics by itself at the hundredth value of one, and LiteLLM may be asked by threads.
_one_at_a_time = threading.Lock()


def count(name: str) -> None:
    with _one_at_a_time:
        metrics.add_metric(name=name, unit=MetricUnit.Count, value=1)


def milliseconds(name: str, value: float) -> None:
    with _one_at_a_time:
        metrics.add_metric(name=name, unit=MetricUnit.Milliseconds, value=round(value, 3))


@contextmanager
def measured(name: str) -> Generator[None]:
    """Adds the milliseconds that the block takes, however it ends."""
    started = time.perf_counter()
    try:
        yield
    finally:
        milliseconds(name, (time.perf_counter() - started) * 1000)


def begin_request() -> None:
    """Forgets whom and what the last request's line named."""
    logger.clear_state()


def identify(*, user_id: object = None, key_id: object = None) -> None:
    """Puts the ids, of rows the service has found to exist, into the request's line."""
    known = {"user_id": user_id, "key_id": key_id}
    logger.append_keys(**{name: str(value) for name, value in known.items() if value is not None})


def explain(reason: str) -> None:
    """Puts into the request's line why it could not be done, or had to be left pending."""
    logger.append_keys(reason=reason)


@cache
def _count_start() -> None:
    """Counts the first request of an execution environment, and no other."""
    count("ColdStarts")


def write_request(*, operation: str, outcome: str, duration_ms: float) -> None:
    """One EMF line: every metric of the request by operation and outcome, and once more over the whole service."""
    metrics.add_dimension(name="operation", value=operation)
    metrics.add_dimension(name="outcome", value=outcome)
    metrics.add_dimensions(service=str(logger.service))
    _count_start()
    count("Requests")
    milliseconds("Latency", duration_ms)
    if outcome == "error":
        count("ServerErrors")
    metrics.flush_metrics()


def write_spend(*, pages: int, keys_read: int, keys_written: int, age_seconds: float | None) -> None:
    """One EMF line for the whole service."""
    numbers = {"SpendPages": pages, "SpendKeysRead": keys_read, "SpendKeysWritten": keys_written}
    for name, value in numbers.items():
        metrics.add_metric(name=name, unit=MetricUnit.Count, value=value)
    if age_seconds is not None:
        metrics.add_metric(name="SpendAge", unit=MetricUnit.Seconds, value=age_seconds)
    metrics.flush_metrics()


def write_settled(
    *,
    attempted: int,
    settled: int,
    expired: int,
    pending: Mapping[str, int],
    oldest_pending_seconds: float,
    is_braked: bool,
) -> None:
    """One EMF line for the whole service, and one for each kind of operation with how many are pending."""
    numbers = {"Attempts": attempted, "Settled": settled, "Expired": expired, "BrakePulled": int(is_braked)}
    for name, value in numbers.items():
        metrics.add_metric(name=name, unit=MetricUnit.Count, value=value)
    metrics.add_metric(name="OldestPendingAge", unit=MetricUnit.Seconds, value=round(oldest_pending_seconds, 1))
    metrics.flush_metrics()
    for kind, number in pending.items():
        metrics.add_dimension(name="kind", value=kind)
        metrics.add_metric(name="PendingOperations", unit=MetricUnit.Count, value=number)
        metrics.flush_metrics()


def write_reconciled(counts: Mapping[str, int], *, duration_ms: float) -> None:
    """One EMF line for the whole service."""
    for name, value in counts.items():
        metrics.add_metric(name=name, unit=MetricUnit.Count, value=value)
    milliseconds("ReconcileDuration", duration_ms)
    metrics.flush_metrics()


def log_unexpected(route: str, error: Exception, *, request_id: str | None = None) -> None:
    """The frames and the type, not the message: a driver's message may quote a row."""
    logger.error(
        "failed unexpectedly",
        extra={
            "route": route,
            "request_id": request_id,
            "error_type": type(error).__name__,
            "sqlstate": getattr(error, "sqlstate", None),
            "stack": [
                f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)
            ],
        },
    )
