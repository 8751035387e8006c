"""What each answer of LiteLLM proves; what LiteLLM 1.106.0 really answers is told by tests/contract."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from keyservice.derivation import DerivedSecret
from keyservice.errors import GatewayRefused, GatewayUnavailable, SecretUnavailable
from keyservice.litellm import GatewayKey, GatewayKeyPage, LiteLLM
from keyservice.models import Deadline, GatewayUser, KeySettings, ModelDetails, PendingUpdate
from keyservice.secret_values import SecretValues
from tests.support.aws_client import aws_client
from tests.support.http_faults import FaultProxy
from tests.unit.scripted_server import MASTER_KEY, ScriptedServer

KEY_ID = UUID("3f2504e0-4f89-41d3-9a0c-0305e82c3301")
USER_ID = UUID("7d444840-9dc0-11d1-b245-5ffdce74fad2")
DERIVED = DerivedSecret(bytes(range(32)))
EARLIER_HASH = "e" * 64
HTML = b"<html><body><h1>404 Not Found</h1></body></html>"


def own_error(
    status: int, *, kind: str = "internal_server_error", param: str | None = None, message: str = "no"
) -> Any:
    """LiteLLM's shape: the status once more, as a string."""
    return {"error": {"message": message, "type": kind, "param": param, "code": str(status)}}


@pytest.fixture
def secret_values(scripted: ScriptedServer) -> Iterator[SecretValues]:
    with closing(aws_client(scripted.url)) as aws:
        yield SecretValues(aws)


@pytest.fixture
def connect(secret_values: SecretValues) -> Iterator[Callable[[str], LiteLLM]]:
    made: list[LiteLLM] = []

    def connected(url: str) -> LiteLLM:
        made.append(LiteLLM(url=url, secret_arn="arn:litellm", secret_values=secret_values))
        return made[-1]

    yield connected
    for client in made:
        client._http.close()


@pytest.fixture
def litellm(connect: Callable[[str], LiteLLM], scripted: ScriptedServer) -> LiteLLM:
    return connect(scripted.url)


def generate(litellm: LiteLLM, *, settings: KeySettings | None = None, seconds: float = 5.0) -> None:
    litellm.generate(
        DERIVED.secret,
        alias=f"lmk-0123456789ab:{KEY_ID}:1",
        mark="lmk-0123456789ab",
        api_key_id=KEY_ID,
        user_id=USER_ID,
        settings=settings or KeySettings(models=["gpt-4o"]),
        remaining_seconds=3600,
        token_hash=DERIVED.token_hash,
        deadline=Deadline(seconds),
    )


class TestGenerate:
    def test_sends_everything_that_keeps_the_key_within_its_bounds(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(200, {"token": DERIVED.token_hash})

        generate(
            litellm,
            settings=KeySettings(
                models=["gpt-4o", "o3"],
                name="never sent",
                max_budget=5.25,
                soft_budget=4.0,
                budget_duration="30d",
                tpm_limit=0,
                rpm_limit=7,
                max_parallel_requests=2,
                metadata={"team": "blue"},
                lite_llm_team_id="team-1",
                permissions={"allowChatCompletions": True, "allowCompletions": False, "allowEmbeddings": False},
                tags=["prod"],
                model_rpm_limit={"o3": 1},
                model_tpm_limit={"gpt-4o": 100},
            ),
        )

        [asked] = scripted.asked
        assert (asked.method, asked.path, asked.authorization) == ("POST", "/key/generate", f"Bearer {MASTER_KEY}")
        assert asked.body == {
            "key": "sk-lmk_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf0qgOvN",
            "key_alias": "lmk-0123456789ab:3f2504e0-4f89-41d3-9a0c-0305e82c3301:1",
            "key_type": "llm_api",
            "user_id": "7d444840-9dc0-11d1-b245-5ffdce74fad2",
            "models": ["gpt-4o", "o3"],
            "metadata": {
                "keyservice": {"mark": "lmk-0123456789ab", "api_key_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301"},
                "user": {"team": "blue"},
                "tags": ["prod"],
            },
            "team_id": "team-1",
            "permissions": {"allow_chat_completions": True, "allow_completions": False, "allow_embeddings": False},
            "model_rpm_limit": {"o3": 1},
            "model_tpm_limit": {"gpt-4o": 100},
            "duration": "3600s",
            "max_budget": 5.25,
            "soft_budget": 4.0,
            "budget_duration": "30d",
            "tpm_limit": 0,
            "rpm_limit": 7,
            "max_parallel_requests": 2,
        }

    def test_says_yearly_in_a_word_that_litellm_knows(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(200, {"token": DERIVED.token_hash})

        generate(litellm, settings=KeySettings(models=["gpt-4o"], budget_duration="yearly"))

        assert scripted.asked[0].body["budget_duration"] == "365d"

    @pytest.mark.parametrize(
        ("status", "body", "fields"),
        [
            pytest.param(400, own_error(400), (), id="400 without a reason"),
            pytest.param(
                400,
                own_error(400, message="max_budget=900 is over upperbound 100, tpm_limit too"),
                ("maxBudget", "tpmLimit"),
                id="400 over an upper bound",
            ),
            pytest.param(
                403, own_error(403, message="tags are a feature of the licence"), (), id="403 about a licence"
            ),
            pytest.param(
                422,
                {"detail": [{"type": "float_parsing", "loc": ["body", "soft_budget"], "msg": "no"}]},
                ("softBudget",),
                id="422 of a field",
            ),
            pytest.param(422, own_error(422, message="duration"), ("expiresAt",), id="422 in LiteLLM's shape"),
        ],
    )
    def test_refusal_of_litellm_is_told_with_its_fields(
        self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any, fields: tuple[str, ...]
    ):
        scripted.will_answer(status, body)

        with pytest.raises(GatewayRefused) as caught:
            generate(litellm)

        assert (caught.value.status_answered, caught.value.fields) == (status, fields)
        assert (caught.value.status, caught.value.code) == (400, "VALIDATION_ERROR")
        assert [violation.field for violation in caught.value.details["validation"]] == (list(fields) or ["body"])

    @pytest.mark.parametrize(
        ("status", "body", "may_still_happen"),
        [
            pytest.param(400, own_error(400, param="key_alias"), False, id="400: the alias exists"),
            pytest.param(400, own_error(400, kind="auth_error"), False, id="400: LiteLLM's database is broken"),
            pytest.param(400, HTML, True, id="400 of a load balancer"),
            pytest.param(401, own_error(401, kind="auth_error"), False, id="401: a wrong master key"),
            pytest.param(403, {"detail": "not allowed"}, False, id="403: the master key is a virtual key"),
            pytest.param(403, own_error(403, kind="auth_error"), False, id="403 auth_error"),
            pytest.param(403, HTML, True, id="403 of a firewall"),
            pytest.param(404, own_error(404), False, id="404 of LiteLLM"),
            pytest.param(404, {"detail": "Not Found"}, False, id="404: no such route"),
            pytest.param(404, HTML, True, id="404 of a load balancer"),
            pytest.param(409, own_error(409), False, id="409"),
            pytest.param(422, HTML, True, id="422 of a stranger"),
            pytest.param(429, own_error(429), False, id="429"),
            pytest.param(500, own_error(500), True, id="500"),
            pytest.param(502, HTML, True, id="502 of a load balancer"),
            pytest.param(503, own_error(503), True, id="503"),
            pytest.param(504, b"", True, id="504 without a body"),
            pytest.param(200, {"token": "f" * 64}, True, id="200 for another token"),
            pytest.param(200, {}, True, id="200 without a token"),
            pytest.param(200, HTML, True, id="200 of a login page"),
            pytest.param(200, [DERIVED.token_hash], True, id="200 with a list"),
            pytest.param(201, {"token": DERIVED.token_hash}, True, id="201"),
            pytest.param(302, b"", True, id="302"),
        ],
    )
    def test_anything_else_is_trouble_and_no_refusal(
        self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any, *, may_still_happen: bool
    ):
        scripted.will_answer(status, body)

        with pytest.raises(GatewayUnavailable) as caught:
            generate(litellm)

        assert caught.value.reason == f"key/generate: answered {status}"
        assert caught.value.may_still_happen is may_still_happen

    def test_answer_that_is_no_text_is_trouble(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(502, b"\xff\xfe\x00")

        with pytest.raises(GatewayUnavailable) as caught:
            generate(litellm)

        assert caught.value.may_still_happen is True

    def test_no_message_shows_what_litellm_said(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(400, own_error(400, message=f"max_budget CANARY {DERIVED.secret.reveal()}"))

        with pytest.raises(GatewayRefused) as caught:
            generate(litellm)

        shown = f"{caught.value} {caught.value.details}"
        assert "CANARY" not in shown
        assert DERIVED.secret.reveal() not in shown


class TestNoAnswer:
    def test_nobody_listens(self, connect: Callable[[str], LiteLLM]):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]

        with pytest.raises(GatewayUnavailable) as caught:
            generate(connect(f"http://127.0.0.1:{port}"))

        assert (caught.value.reason, caught.value.may_still_happen) == ("key/generate: not connected", False)

    def test_connection_is_cut_before_the_answer(self, connect: Callable[[str], LiteLLM], scripted: ScriptedServer):
        with FaultProxy(scripted.url) as proxy:
            proxy.inject("/key/generate", "reset_before")

            with pytest.raises(GatewayUnavailable) as caught:
                generate(connect(proxy.url))

        assert caught.value.may_still_happen is True

    def test_answer_does_not_come_in_time(self, connect: Callable[[str], LiteLLM], scripted: ScriptedServer):
        with FaultProxy(scripted.url) as proxy:
            proxy.inject("/key/generate", "hang")

            with pytest.raises(GatewayUnavailable) as caught:
                generate(connect(proxy.url), seconds=0.2)

        assert caught.value.may_still_happen is True
        assert "Timeout" in caught.value.reason

    def test_without_time_nothing_is_sent(self, litellm: LiteLLM, scripted: ScriptedServer):
        with pytest.raises(GatewayUnavailable) as caught:
            generate(litellm, seconds=0)

        assert caught.value.may_still_happen is False
        assert scripted.asked == []


class TestMasterKey:
    def test_is_read_again_when_litellm_refuses_it(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(200, {"token": DERIVED.token_hash})
        generate(litellm)
        scripted.answers.clear()
        scripted.will_answer(401, own_error(401, kind="auth_error"))
        scripted.will_answer(200, {"token": DERIVED.token_hash})
        scripted.secret = '{"masterKey": "sk-rotated"}'

        generate(litellm)

        assert [asked.authorization for asked in scripted.asked] == [
            f"Bearer {MASTER_KEY}",
            f"Bearer {MASTER_KEY}",
            "Bearer sk-rotated",
        ]

    def test_is_asked_for_once_while_it_works(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(200, {"token": DERIVED.token_hash})

        for _ in range(3):
            generate(litellm)

        assert scripted.secret_reads == 1

    def test_refused_twice_is_trouble(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(401, own_error(401, kind="auth_error"))

        with pytest.raises(GatewayUnavailable):
            generate(litellm)

        assert len(scripted.asked) == 2

    @pytest.mark.parametrize(
        "secret",
        [
            pytest.param("{}", id="without the field"),
            pytest.param('{"masterKey": ""}', id="with an empty field"),
            pytest.param("sk-not-json", id="that is no JSON"),
            pytest.param('["masterKey"]', id="that is a list"),
        ],
    )
    def test_secret_that_does_not_hold_it_is_trouble(self, litellm: LiteLLM, scripted: ScriptedServer, secret: str):
        scripted.secret = secret

        with pytest.raises(SecretUnavailable):
            generate(litellm)

        assert scripted.asked == []


class TestDelete:
    def delete(self, litellm: LiteLLM) -> None:
        litellm.delete(DERIVED.token_hash, deadline=Deadline(5))

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            pytest.param(200, {"deleted_keys": [DERIVED.token_hash]}, id="200 with the hash"),
            pytest.param(404, own_error(404), id="404 of LiteLLM"),
        ],
    )
    def test_key_is_gone(self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any):
        scripted.will_answer(status, body)

        self.delete(litellm)

        assert scripted.asked[0].body == {"keys": [DERIVED.token_hash]}

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            pytest.param(200, {"deleted_keys": []}, id="200 without the hash"),
            pytest.param(200, {}, id="200 with nothing"),
            pytest.param(200, HTML, id="200 of a login page"),
            pytest.param(404, HTML, id="404 of a load balancer"),
            pytest.param(404, {"detail": "Not Found"}, id="404: no such route"),
            pytest.param(404, own_error(400), id="404 around another error"),
            pytest.param(400, own_error(400), id="400"),
            pytest.param(403, own_error(403), id="403"),
            pytest.param(500, own_error(404), id="500 that speaks of 404"),
            pytest.param(200, {"deleted_keys": None}, id="200 without a list"),
        ],
    )
    def test_anything_else_proves_nothing(self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any):
        scripted.will_answer(status, body)

        with pytest.raises(GatewayUnavailable):
            self.delete(litellm)


class TestFind:
    def find(self, litellm: LiteLLM) -> GatewayKey | None:
        return litellm.find(DERIVED.token_hash, deadline=Deadline(5))

    def test_tells_the_key_as_litellm_has_it(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(
            200,
            {
                "info": {
                    "key_alias": "a",
                    "models": ["gpt-4o"],
                    "max_budget": 5.0,
                    "tpm_limit": None,
                    "rpm_limit": 7,
                    "expires": "2030-01-01T00:00:00Z",
                    "blocked": None,
                    "metadata": {"keyservice": {"mark": "m"}},
                    "unknown": 1,
                }
            },
        )

        assert self.find(litellm) == GatewayKey(
            token=DERIVED.token_hash,
            key_alias="a",
            models=["gpt-4o"],
            max_budget=5.0,
            rpm_limit=7,
            expires=datetime(2030, 1, 1, tzinfo=UTC),
            metadata={"keyservice": {"mark": "m"}},
        )
        assert scripted.asked[0].path == f"/key/info?key={DERIVED.token_hash}"

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            pytest.param(200, {"info": {"status": "deleted"}}, id="deleted"),
            pytest.param(404, own_error(404), id="unknown"),
        ],
    )
    def test_finds_no_key(self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any):
        scripted.will_answer(status, body)

        assert self.find(litellm) is None

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            pytest.param(404, HTML, id="load balancer's 404"),
            pytest.param(404, {"detail": "Not Found"}, id="a path that LiteLLM does not have"),
            pytest.param(500, own_error(500), id="500"),
            pytest.param(200, HTML, id="200 of a stranger"),
            pytest.param(200, {"info": []}, id="not a key"),
            pytest.param(200, {"info": {"models": "gpt-4o"}}, id="a key with a wrong field"),
        ],
    )
    def test_is_not_told_by_strangers(self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any):
        scripted.will_answer(status, body)

        with pytest.raises(GatewayUnavailable):
            self.find(litellm)


class TestUser:
    USER = GatewayUser(id=USER_ID, is_known=False, max_budget=100.0, tpm_limit=10, rpm_limit=5, budget_duration="30d")

    def test_is_made_without_a_key_and_without_an_email(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(200, {"user_id": str(USER_ID)})

        litellm.ensure_user(self.USER, deadline=Deadline(5))

        assert scripted.asked[0].path == "/user/new"
        assert scripted.asked[0].body == {
            "user_id": "7d444840-9dc0-11d1-b245-5ffdce74fad2",
            "auto_create_key": False,
            "user_role": "internal_user",
            "max_budget": 100.0,
            "tpm_limit": 10,
            "rpm_limit": 5,
            "budget_duration": "30d",
        }

    def test_that_is_there_already_is_fine(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(409, own_error(409))

        litellm.ensure_user(self.USER, deadline=Deadline(5))

        assert len(scripted.asked) == 1

    @pytest.mark.parametrize(
        ("status", "body"),
        [(409, HTML), (400, own_error(400)), (403, {"detail": "x"}), (422, {"detail": []}), (500, own_error(500))],
    )
    def test_that_cannot_be_made_is_trouble(self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any):
        scripted.will_answer(status, body)

        with pytest.raises(GatewayUnavailable) as caught:
            litellm.ensure_user(self.USER, deadline=Deadline(5))

        assert caught.value.reason == f"user/new: answered {status}"


class TestModels:
    def test_are_listed_once_each_with_their_provider(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(
            200,
            {
                "data": [
                    {"model_name": "gpt-4o", "litellm_params": {"model": "azure/gpt-4o"}},
                    {"model_name": "gpt-4o", "litellm_params": {"model": "openai/gpt-4o"}},
                    {"model_name": "o3", "model_info": {"litellm_provider": "openai"}, "litellm_params": {}},
                    {"model_name": "local", "litellm_params": {"model": "llama"}, "model_info": {"id": "x"}},
                    {"model_name": "bare"},
                ]
            },
        )

        assert litellm.models(deadline=Deadline(5)) == [
            ModelDetails(id="gpt-4o", name="gpt-4o", provider="openai"),
            ModelDetails(id="o3", name="o3", provider="openai"),
            ModelDetails(id="local", name="local", provider="unknown"),
            ModelDetails(id="bare", name="bare", provider="unknown"),
        ]

    @pytest.mark.parametrize(
        ("status", "body"),
        [(500, own_error(500)), (200, HTML), (200, {"data": "x"}), (200, {}), (200, {"data": [{}]})],
    )
    def test_that_cannot_be_read_are_trouble(self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any):
        scripted.will_answer(status, body)

        with pytest.raises(GatewayUnavailable) as caught:
            litellm.models(deadline=Deadline(5))

        assert caught.value.reason == f"model/info: answered {status}"


class TestAnswerThatTricklesIn:
    def test_is_given_up_at_the_deadline(self, connect: Callable[[str], LiteLLM]):
        with socket.create_server(("127.0.0.1", 0)) as server:
            trickling = threading.Thread(target=self.trickle, args=(server,))
            trickling.start()
            litellm = connect(f"http://127.0.0.1:{server.getsockname()[1]}")

            with pytest.raises(GatewayUnavailable) as caught:
                litellm.delete(DERIVED.token_hash, deadline=Deadline(0.4))
            trickling.join(30)

        assert (caught.value.reason, caught.value.may_still_happen) == ("key/delete: ReadTimeout", True)

    def trickle(self, server: socket.socket) -> None:
        """A byte every tenth of a second, until the client has had enough."""
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.1)


class TestSomebodyStoppedWaiting:
    @pytest.mark.parametrize("status", [408, 499])
    @pytest.mark.parametrize("body", [{"detail": "x"}, {"error": {"code": "408"}}])
    def test_says_nothing_about_the_work(self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any):
        scripted.will_answer(status, body)

        with pytest.raises(GatewayUnavailable) as caught:
            generate(litellm)

        assert caught.value.may_still_happen


FOUND = GatewayKey(
    token=DERIVED.token_hash,
    models=["o3"],
    budget_duration="30d",
    tpm_limit=9,
    expires=datetime(2033, 3, 3, tzinfo=UTC),
    soft_budget=2.0,
    metadata={"keyservice": {"mark": "lmk-0123456789ab"}, "user": {"a": 1}, "tags": ["old"], "of others": 1},
)


class TestUpdate:
    def update(
        self, litellm: LiteLLM, settings: KeySettings, *, remaining_seconds: int | None, found: GatewayKey = FOUND
    ) -> GatewayKey:
        return litellm.update(found, settings, remaining_seconds=remaining_seconds, deadline=Deadline(5))

    def test_sends_what_differs_and_clears_what_is_left_open(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(200, {"token": DERIVED.token_hash})

        self.update(
            litellm,
            KeySettings(
                models=["gpt-4o"],
                rpm_limit=7,
                budget_duration="yearly",
                metadata={"b": 2},
                permissions={"allowEmbeddings": False},
                model_rpm_limit={"gpt-4o": 1},
                expires_at=datetime(2044, 4, 4, tzinfo=UTC),
            ),
            remaining_seconds=60,
        )

        [asked] = scripted.asked
        assert asked.path == "/key/update"
        assert asked.body == {
            "key": DERIVED.token_hash,
            "models": ["gpt-4o"],
            "soft_budget": None,
            "budget_duration": "365d",
            "tpm_limit": None,
            "rpm_limit": 7,
            "permissions": {"allow_embeddings": False},
            "model_rpm_limit": {"gpt-4o": 1},
            "metadata": {"keyservice": {"mark": "lmk-0123456789ab"}, "user": {"b": 2}, "of others": 1},
            "duration": "60s",
        }

    def test_sends_of_the_metadata_what_differs(self, litellm: LiteLLM, scripted: ScriptedServer):
        found = msgspec.structs.replace(FOUND, metadata={**FOUND.metadata, "model_rpm_limit": {"o3": 1}})
        scripted.will_answer(200, {"token": DERIVED.token_hash})

        litellm.update(
            found,
            KeySettings(models=["gpt-4o"], metadata={"a": 1}, tags=["new"]),
            names=["tags"],
            remaining_seconds=None,
            deadline=Deadline(5),
        )

        assert scripted.asked[0].body == {
            "key": DERIVED.token_hash,
            "metadata": {**found.metadata, "tags": ["new"]},
        }

    def test_that_is_made_already_asks_nothing(self, litellm: LiteLLM, scripted: ScriptedServer):
        settings = KeySettings(
            models=["o3"],
            budget_duration="30d",
            tpm_limit=9,
            expires_at=FOUND.expires,
            soft_budget=2.0,
            metadata={"a": 1},
            tags=["old"],
        )

        assert self.update(litellm, settings, remaining_seconds=60) == FOUND

        assert scripted.asked == []

    def test_of_a_key_that_never_expires_says_so(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(200, {"token": DERIVED.token_hash})

        self.update(litellm, KeySettings(models=["gpt-4o"]), remaining_seconds=None)

        assert scripted.asked[0].body["duration"] == "-1"

    @pytest.mark.parametrize(
        ("status", "body", "fields"),
        [
            pytest.param(
                400, own_error(400, kind="auth_error", message="Invalid budget_duration"), ("budgetDuration",), id="400"
            ),
            pytest.param(400, own_error(400), (), id="400 of another type"),
            pytest.param(403, own_error(403, message="a licence"), (), id="403 about a licence"),
            pytest.param(
                422,
                {"detail": [{"type": "int_parsing", "loc": ["body", "rpm_limit"], "msg": "no"}]},
                ("rpmLimit",),
                id="422 of a field",
            ),
        ],
    )
    def test_refusal_is_told_with_its_fields(
        self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any, fields: tuple[str, ...]
    ):
        scripted.will_answer(status, body)

        with pytest.raises(GatewayRefused) as caught:
            self.update(litellm, KeySettings(models=["gpt-4o"]), remaining_seconds=None)

        assert caught.value.fields == fields

    @pytest.mark.parametrize(
        ("status", "body", "may_still_happen"),
        [
            pytest.param(
                400, own_error(400, kind="auth_error", message="Can't reach database server"), False, id="its database"
            ),
            pytest.param(404, own_error(404), False, id="no such key"),
            pytest.param(500, own_error(500), True, id="500"),
            pytest.param(200, {}, True, id="200 of somebody else"),
            pytest.param(200, {"token": "f" * 64}, True, id="200 for another key"),
        ],
    )
    def test_anything_else_is_trouble(
        self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any, *, may_still_happen: bool
    ):
        scripted.will_answer(status, body)

        with pytest.raises(GatewayUnavailable) as caught:
            self.update(litellm, KeySettings(models=["gpt-4o"]), remaining_seconds=None)

        assert caught.value.may_still_happen is may_still_happen


def carry_out(
    litellm: LiteLLM,
    settings: KeySettings,
    *,
    changed: Sequence[str],
    in_doubt: Sequence[str] = (),
    tokens: Sequence[str] = (DERIVED.token_hash,),
) -> bool:
    update = PendingUpdate(
        operation_id=KEY_ID,
        epoch=1,
        api_key_id=KEY_ID,
        settings=settings,
        remaining_seconds=settings.expires_at and 3600,
        tokens=list(tokens),
        resets_spend=False,
        changed=list(changed),
        in_doubt=list(in_doubt),
    )
    return litellm.carry_out(update, deadline=Deadline(5))


class TestCarryOutOfWhatIsInDoubt:
    WANTED = KeySettings(models=["gpt-4o"], tpm_limit=5, metadata={"a": 1, "b": [True, {"c": 0.1}]})
    BEFORE = {"models": ["gpt-4o"], "tpm_limit": 4, "metadata": {"user": {"a": 1, "b": [True, {"c": 0.1}]}}}
    AFTER = {**BEFORE, "tpm_limit": 5}

    def conform(self, litellm: LiteLLM, settings: KeySettings = WANTED) -> bool:
        return carry_out(litellm, settings, changed=["tpm_limit"], in_doubt=["tpm_limit", "rpm_limit", "soft_budget"])

    def test_leaves_a_key_alone_that_is_so_already(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(200, {"info": self.AFTER})

        assert self.conform(litellm) is True

        assert [asked.method for asked in scripted.asked] == ["GET"]

    def test_reads_back_what_litellm_answers(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(200, {"info": self.BEFORE})
        scripted.will_answer(200, {"token": DERIVED.token_hash, **self.AFTER})

        assert self.conform(litellm) is True

        assert [asked.method for asked in scripted.asked] == ["GET", "POST"]
        assert scripted.asked[1].body == {"key": DERIVED.token_hash, "tpm_limit": 5}

    def test_makes_what_is_in_doubt_as_the_row_says_and_nothing_else(self, litellm: LiteLLM, scripted: ScriptedServer):
        other = {"team_id": "moved", "max_budget": 8.0, "expires": "2033-03-03T00:00:00Z"}
        scripted.will_answer(200, {"info": {**self.AFTER, **other, "rpm_limit": 7}})
        scripted.will_answer(200, {"token": DERIVED.token_hash, **self.AFTER, **other})

        assert self.conform(litellm) is True

        assert scripted.asked[1].body == {"key": DERIVED.token_hash, "rpm_limit": None}

    def test_leaves_what_is_in_doubt_and_litellm_will_not_take(self, litellm: LiteLLM, scripted: ScriptedServer):
        """LiteMaaS has written it into the row since."""
        settings = msgspec.structs.replace(self.WANTED, budget_duration="1y", rpm_limit=7)
        scripted.will_answer(200, {"info": self.BEFORE})
        scripted.will_answer(400, own_error(400, kind="auth_error", message="budget_duration"))
        scripted.will_answer(200, {"token": DERIVED.token_hash, **self.AFTER, "rpm_limit": 7})

        assert carry_out(litellm, settings, changed=["tpm_limit"], in_doubt=["budget_duration", "rpm_limit"]) is True

        assert scripted.asked[2].body == {"key": DERIVED.token_hash, "tpm_limit": 5, "rpm_limit": 7}

    def test_asks_once_more_for_a_soft_budget(self, litellm: LiteLLM, scripted: ScriptedServer):
        settings = KeySettings(models=["gpt-4o"], soft_budget=3.0)
        scripted.will_answer(200, {"info": {"models": ["gpt-4o"]}})
        scripted.will_answer(200, {"token": DERIVED.token_hash, "models": ["gpt-4o"]})
        scripted.will_answer(200, {"info": {"models": ["gpt-4o"], "litellm_budget_table": {"soft_budget": 3.0}}})

        assert self.conform(litellm, settings) is True

    @pytest.mark.parametrize("stored", [BEFORE, {**AFTER, "rpm_limit": 7}], ids=["what changes", "what is in doubt"])
    def test_is_not_satisfied_with_less(self, litellm: LiteLLM, scripted: ScriptedServer, stored: dict[str, Any]):
        scripted.will_answer(200, {"info": self.BEFORE})
        scripted.will_answer(200, {"token": DERIVED.token_hash, **stored})

        with pytest.raises(GatewayUnavailable) as caught:
            self.conform(litellm)

        assert caught.value.may_still_happen is False

    def test_of_a_key_that_is_not_there_says_so(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(404, own_error(404))

        assert self.conform(litellm) is False

    def test_refused_is_only_what_can_be_read_unchanged(self, litellm: LiteLLM, scripted: ScriptedServer):
        refusal = own_error(400, kind="auth_error", message="tpm_limit")
        for again in (self.BEFORE, self.AFTER):
            scripted.will_answer(200, {"info": self.BEFORE})
            scripted.will_answer(400, refusal)
            scripted.will_answer(200, {"info": again})

        with pytest.raises(GatewayRefused):
            self.conform(litellm)
        with pytest.raises(GatewayUnavailable):
            self.conform(litellm)


class TestCarryOut:
    WANTED = KeySettings(
        models=["gpt-4o"],
        name="changed",
        tpm_limit=5,
        max_budget=7.0,
        budget_duration="30d",
        metadata={"a": 1},
        expires_at=datetime(2033, 3, 3, tzinfo=UTC),
    )
    STORED = {
        "token": DERIVED.token_hash,
        "models": ["gpt-4o"],
        "tpm_limit": 5,
        "max_budget": 7.0,
        "budget_duration": "30d",
        "metadata": {"user": {"a": 1}, "of others": 1},
        "expires": "2033-03-03T00:00:00Z",
    }

    def carry_out(self, litellm: LiteLLM, changed: list[str], *, settings: KeySettings = WANTED) -> bool:
        return carry_out(litellm, settings, changed=changed)

    @pytest.mark.parametrize(
        ("changed", "sent"),
        [
            (["tpm_limit"], {"tpm_limit": 5}),
            (["name", "max_budget"], {"max_budget": 7.0}),
            (["models", "expires_at"], {"models": ["gpt-4o"], "duration": "3600s"}),
            (["rpm_limit", "permissions"], {"rpm_limit": None, "permissions": {}}),
        ],
        ids=str,
    )
    def test_sends_what_changes_and_takes_the_answer_for_the_key(
        self, litellm: LiteLLM, scripted: ScriptedServer, changed: list[str], sent: dict[str, Any]
    ):
        scripted.will_answer(200, self.STORED)

        assert self.carry_out(litellm, changed) is True

        assert [(asked.path, asked.body) for asked in scripted.asked] == [
            ("/key/update", {"key": DERIVED.token_hash, **sent})
        ]

    @pytest.mark.parametrize(
        ("column", "names", "left_alone"),
        [
            ("metadata", {"metadata"}, {"tags": ["theirs"]}),
            ("tags", {"metadata"}, {"user": {"theirs": 1}}),
            ("model_rpm_limit", {"metadata"}, {"user": {"theirs": 1}}),
            ("model_tpm_limit", {"metadata"}, {"user": {"theirs": 1}}),
            ("soft_budget", {"soft_budget"}, {}),
            ("budget_duration", {"budget_duration"}, {}),
        ],
    )
    def test_reads_first_what_cannot_be_sent_by_itself(
        self, litellm: LiteLLM, scripted: ScriptedServer, column: str, names: set[str], left_alone: dict[str, Any]
    ):
        """And changes nothing else, though somebody has made it differ."""
        ours = {"user": {"a": 0}, "tags": ["ours"], "model_rpm_limit": {"gpt-4o": 1}, "model_tpm_limit": {"gpt-4o": 1}}
        before = {**self.STORED, "budget_duration": "1d", "max_budget": 8.0, "metadata": {**ours, **left_alone}}
        after = {
            **before,
            "budget_duration": "30d",
            "metadata": {"user": {"a": 1}, "tags": [], "model_rpm_limit": {}, "model_tpm_limit": {}},
            "litellm_budget_table": {"soft_budget": 2.0},
        }
        settings = msgspec.structs.replace(self.WANTED, soft_budget=2.0)
        scripted.will_answer(200, {"info": before})
        scripted.will_answer(200, after)
        scripted.will_answer(200, {"info": after})

        assert self.carry_out(litellm, [column], settings=settings) is True

        sent = scripted.asked[1].body
        assert sent.keys() == {"key"} | names
        assert left_alone.items() <= sent.get("metadata", {}).items()

    def test_leaves_alone_what_somebody_else_made_differ(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(200, {**self.STORED, "max_budget": 8.0, "metadata": {}, "models": [], "team_id": "moved"})

        assert self.carry_out(litellm, ["tpm_limit"]) is True

        assert [asked.body for asked in scripted.asked] == [{"key": DERIVED.token_hash, "tpm_limit": 5}]

    def test_that_the_answer_does_not_show_is_not_made(self, litellm: LiteLLM, scripted: ScriptedServer):
        stored = {**self.STORED, "tpm_limit": 4}
        scripted.will_answer(200, stored)
        scripted.will_answer(200, {"info": stored})
        scripted.will_answer(200, stored)

        with pytest.raises(GatewayUnavailable) as caught:
            self.carry_out(litellm, ["tpm_limit"])

        assert caught.value.may_still_happen is False

    def test_of_the_name_alone_looks_whether_the_key_is_there(self, litellm: LiteLLM, scripted: ScriptedServer):
        """When it is settled: a request does not even ask."""
        scripted.will_answer(200, {"info": {**self.STORED, "max_budget": 8.0}})

        assert self.carry_out(litellm, ["name"]) is True

        assert [asked.method for asked in scripted.asked] == ["GET"]

    def test_of_a_key_that_is_not_there_says_so(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(404, own_error(404))

        assert self.carry_out(litellm, ["tpm_limit"]) is False

    def test_that_is_refused_for_an_earlier_secret_leaves_the_current_one(
        self, litellm: LiteLLM, scripted: ScriptedServer
    ):
        before = {"info": {**self.STORED, "token": EARLIER_HASH, "tpm_limit": 4}}
        refusal = own_error(400, kind="auth_error", message="tpm_limit")
        for answer in ((400, refusal), (200, before), (400, refusal), (200, before)):
            scripted.will_answer(*answer)

        with pytest.raises(GatewayRefused):
            carry_out(
                litellm,
                self.WANTED,
                changed=["tpm_limit"],
                tokens=[EARLIER_HASH, DERIVED.token_hash],
            )

        assert {asked.body["key"] for asked in scripted.asked if asked.method == "POST"} == {EARLIER_HASH}

    def test_that_is_refused_is_refused_once_the_key_was_read_unchanged(
        self, litellm: LiteLLM, scripted: ScriptedServer
    ):
        before = {"info": {**self.STORED, "tpm_limit": 4}}
        refusal = own_error(400, kind="auth_error", message="tpm_limit")
        for answer in ((400, refusal), (200, before), (400, refusal), (200, before)):
            scripted.will_answer(*answer)

        with pytest.raises(GatewayRefused):
            self.carry_out(litellm, ["tpm_limit"])

    @pytest.mark.parametrize(
        ("status", "body", "may_still_happen"),
        [
            pytest.param(500, own_error(500), True, id="500"),
            pytest.param(408, own_error(408), True, id="408"),
            pytest.param(404, HTML, True, id="not LiteLLM's 404"),
            pytest.param(429, own_error(429), False, id="429"),
            pytest.param(200, {"token": "another"}, True, id="another key's answer"),
        ],
    )
    def test_without_a_clear_answer_asks_no_more(
        self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any, *, may_still_happen: bool
    ):
        scripted.will_answer(status, body)

        with pytest.raises(GatewayUnavailable) as caught:
            self.carry_out(litellm, ["tpm_limit"])

        assert caught.value.may_still_happen is may_still_happen
        assert len(scripted.asked) == 1


class TestTeam:
    @pytest.mark.parametrize(
        ("status", "body", "is_there"), [(200, {"team_id": "t"}, True), (404, own_error(404), False)]
    )
    def test_is_there_or_not(self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any, is_there: Any):
        scripted.will_answer(status, body)

        assert litellm.has_team("t", deadline=Deadline(5)) is is_there
        assert scripted.asked[0].path == "/team/info?team_id=t"

    def test_that_a_proxy_in_between_does_not_find_is_trouble(self, litellm: LiteLLM, scripted: ScriptedServer):
        scripted.will_answer(404, {"message": "no such page"})

        with pytest.raises(GatewayUnavailable):
            litellm.has_team("t", deadline=Deadline(5))


class TestDifferences:
    @pytest.mark.parametrize(
        ("key", "name"),
        [
            ({"team_id": "another"}, "team_id"),
            ({"team_id": None}, "team_id"),
            ({"permissions": {}}, "permissions"),
            ({"metadata": {"model_rpm_limit": {"o3": 1}, "model_tpm_limit": {"o3": 3}}}, "tags"),
            (
                {"metadata": {"model_rpm_limit": {"o3": 9}, "model_tpm_limit": {"o3": 3}, "tags": ["a"]}},
                "model_rpm_limit",
            ),
            ({"metadata": {"model_rpm_limit": {"o3": 1}, "tags": ["a"]}}, "model_tpm_limit"),
        ],
    )
    def test_name_each_field_that_litellm_keeps_elsewhere(self, key: dict[str, Any], name: str):
        settings = KeySettings(
            models=["o3"],
            lite_llm_team_id="team-1",
            permissions={"allowEmbeddings": False},
            tags=["a"],
            model_rpm_limit={"o3": 1},
            model_tpm_limit={"o3": 3},
        )
        same: dict[str, Any] = {
            "models": ["o3"],
            "team_id": "team-1",
            "permissions": {"allow_embeddings": False},
            "metadata": {"model_rpm_limit": {"o3": 1}, "model_tpm_limit": {"o3": 3}, "tags": ["a"], "user": {}},
        }

        assert GatewayKey(token="t", **same).differences(settings) == []
        assert GatewayKey(token="t", **(same | key)).differences(settings) == [name]


class TestKeyList:
    def page(self, litellm: LiteLLM) -> GatewayKeyPage:
        return litellm.list_keys(mark="lmk-0123456789ab", page=2, deadline=Deadline(5))

    def key(self, token: str, **fields: Any) -> dict[str, Any]:
        return {
            "token": token,
            "key_alias": "lmk-0123456789ab:x:1",
            "metadata": {"keyservice": {"mark": "lmk-0123456789ab"}},
        } | fields

    def test_keeps_what_its_alias_marks_and_tells_whether_the_metadata_agrees(
        self, litellm: LiteLLM, scripted: ScriptedServer
    ):
        scripted.will_answer(
            200,
            {
                "keys": [
                    self.key("ours"),
                    self.key("longer", key_alias="eu-lmk-0123456789ab:x:1"),
                    self.key("capitals", key_alias="LMK-0123456789AB:x:1"),
                    self.key("no alias", key_alias=None),
                    self.key("marked otherwise", metadata={"keyservice": {"mark": "other"}}),
                    self.key("marked oddly", metadata={"keyservice": ["lmk-0123456789ab"]}),
                    self.key("not marked", metadata=None),
                ],
                "total_pages": 7,
            },
        )

        page = self.page(litellm)

        marked = ["ours", "marked otherwise", "marked oddly", "not marked"]
        assert ([key.token for key in page.keys], page.total_pages) == (marked, 7)
        assert [key.token for key in page.keys if key.is_ours("lmk-0123456789ab")] == ["ours"]
        assert "page=2" in scripted.asked[0].path
        assert "size=100" in scripted.asked[0].path

    @pytest.mark.parametrize(
        ("status", "body"),
        [(500, own_error(500)), (200, HTML), (200, {"keys": 1}), (200, {"keys": [{"models": []}], "total_pages": 1})],
    )
    def test_that_cannot_be_read_is_trouble(self, litellm: LiteLLM, scripted: ScriptedServer, status: int, body: Any):
        scripted.will_answer(status, body)

        with pytest.raises(GatewayUnavailable):
            self.page(litellm)


class TestSecretOfAnotherShape:
    @pytest.mark.parametrize(
        "secret",
        [
            pytest.param('{"masterKey": "sk-x", "port": 5432}', id="number"),
            pytest.param('{"masterKey": "sk-x", "proxied": true, "replica": null}', id="bool and null"),
        ],
    )
    def test_is_read_beside_what_is_no_text(self, litellm: LiteLLM, scripted: ScriptedServer, secret: str):
        scripted.secret = secret
        scripted.will_answer(404, own_error(404))

        litellm.delete(DERIVED.token_hash, deadline=Deadline(5))

        assert scripted.asked[0].authorization == "Bearer sk-x"

    @pytest.mark.parametrize("secret", ["", "[]", "{}", '{"masterKey": ""}', "sk-x"])
    def test_without_the_key_is_unavailable(self, litellm: LiteLLM, scripted: ScriptedServer, secret: str):
        scripted.secret = secret
        scripted.will_answer(404, own_error(404))

        with pytest.raises(SecretUnavailable):
            litellm.delete(DERIVED.token_hash, deadline=Deadline(5))
        assert scripted.asked == []
