"""A Lambda authorizer before the routes: simple responses, kept by what identifies the caller."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from local.authorizer import AdmittedByLambda, LambdaCheck, Refused
from local.errors import StartFailed
from local.template import LambdaAuthorizer, Template
from local.workers import InvocationFailed

EVENT = {
    "version": "2.0",
    "routeKey": "POST /closed/{id}",
    "rawPath": "/closed/7",
    "headers": {"authorization": "Bearer t"},
    "requestContext": {"apiId": "local", "stage": "$default", "http": {"method": "POST", "path": "/closed/7"}},
    "pathParameters": {"id": "7"},
    "body": "secret",
    "isBase64Encoded": False,
}
ALLOWED = {"isAuthorized": True, "context": {"userId": "u-1", "exp": "9"}}


class Door:
    """A check that asks a function which answers, or raises, what it is told to."""

    def __init__(self, *answers: Any, cache_seconds: float = 60) -> None:
        self.asked: list[dict[str, Any]] = []
        self._answers = list(answers)
        self._check = LambdaCheck(invoke=self._invoke)
        self._authorizer = LambdaAuthorizer(
            function="Authorize", headers=("authorization",), cache_seconds=cache_seconds
        )

    def admit(self, headers: dict[str, str] | None = None) -> AdmittedByLambda:
        given = {"authorization": "Bearer t"} if headers is None else headers
        return asyncio.run(self._check.admit(EVENT, headers=given, authorizer=self._authorizer))

    def refusal(self, headers: dict[str, str] | None = None) -> int:
        with pytest.raises(Refused) as refused:
            self.admit(headers)
        return refused.value.status

    async def _invoke(self, function: str, event: bytes) -> bytes:
        assert function == "Authorize"
        self.asked.append(json.loads(event))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return json.dumps(answer).encode()


def test_what_the_function_says_of_the_caller_is_passed_on():
    assert Door(ALLOWED).admit().context == {"userId": "u-1", "exp": "9"}


def test_the_function_learns_who_wants_what_but_not_the_body():
    door = Door(ALLOWED)

    door.admit()

    [event] = door.asked
    assert (event["version"], event["type"]) == ("2.0", "REQUEST")
    assert event["identitySource"] == ["Bearer t"]
    assert event["routeKey"] == "POST /closed/{id}"
    assert event["routeArn"].endswith("/$default/POST/closed/7")
    assert not {"body", "isBase64Encoded"} & set(event)


@pytest.mark.parametrize("headers", [{}, {"authorization": ""}], ids=["none", "empty"])
def test_a_request_without_the_header_is_401_and_nobody_is_asked(headers: dict[str, str]):
    door = Door()

    assert door.refusal(headers) == 401
    assert door.asked == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        pytest.param({"isAuthorized": False}, 403, id="a no"),
        pytest.param(InvocationFailed("Exception", "Unauthorized"), 401, id="an exception saying Unauthorized"),
        pytest.param(InvocationFailed("Exception", "Unauthorized."), 500, id="one saying nearly that"),
        pytest.param(InvocationFailed("Sandbox.Timedout", "Task timed out after 10.00 seconds"), 500, id="a timeout"),
        pytest.param({"context": {}}, 500, id="neither yes nor no"),
        pytest.param({"isAuthorized": "true"}, 500, id="a yes in words"),
        pytest.param(["isAuthorized"], 500, id="no object"),
        pytest.param(None, 500, id="nothing"),
    ],
)
def test_a_refusal_has_the_status_that_aws_gives_it(answer: Any, status: int):
    assert Door(answer).refusal() == status


def test_an_answer_is_kept_for_the_same_token_only():
    door = Door(ALLOWED, {"isAuthorized": False})

    first, again = door.admit(), door.admit()
    other = door.refusal({"authorization": "Bearer other"})

    assert first == again
    assert other == 403
    assert [event["identitySource"] for event in door.asked] == [["Bearer t"], ["Bearer other"]]


def test_a_no_is_kept_too():
    door = Door({"isAuthorized": False})

    assert [door.refusal(), door.refusal()] == [403, 403]
    assert len(door.asked) == 1


def test_a_failure_is_not_kept():
    door = Door(InvocationFailed("Exception", "Unauthorized"), ALLOWED)

    assert door.refusal() == 401
    assert door.admit().context["userId"] == "u-1"


def test_without_a_cache_the_function_is_asked_each_time():
    door = Door(ALLOWED, ALLOWED, cache_seconds=0)

    door.admit()
    door.admit()

    assert len(door.asked) == 2


TEMPLATE = """
Parameters:
  Seconds: {{Type: Number, Default: 30}}
Globals:
  Function:
    CodeUri: .
    Handler: f.handler
    Environment: {{Variables: {{SHARED: "yes"}}}}
Resources:
  Api:
    Type: AWS::Serverless::HttpApi
    Properties:
      Auth:
        DefaultAuthorizer: Own
        Authorizers:
          Own: {authorizer}
  Check:
    Type: AWS::Serverless::Function
    IgnoreGlobals: [Environment]
    Properties: {{Environment: {{Variables: {{OWN: "1"}}}}}}
  Work:
    Type: AWS::Serverless::Function
    Properties:
      Events: {{Route: {{Type: HttpApi, Properties: {{ApiId: !Ref Api, Method: GET, Path: /}}}}}}
"""
COMPLETE = (
    '{FunctionArn: !Ref Check.Alias, AuthorizerPayloadFormatVersion: "2.0", EnableSimpleResponses: true,'
    " Identity: {Headers: [Authorization], ReauthorizeEvery: !Ref Seconds}}"
)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], Template]:
    def template(authorizer: str) -> Template:
        path = tmp_path / "template.yaml"
        path.write_text(TEMPLATE.format(authorizer=authorizer))
        return Template(path)

    return template


@pytest.mark.parametrize("reference", ["!Ref Check.Alias", "!GetAtt Check.Arn"])
def test_a_template_says_which_function_it_is_and_what_identifies_a_caller(
    read: Callable[[str], Template], reference: str
):
    [route] = read(COMPLETE.replace("!Ref Check.Alias", reference)).resolve(parameters={}).routes

    assert route.authorizer == LambdaAuthorizer(function="Check", headers=("authorization",), cache_seconds=30)


def test_a_function_gets_none_of_the_globals_it_ignores(read: Callable[[str], Template]):
    functions = read(COMPLETE).resolve(parameters={}).functions

    assert functions["Check"].environment == {"OWN": "1"}
    assert functions["Work"].environment == {"SHARED": "yes"}


@pytest.mark.parametrize(
    ("authorizer", "complaint"),
    [
        pytest.param(COMPLETE.replace('"2.0"', '"1.0"'), "payload 2.0", id="payload 1.0"),
        pytest.param(COMPLETE.replace("true", "false"), "simple responses", id="policies for an answer"),
        pytest.param(COMPLETE.replace("!Ref Check.Alias", "arn:aws:lambda"), "!GetAtt", id="a function elsewhere"),
        pytest.param(COMPLETE.replace("Headers", "QueryStrings"), "only knows headers", id="a query for an identity"),
        pytest.param("{Identity: {}}", "neither", id="no function"),
    ],
)
def test_what_cannot_be_imitated_is_named(read: Callable[[str], Template], authorizer: str, complaint: str):
    with pytest.raises(StartFailed, match=complaint):
        read(authorizer).resolve(parameters={})
