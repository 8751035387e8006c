"""The models LiteLLM serves, remembered for a minute: asked only where any model may be used."""

import time
from collections.abc import Sequence

from keyservice.litellm import LiteLLM
from keyservice.models import Deadline, ModelDetails

_KEEP_SECONDS = 60.0
_RETRY_SECONDS = 5.0


class ModelCatalog:
    def __init__(self, litellm: LiteLLM) -> None:
        self._litellm = litellm
        self._models: dict[str, ModelDetails] = {}
        self._read_at = float("-inf")

    def find(self, model_ids: Sequence[str], *, deadline: Deadline) -> list[ModelDetails]:
        """Those of the ids that LiteLLM serves; one it did not know a moment ago is asked for again.

        Raises GatewayUnavailable when the list is too old and LiteLLM does not answer.
        """
        age = time.monotonic() - self._read_at
        is_missing = not self._models.keys() >= set(model_ids)
        if age > _KEEP_SECONDS or (is_missing and age > _RETRY_SECONDS):
            self._models = {model.id: model for model in self._litellm.models(deadline=deadline)}
            self._read_at = time.monotonic()
        return [self._models[model_id] for model_id in model_ids if model_id in self._models]
