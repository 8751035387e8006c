"""How the contract's tests talk to a LiteLLM."""

import hashlib
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def unique(name: str) -> str:
    return f"contract-{name}-{secrets.token_hex(6)}"


def own_key() -> str:
    """Of the kind the service derives: `sk-` and more than 16 characters."""
    return f"sk-lmk_{secrets.token_hex(24)}"


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """A LiteLLM and its master key. Others may use it at the same time, so every name a test gives is unique."""

    http: httpx.Client
    master_key: str
    generated: list[str] = field(default_factory=list[str])
    """The hashes of the keys made so far, to be deleted at the end."""

    def call(
        self, method: str, path: str, *, key: str | None = None, body: Any = None, query: dict[str, Any] | None = None
    ) -> httpx.Response:
        """As the administrator, or with the virtual key given."""
        headers = {"Authorization": f"Bearer {key or self.master_key}"}
        answer = self.http.request(method, path, headers=headers, json=body, params=query)
        if path == "/key/generate" and answer.status_code == 200:
            self.generated.append(answer.json()["token"])
        return answer

    def post(self, path: str, body: Any, *, key: str | None = None) -> httpx.Response:
        return self.call("POST", path, body=body, key=key)

    def get(self, path: str, query: dict[str, Any] | None = None, *, key: str | None = None) -> httpx.Response:
        return self.call("GET", path, query=query, key=key)

    def generate(self, **settings: Any) -> dict[str, Any]:
        answer = self.post("/key/generate", settings)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def info(self, key: str) -> dict[str, Any]:
        answer = self.get("/key/info", {"key": key})
        assert answer.status_code == 200, answer.text
        return answer.json()["info"]

    def update(self, token: str, **changes: Any) -> dict[str, Any]:
        answer = self.post("/key/update", {"key": token, **changes})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def delete(self, *keys: str) -> None:
        answer = self.post("/key/delete", {"keys": list(keys)})
        assert answer.status_code == 200, answer.text

    def new_user(self, **settings: Any) -> str:
        user_id = unique("user")
        answer = self.post("/user/new", {"user_id": user_id, "auto_create_key": False, **settings})
        assert answer.status_code == 200, answer.text
        return user_id

    def chat(self, key: str, *, model: str = "gpt-4o-mini") -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        return self.post("/chat/completions", body, key=key)

    def delete_generated(self) -> None:
        for start in range(0, len(self.generated), 50):
            self.post("/key/delete", {"keys": self.generated[start : start + 50]})


def talk(gateway: Gateway, request: bytes) -> bytes:
    """All that is received on a connection of its own until the other side ends it."""
    url = gateway.http.base_url
    received = bytearray()
    with socket.create_connection((url.host, url.port or 80), timeout=20) as connection:
        connection.sendall(request)
        # A reset, when something was sent that nobody read, ends it as well as a goodbye.
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                received += part
    return bytes(received)


def error_of(answer: httpx.Response) -> tuple[int, str | None, str | None, str | None]:
    """What a client may rely on in an error: status, `type`, `param` and `code`, which is the status as a string."""
    error = answer.json()["error"]
    return answer.status_code, error["type"], error.get("param"), error.get("code")


def invalid_fields(answer: httpx.Response) -> list[tuple[str, tuple[str | int, ...]]]:
    """The kind and place of each problem in a 422."""
    assert answer.status_code == 422, answer.text
    return [(problem["type"], tuple(problem["loc"])) for problem in answer.json()["detail"]]
