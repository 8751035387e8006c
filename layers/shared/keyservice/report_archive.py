"""Keeping reports in S3, for whoever wants them longer than the logs."""

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from keyservice import telemetry

if TYPE_CHECKING:

    class _S3(Protocol):
        def put_object(self, *, Bucket: str, Key: str, Body: bytes, ContentType: str) -> object: ...  # noqa: N803 - boto3's names


class ReportArchive:
    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        self._client: _S3 | None = None

    def keep(self, report: msgspec.Struct, *, name: str) -> None:
        """Puts reports/{name}.json. A bucket that refuses it costs a line in the log: the report stands there anyway."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._connected().put_object(
                Bucket=self._bucket,
                Key=f"reports/{name}.json",
                Body=msgspec.json.encode(report),
                ContentType="application/json",
            )
        except (BotoCoreError, ClientError) as error:
            telemetry.logger.error("report not kept", extra={"error_type": type(error).__name__})

    def _connected(self) -> "_S3":
        if self._client is not None:
            return self._client
        import boto3
        from botocore.config import Config

        config: Any = Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 2})
        client: _S3 = boto3.client("s3", config=config)
        self._client = client
        return client
