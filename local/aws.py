"""KMS and Secrets Manager on loopback, served by moto in a process of its own."""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from local.loopback import NO_TLS, free_port, wait_for_port
from local.processes import base_environment, private_directory, remove_directory, spawn

REGION = "eu-central-1"
ACCOUNT_ID = "123456789012"
CHECKOUT = Path(__file__).parent.parent

# What every AWS client needs; moto accepts any credentials.
CREDENTIALS = {
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": "local",
    "AWS_SESSION_TOKEN": "local",
}


class AwsServer:
    """Keys and secrets live as long as the process; `disconnect` and `reconnect` keep them."""

    def __init__(self, *, log_path: Path | None = None) -> None:
        """Starts at once, but only `wait_until_ready` waits for it: the stack starts its other parts meanwhile."""
        self._root = private_directory(name="ks-aws")
        self.log_path = log_path or self._root / "aws.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._client = httpx.Client(base_url=self.url, trust_env=False, verify=NO_TLS, timeout=10)
        with self.log_path.open("ab") as log:
            self._process = spawn(
                [sys.executable, "-m", "local.aws_server", "--port", str(self.port)],
                environment=base_environment() | CREDENTIALS | {"MOTO_ACCOUNT_ID": ACCOUNT_ID},
                output=log,
                directory=CHECKOUT,
            )

    def __enter__(self) -> Self:
        self.wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        self._wait_for_door(is_open=True)

    def create_mac_key(self) -> str:
        """A new HMAC_256 key for GenerateMac; its ARN."""
        answer = self._call("kms", "TrentService.CreateKey", KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")
        return str(answer["KeyMetadata"]["Arn"])

    def disable_mac_key(self, arn: str) -> None:
        """From now on KMS refuses to compute with it: DisabledException."""
        self._call("kms", "TrentService.DisableKey", KeyId=_key_id(arn))

    def enable_mac_key(self, arn: str) -> None:
        self._call("kms", "TrentService.EnableKey", KeyId=_key_id(arn))

    def create_secret(self, name: str, value: Mapping[str, str]) -> str:
        """A JSON secret; its ARN."""
        answer = self._call(
            "secretsmanager", "secretsmanager.CreateSecret", Name=name, SecretString=json.dumps(dict(value))
        )
        return str(answer["ARN"])

    def change_secret(self, arn: str, value: Mapping[str, str]) -> None:
        self._call(
            "secretsmanager", "secretsmanager.PutSecretValue", SecretId=arn, SecretString=json.dumps(dict(value))
        )

    def disconnect(self) -> None:
        """Refuse every connection until `reconnect`."""
        self._process.signal(signal.SIGUSR1)
        self._wait_for_door(is_open=False)

    def reconnect(self) -> None:
        self._process.signal(signal.SIGUSR2)
        self._wait_for_door(is_open=True)

    def freeze(self) -> None:
        """Accept connections but never answer until `thaw`."""
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.signal(signal.SIGCONT)

    def close(self) -> None:
        # A frozen process would never see the request to end.
        self.thaw()
        self._process.end()
        self._client.close()
        remove_directory(self._root)

    def _call(self, service: str, target: str, **parameters: object) -> dict[str, Any]:
        """One request of AWS's JSON protocol. boto3 would take longer to import than this whole module needs."""
        answer = self._client.post(
            "/",
            json=parameters,
            headers={
                "content-type": "application/x-amz-json-1.1",
                "x-amz-target": target,
                # moto reads service and region from the credential's scope and checks nothing else.
                "authorization": f"AWS4-HMAC-SHA256 Credential=local/20200101/{REGION}/{service}/aws4_request",
            },
        )
        answer.raise_for_status()
        return answer.json() or {}

    def _wait_for_door(self, *, is_open: bool) -> None:
        wait_for_port(self.port, owner=self._process, name="moto", log_path=self.log_path, is_open=is_open)


def _key_id(arn: str) -> str:
    """KMS takes both here; moto takes only the id and answers 500 to an ARN."""
    return arn.rpartition("/")[2]
