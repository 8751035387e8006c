"""The API Gateway boundary: an event becomes a Request, a Response or an error becomes the answer.

Payload format 2.0 of HTTP APIs. The only place where an error becomes HTTP, and where a request is logged and counted.
"""

import base64
import ipaddress
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID, uuid4

import msgspec
from msgspec import UNSET, Struct

from keyservice import snapshot, telemetry, wiring
from keyservice.callers import caller_from_claims
from keyservice.decoding import decode_object, invalid
from keyservice.errors import (
    ErrorDescription,
    ErrorEnvelope,
    InvalidRequest,
    PayloadTooLarge,
    PreconditionFailed,
    Retry,
    ServiceError,
    Unauthorized,
    UnsupportedMediaType,
    Violation,
    reason,
)
from keyservice.models import Actor, Caller, Deadline, timestamp

MAX_BODY_BYTES = 64 * 1024
# What a request keeps back of its time for the last statement, a reconnect and its answer.
RESERVED_SECONDS = 10.0
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_MAX_USER_AGENT = 512
_JSON = "application/json; charset=utf-8"

type Event = Mapping[str, Any]
type Answer = dict[str, Any]


class LambdaContext(Protocol):
    """What is used of awslambdaric's context."""

    aws_request_id: str

    def get_remaining_time_in_millis(self) -> int: ...


class Request:
    """One request; what a handler does not ask for is not parsed."""

    def __init__(self, event: Event, context: LambdaContext) -> None:
        self._event = event
        self._context = context
        http: Mapping[str, Any] = event["requestContext"]["http"]
        self.route: str = event["routeKey"]
        self.headers: Mapping[str, str] = event.get("headers") or {}
        self.query: Mapping[str, str] = event.get("queryStringParameters") or {}
        self.path_parameters: Mapping[str, str] = event.get("pathParameters") or {}
        self.request_id = self._request_id()
        self.correlation_id = _uuid4(self.headers.get("x-correlation-id", ""))
        self.actor = Actor(
            ip_address=_ip_address(http.get("sourceIp", "")),
            user_agent=(http.get("userAgent") or "").replace("\0", "")[:_MAX_USER_AGENT] or None,
            request_id=self.request_id,
        )
        # Headers that every answer to this request carries, errors as well; a handler may add to them.
        self.notices: dict[str, str] = {}

    @property
    def caller(self) -> Caller:
        """Raises Unauthorized when the token, which has been verified, names nobody we can keep, or has expired."""
        claims = _verified_claims(self._event["requestContext"].get("authorizer") or {})
        if not claims:
            raise Unauthorized("Authentication required")
        return caller_from_claims(
            claims,
            authorization=self.headers.get("authorization", ""),
            names=wiring.settings().claim_names,
            actor=self.actor,
        )

    def body[T: Struct](self, shape: type[T]) -> T:
        """The JSON body. Raises PayloadTooLarge, UnsupportedMediaType, InvalidRequest, UnsupportedSetting."""
        content_type = self.headers.get("content-type", "application/json").split(";")[0].strip().lower()
        if content_type != "application/json":
            raise UnsupportedMediaType("Send the body as application/json")
        return decode_object(self._raw_body(), shape)

    def optional_body[T: Struct](self, shape: type[T]) -> T:
        """The JSON body, where one need not be sent: then all its fields have their defaults."""
        return self.body(shape) if self._event.get("body") else shape()

    @property
    def if_match(self) -> str | None:
        return self.headers.get("if-match")

    @property
    def idempotency_key(self) -> str | None:
        """Raises InvalidRequest unless it is 1 to 255 printable ASCII characters."""
        key = self.headers.get("idempotency-key")
        if key is None or _IDEMPOTENCY_KEY.fullmatch(key):
            return key
        raise invalid([Violation("Idempotency-Key", "must be 1 to 255 printable ASCII characters", "format")])

    def accepts(self, media_type: str) -> bool:
        """Whether the caller asks for this media type by its name; wildcards and preferences are not weighed."""
        asked = self.headers.get("accept", "").lower().split(",")
        return media_type in [part.split(";")[0].strip() for part in asked]

    def gateway_deadline(self) -> Deadline:
        """By when all LiteLLM calls of this request have to be over."""
        remaining = self._context.get_remaining_time_in_millis() / 1000
        return Deadline(min(wiring.settings().seconds("LITELLM_BUDGET_SECONDS"), remaining - RESERVED_SECONDS))

    def _raw_body(self) -> bytes:
        text: str = self._event.get("body") or ""
        try:
            raw = base64.b64decode(text, validate=True) if self._event.get("isBase64Encoded") else text.encode()
        except ValueError as error:
            raise InvalidRequest("The body is not valid UTF-8") from error
        if len(raw) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes")
        return raw

    def _request_id(self) -> str:
        given = self.headers.get("x-request-id", "")
        if _REQUEST_ID.fullmatch(given):
            return given
        return self._event["requestContext"].get("requestId") or self._context.aws_request_id or str(uuid4())


class Response(Struct, frozen=True, kw_only=True):
    """`body` is encoded as JSON, unless it is text already."""

    status: int
    body: Struct | str
    content_type: str = _JSON
    headers: Mapping[str, str] = {}


def endpoint(operation: str) -> Callable[[Callable[[Request], Response]], Callable[[Event, LambdaContext], Answer]]:
    """Makes a handler of a function from Request to Response; `operation` names it in logs and metrics.

    Whatever the function raises becomes the documented error envelope; one line is logged and one set of metrics
    written per request.
    """

    def decorate(serve: Callable[[Request], Response]) -> Callable[[Event, LambdaContext], Answer]:
        snapshot.register()

        def handler(event: Event, context: LambdaContext) -> Answer:
            started = time.perf_counter()
            telemetry.begin_request()
            request = Request(event, context)
            code = "OK"
            try:
                response = serve(request)
                answer = _response_answer(request, response)
            except ServiceError as error:
                code = error.code
                if isinstance(error, PreconditionFailed):
                    request.notices["etag"] = error.entity_tag
                if error.status >= 500:
                    telemetry.explain(reason(error))
                answer = _error_answer(request, error)
            except Exception as error:  # noqa: BLE001 - the one place where an unexpected failure becomes an answer
                code = "INTERNAL_ERROR"
                telemetry.log_unexpected(request.route, error, request_id=request.request_id)
                answer = _error_answer(request, ServiceError("An unexpected error occurred"))
            _record(operation, request, answer["statusCode"], code, (time.perf_counter() - started) * 1000)
            return answer

        return handler

    return decorate


def _verified_claims(authorizer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the JWT authorizer, or of the Lambda authorizer, whose cached answer outlives the token: its `exp` is checked
    once more. Raises Unauthorized."""
    answer: Mapping[str, Any] | None = authorizer.get("lambda")
    if answer is None:
        jwt: Mapping[str, Any] = authorizer.get("jwt") or {}
        return jwt.get("claims") or {}
    try:
        expires_at = float(answer.get("exp", ""))
    except (TypeError, ValueError) as error:
        raise Unauthorized("The token has no usable expiry") from error
    if not time.time() < expires_at:
        raise Unauthorized("The token has expired. Log in again.")
    return answer


def _response_answer(request: Request, response: Response) -> Answer:
    body = response.body if isinstance(response.body, str) else msgspec.json.encode(response.body).decode()
    return _answer(request, response.status, body, {"content-type": response.content_type, **response.headers})


def _answer(request: Request, status: int, body: str, headers: Mapping[str, str]) -> Answer:
    return {
        "statusCode": status,
        "headers": {
            "content-type": _JSON,
            "cache-control": "no-store",
            "x-request-id": request.request_id,
            **({"x-correlation-id": request.correlation_id} if request.correlation_id else {}),
            **request.notices,
            **headers,
        },
        "body": body,
        "isBase64Encoded": False,
    }


def _error_answer(request: Request, error: ServiceError) -> Answer:
    seconds = error.retry_after_seconds
    envelope = ErrorEnvelope(
        error=ErrorDescription(
            code=error.code,
            message=error.message,
            status_code=error.status,
            details=error.details,
            correlation_id=request.correlation_id or UNSET,
            timestamp=timestamp(datetime.now(UTC)),
            request_id=request.request_id,
            retry=UNSET if seconds is None else Retry(retryable=True, retry_after=seconds),
        )
    )
    headers = {} if seconds is None else {"retry-after": str(seconds)}
    return _answer(request, error.status, msgspec.json.encode(envelope).decode(), headers)


def _record(operation: str, request: Request, status: int, code: str, duration_ms: float) -> None:
    facts: dict[str, Any] = {
        "route": request.route,
        "status": status,
        "code": code,
        "duration_ms": round(duration_ms, 2),
        "request_id": request.request_id,
    }
    if request.correlation_id:
        facts["correlation_id"] = request.correlation_id
    telemetry.logger.info("request served", extra=facts)
    outcome = "error" if status >= 500 else "refused" if status >= 400 else "accepted" if status == 202 else "success"
    telemetry.write_request(operation=operation, outcome=outcome, duration_ms=duration_ms)


def _uuid4(text: str) -> str | None:
    try:
        parsed = UUID(text)
    except ValueError:
        return None
    return text if parsed.version == 4 and str(parsed) == text.lower() else None


def _ip_address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
