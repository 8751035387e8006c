"""API Gateway's HTTP API on loopback: finds the route, asks the authorizer, invokes the function, answers."""

import asyncio
import base64
import json
import os
import re
from collections.abc import Mapping
from http import HTTPStatus

from local.authorizer import Admitted, AdmittedByLambda, Invoke, LambdaCheck, Refused, TokenCheck
from local.payload import BadAnswer, Request, Response, decoded_path, event_of, response_of
from local.serving import Receive, Scope, Send, answer, read_body
from local.template import Application, Cors, LambdaAuthorizer, Route
from local.workers import LARGEST_EVENT_BYTES, InvocationFailed

LARGEST_BODY_BYTES = 10 * 1024 * 1024
INTEGRATION_SECONDS = 30.0


class Gateway:
    """An ASGI application for the routes of one application.

    `invoke` takes a function's name and an event and gives the function's answer, or raises InvocationFailed.
    """

    def __init__(
        self, application: Application, *, invoke: Invoke, integration_seconds: float = INTEGRATION_SECONDS
    ) -> None:
        self._routes = [(route, _pattern(route.path)) for route in application.routes]
        self._cors = application.cors
        self._invoke = invoke
        self._tokens = TokenCheck()
        self._asked = LambdaCheck(invoke=invoke)
        self._integration_seconds = integration_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = base64.b64encode(os.urandom(11)).decode()
        response = await self._respond(scope, receive, request_id=request_id)
        headers = [*response.headers, ("apigw-requestid", request_id)]
        await answer(send, status=response.status, headers=headers, body=response.body)

    async def _respond(self, scope: Scope, receive: Receive, *, request_id: str) -> Response:
        body = await read_body(receive, limit=LARGEST_BODY_BYTES)
        if body is None:
            return _message(413)
        request = _request(scope, body, request_id=request_id)
        origin = request.header("origin")
        if self._cors is None:
            return await self._route(request)
        if request.method == "OPTIONS" and origin and request.header("access-control-request-method"):
            return Response(status=204, headers=_cors_headers(self._cors, origin, is_preflight=True), body=b"")
        response = await self._route(request)
        # The configured headers replace whatever the function says about it.
        kept = tuple(pair for pair in response.headers if not pair[0].startswith("access-control-"))
        added = _cors_headers(self._cors, origin, is_preflight=False) if origin else ()
        return Response(status=response.status, headers=kept + added, body=response.body)

    async def _route(self, request: Request) -> Response:
        found = self._find(request)
        if found is None:
            return _message(404)
        route, path_parameters = found
        try:
            admitted = await self._admit(request, route, path_parameters)
        except Refused as refusal:
            challenge = (("www-authenticate", refusal.challenge),) if refusal.challenge else ()
            return _message(refusal.status, *challenge)
        event = event_of(request, route=route, path_parameters=path_parameters, admitted=admitted)
        return await self._integrate(route.function, json.dumps(event).encode())

    async def _admit(
        self, request: Request, route: Route, path_parameters: Mapping[str, str]
    ) -> Admitted | AdmittedByLambda | None:
        match route.authorizer:
            case None:
                return None
            case LambdaAuthorizer() as authorizer:
                event = event_of(request, route=route, path_parameters=path_parameters, admitted=None)
                return await self._asked.admit(event, headers=request.joined_headers(), authorizer=authorizer)
            case authorizer:
                return await self._tokens.admit(
                    request.header("authorization"), authorizer=authorizer, scopes=route.scopes
                )

    async def _integrate(self, function: str, event: bytes) -> Response:
        if len(event) > LARGEST_EVENT_BYTES:
            return _message(413)
        try:
            # The function runs on when the gateway has given up, as it does at AWS.
            async with asyncio.timeout(self._integration_seconds):
                return response_of(await self._invoke(function, event))
        except TimeoutError:
            return _message(503)
        except (InvocationFailed, BadAnswer):
            return _message(500)

    def _find(self, request: Request) -> tuple[Route, dict[str, str]] | None:
        """The most specific route wins: fewer variables, no greedy one, the method named."""
        path = decoded_path(request.path)
        matches = [
            (route, match.groupdict())
            for route, pattern in self._routes
            if route.method in {request.method, "ANY"} and (match := pattern.fullmatch(path))
        ]
        return min(matches, key=lambda found: _rank(found[0]), default=None)


def _rank(route: Route) -> tuple[bool, int, bool]:
    return "+}" in route.path, route.path.count("{"), route.method == "ANY"


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+\+?)\}", path)
    names, texts = parts[1::2], parts[::2]
    groups = [f"(?P<{name.rstrip('+')}>{'.+' if name.endswith('+') else '[^/]+'})" for name in names]
    return re.compile("".join(re.escape(text) + group for text, group in zip(texts, [*groups, ""], strict=True)))


def _request(scope: Scope, body: bytes, *, request_id: str) -> Request:
    raw_headers: list[tuple[bytes, bytes]] = scope["headers"]
    return Request(
        method=scope["method"],
        path=scope["raw_path"].decode("latin-1"),
        query=scope["query_string"].decode("latin-1"),
        headers=tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw_headers),
        body=body,
        source_ip=scope["client"][0] if scope["client"] else "127.0.0.1",
        protocol=f"HTTP/{scope['http_version']}",
        request_id=request_id,
    )


def _message(status: int, *headers: tuple[str, str]) -> Response:
    """One of API Gateway's own answers, whose text is the status's standard phrase."""
    # Python calls 413 "Content Too Large" since RFC 9110; API Gateway does not.
    phrase = "Request Entity Too Large" if status == 413 else HTTPStatus(status).phrase
    body = json.dumps({"message": phrase}, separators=(",", ":")).encode()
    return Response(status=status, headers=(("content-type", "application/json"), *headers), body=body)


def _cors_headers(cors: Cors, origin: str, *, is_preflight: bool) -> tuple[tuple[str, str], ...]:
    """None at all for an origin that is not allowed."""
    if not {"*", origin} & set(cors.origins):
        return ()
    fields: Mapping[str, str] = {
        "access-control-allow-origin": "*" if "*" in cors.origins else origin,
        "access-control-allow-credentials": "true" if cors.allow_credentials else "",
        "access-control-expose-headers": ",".join(cors.exposed_headers),
    }
    if is_preflight:
        fields = {
            **fields,
            "access-control-allow-methods": ",".join(cors.methods),
            "access-control-allow-headers": ",".join(cors.headers),
            "access-control-max-age": "" if cors.max_age_seconds is None else str(cors.max_age_seconds),
        }
    return tuple((name, value) for name, value in fields.items() if value)
