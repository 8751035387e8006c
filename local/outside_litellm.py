"""A LiteLLM that somebody else runs, named by LITELLM_URL and LITELLM_MASTER_KEY: can it be used, and tidying up in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import httpx

LOOK_SECONDS = 10.0
LARGEST_PAGE = 100


class UnusableLiteLLM(Exception):
    """The message is one sentence for the person who set the variables."""


@dataclass(frozen=True)
class LiteLLM:
    """A LiteLLM as its administrator sees it; `url` has no slash at the end."""

    url: str
    master_key: str = field(repr=False)

    @property
    def needs_tls(self) -> bool:
        return self.url.startswith("https:")

    def call(
        self,
        http: httpx.Client,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str | int] | None = None,
    ) -> httpx.Response:
        """Raises httpx.HTTPError."""
        headers = {"authorization": f"Bearer {self.master_key}"}
        return http.request(method, f"{self.url}{path}", headers=headers, json=body, params=query, timeout=LOOK_SECONDS)


def litellm_of(environment: Mapping[str, str]) -> LiteLLM | None:
    """None when the environment names none. Raises UnusableLiteLLM when it names half of one."""
    url, master_key = (environment.get(name, "").strip() for name in ("LITELLM_URL", "LITELLM_MASTER_KEY"))
    if not url and not master_key:
        return None
    if not url or not master_key:
        there, missing = ("LITELLM_URL", "LITELLM_MASTER_KEY") if url else ("LITELLM_MASTER_KEY", "LITELLM_URL")
        raise UnusableLiteLLM(f"{there} is set, but {missing} is not: set both to use your LiteLLM, or neither.")
    if not url.startswith(("http://", "https://")):
        raise UnusableLiteLLM(f"LITELLM_URL must begin with http:// or https://, unlike {url}")
    if not (master_key.isascii() and master_key.isprintable()):
        raise UnusableLiteLLM("LITELLM_MASTER_KEY holds a character that no HTTP header can carry.")
    return LiteLLM(url.rstrip("/"), master_key)


def two_chat_models(litellm: LiteLLM, *, http: httpx.Client) -> list[str]:
    """The first two it lists. Raises UnusableLiteLLM."""
    try:
        answer = litellm.call(http, "GET", "/model/info")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnusableLiteLLM(f"LiteLLM cannot be reached at {litellm.url}: {reason_of(error)}") from error
    if answer.status_code in (401, 403):
        raise UnusableLiteLLM(f"The LiteLLM at {litellm.url} refuses LITELLM_MASTER_KEY.")
    if answer.status_code != 200:
        raise UnusableLiteLLM(f"{litellm.url}/model/info answers {answer.status_code}: is it the address of a LiteLLM?")
    try:
        models = _chat_models(answer.json())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnusableLiteLLM(f"{litellm.url}/model/info lists no models: is it the address of a LiteLLM?") from error
    if len(models) < 2:
        raise UnusableLiteLLM(f"The LiteLLM at {litellm.url} has fewer than the two chat models that are needed.")
    return models[:2]


def delete_keys_of(user_id: str, *, litellm: LiteLLM, http: httpx.Client) -> list[str]:
    """The hashes of those that are still there afterwards. Raises httpx.HTTPError."""
    if hashes := _keys_of(user_id, litellm=litellm, http=http):
        litellm.call(http, "POST", "/key/delete", body={"keys": hashes})
    # Asked again, whatever the delete was answered.
    return _keys_of(user_id, litellm=litellm, http=http)


def reason_of(error: Exception) -> str:
    """What a person can act on: httpx leaves it to the cause, or says nothing at all."""
    return str(error) or type(error).__name__


def _keys_of(user_id: str, *, litellm: LiteLLM, http: httpx.Client) -> list[str]:
    answer = litellm.call(http, "GET", "/key/list", query={"user_id": user_id, "size": LARGEST_PAGE})
    answer.raise_for_status()
    return [str(token_id) for token_id in answer.json()["keys"]]


def _chat_models(listed: Any) -> list[str]:
    """Each once, in LiteLLM's order; a name with a star stands for many and is none."""
    models: dict[str, None] = {}
    for entry in cast(list[dict[str, Any]], listed["data"]):
        name = str(entry["model_name"])
        details = cast(dict[str, Any], entry.get("model_info") or {})
        if "*" not in name and details.get("mode") in (None, "chat"):
            models[name] = None
    return list(models)
