"""Reading Secrets Manager: each secret is fetched when first needed and kept for five minutes."""

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import msgspec

from keyservice import telemetry
from keyservice.errors import SecretUnavailable

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

_KEEP_SECONDS = 300.0


class Masked:
    """A secret string that does not show itself in a repr, a log line or a traceback."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Masked(***)"


class SecretValues:
    """The fields of JSON secrets, cached; `refresh` forgets one after an authentication failure."""

    def __init__(self) -> None:
        self._client: SecretsManagerClient | None = None
        self._cached: dict[str, tuple[float, dict[str, str]]] = {}

    def field(self, arn: str, name: str) -> Masked:
        """Raises SecretUnavailable when Secrets Manager does not answer or the secret has no such field."""
        expires, fields = self._cached.get(arn, (0.0, {}))
        if time.monotonic() >= expires:
            with telemetry.measured("SecretLatency"):
                fields = self._fetch(arn)
            self._cached[arn] = (time.monotonic() + _KEEP_SECONDS, fields)
        value = fields.get(name)
        if not value:
            raise SecretUnavailable
        return Masked(value)

    def refresh(self, arn: str) -> None:
        self._cached.pop(arn, None)

    def import_client(self) -> None:
        """Takes the 200 ms that the first secret would have to wait for. No client: it would keep credentials."""
        for module in ("boto3", "botocore.config", "botocore.exceptions"):
            import_module(module)

    def _fetch(self, arn: str) -> dict[str, str]:
        # Imported here: boto3 costs 200 ms, and a warm environment with its secrets never needs it.
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = self._connected().get_secret_value(SecretId=arn)
            fields = msgspec.json.decode(answer["SecretString"], type=dict[str, str | int | float | bool | None])
            # A secret that RDS made has its port as a number.
            return {name: str(value) for name, value in fields.items() if value is not None}
        except (BotoCoreError, ClientError, KeyError, msgspec.DecodeError) as error:
            raise SecretUnavailable from error

    def _connected(self) -> "SecretsManagerClient":
        if self._client is not None:
            return self._client
        import boto3
        from botocore.config import Config

        config: Any = Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 2})
        client: SecretsManagerClient = boto3.client("secretsmanager", config=config)
        self._client = client
        return client
