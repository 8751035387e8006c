"""The models, and using a key: completions are canned, their price is not."""

import hashlib
import time
import uuid
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

from local.litellm.access import Call
from local.litellm.durations import now
from local.litellm.refusals import Row, refused, refused_as_repr
from local.litellm.tables import Tables

COMPLETION_TOKENS = 20
RATE_WINDOW_SECONDS = 60


@dataclass(frozen=True)
class Model:
    """What LiteLLM knows of a model it offers: where it sends requests, and dollars per token."""

    target: str
    price_in: float
    price_out: float

    @property
    def provider(self) -> str:
        return self.target.partition("/")[0]


KNOWN_MODELS = {
    "gpt-4o": Model("openai/gpt-4o", 2.5e-6, 1e-5),
    "gpt-4o-mini": Model("openai/gpt-4o-mini", 1.5e-7, 6e-7),
    "claude-sonnet": Model("anthropic/claude-sonnet-4-5", 3e-6, 1.5e-5),
}


def model_of(name: str) -> Model:
    return KNOWN_MODELS.get(name) or Model(f"openai/{name}", 2.5e-6, 1e-5)


class ModelRoutes:
    """One method per route; each returns the body of a 200."""

    def __init__(self, tables: Tables, *, models: list[str]) -> None:
        self._tables = tables
        self._models = models
        self._moments: defaultdict[str, deque[float]] = defaultdict(deque)

    async def list_models(self, call: Call) -> Row:
        models = [{"id": model, "object": "model", "owned_by": "openai"} for model in self._models_of(call)]
        return {"data": models, "object": "list"}

    async def info(self, call: Call) -> Row:
        return {"data": [_model_info(model) for model in self._models_of(call)]}

    async def complete(self, call: Call) -> Row:
        body = await call.body()
        model = body.get("model")
        if call.key is not None:
            self._check_team(call.key)
            _check_guardrails(call.key)
        self._check_model(call, model)
        if call.key is not None:
            self._check_rate(call.key, str(model))
        prompt_tokens = 7 + len(str(body.get("messages")).split())
        row = self._tables.keys.get(call.key["token"]) if call.key else None
        if row is not None:
            price = model_of(str(model))
            spend = row["spend"] + prompt_tokens * price.price_in + COMPLETION_TOKENS * price.price_out
            self._tables.save_key(row | {"spend": spend, "last_active": now().isoformat()})
        message = {"role": "assistant", "content": f"mock answer from {model}"}
        return {
            "id": f"chatcmpl-{uuid.uuid4()}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": COMPLETION_TOKENS,
                "total_tokens": prompt_tokens + COMPLETION_TOKENS,
            },
        }

    def _models_of(self, call: Call) -> list[str]:
        """A key without models may use them all."""
        allowed: list[str] = call.key["models"] if call.key else []
        return [model for model in self._models if not allowed or model in allowed]

    def _check_model(self, call: Call, model: Any) -> None:
        if call.key and call.key["models"] and model not in call.key["models"]:
            raise refused(403, "the key may not use this model", "key_model_access_denied", "model")
        if model not in self._models:
            raise refused(400, "there is no such model", "invalid_request_error")

    def _check_team(self, key: Row) -> None:
        """The trap: a key is made for any team, and of a missing one it works for nothing."""
        if key["team_id"] is not None and key["team_id"] not in self._tables.teams:
            raise refused_as_repr(404, "there is no such team", kind="auth_error", param="None")

    def _check_rate(self, key: Row, model: str) -> None:
        per_model: Row = key["metadata"].get("model_rpm_limit") or {}
        limits: dict[str, int | None] = {
            key["token"]: key["rpm_limit"],
            f"{key['token']}:{model}": per_model.get(model),
        }
        for counted, limit in limits.items():
            moments = self._moments[counted]
            while moments and moments[0] < time.monotonic() - RATE_WINDOW_SECONDS:
                moments.popleft()
            if limit is not None and len(moments) >= limit:
                refusal = refused(429, "the key's requests of this minute are used up", "throttling_error")
                refusal.headers = {"retry-after": str(RATE_WINDOW_SECONDS), "rate_limit_type": "requests"}
                raise refusal
        for counted in limits:
            self._moments[counted].append(time.monotonic())


def _check_guardrails(key: Row) -> None:
    """The trap: in a key's metadata they need no licence to be set, and one for every call."""
    if key["metadata"].get("guardrails"):
        raise refused(403, "guardrails need an enterprise licence", "auth_error", "None")


def _model_info(name: str) -> Row:
    model = model_of(name)
    return {
        "model_name": name,
        "litellm_params": {"model": model.target},
        "model_info": {
            "id": hashlib.sha256(name.encode()).hexdigest(),
            "key": name,
            "mode": "chat",
            "litellm_provider": model.provider,
            "input_cost_per_token": model.price_in,
            "output_cost_per_token": model.price_out,
        },
    }
