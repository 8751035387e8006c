"""The authorizers of an HTTP API: let a request in, or say why not, by the rules AWS documents for each kind."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import httpx
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from local.aws import ACCOUNT_ID, REGION
from local.issuer import DISCOVERY_PATH
from local.loopback import NO_TLS
from local.template import JwtAuthorizer, LambdaAuthorizer
from local.workers import InvocationFailed

# "API Gateway can cache public keys for two hours" (controlling access to HTTP APIs with JWT authorizers).
KEYS_SECONDS = 2 * 60 * 60
ALGORITHMS = ["RS256", "RS384", "RS512"]


type Invoke = Callable[[str, bytes], Awaitable[bytes]]


class Refused(Exception):
    """401 with no or a bad token, 403 for a token that does not suffice, 500 when the authorizer itself failed."""

    def __init__(self, status: int, *, challenge: str | None = None) -> None:
        super().__init__(challenge or status)
        self.status = status
        self.challenge = challenge


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """By a JWT authorizer."""

    claims: Mapping[str, Any]
    scopes: tuple[str, ...] | None
    """Those of the token; None when the route asks for none."""


@dataclass(frozen=True, kw_only=True)
class AdmittedByLambda:
    context: Mapping[str, Any]
    """What the function said about the caller."""


class TokenCheck:
    """Checks tokens against the issuers' published keys, which it fetches once and keeps."""

    def __init__(self) -> None:
        self._keys: dict[str, tuple[float, KeySet]] = {}
        self._fetching = asyncio.Lock()

    async def admit(self, authorization: str | None, *, authorizer: JwtAuthorizer, scopes: tuple[str, ...]) -> Admitted:
        """Raises Refused."""
        if not authorization:
            raise Refused(401, challenge="Bearer")
        token = authorization[7:] if authorization[:7].lower() == "bearer " else authorization
        claims = await self._verified_claims(token, issuer=authorizer.issuer)
        _check_claims(claims, authorizer)
        held = _scopes(claims)
        if scopes and not set(scopes) & set(held):
            challenge = (
                f'Bearer scope="{" ".join(scopes)}" error="insufficient_scope" error_description="missing scope"'
            )
            raise Refused(403, challenge=challenge)
        return Admitted(claims=claims, scopes=held if scopes else None)

    async def _verified_claims(self, token: str, *, issuer: str) -> dict[str, Any]:
        keys = await self._issuer_keys(issuer)
        try:
            key_id = jws.extract_compact(token.encode()).headers().get("kid")
            # The library would take any key of the set for a token that names none; API Gateway wants one named.
            if key_id not in {key.kid for key in keys.keys}:
                raise _invalid("the token names no key of the issuer")
            payload: Any = json.loads(jws.deserialize_compact(token, keys, algorithms=ALGORITHMS).payload)
        except (JoseError, ValueError) as error:
            raise _invalid("the token cannot be verified") from error
        if not isinstance(payload, dict):
            raise _invalid("the token holds no claims")
        return cast("dict[str, Any]", payload)

    async def _issuer_keys(self, issuer: str) -> KeySet:
        async with self._fetching:
            fetched_at, keys = self._keys.get(issuer, (float("-inf"), None))
            if keys is None or time.monotonic() - fetched_at > KEYS_SECONDS:
                keys = await _fetch_keys(issuer)
                self._keys[issuer] = (time.monotonic(), keys)
            return keys


class LambdaCheck:
    """Asks the authorizer's function, and keeps its answers; what it raises is not kept."""

    def __init__(self, *, invoke: Invoke) -> None:
        self._invoke = invoke
        self._answers: dict[tuple[str, ...], tuple[float, Mapping[str, Any]]] = {}

    async def admit(
        self, event: Mapping[str, Any], *, headers: Mapping[str, str], authorizer: LambdaAuthorizer
    ) -> AdmittedByLambda:
        """`event` is what the route's function would get; `headers` are the request's. Raises Refused."""
        identity = [headers[name] for name in authorizer.headers if headers.get(name)]
        if len(identity) < len(authorizer.headers):
            raise Refused(401)
        known_as = (authorizer.function, *identity)
        kept_until, answer = self._answers.get(known_as, (float("-inf"), None))
        # Without an identity there is nothing to keep an answer by.
        if answer is None or time.monotonic() >= kept_until:
            answer = await self._ask(authorizer.function, authorizer_event(event, identity=identity))
            if identity:
                self._answers[known_as] = (time.monotonic() + authorizer.cache_seconds, answer)
        if answer.get("isAuthorized") is not True:
            raise Refused(403)
        return AdmittedByLambda(context=answer.get("context") or {})

    async def _ask(self, function: str, event: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            answer: Any = json.loads(await self._invoke(function, json.dumps(event).encode()))
        except InvocationFailed as failure:
            # "To return a 401, throw an exception with the message Unauthorized" (working with Lambda authorizers).
            raise Refused(401 if failure.error_message == "Unauthorized" else 500) from failure
        if not isinstance(answer, dict) or not isinstance(cast("dict[str, Any]", answer).get("isAuthorized"), bool):
            raise Refused(500)
        return cast("dict[str, Any]", answer)


def authorizer_event(event: Mapping[str, Any], *, identity: list[str]) -> dict[str, Any]:
    """Format 2.0: the function's own event with what identifies the caller, and without the body."""
    shared = {name: value for name, value in event.items() if name not in {"body", "isBase64Encoded"}}
    context = event["requestContext"]
    path = str(context["http"]["path"]).removeprefix("/")
    arn = f"arn:aws:execute-api:{REGION}:{ACCOUNT_ID}:{context['apiId']}/{context['stage']}"
    return {
        **shared,
        "type": "REQUEST",
        "routeArn": f"{arn}/{context['http']['method']}/{path}",
        "identitySource": identity,
    }


async def _fetch_keys(issuer: str) -> KeySet:
    try:
        async with httpx.AsyncClient(trust_env=False, verify=NO_TLS, timeout=5) as client:
            discovery = (await client.get(issuer.rstrip("/") + DISCOVERY_PATH)).raise_for_status().json()
            keys = (await client.get(discovery["jwks_uri"])).raise_for_status().json()
        return KeySet.import_key_set({"keys": [key for key in keys["keys"] if key["kty"] == "RSA"]})
    except (httpx.HTTPError, JoseError, ValueError, KeyError) as error:
        raise _invalid("the issuer's keys cannot be fetched") from error


def _check_claims(claims: Mapping[str, Any], authorizer: JwtAuthorizer) -> None:
    now = time.time()
    if claims.get("iss") != authorizer.issuer:
        raise _invalid("the token has another issuer")
    # client_id counts only for tokens without an audience.
    audience: Any = claims["aud"] if "aud" in claims else claims.get("client_id")
    audiences = cast("list[Any]", audience) if isinstance(audience, list) else [audience]
    if not any(wanted in audiences for wanted in authorizer.audience):
        raise _invalid("the token does not have a valid audience")
    if not (_is_time(claims.get("exp")) and now < claims["exp"]):
        raise _invalid("the token has expired")
    for name in ("nbf", "iat"):
        if name in claims and not (_is_time(claims[name]) and claims[name] <= now):
            raise _invalid("the token is not valid yet")


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scopes(claims: Mapping[str, Any]) -> tuple[str, ...]:
    value = claims.get("scope", claims.get("scp", ""))
    return tuple(value.split() if isinstance(value, str) else map(str, value))


def _invalid(description: str) -> Refused:
    return Refused(401, challenge=f'Bearer scope="" error="invalid_token" error_description="{description}"')
