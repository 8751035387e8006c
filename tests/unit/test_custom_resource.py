import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from keyservice.custom_resource import AnswerNotTaken, custom_resource
from keyservice.errors import DatabaseUnavailable
from keyservice.models import Deadline
from keyservice.schema import MigrationError
from tests.support.presigned_url import PresignedUrl

type Log = Callable[[], list[dict[str, Any]]]


class Report(msgspec.Struct):
    done: int


class Context:
    aws_request_id = "request"

    def get_remaining_time_in_millis(self) -> int:
        return 300_000


@custom_resource("a-name")
def three(_event: Mapping[str, Any], _deadline: Deadline) -> Report:
    return Report(done=3)


def failing(error: Exception) -> Callable[[Mapping[str, Any], Context], Any]:
    @custom_resource("a-name")
    def handler(_event: Mapping[str, Any], _deadline: Deadline) -> Report:
        raise error

    return handler


def request(kind: str, url: str, **more: Any) -> dict[str, Any]:
    """As CloudFormation sends it."""
    return {
        "RequestType": kind,
        "ResponseURL": url,
        "StackId": "arn:aws:cloudformation:eu-central-1:123456789012:stack/keyservice/0123",
        "RequestId": "request-1",
        "ResourceType": "AWS::CloudFormation::CustomResource",
        "LogicalResourceId": "Migration",
        "ResourceProperties": {"ReleaseSha": "ab" * 32},
        **more,
    }


@pytest.mark.parametrize("kind", ["Create", "Update"])
def test_cloudformation_is_told_of_the_end_at_its_url(kind: str):
    with PresignedUrl() as presigned:
        three(request(kind, presigned.url), Context())

    [put] = presigned.puts
    assert put.path == "/arn%3Aaws/stack?X-Amz-Signature=0123&X-Amz-Expires=7200"
    assert put.content_type == ""
    assert put.answer == {
        "Status": "SUCCESS",
        "Reason": "",
        "PhysicalResourceId": "a-name",
        "StackId": "arn:aws:cloudformation:eu-central-1:123456789012:stack/keyservice/0123",
        "RequestId": "request-1",
        "LogicalResourceId": "Migration",
    }


def test_a_delete_succeeds_without_any_work():
    with PresignedUrl() as presigned:
        failing(DatabaseUnavailable())(request("Delete", presigned.url, PhysicalResourceId="made-before"), Context())

    answer = presigned.puts[0].answer
    assert (answer["Status"], answer["PhysicalResourceId"]) == ("SUCCESS", "made-before")


def test_a_resource_keeps_its_physical_id():
    with PresignedUrl() as presigned:
        three(request("Update", presigned.url, PhysicalResourceId="made-before"), Context())

    assert presigned.puts[0].answer["PhysicalResourceId"] == "made-before"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        pytest.param(MigrationError("the app role does not exist"), "the app role does not exist", id="migration"),
        pytest.param(
            DatabaseUnavailable(),
            "The database is not available. Nothing was changed; try again shortly. (DatabaseUnavailable)",
            id="away",
        ),
        pytest.param(ValueError("CANARY"), "ValueError; the function's log says where", id="unexpected"),
    ],
)
def test_a_failure_is_told_with_its_reason(error: Exception, why: str, log: Log):
    with PresignedUrl() as presigned:
        failing(error)(request("Update", presigned.url), Context())

    answer = presigned.puts[0].answer
    assert (answer["Status"], answer["Reason"]) == ("FAILED", why)
    assert "CANARY" not in json.dumps(log())


def test_a_reason_leaves_room_for_the_rest_of_the_answer():
    with PresignedUrl() as presigned:
        failing(MigrationError("x" * 9000))(request("Create", presigned.url), Context())

    assert len(presigned.puts[0].body) < 4096


@pytest.mark.parametrize("status", [pytest.param(503, id="503"), pytest.param(0, id="no-answer")])
def test_an_answer_that_was_not_taken_is_given_again(status: int):
    with PresignedUrl(status) as presigned:
        three(request("Create", presigned.url), Context())

    assert [put.answer["Status"] for put in presigned.puts] == ["SUCCESS", "SUCCESS"]


def test_a_url_that_never_takes_it_fails_the_call_and_stays_untold(log: Log):
    with PresignedUrl(403, 403, 403) as presigned, pytest.raises(AnswerNotTaken) as failed:
        three(request("Create", presigned.url), Context())

    assert len(presigned.puts) == 3
    assert "X-Amz" not in f"{failed.value}{log()}"


def test_the_log_says_what_was_answered(log: Log):
    with PresignedUrl() as presigned:
        three(request("Create", presigned.url), Context())

    [told] = log()
    assert (told["message"], told["request_type"], told["status"], told["done"]) == (
        "custom resource answered",
        "Create",
        "SUCCESS",
        3,
    )


def test_by_hand_the_work_is_returned():
    assert three({}, Context()) == {"done": 3}


def test_by_hand_a_failure_is_raised():
    with pytest.raises(DatabaseUnavailable):
        failing(DatabaseUnavailable())({}, Context())


def test_time_is_kept_back_for_the_answer():
    left: list[float] = []

    @custom_resource("a-name")
    def handler(_event: Mapping[str, Any], deadline: Deadline) -> Report:
        left.append(deadline.remaining_seconds())
        return Report(done=0)

    handler({}, Context())

    assert 0 < left[0] <= 260
