"""`python -m local.demo`: the life of an API key over HTTP, every step shown and checked.

Exit status: 0 when every step held, 1 when one did not, 2 when the LiteLLM it was given cannot be used.
"""

import argparse
import base64
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from types import FrameType
from typing import Any, LiteralString, NoReturn, cast
from urllib.parse import urlsplit

import httpx
import psycopg
from psycopg.rows import dict_row

from local.errors import StartFailed
from local.loopback import NO_TLS
from local.narration import Json, Narrator, brief, shortened
from local.seed import insert_models, subscribe
from local.stack import LocalStack

SUBJECT = "alice"
KEYS_PATH = "/api/v1/api-keys"
LIST_FUNCTION = "ListApiKeys"
DELETE_FUNCTION = "DeleteApiKey"
# A completion may take a model that long.
ANSWER_SECONDS = 60.0
LOOK_SECONDS = 10.0

_INTRODUCTION = """
People get keys for the language models behind a LiteLLM proxy. This service owns the life of such a key, which lies in
two places: in LiteLLM, which accepts or refuses it, and in PostgreSQL, which knows whose it is. Here is one key from
its creation to its end, on this machine: > is what is asked, < is what comes back.
"""


class StepFailed(Exception):
    """A step did not hold."""

    def __init__(self, *, expected: str, came: str) -> None:
        super().__init__(expected, came)
        self.expected = expected
        self.came = came


class UnusableLiteLLM(Exception):
    """The LiteLLM of LITELLM_URL; the message is one sentence for the person who set it."""


@dataclass(frozen=True)
class LiteLLM:
    url: str
    master_key: str = field(repr=False)


@dataclass(frozen=True)
class Key:
    """What its owner has in hand after the create."""

    id: str
    prefix: str
    secret: str = field(repr=False)

    @property
    def hash(self) -> str:
        """By which LiteLLM knows the key."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def traces(self) -> list[str]:
        """The secret as it would look in a dump or a log, also without the prefix that everybody may see."""
        secret = self.secret.encode()
        return [
            *(self.secret, self.secret.removeprefix(self.prefix)),
            *(secret.hex(), base64.b64encode(secret).decode().rstrip("=")),
        ]


@dataclass(frozen=True)
class Answer:
    status: int
    body: Json

    def require(self, status: int) -> None:
        if self.status != status:
            raise StepFailed(expected=_status_line(status), came=f"{_status_line(self.status)} {_clipped(self.body)}")

    def text(self, name: str) -> str:
        """A field of the body that must be a string."""
        value = self.body.get(name) if isinstance(self.body, dict) else None
        if not isinstance(value, str):
            raise StepFailed(expected=f'an answer with the text "{name}"', came=_clipped(self.body))
        return value


class Walk:
    """The steps in their order; each raises StepFailed when it does not hold."""

    def __init__(self, stack: LocalStack, *, models: list[str], http: httpx.Client, narrator: Narrator) -> None:
        self._stack = stack
        self._models = models
        self._http = http
        self._narrator = narrator
        self._token = stack.token(SUBJECT)

    def whole(self) -> None:
        self._sign_in()
        key = self._create()
        self._use(key)
        self._list(key)
        self._look_inside(key)
        self._delete(key)
        self._use_deleted(key)
        self._look_for_remains(key)
        self._read_audit(key)
        if self._stack.litellm is not None:
            self._delete_during_an_outage()

    def _sign_in(self) -> None:
        self._narrator.step(
            "Alice signs in: the issuer gives her a token that says who she is. Without it the API answers nobody."
        )
        without = self._api("GET", KEYS_PATH, token=None)
        without.require(401)
        claims = _claims(self._token)
        self._narrator.answer("issuer", f"{shortened(self._token, 40)} which says:", claims)
        with_token = self._api("GET", KEYS_PATH)
        with_token.require(200)
        self._expect(_data(with_token) == [], expected="no keys yet", came=_clipped(with_token.body))
        self._narrator.held("refused without a token, known with one; she has no keys yet.")

    def _create(self) -> Key:
        self._narrator.step(
            "Alice creates a key for two models. The answer holds the secret: this once, and never again."
        )
        wanted: Json = {"name": "my notebook", "modelIds": [*self._models], "maxBudget": 5}
        created = self._api("POST", KEYS_PATH, body=wanted)
        created.require(201)
        key = Key(created.text("id"), created.text("keyPrefix"), created.text("key"))
        body = cast(dict[str, Json], created.body)
        self._expect(body.get("models") == self._models, expected=str(self._models), came=_clipped(body.get("models")))
        self._expect(key.secret.startswith(key.prefix), expected="a secret that begins with keyPrefix", came="another")
        self._narrator.held(f"an active key for {' and '.join(self._models)}.")
        return key

    def _use(self, key: Key) -> None:
        self._narrator.step("She uses the key at LiteLLM itself: this service does not stand between her and a model.")
        self._complete(key).require(200)
        self._narrator.held("LiteLLM accepts the key.")

    def _list(self, key: Key) -> None:
        self._narrator.step("She lists her keys. That costs one query to PostgreSQL, and LiteLLM is not asked.")
        listed = self._api("GET", KEYS_PATH)
        listed.require(200)
        ids = [row.get("id") for row in _data(listed)]
        self._expect(ids == [key.id], expected=f"the one key {key.id}", came=str(ids))
        self._expect_no_trace(key, json.dumps(listed.body), where="the list")
        knows_litellm = [name for name in self._stack.environment(LIST_FUNCTION) if "LITELLM" in name]
        self._expect(not knows_litellm, expected=f"{LIST_FUNCTION} without LiteLLM's address", came=str(knows_litellm))
        self._narrator.held("her key without its secret; the function that lists does not even have LiteLLM's address.")

    def _look_inside(self, key: Key) -> None:
        self._narrator.step(
            "Behind the API the key lies in two places, and neither holds the secret: PostgreSQL has the row, and "
            "LiteLLM knows the key by the hash of its secret."
        )
        [row] = self._rows("SELECT * FROM api_keys WHERE id = %(id)s", {"id": key.id}, count=1)
        self._expect(row["key_hash"] == key.hash, expected=f"key_hash {key.hash}", came=str(row["key_hash"]))
        self._expect_in_litellm(key, count=1)
        self._scan(key)
        self._narrator.held(
            "key_hash is the sha256 of the secret; the secret itself is in no column of any table, plain, "
            "as hex or as base64, nor in the functions' log."
        )

    def _delete(self, key: Key) -> None:
        self._narrator.step(
            "She deletes the key. 200 means that it is gone in both places; by effectiveBy even a LiteLLM replica that "
            "remembered it has forgotten it."
        )
        deleted = self._api("DELETE", f"{KEYS_PATH}/{key.id}")
        self._expect_deleted(deleted)
        self._narrator.held("deleted, not merely switched off.")

    def _use_deleted(self, key: Key) -> None:
        self._narrator.step("She tries the key once more.")
        answer = self._complete(key)
        if answer.status != 401 and self._stack.litellm is None:
            self._narrator.event("one of several LiteLLM replicas may accept it until effectiveBy")
        answer.require(401)
        self._narrator.held("LiteLLM refuses it.")

    def _look_for_remains(self, key: Key) -> None:
        self._narrator.step("The row is gone, and so is LiteLLM's key.")
        self._rows("SELECT * FROM api_keys WHERE id = %(id)s", {"id": key.id}, count=0)
        self._expect_in_litellm(key, count=0)
        self._narrator.held("nothing is left in either place.")

    def _read_audit(self, key: Key) -> None:
        self._narrator.step(
            "What stays is the record of who did what, when and from where: written together with each change, so "
            "that there is no change without it."
        )
        rows = self._rows(
            "SELECT action, success, created_at, ip_address, user_agent, metadata FROM audit_logs"
            " WHERE resource_id = %(id)s ORDER BY created_at",
            {"id": key.id},
            count=2,
        )
        actions = [(row["action"], row["success"]) for row in rows]
        both = [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]
        self._expect(actions == both, expected=str(both), came=str(actions))
        self._narrator.held("one record for the create and one for the delete, with the key's name and models.")

    def _delete_during_an_outage(self) -> None:
        litellm = self._stack.litellm
        assert litellm is not None
        self._narrator.step("And when LiteLLM is down? Then a delete does not pretend: it is accepted, not yet done.")
        created = self._api("POST", KEYS_PATH, body={"modelIds": [self._models[0]]}, only=("id", "status"))
        created.require(201)
        key = Key(created.text("id"), created.text("keyPrefix"), created.text("key"))
        litellm.stop()
        self._narrator.event("LiteLLM is stopped")
        accepted = self._api("DELETE", f"{KEYS_PATH}/{key.id}")
        accepted.require(202)
        listed = self._api("GET", KEYS_PATH, only=("data",), only_of_key=("id", "status", "isActive"))
        states = [(row.get("status"), row.get("isActive")) for row in _data(listed)]
        self._expect(states == [("deleting", False)], expected="one key, deleting and not active", came=str(states))
        litellm.start()
        self._narrator.event("LiteLLM is back")
        self._expect_deleted(self._api("DELETE", f"{KEYS_PATH}/{key.id}"))
        self._expect_in_litellm(key, count=0)
        self._narrator.held("202 while LiteLLM could not confirm, 200 once it had.")

    def _api(
        self,
        method: str,
        path: str,
        *,
        body: Json = None,
        token: str | None = "",
        only: tuple[str, ...] = (),
        only_of_key: tuple[str, ...] = (),
    ) -> Answer:
        """As Alice, unless `token` is None."""
        bearer = self._token if token == "" else token
        return self._call(
            "API", self._stack.url, method, path, body=body, bearer=bearer, only=only, only_of_key=only_of_key
        )

    def _complete(self, key: Key) -> Answer:
        question: Json = {"model": self._models[0], "messages": [{"role": "user", "content": "Say hello."}]}
        return self._call(
            "LiteLLM",
            self._stack.litellm_url,
            "POST",
            "/chat/completions",
            body=question,
            bearer=key.secret,
            shown_bearer=f"{key.prefix}...",
            only=("model", "choices", "usage", "error"),
        )

    def _expect_in_litellm(self, key: Key, *, count: int) -> None:
        found = self._call(
            "LiteLLM",
            self._stack.litellm_url,
            "GET",
            f"/key/list?key_hash={key.hash}",
            bearer=self._stack.litellm_master_key,
            shown_bearer="(the master key)",
            only=("keys", "total_count"),
        )
        found.require(200)
        hashes = found.body.get("keys") if isinstance(found.body, dict) else None
        self._expect(hashes == [key.hash] * count, expected=f"{count} key in LiteLLM's list", came=_clipped(found.body))

    def _call(
        self,
        speaker: str,
        url: str,
        method: str,
        path: str,
        *,
        body: Json = None,
        bearer: str | None,
        shown_bearer: str | None = None,
        only: tuple[str, ...] = (),
        only_of_key: tuple[str, ...] = (),
    ) -> Answer:
        authorization = [] if bearer is None else [f"Authorization: Bearer {shown_bearer or shortened(bearer, 20)}"]
        self._narrator.request(speaker, f"{method} {path}", *authorization, *([] if body is None else [body]))
        started = time.monotonic()
        try:
            response = self._http.request(
                method,
                f"{url}{path}",
                json=body,
                headers={} if bearer is None else {"authorization": f"Bearer {bearer}"},
            )
        except httpx.HTTPError as error:
            raise StepFailed(expected=f"an answer from {speaker}", came=_reason(error)) from error
        milliseconds = (time.monotonic() - started) * 1000
        answer = Answer(response.status_code, _json(response))
        shown = brief(answer.body, only=only)
        if only_of_key and isinstance(answer.body, dict):
            shown = {"data": brief(answer.body.get("data"), only=only_of_key)}
        self._narrator.answer(speaker, f"{_status_line(answer.status)}, {milliseconds:.0f} ms", shown)
        return answer

    def _rows(self, query: LiteralString, parameters: dict[str, Any], *, count: int) -> list[dict[str, Any]]:
        self._narrator.request("PostgreSQL", *_in_lines(query.replace("%(id)s", f"'{parameters['id']}'")))
        with psycopg.connect(self._stack.admin_dsn, row_factory=dict_row) as connection:
            rows = connection.execute(query, parameters).fetchall()
        shown: list[Json] = [brief(json.loads(json.dumps(row, default=_plain))) for row in rows]
        self._narrator.answer("PostgreSQL", "1 row" if len(rows) == 1 else f"{len(rows)} rows", *shown)
        self._expect(len(rows) == count, expected=f"rows: {count}", came=f"rows: {len(rows)}")
        return rows

    def _scan(self, key: Key) -> None:
        """Looks for the secret in everything the database holds, and in what the functions wrote."""
        dump = self._stack.database.dump(self._stack.database_name)
        tables, rows = _size_of(dump)
        self._narrator.request("PostgreSQL", "pg_dump: every row of every table, searched for the secret")
        self._narrator.answer(
            "PostgreSQL",
            f"{tables} tables, {rows} rows: the hash {dump.count(key.hash)} times, "
            f"the secret {dump.count(key.secret)} times",
        )
        # A search that cannot find what is there would prove nothing.
        self._expect(key.hash in dump, expected="a dump with the key's hash in it", came="one without")
        self._expect_no_trace(key, dump, where="the dump")
        self._expect_no_trace(key, self._stack.log_path.read_text(errors="replace"), where="the functions' log")

    def _expect_no_trace(self, key: Key, text: str, *, where: str) -> None:
        found = [trace for trace in key.traces() if trace in text]
        self._expect(not found, expected=f"no trace of the secret in {where}", came=f"found {len(found)} of its forms")

    def _expect_deleted(self, answer: Answer) -> None:
        answer.require(200)
        deleted_at = datetime.fromisoformat(answer.text("deletedAt"))
        effective_by = datetime.fromisoformat(answer.text("effectiveBy"))
        cache_seconds = float(self._stack.environment(DELETE_FUNCTION)["GATEWAY_CACHE_SECONDS"])
        self._expect(
            effective_by - deleted_at == timedelta(seconds=cache_seconds),
            expected=f"effectiveBy {cache_seconds:.0f} s after deletedAt",
            came=f"{deleted_at} and {effective_by}",
        )

    @staticmethod
    def _expect(holds: bool, *, expected: str, came: str) -> None:  # noqa: FBT001 - reads as assert does
        if not holds:
            raise StepFailed(expected=expected, came=came)


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m local.demo",
        description="Walks through the life of an API key on this machine; succeeds only if every step holds.",
        epilog="LITELLM_URL and LITELLM_MASTER_KEY in the environment make it use that LiteLLM.",
    ).parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    narrator = Narrator(sys.stdout, is_coloured=is_coloured)
    try:
        status = _run(narrator)
    except UnusableLiteLLM as problem:
        print(problem, file=sys.stderr)
        status = 2
    except StartFailed as failure:
        print(f"The local stack did not start: {failure}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("\ninterrupted; everything is stopped", flush=True)
        status = 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read along has left: `make demo | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _run(narrator: Narrator) -> int:
    started = time.monotonic()
    outside = outside_litellm(os.environ)
    is_secure = outside is not None and urlsplit(outside.url).scheme == "https"
    with httpx.Client(
        trust_env=False,
        verify=True if is_secure else NO_TLS,
        timeout=ANSWER_SECONDS,
        headers={"user-agent": "keyservice-demo/1"},
    ) as http:
        if outside is not None:
            two_models(outside, http=http)
        narrator.paragraph(" ".join(_INTRODUCTION.split()))
        narrator.summary("Setting up")
        clean_up: Callable[[], None] = _nothing
        try:
            with LocalStack.start(
                litellm_url=outside and outside.url,
                litellm_master_key=outside and outside.master_key,
                report=narrator.progress,
            ) as stack:
                models = two_models(LiteLLM(stack.litellm_url, stack.litellm_master_key), http=http)
                narrator.progress(f"giving {SUBJECT} subscriptions to {' and '.join(models)}")
                insert_models(stack.admin_dsn, models)
                subscribe(stack.admin_dsn, subject=SUBJECT, models=models)
                if outside is not None:
                    litellm, user_id = outside, _user_id(stack)
                    clean_up = lambda: _delete_keys_of(user_id, litellm=litellm, http=http, narrator=narrator)  # noqa: E731
                narrator.progress(
                    f"ready after {time.monotonic() - started:.1f} s: the API is at {stack.url}, LiteLLM at {stack.litellm_url}"
                )
                try:
                    Walk(stack, models=models, http=http, narrator=narrator).whole()
                except StepFailed as failure:
                    narrator.failed(expected=failure.expected, came=failure.came)
                    _show_last_words(stack)
                    return 1
        finally:
            clean_up()
    seconds = time.monotonic() - started
    narrator.summary(
        f"All {narrator.steps} steps held: the key worked, its secret was stored nowhere, it is gone in both places, and the record stays. ({seconds:.1f} s)"
    )
    return 0


def outside_litellm(environment: Mapping[str, str]) -> LiteLLM | None:
    """The one the environment names; None when it names none. Raises UnusableLiteLLM for half a name."""
    url, master_key = environment.get("LITELLM_URL", ""), environment.get("LITELLM_MASTER_KEY", "")
    if not url and not master_key:
        return None
    if not url or not master_key:
        there, missing = ("LITELLM_URL", "LITELLM_MASTER_KEY") if url else ("LITELLM_MASTER_KEY", "LITELLM_URL")
        raise UnusableLiteLLM(f"{there} is set but {missing} is not: set both to use your LiteLLM, or neither.")
    if not url.startswith(("http://", "https://")) or not url.isascii():
        raise UnusableLiteLLM(f"LITELLM_URL is {url!r}: it must begin with http:// or https://.")
    if not (master_key.isascii() and master_key.isprintable()):
        raise UnusableLiteLLM("LITELLM_MASTER_KEY holds characters that cannot be sent in a header.")
    return LiteLLM(url.rstrip("/"), master_key)


def two_models(litellm: LiteLLM, *, http: httpx.Client) -> list[str]:
    """The first two it can chat with. Raises UnusableLiteLLM."""
    try:
        response = http.get(
            f"{litellm.url}/model/info",
            headers={"authorization": f"Bearer {litellm.master_key}"},
            timeout=LOOK_SECONDS,
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnusableLiteLLM(f"LiteLLM at {litellm.url} cannot be reached: {_reason(error)}.") from error
    if response.status_code in (401, 403):
        raise UnusableLiteLLM(f"LiteLLM at {litellm.url} refuses the LITELLM_MASTER_KEY.")
    models = _chat_models(_json(response)) if response.status_code == 200 else None
    if models is None:
        raise UnusableLiteLLM(
            f"{litellm.url}/model/info answers {response.status_code} without a list of models: is that a LiteLLM?"
        )
    if len(models) < 2:
        raise UnusableLiteLLM(f"LiteLLM at {litellm.url} offers {len(models)} chat models; the demo needs two.")
    return models[:2]
