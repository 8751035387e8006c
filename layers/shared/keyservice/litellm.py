"""The LiteLLM client: what the service asks of LiteLLM's key API, and what each answer proves.

Facts are of LiteLLM 1.106.0. After generate only hashes travel: LiteLLM takes the sha256 wherever it takes a key.
"""

import math
import re
import ssl
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import msgspec

from keyservice import telemetry, tls
from keyservice.errors import GatewayRefused, GatewayUnavailable
from keyservice.models import Deadline, GatewayUser, KeySettings, ModelDetails, PendingUpdate
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
    "team_id": "teamId",
    "permissions": "permissions",
    "model_rpm_limit": "modelRpmLimit",
    "model_tpm_limit": "modelTpmLimit",
}
_PERMISSIONS = {
    "allowChatCompletions": "allow_chat_completions",
    "allowCompletions": "allow_completions",
    "allowEmbeddings": "allow_embeddings",
}
# What is part of a key's metadata, and where LiteLLM keeps it there.
_IN_METADATA = {
    "metadata": "user",
    "tags": "tags",
    "model_rpm_limit": "model_rpm_limit",
    "model_tpm_limit": "model_tpm_limit",
}
# What LiteLLM takes without a look at the key, and shows in its answer. Metadata it replaces as a whole, a soft budget it does
# not show, and of a budget's window nobody should be told the length who has it already.
_SENT_BY_ITSELF = {
    "models",
    "expires",
    "max_budget",
    "tpm_limit",
    "rpm_limit",
    "max_parallel_requests",
    "permissions",
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
    team_id: str | None = None
    permissions: dict[str, Any] = {}
    soft_budget: float | None = None
    """Only /key/info tells it."""

    def has_alias_of(self, mark: str) -> bool:
        return (self.key_alias or "").startswith(f"{mark}:")

    def is_ours(self, mark: str) -> bool:
        """Whether alias and metadata bear the mark: an alias alone may be somebody else's."""
        is_marked = _object(self.metadata.get("keyservice")).get("mark") == mark
        return is_marked and _has_alias_of(mark, self.key_alias)

    def differences(self, settings: KeySettings) -> list[str]:
        """LiteLLM's names of what is not as the settings say. `expires` may be some seconds off: LiteLLM counts from
        the moment it reads the request. The soft budget is not among what LiteLLM tells."""
        wanted = _limits(settings) | {"models": sorted(settings.models), "tags": settings.tags or None}
        kept = {name: self.metadata.get(name) or None for name in ("tags", "model_rpm_limit", "model_tpm_limit")}
        actual = msgspec.structs.asdict(self) | kept | {"models": sorted(self.models)}
        differing = [name for name, value in wanted.items() if actual[name] != value]
        if (self.expires is None) != (settings.expires_at is None) or (
            self.expires is not None
            and settings.expires_at is not None
            and abs(self.expires - settings.expires_at) > _EXPIRY_TOLERANCE
        ):
            differing.append("expires")
        return differing

    def deviates_by(self, settings: KeySettings) -> list[str]:
        """The same of a key as /key/info tells it: metadata and soft budget, too."""
        rest = {
            "soft_budget": self.soft_budget == settings.soft_budget,
            "metadata": _is_same(_object(self.metadata.get("user")), settings.metadata),
        }
        return [*self.differences(settings), *(name for name, is_same in rest.items() if not is_same)]

    def parts_deviating_by(self, settings: KeySettings) -> list[list[str]]:
        """The same by what LiteLLM can be told separately: each name by itself, those that are kept in metadata together.
        The team comes last: LiteLLM asks for membership, and says no as it does in trouble."""
        names = self.deviates_by(settings)
        parts = [[name] for name in names if name not in _IN_METADATA and name != "team_id"]
        parts += [[name for name in names if name in _IN_METADATA], [name for name in names if name == "team_id"]]
        return [part for part in parts if part]


class OtherKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that does not bear our mark. `is_litemaas`: LiteMaaS says so in its metadata."""

    token: str
    is_litemaas: bool = False


class GatewayKeyPage(msgspec.Struct, frozen=True, kw_only=True):
    """`keys`: those whose alias begins exactly with the mark; `others`: what else LiteLLM sent. `last_token` is the
    greatest of all it sent, None when it sent none."""

    keys: list[GatewayKey]
    others: list[OtherKey]
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
        # Without the cookies, redirects and merging of a Client, which take as long as all the rest of a call.
        self._http = httpx.HTTPTransport(
            trust_env=False,
            verify=_verification(url),
            limits=httpx.Limits(max_connections=connections, keepalive_expiry=_KEEP_ALIVE_SECONDS),
        )

        @cache
        def url_of(path: str) -> httpx.URL:
            return httpx.URL(url.rstrip("/") + path)

        self._url_of = url_of

    def close(self) -> None:
        self._http.close()

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
                **{name: value for name, value in _limits(settings).items() if value != {}},
                "metadata": {
                    "keyservice": {"mark": mark, "api_key_id": str(api_key_id)},
                    **_metadata(settings),
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
            if info.get("status") == "deleted":
                return None
            soft_budget = _object(info.get("litellm_budget_table")).get("soft_budget")
            return _gateway_key({**info, "token": token_hash, "soft_budget": soft_budget})
        if _is_own_error(answer, 404):
            return None
        raise _trouble("key/info", answer)

    def update(
        self,
        found: GatewayKey,
        settings: KeySettings,
        *,
        names: Collection[str] | None = None,
        remaining_seconds: int | None,
        deadline: Deadline,
    ) -> GatewayKey:
        """Makes LiteLLM's key, as /key/info told it, what the settings say, or what they say of `names`, which are LiteLLM's;
        what they leave open is cleared. The key as LiteLLM has stored it, its soft budget, which is not in the answer, as it
        was.

        Only what differs is sent, and what others keep in its metadata stays: LiteLLM replaces metadata as a whole, begins a
        budget's window anew whenever it is told its length, and asks for membership in a team that the key is in already.
        Raises GatewayRefused when LiteLLM answered that it will not.
        """
        differing = [name for name in found.deviates_by(settings) if names is None or name in names]
        if not differing:
            return found
        wanted = {
            **_limits(settings),
            "soft_budget": settings.soft_budget,
            "metadata": _metadata_beside(found, settings, names=differing),
            # null clears a limit; of `duration` it is "-1" that means never.
            "duration": _duration(remaining_seconds),
        }
        sent = {"duration" if name == "expires" else "metadata" if name in _IN_METADATA else name for name in differing}
        # LiteLLM moves these into the metadata that it is sent.
        sent |= {name for name in ("model_rpm_limit", "model_tpm_limit") if name in differing and wanted[name]}
        answer = self._update({"key": found.token, **{name: wanted[name] for name in sorted(sent)}}, deadline=deadline)
        return _gateway_key({**answer, "soft_budget": found.soft_budget})

    def carry_out(self, update: PendingUpdate, *, deadline: Deadline) -> bool:
        """Makes all of the key's tokens what the change says, the current one last: whatever is refused, or missing, leaves
        that one as the row is. False when LiteLLM lacks the current one, or there is none; earlier ones may be gone. A key
        whose time is over is left to its expiry.

        Raises GatewayRefused when LiteLLM will not and the key is as it was, GatewayUnavailable when nobody can tell.
        """
        if update.remaining_seconds is not None and update.remaining_seconds < 1:
            return True
        are_there = [
            self.reset_spend(token_hash, deadline=deadline)
            if update.resets_spend
            else self._change(token_hash, update, deadline=deadline)
            or self._conform(token_hash, update, deadline=deadline)
            for token_hash in update.tokens
        ]
        return bool(are_there) and are_there[-1]

    def _change(self, token_hash: str, update: PendingUpdate, *, deadline: Deadline) -> bool:
        """Sends what changes, where nothing is in doubt. True when LiteLLM's answer, which is the key as it is
        stored, shows it; otherwise nothing is proven. Raises GatewayUnavailable when nobody can tell whether LiteLLM did
        anything."""
        names = _names_of(update.changed)
        if update.in_doubt or not names or not names <= _SENT_BY_ITSELF:
            return False
        wanted = {**_limits(update.settings), "expires": _duration(update.remaining_seconds)}
        body = {"duration" if name == "expires" else name: wanted[name] for name in sorted(names)}
        answer = self._call("POST", "/key/update", body={"key": token_hash, **body}, deadline=deadline)
        if answer.status_code == 200 and _json(answer).get("token") == token_hash:
            return names.isdisjoint(_gateway_key(_json(answer)).differences(update.settings))
        if answer.status_code in (400, 403, 404, 422) and _did_nothing(answer):
            return False
        raise _trouble("key/update", answer)

    def _conform(self, token_hash: str, update: PendingUpdate, *, deadline: Deadline) -> bool:
        """Reads the key, makes what changes, and what is in doubt, as the row says, and reads back that LiteLLM has stored
        it. What is in doubt and LiteLLM refuses by name is left: somebody else has written that into the row. False when
        LiteLLM has no such key. Raises as `carry_out` does."""
        found = self.find(token_hash, deadline=deadline)
        if found is None:
            return False
        changed = _names_of(update.changed)
        meant = changed | _names_of(update.in_doubt)
        while names := meant.intersection(found.deviates_by(update.settings)):
            try:
                stored: GatewayKey | None = self.update(
                    found, update.settings, names=names, remaining_seconds=update.remaining_seconds, deadline=deadline
                )
            except GatewayRefused as refused:
                not_taken = {name for name in names - changed if _field_of(name) in refused.fields}
                if not_taken:
                    meant -= not_taken
                    continue
                # Answers with a broken database look alike: only a key that can be read, and is as it was, was refused.
                again = self.find(token_hash, deadline=deadline)
                if again is None or again.deviates_by(update.settings) != found.deviates_by(update.settings):
                    raise GatewayUnavailable("key/update: refused, and changed", may_still_happen=True) from refused
                raise
            if "soft_budget" in names:
                stored = self.find(token_hash, deadline=deadline)
            if stored is None or not meant.isdisjoint(stored.deviates_by(update.settings)):
                raise GatewayUnavailable("key/update: stored otherwise", may_still_happen=False)
            break
        return True

    def reset_spend(self, token_hash: str, *, deadline: Deadline) -> bool:
        """From now on the key has spent nothing. False when LiteLLM has no such key.

        What LiteLLM 1.106.0 has counted and not written yet (up to a minute) is added afterwards.
        """
        if self.find(token_hash, deadline=deadline) is None:
            return False
        try:
            answer = self._update({"key": token_hash, "spend": 0}, deadline=deadline)
        except GatewayRefused as refused:
            raise GatewayUnavailable("key/update: spend refused", may_still_happen=False) from refused
        if answer.get("spend") != 0:
            raise GatewayUnavailable("key/update: spend stored otherwise", may_still_happen=False)
        return True

    def _update(self, body: Mapping[str, Any], *, deadline: Deadline) -> dict[str, Any]:
        """What LiteLLM has stored. Its refusals say `auth_error`, as its answers with a broken database do; those name no
        field of the request."""
        answer = self._call("POST", "/key/update", body=body, deadline=deadline)
        if answer.status_code == 200 and _json(answer).get("token") == body["key"]:
            return _json(answer)
        if answer.status_code in (400, 403, 422):
            fields = _refused_fields(answer)
            is_named = answer.status_code == 400 and bool(fields) and bool(_part(answer, "error"))
            if is_named or not _is_our_trouble(answer):
                raise GatewayRefused(status_answered=answer.status_code, fields=fields)
        raise _trouble("key/update", answer)

    def has_team(self, team_id: str, *, deadline: Deadline) -> bool:
        """Asked before a key is made for the team: LiteLLM takes any, and a key of a missing team works for nothing."""
        answer = self._call("GET", "/team/info", query={"team_id": team_id}, deadline=deadline)
        if answer.status_code != 200 and not _is_own_error(answer, 404):
            raise _trouble("team/info", answer)
        return answer.status_code == 200

    def list_keys(
        self,
        *,
        mark: str,
        page: int,
        deadline: Deadline,
        order: Literal["by hash", "newest first"] = "by hash",
        of_everybody: bool = False,
    ) -> GatewayKeyPage:
        """Page 1, 2, ... of the keys whose alias has the mark anywhere and in any case, at most 100, or of all keys
        there are; whether the metadata agrees is for the reader to ask."""
        column, direction = ("token", "asc") if order == "by hash" else ("created_at", "desc")
        narrowed = {} if of_everybody else {"key_alias": f"{mark}:", "substring_matching": "true"}
        query = {
            **narrowed,
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
        # A stranger's key may be of any shape: only its hash matters.
        return GatewayKeyPage(
            keys=[_gateway_key(key) for key in listed.keys if _has_alias_of(mark, key.get("key_alias"))],
            others=[_other_key(key) for key in listed.keys if not _has_alias_of(mark, key.get("key_alias"))],
            last_token=max((_other_key(key).token for key in listed.keys), default=None),
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
        request = httpx.Request(
            method,
            self._url_of(path),
            params=query,
            content=None if body is None else msgspec.json.encode(body),
            # Some firewalls take no request without the name of who asks.
            headers={
                "authorization": f"Bearer {master_key}",
                "accept": "application/json",
                "content-type": "application/json",
                "user-agent": "keyservice",
            },
            extensions={"timeout": httpx.Timeout(remaining, connect=min(CONNECT_TIMEOUT_SECONDS, remaining)).as_dict()},
        )
        with (
            telemetry.measured("LiteLLMLatency"),
            _translated(name),
            closing(self._http.handle_request(request)) as response,
        ):
            return _Answer(response.status_code, b"".join(_in_time(response.iter_bytes(), deadline)))


def is_ready(url: str, *, timeout_seconds: float) -> bool:
    """Whether the LiteLLM behind the URL says that it and its database are ready."""
    try:
        with httpx.Client(trust_env=False, verify=_verification(url), timeout=timeout_seconds) as client:
            answer = client.get(f"{url}/health/readiness")
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def _verification(url: str) -> ssl.SSLContext | bool:
    return tls.public_roots() if urlsplit(url).scheme == "https" else False


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
    return GatewayUnavailable(f"{name}: answered {answer.status_code}", may_still_happen=not _did_nothing(answer))


def _did_nothing(answer: _Answer) -> bool:
    is_own = "error" in _json(answer) or "detail" in _json(answer)
    return is_own and 400 <= answer.status_code < 500 and answer.status_code not in _TIMED_OUT


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


def _is_same(one: Any, other: Any) -> bool:
    """Two JSON values, also when a number became a float on the way."""
    if isinstance(one, dict) and isinstance(other, dict):
        ours, theirs = msgspec.convert(one, dict[str, Any]), msgspec.convert(other, dict[str, Any])
        return ours.keys() == theirs.keys() and all(_is_same(ours[name], theirs[name]) for name in ours)
    if isinstance(one, list) and isinstance(other, list):
        ours, theirs = msgspec.convert(one, list[Any]), msgspec.convert(other, list[Any])
        return len(ours) == len(theirs) and all(map(_is_same, ours, theirs))
    if isinstance(one, float) or isinstance(other, float):
        return isinstance(one, int | float) and isinstance(other, int | float) and math.isclose(one, other)
    return one == other


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


def _other_key(told: Mapping[str, Any]) -> OtherKey:
    """Raises GatewayUnavailable for an answer that is not a key."""
    token: object = told.get("token")
    if not isinstance(token, str):
        raise GatewayUnavailable("key: not understood", may_still_happen=False)
    metadata = _object(told.get("metadata"))
    # Those that it made itself, and those that it made in their place when they were rotated.
    is_litemaas = metadata.get("created_by") == "litemaas" or "litemaas_key_id" in metadata
    return OtherKey(token=token, is_litemaas=is_litemaas)


def _has_alias_of(mark: str, alias: object) -> bool:
    return isinstance(alias, str) and alias.startswith(f"{mark}:")


def _limits(settings: KeySettings) -> dict[str, Any]:
    """What LiteLLM enforces for a key, in its own words."""
    return {
        "models": settings.models,
        "max_budget": settings.max_budget,
        "budget_duration": _gateway_duration(settings.budget_duration),
        "tpm_limit": settings.tpm_limit,
        "rpm_limit": settings.rpm_limit,
        "max_parallel_requests": settings.max_parallel_requests,
        "team_id": settings.lite_llm_team_id,
        "permissions": {_PERMISSIONS.get(name, name): value for name, value in settings.permissions.items()},
        # Null does not clear these: they go when the metadata they are part of is replaced.
        "model_rpm_limit": settings.model_rpm_limit or None,
        "model_tpm_limit": settings.model_tpm_limit or None,
    }


def _metadata(settings: KeySettings) -> dict[str, Any]:
    """LiteLLM counts spend by the tags of a key's metadata; as a field of their own they need a licence."""
    return {"user": settings.metadata, **({"tags": settings.tags} if settings.tags else {})}


def _metadata_beside(found: GatewayKey, settings: KeySettings, *, names: Sequence[str]) -> dict[str, Any]:
    """The key's metadata with what the settings say of `names`, and everything else as it is."""
    replaced = {_IN_METADATA[name] for name in names if name in _IN_METADATA}
    kept = {name: value for name, value in found.metadata.items() if name not in replaced}
    return kept | {name: value for name, value in _metadata(settings).items() if name in replaced}


def _names_of(columns: Sequence[str]) -> set[str]:
    """LiteLLM's names of the row's columns; of a key's name it knows nothing."""
    return {"expires" if column == "expires_at" else column for column in columns if column != "name"}


def _field_of(name: str) -> str | None:
    """The API's name of what LiteLLM calls so; tags are part of the metadata that it is sent."""
    return _LITELLM_FIELDS.get("duration" if name == "expires" else "metadata" if name == "tags" else name)


def _duration(remaining_seconds: int | None) -> str:
    """For an update, where null would leave the expiry as it is."""
    return "-1" if remaining_seconds is None else f"{remaining_seconds}s"


def _without_nulls(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _gateway_duration(duration: str | None) -> str | None:
    """LiteLLM 1.106.0 refuses `yearly` and `1y` with 400 and takes `365d`."""
    return "365d" if duration == "yearly" else duration
