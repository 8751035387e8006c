"""How the service logs in at the database: with the password of a secret, or with a token that its role signs."""

from typing import NamedTuple

from keyservice.secret_values import Masked, SecretValues
from keyservice.settings import DatabaseSettings


class Login(NamedTuple):
    user: str
    password: Masked


def login(settings: DatabaseSettings, secret_values: SecretValues) -> Login:
    """Raises SecretUnavailable when there is no password, or nothing to sign a token with."""
    if settings.iam_user is not None:
        token = secret_values.database_login(host=settings.host, port=settings.port, user=settings.iam_user)
        return Login(settings.iam_user, token)
    return Login(
        secret_values.field(settings.secret_arn, "username").reveal(),
        secret_values.field(settings.secret_arn, "password"),
    )
