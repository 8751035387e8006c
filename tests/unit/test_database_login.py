"""The token for IAM: what boto3 would sign, without boto3."""

from urllib.parse import parse_qsl, urlsplit

import boto3
import pytest

from keyservice.aws import Aws
from keyservice.database import connection_parameters
from keyservice.database_login import login
from keyservice.errors import SecretUnavailable
from keyservice.secret_values import SecretValues
from keyservice.settings import DatabaseSettings, Settings

HOST = "proxy.example.com"
SETTINGS = DatabaseSettings(
    host=HOST, port=5432, name="litemaas", secret_arn="arn:unused", ca_bundle="", iam_user="keyservice_app"
)


VARIABLES = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "a-secret/with+signs",
    "AWS_SESSION_TOKEN": "a/session+token==",
    "AWS_REGION": "eu-central-1",
    "URL_SUFFIX": "amazonaws.com",
}
SECRET_VALUES = SecretValues(Aws(Settings(variables=VARIABLES).aws))


def query(token: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(f"https://{token}").query))


def test_token_is_the_one_boto3_signs():
    session = boto3.session.Session(
        aws_access_key_id=VARIABLES["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=VARIABLES["AWS_SECRET_ACCESS_KEY"],
        aws_session_token=VARIABLES["AWS_SESSION_TOKEN"],
    )
    client = session.client("rds", region_name="eu-central-1")

    def both() -> tuple[str, str]:
        theirs = client.generate_db_auth_token(DBHostname=HOST, Port=5432, DBUsername="keyservice_app")
        return theirs, login(SETTINGS, SECRET_VALUES).password.reveal()

    pairs = (both() for _ in range(10))  # only those of one and the same second are equal
    theirs, ours = next((t, o) for t, o in pairs if query(t)["X-Amz-Date"] == query(o)["X-Amz-Date"])

    assert ours == theirs
    assert query(ours)["DBUser"] == "keyservice_app"


def test_connection_gets_the_token_as_its_password_and_verifies_the_server():
    parameters = connection_parameters(SETTINGS, SECRET_VALUES)

    assert parameters["user"] == "keyservice_app"
    assert query(parameters["password"])["DBUser"] == "keyservice_app"
    assert parameters["sslmode"] == "verify-full"


def test_token_does_not_show_itself():
    assert "Signature" not in repr(login(SETTINGS, SECRET_VALUES))


def test_without_credentials_the_secret_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    variables = {"AWS_REGION": "eu-central-1", "URL_SUFFIX": "amazonaws.com"}

    with pytest.raises(SecretUnavailable):
        login(SETTINGS, SecretValues(Aws(Settings(variables=variables).aws)))
