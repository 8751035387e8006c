"""`python -m local.demo`: the life of an API key over HTTP, every step shown and checked.

Exit status: 0 when every step held, 1 when one did not, 2 when the LiteLLM it was told to use cannot be used.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from types import FrameType
from typing import Any, LiteralString, NoReturn, cast

import httpx
import psycopg
from psycopg.rows import dict_row

from local.errors import StartFailed
from local.loopback import NO_TLS
from local.narration import Json, Narrator, brief, shortened
from local.outside_litellm import LiteLLM, UnusableLiteLLM, delete_keys_of, litellm_of, reason_of, two_chat_models
from local.seed import OAUTH_PROVIDER, insert_models, subscribe
from local.stack import LocalStack

SUBJECT = "alice"
KEYS_PATH = "/api/v1/api-keys"
# A model may take that long to answer.
ANSWER_SECONDS = 60.0
SHOWN_LOG_LINES = 3

_INTRODUCTION = """
People get keys for the language models behind a LiteLLM proxy. This service owns the life of such a key, which lies in
two places: in LiteLLM, which accepts or refuses it, and in PostgreSQL, which knows whose it is. Here is one key from
its creation to its end, on this machine: ">" is what is asked, "<" is what comes back.
"""


class StepFailed(Exception):
    """A step did not hold."""

    def __init__(self, *, expected: str, came: str) -> None:
        super().__init__(expected, came)
        self.expected = expected
        self.came = came


def expect(*, holds: bool, expected: str, came: str) -> None:
    if not holds:
        raise StepFailed(expected=expected, came=came)


@dataclass(frozen=True)
class Key:
    """What its owner has in hand after the create."""

    id: str
    user_id: str
    prefix: str
    secret: str = field(repr=False)

    @property
    def hash(self) -> str:
        """By which LiteLLM knows the key."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def traces(self) -> list[str]:
        """How the secret, or all of it but the prefix that anybody may see, would look in a dump or a log."""
        plain, hidden = self.secret, self.secret.removeprefix(self.prefix)
        return [plain, hidden, hidden.encode().hex(), base64.b64encode(plain.encode()).decode().rstrip("=")]


@dataclass(frozen=True)
class Answer:
    status: int
    body: Json

    def require(self, status: int) -> None:
        expect(
            holds=self.status == status,
            expected=_status_line(status),
            came=f"{_status_line(self.status)}, {_clipped(self.body)}",
        )

    def text(self, name: str) -> str:
        """A field of the body that must be a string."""
        value = self.body.get(name) if isinstance(self.body, dict) else None
        if not isinstance(value, str):
            raise StepFailed(expected=f'an answer with the text "{name}"', came=_clipped(self.body))
        return value

    def objects(self, name: str) -> list[dict[str, Json]]:
        """A field of the body that must be a list of objects."""
        value = self.body.get(name) if isinstance(self.body, dict) else None
        if not isinstance(value, list):
            raise StepFailed(expected=f'an answer with the list "{name}"', came=_clipped(self.body))
        return [member for member in value if isinstance(member, dict)]

    def key(self) -> Key:
        return Key(self.text("id"), self.text("userId"), self.text("keyPrefix"), self.text("key"))


class Walk:
    """The steps in their order; each raises StepFailed when it does not hold."""

    def __init__(self, stack: LocalStack, *, models: list[str], http: httpx.Client, narrator: Narrator) -> None:
        self._stack = stack
        self._models = models
        self._http = http
        self._narrator = narrator
        self._token = stack.token(SUBJECT)

    def take(self) -> None:
        self._sign_in()
        key = self._create()
        self._use(key)
        self._list(key)
        self._look_inside(key)
        self._delete(key)
        self._use_again(key)
        self._look_for_remains(key)
        self._read_the_record(key)
        if self._stack.litellm is not None:
            self._delete_in_an_outage()

    def _sign_in(self) -> None:
        self._narrator.step(
            "Alice signs in: the issuer gives her a token that says who she is. Without one the API answers nobody."
        )
        self._api("GET", KEYS_PATH, has_token=False).require(401)
        self._narrator.request("issuer", "a token for Alice")
        self._narrator.answer("issuer", f"{shortened(self._token, 40)} which says", _claims_in(self._token))
        listed = self._api("GET", KEYS_PATH)
        listed.require(200)
        expect(holds=listed.objects("data") == [], expected="no keys yet", came=_clipped(listed.body))
        self._narrator.held("refused without a token, known with it; she has no keys yet.")

    def _create(self) -> Key:
        self._narrator.step("Alice creates a key for two models. The answer shows its secret: now, and never again.")
        created = self._api(
            "POST", KEYS_PATH, body={"name": "my notebook", "modelIds": [*self._models], "maxBudget": 5}
        )
        created.require(201)
        key = created.key()
        models = cast(dict[str, Json], created.body).get("models")
        expect(holds=models == self._models, expected=f"the models {self._models}", came=_clipped(models))
        expect(holds=created.text("status") == "active", expected="status active", came=created.text("status"))
        self._narrator.held(f"an active key for {' and '.join(self._models)}.")
        return key

    def _use(self, key: Key) -> None:
        self._narrator.step("She uses it at LiteLLM: this service does not stand between her and the models.")
        self._complete(key).require(200)
        self._narrator.held("LiteLLM accepts the key.")

    def _list(self, key: Key) -> None:
        self._narrator.step("She lists her keys: one question to PostgreSQL, none to LiteLLM, and no secret.")
        listed = self._api("GET", KEYS_PATH)
        listed.require(200)
        ids = [row.get("id") for row in listed.objects("data")]
        expect(holds=ids == [key.id], expected=f"the one key {key.id}", came=str(ids))
        self._expect_no_trace(key, json.dumps(listed.body), place="the list")
        knows = {"LITELLM_URL", "LITELLM_SECRET_ARN"} & self._stack.environment("ListApiKeys").keys()
        expect(holds=not knows, expected="a function that does not know LiteLLM", came=f"it has {sorted(knows)}")
        self._narrator.held("her key, without its secret; the function that lists does not know LiteLLM's address.")

    def _look_inside(self, key: Key) -> None:
        self._narrator.step(
            "Behind the API the key lies in two places, and neither has the secret: a row in PostgreSQL, and "
            "LiteLLM's own list, which knows the key by the hash of its secret."
        )
        [row] = self._rows("SELECT * FROM api_keys WHERE id = %(id)s", key_id=key.id, count=1)
        expect(holds=row["key_hash"] == key.hash, expected=f"the key_hash {key.hash}", came=str(row["key_hash"]))
        self._expect_in_litellm(key, count=1)
        self._search_for_secret(key)
        self._narrator.held(
            "PostgreSQL and LiteLLM agree on the hash; the secret is in no column of any table and not in the "
            "functions' log, neither plain nor as hex or base64."
        )

    def _delete(self, key: Key) -> None:
        self._narrator.step(
            "She deletes the key. 200 means gone in both places; by effectiveBy every replica of LiteLLM that still "
            "remembers the key has forgotten it."
        )
        self._expect_deleted(self._api("DELETE", f"{KEYS_PATH}/{key.id}"))
        self._narrator.held("deleted, not just switched off.")

    def _use_again(self, key: Key) -> None:
        self._narrator.step("She tries to use it once more, exactly as before.")
        answer = self._complete(key)
        if answer.status == 200 and self._stack.litellm is None:
            self._narrator.event("of several LiteLLM replicas, one may accept it until effectiveBy")
        answer.require(401)
        self._narrator.held("LiteLLM refuses the key.")

    def _look_for_remains(self, key: Key) -> None:
        self._narrator.step("The row is gone, and LiteLLM's own list of her keys is empty.")
        self._rows("SELECT * FROM api_keys WHERE id = %(id)s", key_id=key.id, count=0)
        self._expect_in_litellm(key, count=0)
        self._narrator.held("gone in both places.")

    def _read_the_record(self, key: Key) -> None:
        self._narrator.step(
            "What stays is the record of who did what, when and from where. It is written in the same statement as "
            "the change itself, so there is none without the other."
        )
        rows = self._rows(
            "SELECT action, success, created_at, ip_address, user_agent, metadata\n"
            "FROM audit_logs\nWHERE resource_id = %(id)s ORDER BY created_at",
            key_id=key.id,
            count=2,
        )
        came = [(row["action"], row["success"]) for row in rows]
        expected = [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]
        expect(holds=came == expected, expected=str(expected), came=str(came))
        prefixes = {row["metadata"]["keyPrefix"] for row in rows}
        expect(holds=prefixes == {key.prefix}, expected=f"the prefix {key.prefix}", came=str(prefixes))
        self._narrator.held("two audit records: the create and the delete, each with the key's name and models.")

    def _delete_in_an_outage(self) -> None:
        litellm = self._stack.litellm
        assert litellm is not None
        self._narrator.step("And when LiteLLM is down? Then a delete promises no more than is true: 202, not yet 200.")
        created = self._api("POST", KEYS_PATH, body={"modelIds": [self._models[0]]}, only=("id", "status"))
        created.require(201)
        key = created.key()
        litellm.stop()
        self._narrator.event("LiteLLM stops")
        self._api("DELETE", f"{KEYS_PATH}/{key.id}").require(202)
        listed = self._api("GET", KEYS_PATH, only=("data", "id", "status", "isActive"))
        listed.require(200)
        came = [(row.get("status"), row.get("isActive")) for row in listed.objects("data")]
        expect(holds=came == [("deleting", False)], expected="one key: deleting, not active", came=str(came))
        litellm.start()
        self._narrator.event("LiteLLM is back, and still has the key")
        self._expect_deleted(self._api("DELETE", f"{KEYS_PATH}/{key.id}"))
        self._expect_in_litellm(key, count=0)
        self._narrator.held("202 while LiteLLM could not confirm, 200 when it had.")

    def _api(
        self, method: str, path: str, *, body: Json = None, has_token: bool = True, only: tuple[str, ...] = ()
    ) -> Answer:
        bearer = (self._token, shortened(self._token, 20)) if has_token else None
        return self._call("API", self._stack.url, method, path, body=body, bearer=bearer, only=only)

    def _complete(self, key: Key) -> Answer:
        return self._call(
            "LiteLLM",
            self._stack.litellm_url,
            "POST",
            "/chat/completions",
            body={"model": self._models[0], "messages": [{"role": "user", "content": "Say hello."}]},
            bearer=(key.secret, f"{key.prefix}..."),
            only=("model", "choices", "message", "content", "usage", "total_tokens", "error", "type", "code"),
        )

    def _expect_in_litellm(self, key: Key, *, count: int) -> None:
        found = self._call(
            "LiteLLM",
            self._stack.litellm_url,
            "GET",
            f"/key/list?user_id={key.user_id}",
            bearer=(self._stack.litellm_master_key, "(the master key)"),
            only=("keys", "total_count"),
        )
        found.require(200)
        hashes = found.body.get("keys") if isinstance(found.body, dict) else None
        expect(holds=hashes == [key.hash] * count, expected=f"keys listed: {count}", came=_clipped(found.body))

    def _call(
        self,
        speaker: str,
        url: str,
        method: str,
        path: str,
        *,
        body: Json = None,
        bearer: tuple[str, str] | None,
        only: tuple[str, ...],
    ) -> Answer:
        """`bearer` as it is sent and as it is shown; `only` these fields of the answer are shown, by default all."""
        shown = [] if bearer is None else [f"Authorization: Bearer {bearer[1]}"]
        self._narrator.request(speaker, f"{method} {path}", *shown, *([] if body is None else [body]))
        headers = {} if bearer is None else {"authorization": f"Bearer {bearer[0]}"}
        started = time.monotonic()
        try:
            response = self._http.request(method, f"{url}{path}", json=body, headers=headers)
        except httpx.HTTPError as error:
            raise StepFailed(expected=f"an answer from {speaker}", came=reason_of(error)) from error
        milliseconds = (time.monotonic() - started) * 1000
        answer = Answer(response.status_code, _json_of(response))
        self._narrator.answer(
            speaker, f"{_status_line(answer.status)}, {milliseconds:.0f} ms", brief(answer.body, only=only)
        )
        return answer

    def _rows(self, query: LiteralString, *, key_id: str, count: int) -> list[dict[str, Any]]:
        clauses = query.replace("%(id)s", f"'{key_id}'").split("\n")
        self._narrator.request("PostgreSQL", *clauses)
        try:
            with (
                psycopg.connect(self._stack.admin_dsn) as connection,
                connection.cursor(row_factory=dict_row) as cursor,
            ):
                rows = cursor.execute(query, {"id": key_id}).fetchall()
        except psycopg.Error as error:
            raise StepFailed(expected="an answer from PostgreSQL", came=reason_of(error)) from error
        shown = [brief(json.loads(json.dumps(row, default=_plain))) for row in rows]
        self._narrator.answer("PostgreSQL", "1 row" if len(rows) == 1 else f"{len(rows)} rows", *shown)
        expect(holds=len(rows) == count, expected=f"rows: {count}", came=f"rows: {len(rows)}")
        return rows

    def _search_for_secret(self, key: Key) -> None:
        """In everything the database holds, and in everything the functions wrote."""
        self._narrator.request("PostgreSQL", "pg_dump, searched for the secret and, to see that it can find, its hash")
        dump = self._stack.database.dump(self._stack.database_name)
        tables, rows = _size_of(dump)
        found = f"the hash {dump.count(key.hash)} times, the secret {dump.count(key.secret)} times"
        self._narrator.answer("PostgreSQL", f"{tables} tables with {rows} rows: {found}")
        expect(holds=key.hash in dump, expected="a dump that holds the key's hash", came="a dump without it")
        self._expect_no_trace(key, dump, place="the dump")
        self._expect_no_trace(key, self._stack.log_path.read_text(errors="replace"), place="the functions' log")

    def _expect_no_trace(self, key: Key, text: str, *, place: str) -> None:
        found = [trace for trace in key.traces() if trace in text]
        expect(holds=not found, expected=f"no trace of the secret in {place}", came=f"{len(found)} kinds of trace")

    def _expect_deleted(self, answer: Answer) -> None:
        answer.require(200)
        lag = datetime.fromisoformat(answer.text("effectiveBy")) - datetime.fromisoformat(answer.text("deletedAt"))
        promised = timedelta(seconds=float(self._stack.environment("DeleteApiKey")["GATEWAY_CACHE_SECONDS"]))
        expect(holds=lag == promised, expected=f"effectiveBy {promised} after deletedAt", came=f"{lag} after it")


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m local.demo",
        description="Walks through the life of an API key on this machine; succeeds only if every step holds.",
        epilog="LITELLM_URL and LITELLM_MASTER_KEY in the environment make it use that LiteLLM.",
    ).parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    try:
        outside = litellm_of(os.environ)
        does_hold = show(outside, narrator=Narrator(sys.stdout, is_coloured=is_coloured))
    except UnusableLiteLLM as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    except StartFailed as failure:
        sys.exit(f"The local stack did not start: {failure}")
    except KeyboardInterrupt:
        print("\ninterrupted, everything is stopped", flush=True)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # Whoever read along has left, as in `make demo | head`; Python would complain again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0 if does_hold else 1)


def show(outside: LiteLLM | None, *, narrator: Narrator) -> bool:
    """Whether every step held. Raises UnusableLiteLLM and StartFailed."""
    started = time.monotonic()
    with ExitStack() as at_the_end:
        http = at_the_end.enter_context(
            httpx.Client(
                trust_env=False,
                verify=True if outside and outside.needs_tls else NO_TLS,
                timeout=ANSWER_SECONDS,
                headers={"user-agent": "keyservice-demo"},
            )
        )
        if outside is not None:
            two_chat_models(outside, http=http)
        narrator.paragraph(_INTRODUCTION)
        # Ends before what was registered for the end so far, so that no function is left to make another key then.
        with LocalStack.start(
            litellm_url=outside.url if outside else None,
            litellm_master_key=outside.master_key if outside else None,
            report=lambda step: narrator.progress(f"{step} ..."),
        ) as stack:
            litellm = LiteLLM(stack.litellm_url, stack.litellm_master_key)
            models = two_chat_models(litellm, http=http)
            narrator.progress(f"giving Alice subscriptions to {' and '.join(models)} ...")
            insert_models(stack.admin_dsn, models)
            subscribe(stack.admin_dsn, subject=SUBJECT, models=models)
            if outside is not None:
                at_the_end.callback(_tidy_up, outside, user_id=_user_id(stack), http=http, narrator=narrator)
            seconds = time.monotonic() - started
            narrator.progress(f"ready in {seconds:.1f} s: the API at {stack.url}, LiteLLM at {stack.litellm_url}")
            try:
                Walk(stack, models=models, http=http, narrator=narrator).take()
            except StepFailed as failure:
                narrator.failed(expected=failure.expected, came=failure.came)
                _show_last_words(stack, narrator=narrator)
                return False
    seconds = time.monotonic() - started
    narrator.summary(
        f"All {narrator.steps} steps held: the key worked, no secret was stored, nothing is left but the record. "
        f"({seconds:.1f} s)"
    )
    return True


def _tidy_up(outside: LiteLLM, *, user_id: str, http: httpx.Client, narrator: Narrator) -> None:
    """An outside LiteLLM outlives the demo; the demo's keys must not, however it ended."""
    try:
        left = delete_keys_of(user_id, litellm=outside, http=http)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        narrator.note(f"Keys of the user {user_id} may be left in {outside.url}: {reason_of(error)}")
        return
    if left:
        narrator.note(f"These keys could not be removed from {outside.url}: {', '.join(left)}")
    else:
        narrator.note(f"No key of this demo is left in {outside.url}; its user {user_id} stays there.")


def _user_id(stack: LocalStack) -> str:
    with psycopg.connect(stack.admin_dsn) as connection:
        row = connection.execute(
            "SELECT id FROM users WHERE oauth_provider = %s AND oauth_id = %s", [OAUTH_PROVIDER, SUBJECT]
        ).fetchone()
    assert row is not None
    return str(row[0])


def _show_last_words(stack: LocalStack, *, narrator: Narrator) -> None:
    lines = stack.log_path.read_text(errors="replace").splitlines()
    without_metrics = [line for line in lines if not line.startswith('{"_aws"')]
    narrator.verbatim("the functions' last words", without_metrics[-SHOWN_LOG_LINES:])


def _claims_in(token: str) -> Json:
    middle = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))


def _json_of(response: httpx.Response) -> Json:
    try:
        return response.json()
    except ValueError:
        # A page of somebody else's, from a proxy on the way.
        return shortened(" ".join(response.text.split()), 80).encode("ascii", "replace").decode()


def _status_line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _clipped(body: Json) -> str:
    return shortened(json.dumps(body), 600)


def _size_of(dump: str) -> tuple[int, int]:
    """Tables and rows: pg_dump writes a table as a COPY command, one line for each row, and an end mark."""
    blocks = re.findall(r"^COPY [^\n]* FROM stdin;\n(.*?)^\\\.$", dump, flags=re.MULTILINE | re.DOTALL)
    return len(blocks), sum(block.count("\n") for block in blocks)


def _plain(value: object) -> str | float:
    """What JSON has no type for, as the API writes it."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(value)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
