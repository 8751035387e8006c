from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from keyservice.errors import DatabaseUnavailable
from keyservice.jobs import JobFailed, NotUnderstood, job, requested_job
from keyservice.models import Deadline

type Log = Callable[[], list[dict[str, Any]]]


class Report(msgspec.Struct):
    done: int


class Context:
    aws_request_id = "request"

    def get_remaining_time_in_millis(self) -> int:
        return 55_000


def test_a_job_reports_what_it_did_in_one_line(log: Log):
    @job("some_job")
    def handler(_: Deadline) -> Report:
        return Report(done=3)

    report = handler({}, Context())

    assert report == {"done": 3}
    assert [(line["message"], line["job"], line["done"]) for line in log()] == [("job done", "some_job", 3)]


def test_a_job_gets_the_time_that_is_left_for_work():
    left: list[float] = []

    @job("some_job")
    def handler(deadline: Deadline) -> Report:
        left.append(deadline.remaining_seconds())
        return Report(done=0)

    handler({}, Context())

    assert 0 < left[0] <= 52


def test_a_dependency_that_is_away_is_no_surprise(log: Log):
    @job("some_job")
    def handler(_: Deadline) -> Report:
        raise DatabaseUnavailable

    with pytest.raises(DatabaseUnavailable):
        handler({}, Context())

    [told] = log()
    assert (told["message"], told["reason"]) == ("job could not be done", "DatabaseUnavailable")


def test_an_unexpected_failure_reaches_lambda_without_its_message(log: Log):
    @job("some_job")
    def handler(_: Deadline) -> Report:
        raise ValueError("CANARY")

    with pytest.raises(JobFailed) as failed:
        handler({}, Context())

    assert str(failed.value) == "some_job: ValueError"
    assert failed.value.__suppress_context__
    assert [line["error_type"] for line in log()] == ["ValueError"]
    assert "CANARY" not in str(log())


class Request(msgspec.Struct, forbid_unknown_fields=True):
    count: int = 1


@pytest.mark.parametrize(("payload", "count"), [({}, 1), ({"count": 2}, 2)], ids=["nothing", "a number"])
def test_a_requested_job_is_told_what_it_was_invoked_with(payload: dict[str, Any], count: int):
    @requested_job("some_job", Request, usage='{"count": 1}')
    def handler(request: Request, _: Deadline) -> Report:
        return Report(done=request.count)

    assert handler(payload, Context()) == {"done": count}


@pytest.mark.parametrize("payload", [{"count": "sk-secret"}, {"counts": 2}, [], None], ids=str)
def test_a_requested_job_does_nothing_for_a_payload_it_does_not_know(payload: Any):
    @requested_job("some_job", Request, usage='{"count": 1}')
    def handler(_: Request, __: Deadline) -> Report:
        raise AssertionError

    with pytest.raises(NotUnderstood) as refused:
        handler(payload, Context())

    assert str(refused.value) == 'some_job was not invoked with {"count": 1}; nothing was done'
