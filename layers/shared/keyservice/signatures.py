"""AWS's Signature Version 4, by the standard library: of a request to a JSON API, and of a query that is a password.

As in "Signature Version 4 for API requests" of the IAM user guide; the tests compare both with botocore's.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, urlencode

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """`session_token`: None for a person's own access key only."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None


def signed_headers(
    body: bytes,
    *,
    target: str,
    host: str,
    service: str,
    region: str,
    credentials: Credentials,
    moment: datetime,
) -> dict[str, str]:
    """All headers of a POST to "/" in AWS's JSON protocol 1.1; `host` with its port unless that is the scheme's own."""
    timestamp, scope = _timestamp(moment), _scope(moment, region=region, service=service)
    headers = {
        "content-type": "application/x-amz-json-1.1",
        "host": host,
        "x-amz-date": timestamp,
        **({"x-amz-security-token": credentials.session_token} if credentials.session_token else {}),
        "x-amz-target": target,
    }
    names = ";".join(headers)
    request = "\n".join(["POST", "/", "", *_lines(headers), "", names, hashlib.sha256(body).hexdigest()])
    signature = _signature(request, timestamp=timestamp, scope=scope, credentials=credentials)
    authorization = (
        f"{_ALGORITHM} Credential={credentials.access_key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return headers | {"authorization": authorization}


def presigned_query(
    parameters: Mapping[str, str],
    *,
    host: str,
    service: str,
    region: str,
    credentials: Credentials,
    moment: datetime,
    expires_seconds: int,
) -> str:
    """The query of a GET of "/" that needs no header but `host`; good for `expires_seconds` from `moment`."""
    timestamp, scope = _timestamp(moment), _scope(moment, region=region, service=service)
    unsigned = {
        **parameters,
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{credentials.access_key_id}/{scope}",
        "X-Amz-Date": timestamp,
        "X-Amz-Expires": str(expires_seconds),
        "X-Amz-SignedHeaders": "host",
        **({"X-Amz-Security-Token": credentials.session_token} if credentials.session_token else {}),
    }
    in_order = _query(dict(sorted(unsigned.items())))
    request = "\n".join(["GET", "/", in_order, *_lines({"host": host}), "", "host", hashlib.sha256(b"").hexdigest()])
    signature = _signature(request, timestamp=timestamp, scope=scope, credentials=credentials)
    return f"{_query(unsigned)}&X-Amz-Signature={signature}"


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y%m%dT%H%M%SZ")


def _scope(moment: datetime, *, region: str, service: str) -> str:
    return f"{moment:%Y%m%d}/{region}/{service}/aws4_request"


def _lines(headers: Mapping[str, str]) -> list[str]:
    return [f"{name}:{value}" for name, value in headers.items()]


def _query(parameters: Mapping[str, str]) -> str:
    return urlencode(parameters, quote_via=quote, safe="")


def _signature(request: str, *, timestamp: str, scope: str, credentials: Credentials) -> str:
    key = f"AWS4{credentials.secret_access_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = "\n".join([_ALGORITHM, timestamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    return hmac.digest(key, text.encode(), "sha256").hex()
