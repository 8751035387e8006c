"""Signature Version 4 beside botocore's: the same for the same request and credentials, at botocore's moment."""

from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as TheirCredentials
from hypothesis import given
from hypothesis import strategies as st

from keyservice.signatures import Credentials, presigned_query, signed_headers

VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)
CREDENTIALS = st.builds(Credentials, VISIBLE, VISIBLE, st.none() | VISIBLE)
REGIONS = st.sampled_from(["eu-central-1", "us-gov-west-1", "cn-north-1"])
# botocore leaves out the port of its scheme.
PORTS = st.integers(1, 65535).filter(lambda port: port != 443)


def theirs(credentials: Credentials) -> TheirCredentials:
    return TheirCredentials(credentials.access_key_id, credentials.secret_access_key, credentials.session_token)


def moment_of(timestamp: str) -> datetime:
    return datetime.strptime(timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


@given(
    st.binary(max_size=300),
    st.sampled_from(["TrentService.GenerateMac", "secretsmanager.GetSecretValue"]),
    st.sampled_from(["kms.eu-central-1.amazonaws.com", "127.0.0.1:5000"]),
    st.sampled_from(["kms", "secretsmanager"]),
    REGIONS,
    CREDENTIALS,
)
def test_headers_are_those_that_botocore_signs(
    body: bytes, target: str, host: str, service: str, region: str, credentials: Credentials
):
    headers = {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.1"}
    request = AWSRequest(method="POST", url=f"https://{host}/", data=body, headers=headers)
    SigV4Auth(theirs(credentials), service, region).add_auth(request)
    signed = {name.lower(): str(value) for name, value in request.headers.items()}

    ours = signed_headers(
        body,
        target=target,
        host=host,
        service=service,
        region=region,
        credentials=credentials,
        moment=moment_of(signed["x-amz-date"]),
    )

    assert ours == signed | {"host": host}


@given(st.text(min_size=1, max_size=60), PORTS, REGIONS, CREDENTIALS)
def test_query_is_the_one_that_botocore_presigns(user: str, port: int, region: str, credentials: Credentials):
    url = f"https://proxy.example.com:{port}/"
    request = AWSRequest(method="GET", url=url, params={"Action": "connect", "DBUser": user})
    SigV4QueryAuth(theirs(credentials), "rds-db", region, expires=900).add_auth(request)
    [timestamp] = parse_qs(urlsplit(str(request.url)).query)["X-Amz-Date"]

    ours = presigned_query(
        {"Action": "connect", "DBUser": user},
        host=f"proxy.example.com:{port}",
        service="rds-db",
        region=region,
        credentials=credentials,
        moment=moment_of(timestamp),
        expires_seconds=900,
    )

    assert f"{url}?{ours}" == request.url


def test_credentials_do_not_show_themselves():
    credentials = Credentials("AKIDEXAMPLE", "a-secret", "a-token")

    shown = f"{credentials} {credentials!r}"

    assert not any(part in shown for part in ("AKIDEXAMPLE", "a-secret", "a-token"))
