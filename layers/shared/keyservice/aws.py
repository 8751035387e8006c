"""The AWS client: calls of JSON APIs and presigned queries, as the function's role.

boto3 with one client costs a cold start 160 ms, and its call half of a create's processor time. What the service asks of
KMS and Secrets Manager is one signed POST each.
"""

import random
import select
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from keyservice import signatures, tls
from keyservice.settings import AwsSettings
from keyservice.signatures import Credentials

if TYPE_CHECKING:
    from botocore.session import Session

_CONNECT_TIMEOUT_SECONDS = 1.0
_READ_TIMEOUT_SECONDS = 2.0
# A function that was frozen for long may not have heard that the other side hung up.
_KEEP_ALIVE_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 0.25

type Service = Literal["kms", "secretsmanager"]


class AwsUnavailable(Exception):
    """AWS did not answer, or refused. Says AWS's code and not its message, which names accounts and roles."""


class _Passing(AwsUnavailable):
    """What another attempt may bring all the same."""


class _Refusal(msgspec.Struct, frozen=True):
    type: str = msgspec.field(name="__type", default="")


class Aws:
    """Keeps its connections. Threads may share it: each call has a connection to itself."""

    def __init__(self, settings: AwsSettings) -> None:
        self._settings = settings
        self._urls: dict[Service, SplitResult] = {
            "kms": urlsplit(settings.kms_url),
            "secretsmanager": urlsplit(settings.secrets_manager_url),
        }
        self._idle: dict[Service, list[tuple[HTTPConnection, float]]] = {service: [] for service in self._urls}
        self._session: Session | None = None

    def close(self) -> None:
        for connections in self._idle.values():
            while connections:
                connections.pop()[0].close()

    def call[T](self, service: Service, target: str, parameters: Mapping[str, Any], *, answer: type[T]) -> T:
        """What the operation `target` answers; bytes travel as base64. Raises AwsUnavailable.

        Only for what changes nothing: when AWS does not answer, throttles or fails it is asked once more.
        """
        body = msgspec.json.encode(parameters)
        content: bytes | None = None
        with suppress(_Passing):
            content = self._asked(service, target, body)
        if content is None:
            # Those who were throttled together shall not come back together.
            time.sleep(random.uniform(0, _LONGEST_PAUSE_SECONDS))  # noqa: S311 - spreads load, guards nothing
            content = self._asked(service, target, body)
        try:
            return msgspec.json.decode(content, type=answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise AwsUnavailable("not understood") from None  # the latter shows what could not be read

    def presigned_query(self, service: str, parameters: Mapping[str, str], *, host: str, expires_seconds: int) -> str:
        """Raises AwsUnavailable when there is nothing to sign with."""
        return signatures.presigned_query(
            parameters,
            host=host,
            service=service,
            region=self._settings.region,
            credentials=self._credentials(),
            moment=datetime.now(UTC),
            expires_seconds=expires_seconds,
        )

    def _asked(self, service: Service, target: str, body: bytes) -> bytes:
        headers = signatures.signed_headers(
            body,
            target=target,
            host=self._urls[service].netloc,
            service=service,
            region=self._settings.region,
            credentials=self._credentials(),
            moment=datetime.now(UTC),
        )
        try:
            status, content = self._sent(service, body, headers=headers)
        except (OSError, HTTPException) as error:
            raise _Passing("not answered") from error
        if status == 200:
            return content
        code = _code(content)
        if status == 429 or status >= 500 or code == "ThrottlingException":
            raise _Passing(f"{status} {code}")
        raise AwsUnavailable(f"{status} {code}")

    def _sent(self, service: Service, body: bytes, *, headers: Mapping[str, str]) -> tuple[int, bytes]:
        connection = self._kept(service) or _opened(self._urls[service])
        is_usable = False
        try:
            connection.request("POST", "/", body=body, headers=dict(headers))
            response = connection.getresponse()
            content = response.read()
            is_usable = not response.will_close
        finally:
            if is_usable:
                self._idle[service].append((connection, time.monotonic() + _KEEP_ALIVE_SECONDS))
            else:
                connection.close()
        return response.status, content

    def _kept(self, service: Service) -> HTTPConnection | None:
        with suppress(IndexError):
            while True:
                connection, usable_until = self._idle[service].pop()
                if time.monotonic() < usable_until and not _is_readable(connection):
                    return connection
                connection.close()
        return None

    def _credentials(self) -> Credentials:
        if self._settings.credentials is not None:
            return self._settings.credentials
        # Imported here: only a function that starts from a snapshot needs it, and has imported it before.
        import botocore.session
        from botocore.exceptions import BotoCoreError

        if self._session is None:
            self._session = botocore.session.get_session()
        try:
            credentials = self._session.get_credentials()
            frozen = None if credentials is None else credentials.get_frozen_credentials()
        except BotoCoreError as error:
            raise AwsUnavailable("no credentials") from error
        if frozen is None or not frozen.access_key or not frozen.secret_key:
            raise AwsUnavailable("no credentials")
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token)


def import_session() -> None:
    """Takes the 100 ms that the first credentials after a snapshot would wait for. None are got: they would end."""
    for module in ("botocore.session", "botocore.exceptions"):
        import_module(module)


def _opened(url: SplitResult) -> HTTPConnection:
    host = url.hostname or ""
    if url.scheme == "https":
        connection = HTTPSConnection(host, url.port, timeout=_CONNECT_TIMEOUT_SECONDS, context=tls.public_roots())
    else:
        connection = HTTPConnection(host, url.port, timeout=_CONNECT_TIMEOUT_SECONDS)
    connection.connect()
    connection.sock.settimeout(_READ_TIMEOUT_SECONDS)
    return connection


def _is_readable(connection: HTTPConnection) -> bool:
    """Of an idle connection: whether its end, the only thing that can come, has come."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _code(content: bytes) -> str:
    """`DisabledException` of `com.amazonaws.kms#DisabledException`, as some services write it."""
    try:
        return msgspec.json.decode(content, type=_Refusal).type.rpartition("#")[2]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
