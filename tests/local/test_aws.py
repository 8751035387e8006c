"""KMS and Secrets Manager as the service's own client, boto3, meets them."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from local.aws import REGION, AwsServer

if TYPE_CHECKING:
    from mypy_boto3_kms import KMSClient
    from mypy_boto3_secretsmanager import SecretsManagerClient


@pytest.fixture(scope="module")
def aws() -> Iterator[AwsServer]:
    with AwsServer() as running:
        yield running


@pytest.fixture
def kms(aws: AwsServer) -> "KMSClient":
    return boto3.client(
        "kms",
        endpoint_url=aws.url,
        region_name=REGION,
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=0.3),
    )


@pytest.fixture
def secretsmanager(aws: AwsServer) -> "SecretsManagerClient":
    return boto3.client(
        "secretsmanager", endpoint_url=aws.url, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x"
    )


def mac(kms: "KMSClient", key_arn: str, message: bytes = b"message") -> bytes:
    return kms.generate_mac(KeyId=key_arn, Message=message, MacAlgorithm="HMAC_SHA_256")["Mac"]


def test_mac_is_the_same_for_the_same_message_only(aws: AwsServer, kms: "KMSClient") -> None:
    arn = aws.create_mac_key()

    first = mac(kms, arn)

    assert len(first) == 32
    assert mac(kms, arn) == first
    assert mac(kms, arn, b"other") != first
    assert mac(kms, aws.create_mac_key()) != first


def test_disabled_key_refuses_until_it_is_enabled(aws: AwsServer, kms: "KMSClient") -> None:
    arn, other = aws.create_mac_key(), aws.create_mac_key()
    before = mac(kms, arn)

    aws.disable_mac_key(arn)

    with pytest.raises(ClientError) as refusal:
        mac(kms, arn)
    assert refusal.value.response.get("Error", {}).get("Code") == "DisabledException"
    assert mac(kms, other)
    aws.enable_mac_key(arn)
    assert mac(kms, arn) == before


def test_disconnected_server_refuses_and_forgets_nothing(aws: AwsServer, kms: "KMSClient") -> None:
    arn = aws.create_mac_key()
    before = mac(kms, arn)

    aws.disconnect()

    with pytest.raises(EndpointConnectionError):
        mac(kms, arn)
    aws.reconnect()
    assert mac(kms, arn) == before


def test_frozen_server_does_not_answer(aws: AwsServer, kms: "KMSClient") -> None:
    arn = aws.create_mac_key()

    aws.freeze()

    with pytest.raises(ReadTimeoutError):
        mac(kms, arn)
    aws.thaw()
    assert mac(kms, arn)


def test_changed_secret_is_read_at_once(aws: AwsServer, secretsmanager: "SecretsManagerClient") -> None:
    arn = aws.create_secret("database", {"username": "app", "password": "old"})

    aws.change_secret(arn, {"username": "app", "password": "new"})

    assert arn.startswith("arn:aws:secretsmanager:eu-central-1:123456789012:secret:database")
    value = json.loads(secretsmanager.get_secret_value(SecretId=arn)["SecretString"])
    assert value == {"username": "app", "password": "new"}
