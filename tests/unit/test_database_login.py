"""The token for IAM: what boto3 would sign, without boto3."""

import subprocess
import sys
from urllib.parse import parse_qsl, urlsplit

import boto3
import pytest

from keyservice.database import connection_parameters
from keyservice.database_login import login
from keyservice.errors import SecretUnavailable
from keyservice.secret_values import SecretValues
from keyservice.settings import DatabaseSettings
from tests.architecture.translation import ROOT

HOST = "proxy.example.com"
SETTINGS = DatabaseSettings(
    host=HOST, port=5432, name="litemaas", secret_arn="arn:unused", ca_bundle="", iam_user="keyservice_app"
)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "a-secret/with+signs",
        "AWS_SESSION_TOKEN": "a/session+token==",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(name, value)


def query(token: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(f"https://{token}").query))


def test_token_is_the_one_boto3_signs(credentials: None):
    # A session of its own: the default one keeps the credentials of whoever asked it first.
    client = boto3.session.Session().client("rds", region_name="eu-central-1")

    def both() -> tuple[str, str]:
        theirs = client.generate_db_auth_token(DBHostname=HOST, Port=5432, DBUsername="keyservice_app")
        return theirs, login(SETTINGS, SecretValues()).password.reveal()

    pairs = (both() for _ in range(10))  # only those of one and the same second are equal
    theirs, ours = next((t, o) for t, o in pairs if query(t)["X-Amz-Date"] == query(o)["X-Amz-Date"])

    assert query(ours) == query(theirs)
    assert query(ours)["DBUser"] == "keyservice_app"
    assert ours.split("?")[0] == theirs.split("?")[0]


def test_connection_gets_the_token_as_its_password_and_verifies_the_server(credentials: None):
    parameters = connection_parameters(SETTINGS, SecretValues())

    assert parameters["user"] == "keyservice_app"
    assert query(parameters["password"])["DBUser"] == "keyservice_app"
    assert parameters["sslmode"] == "verify-full"


def test_token_does_not_show_itself(credentials: None):
    assert "Signature" not in repr(login(SETTINGS, SecretValues()))


def test_without_credentials_the_secret_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")

    with pytest.raises(SecretUnavailable):
        login(SETTINGS, SecretValues())


def test_a_password_costs_no_import_of_aws():
    # Powertools imports botocore's own, empty package.
    program = "import sys, keyservice.database; sys.exit(any(m in sys.modules for m in ('boto3', 'botocore.session')))"

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "layers/shared", check=False, timeout=30)

    assert done.returncode == 0
