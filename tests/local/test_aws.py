"""KMS and Secrets Manager as the service's own client meets them."""

from collections.abc import Iterator
from contextlib import closing
from uuid import UUID

import httpx
import pytest

from keyservice.aws import Aws, AwsUnavailable
from keyservice.derivation import KeyDeriver
from keyservice.errors import DerivationUnavailable
from keyservice.secret_values import SecretValues
from local.aws import AwsServer
from tests.support.aws_client import aws_client


@pytest.fixture(scope="module")
def aws() -> Iterator[AwsServer]:
    with AwsServer() as running:
        yield running


@pytest.fixture
def client(aws: AwsServer) -> Iterator[Aws]:
    with closing(aws_client(aws.url)) as client:
        yield client


def mac(client: Aws, key_arn: str, nonce: str = "nonce") -> str:
    """What stands for it: the hash of the secret that is made of it."""
    return KeyDeriver(mac_key_arn=key_arn, aws=client).derive(UUID(int=1), nonce=nonce).token_hash


def test_mac_is_the_same_for_the_same_message_only(aws: AwsServer, client: Aws) -> None:
    arn = aws.create_mac_key()

    first = mac(client, arn)

    assert mac(client, arn) == first
    assert mac(client, arn, "other") != first
    assert mac(client, aws.create_mac_key()) != first


def test_disabled_key_refuses_until_it_is_enabled(aws: AwsServer, client: Aws) -> None:
    arn, other = aws.create_mac_key(), aws.create_mac_key()
    before = mac(client, arn)

    aws.disable_mac_key(arn)

    with pytest.raises(DerivationUnavailable) as refusal:
        mac(client, arn)
    assert isinstance(refusal.value.__cause__, AwsUnavailable)
    assert str(refusal.value.__cause__) == "400 DisabledException"
    assert mac(client, other)
    aws.enable_mac_key(arn)
    assert mac(client, arn) == before


def test_disconnected_server_refuses_and_forgets_nothing(aws: AwsServer, client: Aws) -> None:
    arn = aws.create_mac_key()
    before = mac(client, arn)

    aws.disconnect()

    with pytest.raises(DerivationUnavailable) as refusal:
        mac(client, arn)
    assert isinstance(refusal.value.__cause__, AwsUnavailable)
    assert isinstance(refusal.value.__cause__.__cause__, ConnectionError)
    aws.reconnect()
    assert mac(client, arn) == before


def test_frozen_server_does_not_answer(aws: AwsServer, client: Aws) -> None:
    arn = aws.create_mac_key()

    aws.freeze()

    with pytest.raises(httpx.ReadTimeout):
        httpx.post(aws.url, trust_env=False, timeout=0.3)
    aws.thaw()
    assert mac(client, arn)


def test_changed_secret_is_read_at_once(aws: AwsServer, client: Aws) -> None:
    arn = aws.create_secret("database", {"username": "app", "password": "old"})

    aws.change_secret(arn, {"username": "app", "password": "new"})

    assert arn.startswith("arn:aws:secretsmanager:eu-central-1:123456789012:secret:database")
    assert SecretValues(client).field(arn, "password").reveal() == "new"
