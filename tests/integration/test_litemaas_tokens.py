"""The check of LiteMaaS's tokens itself, beyond what a token sent over HTTP shows."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from typing import Any

import pytest

from keyservice.aws import Aws
from keyservice.errors import SecretUnavailable
from keyservice.litemaas_tokens import LiteMaaSTokens, TokenRefused
from keyservice.secret_values import SecretValues
from local.aws import AwsServer

SECRET = "jwt-secret-of-litemaas"
USER_ID = "d14dfa9d-4dc5-478c-ac0a-93acde76e63e"


@pytest.fixture
def secret_arn(aws: AwsServer) -> str:
    return aws.create_secret(f"litemaas-{secrets.token_hex(4)}", {"jwtSecret": SECRET})


@pytest.fixture
def tokens(client: Aws, secret_arn: str) -> LiteMaaSTokens:
    return LiteMaaSTokens(secret_arn=secret_arn, secret_values=SecretValues(client))


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def signed(header: bytes, payload: bytes, *, secret: str = SECRET) -> str:
    text = f"{encoded(header)}.{encoded(payload)}"
    return f"{text}.{encoded(hmac.digest(secret.encode(), text.encode(), hashlib.sha256))}"


def token(*, header: dict[str, Any] | None = None, **claims: Any) -> str:
    now = int(time.time())
    complete = {"userId": USER_ID, "iat": now, "exp": now + 3600, **claims}
    return signed(json.dumps(header or {"alg": "HS256", "typ": "JWT"}).encode(), json.dumps(complete).encode())


def refusal(check: Callable[[], object]) -> str:
    with pytest.raises(TokenRefused) as refused:
        check()
    return refused.value.reason


def test_the_recorded_shape_of_a_litemaas_token_is_taken(tokens: LiteMaaSTokens):
    claims = tokens.check(f"Bearer {token(username='alice', email='alice@example.com', roles=['user', 'admin'])}")

    assert str(claims.user_id) == USER_ID


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", ""])
def test_the_scheme_is_bearer_in_any_case_or_left_out(tokens: LiteMaaSTokens, scheme: str):
    assert tokens.check(scheme + token()).exp > time.time()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        pytest.param({"alg": "none"}, "algorithm", id="none, signed all the same"),
        pytest.param({"alg": "HS384"}, "algorithm", id="HS384"),
        pytest.param({"alg": "HS256", "crit": ["exp"]}, "critical header", id="a header it must understand"),
        pytest.param({"alg": 256}, "header or claims", id="alg as a number"),
        pytest.param({"typ": "JWT"}, "header or claims", id="no alg"),
    ],
)
def test_a_header_is_refused_even_when_the_signature_fits(tokens: LiteMaaSTokens, header: dict[str, Any], reason: str):
    assert refusal(lambda: tokens.check(token(header=header))) == reason


@pytest.mark.parametrize("payload", [b"[]", b"null", b"{", b"\xff", b'"x"', b'{"userId": null}'])
def test_claims_that_are_no_object_of_claims_are_refused(tokens: LiteMaaSTokens, payload: bytes):
    assert refusal(lambda: tokens.check(signed(b'{"alg":"HS256"}', payload))) == "header or claims"


def test_a_token_has_one_spelling_only(tokens: LiteMaaSTokens):
    """The last letter of 43 carries two bits that decode to nothing."""
    good = token()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = good[:-1] + alphabet[alphabet.index(good[-1]) ^ 1]

    assert base64.urlsafe_b64decode(twin.split(".")[2] + "=") == base64.urlsafe_b64decode(good.split(".")[2] + "=")
    assert refusal(lambda: tokens.check(twin)) == "signature"


@pytest.mark.parametrize("change", [lambda t: t + "=", lambda t: t + "\n", lambda t: " " + t, lambda t: f"Bearer  {t}"])
def test_anything_around_a_token_is_refused(tokens: LiteMaaSTokens, change: Callable[[str], str]):
    assert refusal(lambda: tokens.check(change(token()))) == "not a token of this kind"


def test_a_token_of_more_than_4096_characters_is_not_even_read(tokens: LiteMaaSTokens):
    assert refusal(lambda: tokens.check(token(roles=["x" * 4096]))) == "not a token of this kind"


@pytest.mark.parametrize("name", ["iat", "nbf"])
def test_a_clock_that_runs_half_a_minute_ahead_is_forgiven_and_two_minutes_are_not(tokens: LiteMaaSTokens, name: str):
    assert tokens.check(token(header=None, **{name: time.time() + 30}))
    assert refusal(lambda: tokens.check(token(header=None, **{name: time.time() + 120}))) == "not valid yet"


def test_the_end_of_a_token_is_not_forgiven(tokens: LiteMaaSTokens):
    assert refusal(lambda: tokens.check(token(exp=time.time() - 0.01))) == "expired"


def test_forged_tokens_make_secrets_manager_be_asked_once_a_second_at_most(
    aws: AwsServer, secret_arn: str, tokens: LiteMaaSTokens
):
    """The second one is refused by the secret in memory: it could not be read again."""
    forged = signed(b'{"alg":"HS256"}', b"{}", secret="guess")
    assert refusal(lambda: tokens.check(forged)) == "signature"
    aws.disconnect()
    try:
        assert refusal(lambda: tokens.check(forged)) == "signature"
        assert tokens.check(token())
    finally:
        aws.reconnect()


def test_a_secret_that_cannot_be_read_is_no_refusal(aws: AwsServer, tokens: LiteMaaSTokens):
    aws.disconnect()
    try:
        with pytest.raises(SecretUnavailable):
            tokens.check(token())
    finally:
        aws.reconnect()
