"""The LiteLLM client: what the service asks of LiteLLM's key API, and what each answer proves.

Facts are of LiteLLM 1.106.0. After generate only hashes travel: LiteLLM takes the sha256 wherever it takes a key.
"""

import re
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import msgspec

from keyservice import telemetry
from keyservice.errors import GatewayRefused, GatewayUnavailable
from keyservice.models import Deadline, GatewayUser, KeySettings, ModelDetails
from keyservice.secret_values import Masked, SecretValues

CONNECT_TIMEOUT_SECONDS = 2.0
# LiteLLM's uvicorn closes an idle connection after 5.0 s; a request that meets the close is lost.
_KEEP_ALIVE_SECONDS = 3.0
_EXPIRY_TOLERANCE = timedelta(seconds=30)
_LITELLM_FIELDS = {
    "max_budget": "maxBudget",
    "soft_budget": "softBudget",
    "budget_duration": "budgetDuration",
    "tpm_limit": "tpmLimit",
    "rpm_limit": "rpmLimit",
    "max_parallel_requests": "maxParallelRequests",
    "duration": "expiresAt",
    "models": "modelIds",
    "metadata": "metadata",
}
_TIMED_OUT = (408, 499)  # somebody stopped waiting, which says nothing about the work
_FIELD_NAMES = re.compile(rf"\b({'|'.join(_LITELLM_FIELDS)})\b")


class GatewayKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as LiteLLM has it; `token` is its hash."""

    token: str
    key_alias: str | None = None
    models: list[str] = []
    max_budget: float | None = None
    budget_duration: str | None = None
    tpm_limit: int | None = None
    rpm_limit: int | None = None
    max_parallel_requests: int | None = None
    expires: datetime | None = None
    blocked: bool | None = None
    metadata: dict[str, Any] = {}
    spend: float = 0.0

    def has_alias_of(self, mark: str) -> bool:
        return (self.key_alias or "").startswith(f"{mark}:")

    def is_ours(self, mark: str) -> bool:
        """Whether alias and metadata bear the mark: an alias alone may be somebody else's."""
        is_marked = _object(self.metadata.get("keyservice")).get("mark") == mark
        return is_marked and self.has_alias_of(mark)

    def differences(self, settings: KeySettings) -> list[str]:
        """LiteLLM's names of what is not as the settings say. `expires` may be some seconds off: LiteLLM counts from
        the moment it reads the request. The soft budget is not among what LiteLLM tells."""
        wanted = _limits(settings) | {"models": sorted(settings.models)}
        actual = msgspec.structs.asdict(self) | {"models": sorted(self.models)}
        differing = [name for name, value in wanted.items() if actual[name] != value]
        if (self.expires is None) != (settings.expires_at is None) or (
            self.expires is not None
            and settings.expires_at is not None
            and abs(self.expires - settings.expires_at) > _EXPIRY_TOLERANCE
        ):
            differing.append("expires")
        return differing


class GatewayKeyPage(msgspec.Struct, frozen=True, kw_only=True):
    """`keys` may be fewer than LiteLLM sent: only those whose alias begins exactly with the mark. `last_token` is the
    greatest of all it sent, None when it sent none."""

    keys: list[GatewayKey]
    last_token: str | None
    total_pages: int


class GatewaySpend(msgspec.Struct, frozen=True, kw_only=True):
    """What a key has spent, in US dollars, as LiteLLM knew it when it was asked; `token` is its hash."""

    token: str
    spend: float | None = None
    budget_reset_at: datetime | None = None
    last_active: datetime | None = None


class GatewaySpendPage(msgspec.Struct, frozen=True, kw_only=True):
    keys: list[GatewaySpend]
    total_pages: int


class _Answer(NamedTuple):
    status_code: int
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")


class LiteLLM:
    """One keep-alive HTTP client; every method takes the Deadline by which it must have answered.

    `connections`: how many threads may ask at once.
    """

    def __init__(self, *, url: str, secret_arn: str, secret_values: SecretValues, connections: int = 1) -> None:
        self._secret_arn = secret_arn
        self._secret_values = secret_values
        self._http = httpx.Client(
            base_url=url,
            trust_env=False,
            verify=urlsplit(url).scheme == "https",  # an SSL context costs 30 ms that plain HTTP need not pay
            limits=httpx.Limits(max_connections=connections, keepalive_expiry=_KEEP_ALIVE_SECONDS),
        )

    def ensure_user(self, user: GatewayUser, *, deadline: Deadline) -> None:
        """Makes the user; 409 means it is there. No email is sent: another user's would be a 409 without a user."""
        body = _without_nulls(
            {
                "user_id": str(user.id),
                "auto_create_key": False,
                "user_role": "internal_user",
                "max_budget": user.max_budget,
                "tpm_limit": user.tpm_limit,
                "rpm_limit": user.rpm_limit,
                "budget_duration": _gateway_duration(user.budget_duration),
            }
        )
        answer = self._call("POST", "/user/new", body=body, deadline=deadline)
        if answer.status_code != 200 and not _is_own_error(answer, 409):
            raise _trouble("user/new", answer)

    def generate(
        self,
        secret: Masked,
        *,
        alias: str,
        mark: str,
        api_key_id: UUID,
        user_id: UUID,
        settings: KeySettings,
        remaining_seconds: int | None,
        token_hash: str,
        spend_usd: float | None = None,
        deadline: Deadline,
    ) -> None:
        """Makes the key with our secret; `key_type: llm_api` keeps it from making keys itself. `spend_usd` counts as spent
        already.

        Raises GatewayRefused when LiteLLM answered that it will not (400, 403, 422), GatewayUnavailable otherwise.
        """
        body = _without_nulls(
            {
                "key": secret.reveal(),
                "key_alias": alias,
                "key_type": "llm_api",
                "user_id": str(user_id),
                **_limits(settings),
                "metadata": {
                    "keyservice": {"mark": mark, "api_key_id": str(api_key_id)},
                    "user": settings.metadata,
                },
                "duration": None if remaining_seconds is None else f"{remaining_seconds}s",
                "soft_budget": settings.soft_budget,
                "spend": spend_usd,
            }
        )
        answer = self._call("POST", "/key/generate", body=body, deadline=deadline)
        if answer.status_code == 200 and _json(answer).get("token") == token_hash:
            return
        if answer.status_code in (400, 403, 422) and not _is_our_trouble(answer):
            raise GatewayRefused(status_answered=answer.status_code, fields=_refused_fields(answer))
        raise _trouble("key/generate", answer)

    def delete(self, token_hash: str, *, deadline: Deadline) -> None:
        """Returns when LiteLLM says the key is gone (200) or never was (404). One hash per call: LiteLLM answers
        200 for a list of which it knew only one. A 404 that is not LiteLLM's own proves nothing."""
        answer = self._call("POST", "/key/delete", body={"keys": [token_hash]}, deadline=deadline)
        deleted: object = _json(answer).get("deleted_keys")
        if answer.status_code == 200 and isinstance(deleted, list) and token_hash in deleted:
            return
        if not _is_own_error(answer, 404):
            raise _trouble("key/delete", answer)

    def find(self, token_hash: str, *, deadline: Deadline) -> GatewayKey | None:
        """The key as LiteLLM has it now; None when it has none. One that it deleted is still told, as `deleted`."""
        answer = self._call("GET", "/key/info", query={"key": token_hash}, deadline=deadline)
        if answer.status_code == 200 and (info := _part(answer, "info")):
            return None if info.get("status") == "deleted" else _gateway_key({**info, "token": token_hash})
        if _is_own_error(answer, 404):
            return None
        raise _trouble("key/info", answer)

    def update(
        self, token_hash: str, settings: KeySettings, *, remaining_seconds: int | None, deadline: Deadline
    ) -> None:
        """Makes LiteLLM's key what the settings say; what they leave open is cleared. Metadata stays."""
        body = {
            "key": token_hash,
            **_limits(settings),
            # null clears a limit; of `duration` it is "-1" that means never.
            "duration": "-1" if remaining_seconds is None else f"{remaining_seconds}s",
        }
        answer = self._call("POST", "/key/update", body=body, deadline=deadline)
        if answer.status_code != 200:
            raise _trouble("key/update", answer)

    def list_keys(
        self, *, mark: str, page: int, deadline: Deadline, order: Literal["by hash", "newest first"] = "by hash"
    ) -> GatewayKeyPage:
        """Page 1, 2, ... of the keys whose alias begins exactly with the mark, at most 100; whether the metadata
        agrees is for the reader to ask. LiteLLM finds aliases anywhere and in any case: those are left out here."""
        column, direction = ("token", "asc") if order == "by hash" else ("created_at", "desc")
        query = {
            "key_alias": f"{mark}:",
            "substring_matching": "true",
            "return_full_object": "true",
            "sort_by": column,
            "sort_order": direction,
            "size": "100",
            "page": str(page),
        }
        answer = self._call("GET", "/key/list", query=query, deadline=deadline)
        if answer.status_code != 200:
            raise _trouble("key/list", answer)
        try:
            listed = msgspec.convert(_json(answer), type=_KeyList)
        except msgspec.ValidationError as error:
            raise _trouble("key/list", answer) from error
        found = [_gateway_key(key) for key in listed.keys]
        return GatewayKeyPage(
            keys=[key for key in found if key.has_alias_of(mark)],
            last_token=max((key.token for key in found), default=None),
            total_pages=listed.total_pages,
        )

    def list_spend(self, *, page: int, deadline: Deadline) -> GatewaySpendPage:
        """Page 1, 2, ... of all keys there are, whoever made them, sorted by hash, at most 100.

        Pages are counted off, so a key may slip from one to the next while others come and go.
        """
        query = {
            "return_full_object": "true",
            "sort_by": "token",
            "sort_order": "asc",
            "size": "100",
            "page": str(page),
        }
        answer = self._call("GET", "/key/list", query=query, deadline=deadline)
        if answer.status_code != 200:
            raise _trouble("key/list", answer)
        try:
            return msgspec.json.decode(answer.content, type=GatewaySpendPage)
        except msgspec.DecodeError as error:
            raise _trouble("key/list", answer) from error

    def models(self, *, deadline: Deadline) -> list[ModelDetails]:
        """Every model LiteLLM serves, each once."""
        answer = self._call("GET", "/model/info", deadline=deadline)
        if answer.status_code != 200:
            raise _trouble("model/info", answer)
        try:
            listed = msgspec.convert(_json(answer), type=_ModelList)
        except msgspec.ValidationError as error:
            raise _trouble("model/info", answer) from error
        return [
            ModelDetails(id=name, name=name, provider=provider)
            for name, provider in {entry.model_name: entry.provider for entry in listed.data}.items()
        ]

    def _call(
        self,
        method: str,
        path: str,
        *,
        deadline: Deadline,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> _Answer:
        answer = self._send(method, path, deadline=deadline, body=body, query=query)
        if answer.status_code == 401:
            # The master key may have been rotated. A 401 did nothing, so asking again is safe.
            self._secret_values.refresh(self._secret_arn)
            answer = self._send(method, path, deadline=deadline, body=body, query=query)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        *,
        deadline: Deadline,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str] | None,
    ) -> _Answer:
        name = path.removeprefix("/")
        master_key = self._secret_values.field(self._secret_arn, "masterKey").reveal()
        remaining = deadline.remaining_seconds()
        if remaining <= 0:
            raise GatewayUnavailable(f"{name}: no time left", may_still_happen=False)
        with (
            _measured(),
            _translated(name),
            self._http.stream(
                method,
                path,
                params=query,
                content=None if body is None else msgspec.json.encode(body),
                headers={"authorization": f"Bearer {master_key}", "content-type": "application/json"},
                timeout=httpx.Timeout(remaining, connect=min(CONNECT_TIMEOUT_SECONDS, remaining)),
            ) as response,
        ):
            return _Answer(response.status_code, b"".join(_in_time(response.iter_bytes(), deadline)))


def is_ready(url: str, *, timeout_seconds: float) -> bool:
    """Whether the LiteLLM behind the URL says that it and its database are ready."""
    try:
        with httpx.Client(trust_env=False, timeout=timeout_seconds) as client:
            answer = client.get(f"{url}/health/readiness")
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def _in_time(chunks: Iterator[bytes], deadline: Deadline) -> Iterator[bytes]:
    """httpx times out between two chunks; an answer that trickles in is given up here."""
    for chunk in chunks:
        if deadline.remaining_seconds() <= 0:
            raise httpx.ReadTimeout("the answer took too long")
        yield chunk


class _KeyList(msgspec.Struct):
    keys: list[dict[str, Any]]
    total_pages: int


class _ModelInfo(msgspec.Struct):
    litellm_provider: str | None = None


class _ModelEntry(msgspec.Struct):
    model_name: str
    model_info: _ModelInfo = msgspec.field(default_factory=_ModelInfo)
    litellm_params: dict[str, Any] = {}

    @property
    def provider(self) -> str:
        target = str(self.litellm_params.get("model", ""))
        return self.model_info.litellm_provider or (target.split("/", maxsplit=1)[0] if "/" in target else "unknown")


class _ModelList(msgspec.Struct):
    data: list[_ModelEntry]


@contextmanager
def _measured() -> Generator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        telemetry.milliseconds("LiteLLMLatency", (time.perf_counter() - started) * 1000)


@contextmanager
def _translated(name: str) -> Generator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        telemetry.count("LiteLLMFailures")
        raise GatewayUnavailable(f"{name}: not connected", may_still_happen=False) from error
    except httpx.HTTPError as error:
        telemetry.count("LiteLLMFailures")
        raise GatewayUnavailable(f"{name}: {type(error).__name__}", may_still_happen=True) from error


def _trouble(name: str, answer: _Answer) -> GatewayUnavailable:
    """An answer that is neither success nor refusal. LiteLLM's own 4xx did nothing; a 5xx, or an answer that is
    not LiteLLM's (a load balancer's 404), says nothing about what happens behind it."""
    telemetry.count("LiteLLMFailures")
    is_own = "error" in _json(answer) or "detail" in _json(answer)
    did_nothing = is_own and 400 <= answer.status_code < 500 and answer.status_code not in _TIMED_OUT
    return GatewayUnavailable(f"{name}: answered {answer.status_code}", may_still_happen=not did_nothing)


def _json(answer: _Answer) -> dict[str, Any]:
    try:
        return msgspec.json.decode(answer.content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _part(answer: _Answer, name: str) -> dict[str, Any]:
    """An object inside the answer's object; empty when there is none."""
    return _object(_json(answer).get(name))


def _object(value: object) -> dict[str, Any]:
    return msgspec.convert(value, dict[str, Any]) if isinstance(value, dict) else {}


def _is_own_error(answer: _Answer, status: int) -> bool:
    """LiteLLM's errors repeat their status as a string in error.code; a proxy's page in between does not."""
    return answer.status_code == status and _part(answer, "error").get("code") == str(status)


def _is_our_trouble(answer: _Answer) -> bool:
    """A 4xx that is about us, not about the key asked for.

    `{"detail": "..."}` with 403: the configured master key is a virtual key. `auth_error`: LiteLLM's database is
    broken. `key_alias`: the alias exists, so an earlier attempt may have worked.
    """
    error = _part(answer, "error")
    if error:
        return error.get("type") == "auth_error" or error.get("param") == "key_alias"
    return answer.status_code != 422 or "detail" not in _json(answer)


def _refused_fields(answer: _Answer) -> list[str]:
    """The request's fields that LiteLLM's answer names: its 422s locate them, its 400s only mention them."""
    return sorted({_LITELLM_FIELDS[name] for name in _FIELD_NAMES.findall(answer.text)})


def _gateway_key(told: Mapping[str, Any]) -> GatewayKey:
    """Raises GatewayUnavailable for an answer that is not a key."""
    try:
        return msgspec.convert({name: value for name, value in told.items() if value is not None}, GatewayKey)
    except msgspec.ValidationError as error:
        raise GatewayUnavailable("key: not understood", may_still_happen=False) from error


def _limits(settings: KeySettings) -> dict[str, Any]:
    """What LiteLLM enforces for a key, in its own words."""
    return {
        "models": settings.models,
        "max_budget": settings.max_budget,
        "budget_duration": _gateway_duration(settings.budget_duration),
        "tpm_limit": settings.tpm_limit,
        "rpm_limit": settings.rpm_limit,
        "max_parallel_requests": settings.max_parallel_requests,
    }


def _without_nulls(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _gateway_duration(duration: str | None) -> str | None:
    """LiteLLM 1.106.0 refuses `yearly` and `1y` with 400 and takes `365d`."""
    return "365d" if duration == "yearly" else duration
