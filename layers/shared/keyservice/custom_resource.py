"""The boundary of a custom resource: whatever becomes of its request, CloudFormation gets an answer, or it would wait.

Protocol: CloudFormation User Guide, "Custom resource request and response objects". The answer is PUT to a presigned URL
of S3, which the subnets have to reach (a gateway endpoint for S3 costs nothing).
"""

import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import msgspec

from keyservice import telemetry
from keyservice.endpoint import LambdaContext
from keyservice.errors import Unavailable, reason
from keyservice.models import Deadline
from keyservice.schema import MigrationError
from keyservice.settings import SettingsError

type Event = Mapping[str, Any]

# Kept back of the function's time for the answer, with its repetitions.
_RESERVED_SECONDS = 40.0
_ANSWER_TIMEOUT_SECONDS = 10.0
_ANSWER_ATTEMPTS = 3
# CloudFormation takes 4096 bytes for the whole answer.
_MAX_REASON_CHARACTERS = 1000


class AnswerNotTaken(Exception):
    """CloudFormation's URL did not take the answer. Lambda calls the function again, which does no harm."""


def custom_resource[T: msgspec.Struct](
    name: str,
) -> Callable[[Callable[[Event, Deadline], T]], Callable[[Event, LambdaContext], Any]]:
    """Makes a handler. CloudFormation's Create and Update are work, its Delete changes nothing; `name` is the resource's
    physical id, always the same, so that no update is taken for a replacement. Invoked by hand, without a ResponseURL,
    the handler returns what the work does, or raises."""

    def decorate(work: Callable[[Event, Deadline], T]) -> Callable[[Event, LambdaContext], Any]:
        def handler(event: Event, context: LambdaContext) -> Any:
            deadline = Deadline(context.get_remaining_time_in_millis() / 1000 - _RESERVED_SECONDS)
            if "ResponseURL" not in event:
                return msgspec.to_builtins(work(event, deadline))
            failure, report = None, {}
            if event["RequestType"] != "Delete":
                failure, report = _attempt(work, event, deadline)
            answer = {
                "Status": "FAILED" if failure else "SUCCESS",
                "Reason": (failure or "")[:_MAX_REASON_CHARACTERS],
                "PhysicalResourceId": event.get("PhysicalResourceId") or name,
                **{field: event[field] for field in ("StackId", "RequestId", "LogicalResourceId")},
            }
            telemetry.logger.info(
                "custom resource answered",
                extra={"request_type": event["RequestType"], "status": answer["Status"], "failure": failure, **report},
            )
            _put(event["ResponseURL"], msgspec.json.encode(answer))
            return report

        return handler

    return decorate


def _attempt[T: msgspec.Struct](
    work: Callable[[Event, Deadline], T], event: Event, deadline: Deadline
) -> tuple[str | None, dict[str, Any]]:
    """Why it failed, in words that hold no value of anybody's, or None; and what it did."""
    try:
        return None, msgspec.to_builtins(work(event, deadline))
    except (MigrationError, SettingsError) as error:
        return str(error), {}
    except Unavailable as error:
        return f"{error.message} ({reason(error)})", {}
    except Exception as error:  # noqa: BLE001 - what it says may quote a row
        telemetry.log_unexpected(event["LogicalResourceId"], error)
        return f"{type(error).__name__}; the function's log says where", {}


def _put(url: str, answer: bytes) -> None:
    """Raises AnswerNotTaken."""
    address = urlsplit(url)
    connect = HTTPSConnection if address.scheme == "https" else HTTPConnection
    for attempt in range(_ANSWER_ATTEMPTS):
        time.sleep(attempt)
        connection = connect(address.netloc, timeout=_ANSWER_TIMEOUT_SECONDS)
        try:
            # The URL is signed for an empty content type.
            connection.request("PUT", f"{address.path}?{address.query}", body=answer, headers={"content-type": ""})
            if connection.getresponse().status == 200:
                return
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
    # Not the URL: whoever has it can answer in our place.
    raise AnswerNotTaken("CloudFormation could not be told; do the subnets reach S3?")
