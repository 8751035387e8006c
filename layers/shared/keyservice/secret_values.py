"""The secrets that the function's role gives: read from Secrets Manager and kept for five minutes, or signed."""

import time

import msgspec

from keyservice import telemetry
from keyservice.aws import Aws, AwsUnavailable
from keyservice.errors import SecretUnavailable

_KEEP_SECONDS = 300.0
_LOGIN_SECONDS = 900  # RDS takes no longer one; it is looked at when a connection is opened only


class Masked:
    """A secret string that does not show itself in a repr, a log line or a traceback."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Masked(***)"


class _SecretValue(msgspec.Struct, frozen=True):
    text: str = msgspec.field(name="SecretString")


class SecretValues:
    """The fields of JSON secrets, cached; `refresh` forgets one after an authentication failure."""

    def __init__(self, aws: Aws) -> None:
        self._aws = aws
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

    def database_login(self, *, host: str, port: int, user: str) -> Masked:
        """A presigned request for rds-db's action `connect`, without its scheme; RDS takes it as the password.

        Raises SecretUnavailable when there is nothing to sign it with.
        """
        server = f"{host}:{port}"
        try:
            query = self._aws.presigned_query(
                "rds-db", {"Action": "connect", "DBUser": user}, host=server, expires_seconds=_LOGIN_SECONDS
            )
        except AwsUnavailable as error:
            raise SecretUnavailable from error
        return Masked(f"{server}/?{query}")

    def _fetch(self, arn: str) -> dict[str, str]:
        try:
            secret = self._aws.call(
                "secretsmanager", "secretsmanager.GetSecretValue", {"SecretId": arn}, answer=_SecretValue
            )
            fields = msgspec.json.decode(secret.text, type=dict[str, str | int | float | bool | None])
        except (AwsUnavailable, msgspec.DecodeError) as error:
            raise SecretUnavailable from error
        # A secret that RDS made has its port as a number.
        return {name: str(value) for name, value in fields.items() if value is not None}
