"""How the service logs in at the database: with the password of a secret, or with a token that its role signs."""

from typing import NamedTuple

from keyservice.errors import SecretUnavailable
from keyservice.secret_values import Masked, SecretValues
from keyservice.settings import DatabaseSettings

_TOKEN_SECONDS = 900  # RDS takes no longer one; it is looked at when a connection is opened only


class Login(NamedTuple):
    user: str
    password: Masked


def login(settings: DatabaseSettings, secret_values: SecretValues) -> Login:
    """Raises SecretUnavailable when there is no password, or nothing to sign a token with."""
    if settings.iam_user is not None:
        return Login(settings.iam_user, _signed_token(settings, user=settings.iam_user))
    return Login(
        secret_values.field(settings.secret_arn, "username").reveal(),
        secret_values.field(settings.secret_arn, "password"),
    )


def _signed_token(settings: DatabaseSettings, *, user: str) -> Masked:
    """A presigned request for rds-db's action `connect`, without its scheme; RDS takes it as the password.

    The same as boto3's generate_db_auth_token, whose import and service model take 200 ms more than this does.
    """
    # Imported here: who logs in with a password never needs it.
    import botocore.session
    from botocore.auth import SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from botocore.exceptions import BotoCoreError

    try:
        session = botocore.session.get_session()
        credentials = session.get_credentials()
        region: str | None = session.get_config_variable("region")
    except BotoCoreError as error:
        raise SecretUnavailable from error
    if credentials is None or region is None:
        raise SecretUnavailable
    request = AWSRequest(
        method="GET",
        url=f"https://{settings.host}:{settings.port}/",
        params={"Action": "connect", "DBUser": user},
    )
    SigV4QueryAuth(credentials, "rds-db", region, expires=_TOKEN_SECONDS).add_auth(request)
    return Masked(str(request.url).removeprefix("https://"))
