import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec import Struct

from keyservice import errors, telemetry
from keyservice.endpoint import MAX_BODY_BYTES, Answer, Request, Response, endpoint
from keyservice.errors import Violation
from keyservice.models import NewApiKey

type Events = Callable[[str], dict[str, Any]]
type Log = Callable[[], list[dict[str, Any]]]

CORRELATION_ID = "0d9f5c0e-6f0e-4a3c-9b5e-0f3f5a7c1d2e"


class Note(Struct, frozen=True):
    text: str = "done"


@dataclass
class Context:
    """Of awslambdaric's context what the endpoint asks for."""

    aws_request_id: str = "lambda-request-1"
    remaining_seconds: float = 25.0

    def get_remaining_time_in_millis(self) -> int:
        return int(self.remaining_seconds * 1000)


def serve(event: dict[str, Any], answer: Callable[[Request], Any] = lambda _: None, **context: Any) -> Answer:
    """Runs one request through an endpoint whose handler does what `answer` does."""

    def handler(request: Request) -> Response:
        given = answer(request)
        return given if isinstance(given, Response) else Response(status=200, body=Note())

    return endpoint("test_operation")(handler)(event, Context(**context))


def error_of(answer: Answer) -> dict[str, Any]:
    return json.loads(answer["body"])["error"]


def raising(error: Exception) -> Callable[[Request], Any]:
    def handler(_: Request) -> None:
        raise error

    return handler


class TestAcceptedMediaType:
    @pytest.mark.parametrize(
        ("accept", "is_accepted"),
        [
            pytest.param("application/x-ndjson", True, id="alone"),
            pytest.param("text/html, Application/X-NDJSON; q=0.5", True, id="among others"),
            pytest.param("application/json", False, id="another"),
            pytest.param("*/*", False, id="anything"),
            pytest.param("", False, id="empty"),
        ],
    )
    def test_is_one_asked_for_by_its_name(self, event: Events, *, accept: str, is_accepted: bool):
        recorded = event("list_api_keys")
        recorded["headers"]["accept"] = accept
        seen: list[bool] = []

        serve(recorded, lambda request: seen.append(request.accepts("application/x-ndjson")))

        assert seen == [is_accepted]


class TestAnswer:
    def test_may_be_text_of_another_type(self, event: Events):
        lines = Response(status=200, body='{"a":1}\n', content_type="application/x-ndjson")

        answer = serve(event("list_api_keys"), lambda _: lines)

        assert answer["body"] == '{"a":1}\n'
        assert answer["headers"]["content-type"] == "application/x-ndjson"
        assert answer["headers"]["cache-control"] == "no-store"

    def test_is_json_that_nobody_may_keep(self, event: Events):
        answer = serve(event("list_api_keys"))

        assert answer["statusCode"] == 200
        assert answer["body"] == '{"text":"done"}'
        assert answer["isBase64Encoded"] is False
        assert answer["headers"]["content-type"] == "application/json; charset=utf-8"
        assert answer["headers"]["cache-control"] == "no-store"

    def test_carries_the_handlers_status_and_headers(self, event: Events):
        created = Response(status=201, body=Note(), headers={"location": "/there"})

        answer = serve(event("create_api_key"), lambda _: created)

        assert answer["statusCode"] == 201
        assert answer["headers"]["location"] == "/there"

    def test_carries_notices_also_when_it_is_an_error(self, event: Events):
        def refuse(request: Request) -> None:
            request.notices["x-warning"] = "old"
            raise errors.NotFound("Not there")

        answer = serve(event("list_api_keys"), refuse)

        assert answer["statusCode"] == 404
        assert answer["headers"]["x-warning"] == "old"


class TestRequestId:
    @pytest.mark.parametrize("given", ["abc", "!~", "r" * 128])
    def test_of_the_caller_is_echoed(self, event: Events, given: str):
        request = event("list_api_keys")
        request["headers"]["x-request-id"] = given

        assert serve(request)["headers"]["x-request-id"] == given

    @pytest.mark.parametrize(
        "given",
        [
            pytest.param("", id="empty"),
            pytest.param("a b", id="blank inside"),
            pytest.param("r" * 129, id="129 characters"),
            pytest.param("é", id="not ASCII"),
            pytest.param("a\r\nset-cookie: b", id="line break"),
            pytest.param("abc\n", id="line break at the end"),
        ],
    )
    def test_that_is_malformed_gives_way_to_the_gateways(self, event: Events, given: str):
        request = event("list_api_keys")
        request["headers"]["x-request-id"] = given

        assert serve(request)["headers"]["x-request-id"] == request["requestContext"]["requestId"]

    def test_is_lambdas_when_the_gateway_gave_none(self, event: Events):
        request = event("list_api_keys")
        del request["requestContext"]["requestId"]

        assert serve(request)["headers"]["x-request-id"] == "lambda-request-1"

    def test_is_made_when_nobody_gave_one(self, event: Events):
        request = event("list_api_keys")
        del request["requestContext"]["requestId"]

        made = [serve(request, aws_request_id="")["headers"]["x-request-id"] for _ in range(2)]

        assert made[0] != made[1]
        assert all(len(request_id) == 36 for request_id in made)


class TestCorrelationId:
    def test_of_the_recorded_request_is_echoed(self, event: Events):
        request = event("create_with_correlation")

        answer = serve(request)

        assert answer["headers"]["x-correlation-id"] == request["headers"]["x-correlation-id"]

    def test_is_part_of_an_error(self, event: Events):
        request = event("list_api_keys")
        request["headers"]["x-correlation-id"] = CORRELATION_ID

        answer = serve(request, raising(errors.NotFound("Not there")))

        assert error_of(answer)["correlationId"] == CORRELATION_ID

    @pytest.mark.parametrize(
        "given",
        [
            pytest.param("abc", id="no UUID"),
            pytest.param("0d9f5c0e-6f0e-1a3c-9b5e-0f3f5a7c1d2e", id="version 1"),
            pytest.param(CORRELATION_ID.replace("-", ""), id="without dashes"),
            pytest.param("{" + CORRELATION_ID + "}", id="braces"),
        ],
    )
    def test_that_is_no_uuid_of_version_4_is_dropped(self, event: Events, given: str):
        request = event("list_api_keys")
        request["headers"]["x-correlation-id"] = given

        answer = serve(request, raising(errors.NotFound("Not there")))

        assert "x-correlation-id" not in answer["headers"]
        assert "correlationId" not in error_of(answer)


class TestBody:
    def test_is_read_from_the_recorded_request(self, event: Events):
        read: list[NewApiKey] = []

        serve(event("create_api_key"), lambda request: read.append(request.body(NewApiKey)))

        assert read == [NewApiKey(name="Research", model_ids=["gpt-4o", "gpt-4o-mini"])]

    def test_in_base64_is_decoded(self, event: Events):
        request = event("create_api_key")
        request["body"] = base64.b64encode('{"name": "Größe"}'.encode()).decode()
        request["isBase64Encoded"] = True
        read: list[NewApiKey] = []

        serve(request, lambda asked: read.append(asked.body(NewApiKey)))

        assert read == [NewApiKey(name="Größe")]

    @pytest.mark.parametrize(
        ("body", "is_base64"),
        [
            pytest.param("%%%", True, id="broken base64"),
            pytest.param('{"name": "\ud800"}', False, id="half a surrogate pair"),
            pytest.param(base64.b64encode(b'{"name": "\xff"}').decode(), True, id="not UTF-8"),
            pytest.param("", False, id="empty"),
            pytest.param("{}x", False, id="more after the object"),
        ],
    )
    def test_that_cannot_be_read_is_refused(self, event: Events, body: str, *, is_base64: bool):
        request = event("create_api_key") | {"body": body, "isBase64Encoded": is_base64}

        answer = serve(request, lambda asked: asked.body(NewApiKey))

        assert answer["statusCode"] == 400
        assert error_of(answer)["code"] == "VALIDATION_ERROR"

    @pytest.mark.parametrize("name", ["create_without_body", "create_body_not_utf8"])
    def test_of_a_recorded_request_without_usable_json_is_refused(self, event: Events, name: str):
        answer = serve(event(name), lambda asked: asked.body(NewApiKey))

        assert answer["statusCode"] in (400, 415)

    @pytest.mark.parametrize("is_base64", [False, True])
    def test_of_64_kib_is_taken_and_one_byte_more_is_not(self, event: Events, *, is_base64: bool):
        frame = '{"name": "n", "metadata": {"a": ""}}'

        def answer_to(size: int) -> Answer:
            body = frame.replace('""', f'"{"x" * (size - len(frame))}"')
            assert len(body) == size
            encoded = base64.b64encode(body.encode()).decode() if is_base64 else body
            request = event("create_api_key") | {"body": encoded, "isBase64Encoded": is_base64}
            return serve(request, lambda asked: asked.body(NewApiKey))

        assert MAX_BODY_BYTES == 65536
        assert answer_to(65536)["statusCode"] == 200
        assert answer_to(65537)["statusCode"] == 413
        assert error_of(answer_to(65537))["code"] == "PAYLOAD_TOO_LARGE"

    @pytest.mark.parametrize(
        ("content_type", "status"),
        [
            pytest.param(None, 200, id="missing"),
            pytest.param("application/json", 200, id="JSON"),
            pytest.param("Application/JSON ; charset=utf-8", 200, id="JSON with charset"),
            pytest.param("text/plain", 415, id="text"),
            pytest.param("application/x-www-form-urlencoded", 415, id="form"),
            pytest.param("application/json-patch+json", 415, id="something that begins like JSON"),
            pytest.param("", 415, id="empty"),
        ],
    )
    def test_has_to_be_sent_as_json(self, event: Events, content_type: str | None, status: int):
        request = event("create_api_key")
        del request["headers"]["content-type"]
        if content_type is not None:
            request["headers"]["content-type"] = content_type

        assert serve(request, lambda asked: asked.body(NewApiKey))["statusCode"] == status


@pytest.mark.usefixtures("environment")
class TestCaller:
    def test_is_who_the_recorded_token_names(self, event: Events):
        seen: list[Any] = []
        request = event("create_api_key")
        request["headers"]["authorization"] = "Bearer header.eyJyb2xlcyI6WyJ1c2VyIiwiYWRtaW4iXX0.signature"

        serve(request, lambda asked: seen.append(asked.caller))

        [caller] = seen
        assert (caller.provider, caller.subject) == ("openshift", "5d1c9f5e-7b1a-4c55-9a55-3f1f4b1f0c11")
        assert (caller.username, caller.email, caller.full_name) == ("alice", "alice@example.com", "Alice Example")
        assert caller.roles == ("user", "admin")
        assert (caller.actor.ip_address, caller.actor.user_agent) == ("203.0.113.7", "keyservice-client/1.0")
        assert caller.actor.request_id == "JKJaXmPLvHcESHA="

    def test_of_a_token_with_a_subject_alone_gets_substitutes(self, event: Events):
        seen: list[Any] = []

        serve(event("create_subject_only"), lambda request: seen.append(request.caller))

        assert seen[0].username == f"openshift:{seen[0].subject}"

    def test_without_a_subject_is_refused(self, event: Events):
        answer = serve(event("create_without_subject"), lambda request: request.caller)

        assert answer["statusCode"] == 401
        assert error_of(answer)["code"] == "UNAUTHORIZED"

    def test_of_a_route_without_authorizer_is_refused(self, event: Events):
        answer = serve(event("check_health"), lambda request: request.caller)

        assert answer["statusCode"] == 401

    @pytest.mark.parametrize(
        ("source_ip", "user_agent", "kept"),
        [
            pytest.param("2001:DB8::1", "a\0b", ("2001:db8::1", "ab"), id="IPv6, NUL in the agent"),
            pytest.param("unknown", "a" * 600, (None, "a" * 512), id="no address, endless agent"),
            pytest.param("", "", (None, None), id="nothing"),
        ],
    )
    def test_is_audited_with_what_the_columns_can_hold(
        self,
        event: Events,
        source_ip: str,
        user_agent: str,
        kept: tuple[str | None, str | None],
    ):
        request = event("create_api_key")
        request["requestContext"]["http"] |= {"sourceIp": source_ip, "userAgent": user_agent}
        seen: list[Any] = []

        serve(request, lambda asked: seen.append(asked.caller))

        assert (seen[0].actor.ip_address, seen[0].actor.user_agent) == kept


class TestCallerOfALambdaAuthorizer:
    """Its answer is cached, so the function looks at the token's end once more."""

    USER_ID = "d14dfa9d-4dc5-478c-ac0a-93acde76e63e"

    @pytest.fixture
    def request_with(
        self, event: Events, environment: pytest.MonkeyPatch
    ) -> Callable[[dict[str, object]], dict[str, Any]]:
        environment.setenv("SUBJECT_COLUMN", "id")
        environment.setenv("SUBJECT_CLAIM", "userId")

        def build(said: dict[str, object]) -> dict[str, Any]:
            request = event("list_api_keys")
            request["requestContext"]["authorizer"] = {"lambda": said}
            return request

        return build

    @pytest.mark.parametrize("in_an_hour", [lambda: str(int(time.time()) + 3600), lambda: time.time() + 3600])
    def test_is_who_the_authorizer_said(self, request_with: Any, in_an_hour: Callable[[], object]):
        seen: list[Any] = []

        answer = serve(
            request_with({"userId": self.USER_ID, "exp": in_an_hour()}), lambda request: seen.append(request.caller)
        )

        assert answer["statusCode"] == 200
        assert str(seen[0].user_id) == self.USER_ID

    @pytest.mark.parametrize(
        "exp",
        [
            pytest.param("1", id="over"),
            pytest.param(1, id="over, as a number"),
            pytest.param("", id="empty"),
            pytest.param("soon", id="no number"),
            pytest.param("nan", id="not a number"),
            pytest.param(None, id="null"),
        ],
    )
    def test_is_refused_unless_the_token_still_lasts(self, request_with: Any, exp: object):
        answer = serve(request_with({"userId": self.USER_ID, "exp": exp}), lambda request: request.caller)

        assert answer["statusCode"] == 401
        assert error_of(answer)["code"] == "UNAUTHORIZED"

    @pytest.mark.parametrize("said", [{}, {"userId": USER_ID}], ids=["nothing", "no end"])
    def test_is_refused_when_the_answer_says_too_little(self, request_with: Any, said: dict[str, object]):
        assert serve(request_with(said), lambda request: request.caller)["statusCode"] == 401


@pytest.mark.usefixtures("environment")
class TestDeadline:
    @pytest.mark.parametrize(
        ("remaining", "expected"),
        [
            pytest.param(25.0, 10.0, id="whole budget"),
            pytest.param(14.0, 4.0, id="what is left before the reserve"),
            pytest.param(9.0, 0.0, id="nothing"),
        ],
    )
    def test_leaves_the_reserve_alone(self, event: Events, remaining: float, expected: float):
        seen: list[float] = []

        serve(
            event("create_api_key"),
            lambda request: seen.append(request.gateway_deadline().remaining_seconds()),
            remaining_seconds=remaining,
        )

        assert seen == [pytest.approx(expected, abs=0.5)]


class TestErrorAnswer:
    def test_has_litemaas_envelope_in_its_order(self, event: Events):
        request = event("list_api_keys")
        request["headers"] |= {"x-correlation-id": CORRELATION_ID, "x-request-id": "r-1"}
        error = errors.InvalidRequest(
            "Wrong", violations=[Violation("page", "too small", "range")], details={"suggestion": "look"}
        )

        answer = serve(request, raising(error))
        envelope = error_of(answer)

        assert answer["statusCode"] == 400
        assert list(envelope) == [
            *("code", "message", "statusCode", "details", "correlationId", "timestamp", "requestId")
        ]
        assert envelope["timestamp"].endswith("Z")
        assert envelope | {"timestamp": None} == {
            "code": "VALIDATION_ERROR",
            "message": "Wrong",
            "statusCode": 400,
            "details": {
                "suggestion": "look",
                "validation": [{"field": "page", "message": "too small", "code": "range"}],
            },
            "correlationId": CORRELATION_ID,
            "timestamp": None,
            "requestId": "r-1",
        }

    def test_of_trouble_that_passes_says_when_to_come_back(self, event: Events):
        answer = serve(event("list_api_keys"), raising(errors.DatabaseUnavailable()))

        assert answer["headers"]["retry-after"] == "5"
        assert error_of(answer)["retry"] == {"retryable": True, "retryAfter": 5}
        assert list(error_of(answer))[-1] == "retry"

    @pytest.mark.parametrize(
        ("error", "status", "code"),
        [
            (errors.InvalidRequest("x"), 400, "VALIDATION_ERROR"),
            (errors.GatewayRefused(status_answered=400, fields=["maxBudget"]), 400, "VALIDATION_ERROR"),
            (errors.Unauthorized("x"), 401, "UNAUTHORIZED"),
            (errors.Forbidden("x"), 403, "FORBIDDEN"),
            (errors.NotFound("x"), 404, "NOT_FOUND"),
            (errors.IdentityConflict("x"), 409, "IDENTITY_CONFLICT"),
            (errors.OperationSuperseded("x"), 409, "OPERATION_SUPERSEDED"),
            (errors.PayloadTooLarge("x"), 413, "PAYLOAD_TOO_LARGE"),
            (errors.UnsupportedMediaType("x"), 415, "UNSUPPORTED_MEDIA_TYPE"),
            (errors.UnsupportedSetting("x"), 422, "UNSUPPORTED_SETTING"),
            (errors.DatabaseUnavailable(), 503, "SERVICE_UNAVAILABLE"),
            (errors.OutcomeUnknown(), 503, "SERVICE_UNAVAILABLE"),
            (errors.GatewayUnavailable("key/generate: 500", may_still_happen=True), 503, "SERVICE_UNAVAILABLE"),
            (errors.OperationPending(), 503, "SERVICE_UNAVAILABLE"),
            (errors.DerivationUnavailable(), 503, "SERVICE_UNAVAILABLE"),
            (errors.SecretUnavailable(), 503, "SERVICE_UNAVAILABLE"),
            (ValueError("x"), 500, "INTERNAL_ERROR"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
    )
    def test_has_its_errors_status_and_code(self, event: Events, log: Log, error: Exception, status: int, code: str):
        answer = serve(event("list_api_keys"), raising(error))

        assert answer["statusCode"] == status
        assert (error_of(answer)["statusCode"], error_of(answer)["code"]) == (status, code)
        assert ("retry-after" in answer["headers"]) == (status == 503)
        assert log()[-1]["code"] == code

    def test_names_no_cause_of_trouble_with_the_gateway(self, event: Events):
        error = errors.GatewayUnavailable("http://litellm.internal said CANARY", may_still_happen=True)

        assert "CANARY" not in serve(event("list_api_keys"), raising(error))["body"]


class TestUnexpectedFailure:
    def test_is_answered_without_its_message(self, event: Events):
        answer = serve(event("list_api_keys"), raising(RuntimeError("CANARY")))

        assert answer["statusCode"] == 500
        assert error_of(answer)["message"] == "An unexpected error occurred"
        assert error_of(answer)["details"] == {}
        assert "CANARY" not in json.dumps(answer)

    def test_is_logged_by_its_type_and_frames_alone(self, event: Events, log: Log):
        def fail(_: Request) -> None:
            secret = "sk-lmk_CANARY"
            try:
                raise KeyError(secret)
            except KeyError as error:
                raise RuntimeError(secret) from error

        serve(event("list_api_keys"), fail)

        failed, served = log()
        assert failed["level"] == "ERROR"
        assert failed["message"] == "failed unexpectedly"
        assert failed["error_type"] == "RuntimeError"
        assert failed["route"] == "GET /api/v1/api-keys"
        assert any(frame.startswith("test_endpoint.py:") and frame.endswith(" fail") for frame in failed["stack"])
        assert served["status"] == 500
        assert "CANARY" not in json.dumps([failed, served])

    def test_is_logged_once(self, event: Events, log: Log):
        serve(event("list_api_keys"), raising(RuntimeError("x")))

        assert [line["level"] for line in log()] == ["ERROR", "INFO"]


class TestLogLine:
    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            pytest.param(errors.DatabaseUnavailable(), "DatabaseUnavailable", id="database"),
            pytest.param(
                errors.GatewayUnavailable("model/info: answered 500", may_still_happen=False),
                "model/info: answered 500",
                id="LiteLLM",
            ),
        ],
    )
    def test_says_why_a_request_could_not_be_served(self, event: Events, log: Log, error: Exception, reason: str):
        serve(event("list_api_keys"), raising(error))

        [line] = log()
        assert (line["status"], line["reason"]) == (503, reason)

    def test_says_what_left_an_operation_pending(self, event: Events, log: Log):
        def serving(_: Request) -> None:
            raise errors.OperationPending from errors.GatewayUnavailable(
                "key/generate: ReadTimeout", may_still_happen=True
            )

        serve(event("create_api_key"), serving)

        assert [line["reason"] for line in log()] == ["key/generate: ReadTimeout"]

    def test_of_a_refusal_has_no_reason(self, event: Events, log: Log):
        serve(event("list_api_keys"), raising(errors.NotFound("x")))

        assert "reason" not in log()[0]

    def test_is_one_per_request(self, event: Events, log: Log):
        request = event("create_api_key")
        request["headers"] |= {"x-correlation-id": CORRELATION_ID, "x-request-id": "r-1"}

        serve(request, lambda _: telemetry.identify(user_id="user-1", key_id="key-1"))

        [line] = log()
        assert (line["level"], line["message"], line["service"]) == ("INFO", "request served", "keyservice")
        assert line["route"] == "POST /api/v1/api-keys"
        assert (line["status"], line["code"]) == (200, "OK")
        assert (line["request_id"], line["correlation_id"]) == ("r-1", CORRELATION_ID)
        assert (line["user_id"], line["key_id"]) == ("user-1", "key-1")
        assert line["duration_ms"] >= 0

    def test_of_a_refusal_is_information_without_a_trace(self, event: Events, log: Log):
        serve(event("list_api_keys"), raising(errors.Forbidden("x")))

        [line] = log()
        assert (line["level"], line["status"], line["code"]) == ("INFO", 403, "FORBIDDEN")
        assert "exception" not in line

    def test_names_nobody_of_the_request_before(self, event: Events, log: Log):
        serve(event("list_api_keys"), lambda _: telemetry.identify(user_id="user-1", key_id="key-1"))
        serve(event("list_api_keys"))

        assert {"user_id", "key_id"} & log()[1].keys() == set()

    @pytest.mark.usefixtures("environment")
    def test_holds_no_token_email_or_body(self, event: Events, log: Log):
        request = event("create_api_key")
        request["headers"]["authorization"] = "Bearer CANARY"
        request["requestContext"]["authorizer"]["jwt"]["claims"]["email"] = "CANARY@example.com"
        request["body"] = '{"name": "CANARY"}'

        serve(request, lambda asked: [asked.caller, asked.body(NewApiKey)])

        assert log()[0]["status"] == 200
        assert "CANARY" not in json.dumps(log())


class TestMetrics:
    @pytest.fixture(autouse=True)
    def warm(self, event: Events, capsys: pytest.CaptureFixture[str]) -> None:
        """The first request has been."""
        serve(event("list_api_keys"))
        capsys.readouterr()

    def counted(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        [line] = [line for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
        return json.loads(line)

    def test_count_a_request_by_operation_and_outcome(self, event: Events, capsys: pytest.CaptureFixture[str]):
        serve(event("list_api_keys"))

        line = self.counted(capsys)
        [directive] = line["_aws"]["CloudWatchMetrics"]
        assert directive["Namespace"] == "KeyService"
        assert sorted(map(sorted, directive["Dimensions"])) == [["operation", "outcome", "service"], ["service"]]
        assert {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]} == {
            "Requests": "Count",
            "Latency": "Milliseconds",
        }
        assert (line["operation"], line["outcome"], line["service"]) == ("test_operation", "success", "keyservice")
        assert line["Requests"] == [1.0]

    def test_count_no_success_before_it_is_true(self, event: Events, capsys: pytest.CaptureFixture[str]):
        serve(event("delete_api_key"), lambda _: Response(status=202, body=Note()))

        assert self.counted(capsys)["outcome"] == "accepted"

    @pytest.mark.parametrize(
        ("error", "outcome", "server_errors"),
        [
            pytest.param(errors.NotFound("x"), "refused", None, id="4xx"),
            pytest.param(errors.DatabaseUnavailable(), "error", [1.0], id="503"),
            pytest.param(RuntimeError("x"), "error", [1.0], id="500"),
        ],
    )
    def test_tell_refusals_from_failures(
        self,
        event: Events,
        capsys: pytest.CaptureFixture[str],
        error: Exception,
        outcome: str,
        server_errors: list[float] | None,
    ):
        serve(event("list_api_keys"), raising(error))

        line = self.counted(capsys)
        assert line["outcome"] == outcome
        assert line.get("ServerErrors") == server_errors

    def test_hold_what_was_counted_meanwhile_and_start_anew(self, event: Events, capsys: pytest.CaptureFixture[str]):
        serve(event("list_api_keys"), lambda _: telemetry.count("LiteLLMFailures"))
        first = self.counted(capsys)
        serve(event("list_api_keys"))
        second = self.counted(capsys)

        assert first["LiteLLMFailures"] == [1.0]
        assert "LiteLLMFailures" not in second

    def test_count_the_first_request_of_an_environment_as_its_cold_start(
        self, event: Events, capsys: pytest.CaptureFixture[str]
    ):
        telemetry._count_start.cache_clear()

        serve(event("list_api_keys"))
        first = self.counted(capsys)
        serve(event("list_api_keys"))
        second = self.counted(capsys)

        assert first["ColdStarts"] == [1.0]
        assert "ColdStarts" not in second
