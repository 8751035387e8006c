"""API Gateway's payload format 2.0: a request as a function's event, and a function's return value as an answer."""

import base64
import binascii
import json
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import parse_qsl, unquote_to_bytes

from local.authorizer import Admitted, AdmittedByLambda
from local.aws import ACCOUNT_ID
from local.template import Route

API_ID = "local"
STAGE = "$default"
# As observed at AWS, which documents only "binary": all else is base64, form posts and a missing type too.
_TEXT_TYPES = {"application/json", "application/xml", "application/javascript"}
# These belong to the connection, and API Gateway has one with each side.
_HOP_HEADERS = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
_OWN_HEADERS = {*_HOP_HEADERS, "content-length"}


class BadAnswer(Exception):
    """The function returned something that API Gateway cannot turn into a response."""


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    path: str
    """Percent-encoded, as it came."""
    query: str
    headers: tuple[tuple[str, str], ...]
    """Names in lower case, in order, duplicates as they came."""
    body: bytes
    source_ip: str
    protocol: str
    request_id: str

    def header(self, name: str) -> str | None:
        return self.joined_headers().get(name)

    def joined_headers(self) -> dict[str, str]:
        joined: dict[str, str] = {}
        for name, value in self.headers:
            joined[name] = f"{joined[name]},{value}" if name in joined else value
        return joined


@dataclass(frozen=True, kw_only=True)
class Response:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def decoded_path(path: str) -> str:
    """HTTP APIs decode the path before they match and forward it, REST APIs do not; bytes that are no UTF-8 survive."""
    return unquote_to_bytes(path).decode(errors="replace")


def event_of(
    request: Request,
    *,
    route: Route,
    path_parameters: Mapping[str, str],
    admitted: Admitted | AdmittedByLambda | None,
) -> dict[str, Any]:
    """The event the function gets. What a request does not have is absent, not null."""
    headers = {name: value for name, value in request.joined_headers().items() if name not in _HOP_HEADERS}
    cookies = [cookie.strip() for cookie in headers.pop("cookie", "").split(";") if cookie.strip()]
    host = headers.get("host", "")
    # As behind API Gateway, whose own connections are always TLS.
    headers |= {
        "x-amzn-trace-id": f"Root=1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]}",
        "x-forwarded-for": ", ".join(part for part in (headers.get("x-forwarded-for"), request.source_ip) if part),
        "x-forwarded-port": "443",
        "x-forwarded-proto": "https",
    }
    now = datetime.now(UTC)
    context: dict[str, Any] = {
        "accountId": ACCOUNT_ID,
        "apiId": API_ID,
        "domainName": host,
        "domainPrefix": host.partition(".")[0],
        "http": {
            "method": request.method,
            "path": decoded_path(request.path),
            "protocol": request.protocol,
            "sourceIp": request.source_ip,
            "userAgent": headers.get("user-agent", ""),
        },
        "requestId": request.request_id,
        "routeKey": route.key,
        "stage": STAGE,
        "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
        "timeEpoch": int(now.timestamp() * 1000),
    }
    if isinstance(admitted, AdmittedByLambda):
        context["authorizer"] = {"lambda": dict(admitted.context)}
    elif admitted is not None:
        claims = {name: claim_text(value) for name, value in admitted.claims.items()}
        scopes = None if admitted.scopes is None else list(admitted.scopes)
        context["authorizer"] = {"jwt": {"claims": claims, "scopes": scopes}}
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": route.key,
        "rawPath": decoded_path(request.path),
        "rawQueryString": request.query,
        "headers": dict(sorted(headers.items())),
        "requestContext": context,
        "isBase64Encoded": False,
    }
    if cookies:
        event["cookies"] = cookies
    if parameters := _joined_pairs(parse_qsl(request.query, keep_blank_values=True)):
        event["queryStringParameters"] = parameters
    if path_parameters:
        event["pathParameters"] = dict(path_parameters)
    if request.body:
        event["body"], event["isBase64Encoded"] = _event_body(request.body, headers.get("content-type", ""))
    return event


def claim_text(value: Any) -> str:
    """Claims reach the function as text: lists as "[a b]", objects as "map[a:1 b:2]"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + " ".join(claim_text(part) for part in cast("list[Any]", value)) + "]"
    if isinstance(value, dict):
        entries = sorted(cast("dict[str, Any]", value).items())
        return "map[" + " ".join(f"{name}:{claim_text(part)}" for name, part in entries) + "]"
    return "<nil>" if value is None else str(value)


def response_of(answer: bytes) -> Response:
    """What the caller gets for the function's JSON. Raises BadAnswer."""
    try:
        value: Any = json.loads(answer)
    except ValueError as error:
        raise BadAnswer("the function's answer is no JSON") from error
    if not isinstance(value, dict) or "statusCode" not in value:
        # Without a statusCode the value itself is the body.
        body = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        return Response(status=200, headers=(("content-type", "application/json"),), body=body.encode())
    return _proxy_response(cast("dict[str, Any]", value))


def _proxy_response(value: Mapping[str, Any]) -> Response:
    status = value["statusCode"]
    if isinstance(status, bool) or not isinstance(status, int) or not 100 <= status <= 599:
        raise BadAnswer("statusCode is no HTTP status")
    text: Any = value.get("body")
    if not isinstance(text, str | None):
        raise BadAnswer("the body is no text")
    headers = cast("dict[str, Any]", _of_kind(dict, value.get("headers") or {}))
    cookies = cast("list[Any]", _of_kind(list, value.get("cookies") or []))
    pairs = [(name.lower(), _header_text(part)) for name, part in headers.items() if name.lower() not in _OWN_HEADERS]
    body = _decoded(text or "") if value.get("isBase64Encoded") else (text or "").encode()
    if body and "content-type" not in dict(pairs):
        pairs.append(("content-type", "text/plain;charset=UTF-8"))
    pairs += [("set-cookie", str(cookie)) for cookie in cookies]
    return Response(status=status, headers=tuple(pairs), body=body)


def _of_kind(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise BadAnswer("headers or cookies have the wrong type")
    return value


def _header_text(value: Any) -> str:
    if isinstance(value, dict | list) or value is None:
        raise BadAnswer("a header's value is no text")
    return claim_text(value)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadAnswer("the body is not base64") from error


def _joined_pairs(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in pairs:
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _event_body(body: bytes, content_type: str) -> tuple[str, bool]:
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _TEXT_TYPES or kind.startswith("text/"):
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(body).decode(), True
