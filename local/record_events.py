"""`python -m local.record_events`: writes events/*.json, one for each function and some awkward ones, for `sam local invoke -e`.

Those of routes are recorded as the local gateway hands them to a function; those of jobs are what EventBridge Scheduler
sends. What differs from call to call (ids, times, the token's text) is replaced by fixed values.
"""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from local import litemaas_template
from local.authorizer import Invoke
from local.aws import ACCOUNT_ID, REGION
from local.gateway import Gateway
from local.intrinsics import as_mapping, read_yaml
from local.issuer import Issuer
from local.loopback import NO_TLS, listen, port_of
from local.serving import ServerThread
from local.template import CHECKOUT, Template

EVENTS = CHECKOUT / "events"

HOST = "api.example.com"
ISSUER = "https://issuer.example.com"
AUDIENCE = "keyservice"
SUBJECT = "5d1c9f5e-7b1a-4c55-9a55-3f1f4b1f0c11"
KEY_ID = "0b5e7c9a-1d2f-4a6b-8c3d-9e0f1a2b3c4d"
KEYS = "/api/v1/api-keys"
ADMIN = "/api/v1/admin"
# What a typical identity provider puts into an access token.
FULL_CLAIMS: Mapping[str, object] = {
    "aud": AUDIENCE,
    "sub": SUBJECT,
    "preferred_username": "alice",
    "email": "alice@example.com",
    "name": "Alice Example",
    "roles": ["user", "admin"],
}
KEY_DEFAULTS = json.dumps({"defaults": {"maxBudget": 5}, "maximums": {"maxBudget": 50, "rpmLimit": 600}}).encode()
NEW_KEY = json.dumps({"name": "Research", "modelIds": ["gpt-4o", "gpt-4o-mini"]}).encode()
JSON = {"content-type": "application/json"}
_TOKEN = "Bearer header.claims.signature"
_AUTHORIZER = "authorize_litemaas_token"


@dataclass(frozen=True, kw_only=True)
class Call:
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    claims: Mapping[str, object] | None = field(default_factory=lambda: FULL_CLAIMS)
    status: int = 200
    """What it is answered with, where the subject is an administrator with subscriptions and there is no such key."""


CALLS = {
    "create_api_key": Call(method="POST", path=KEYS, body=NEW_KEY, headers=JSON, status=201),
    "list_api_keys": Call(method="GET", path=KEYS),
    "delete_api_key": Call(method="DELETE", path=f"{KEYS}/{KEY_ID}", status=404),
    "update_api_key": Call(
        method="PATCH",
        path=f"{KEYS}/{KEY_ID}",
        body=b'{"name": "Renamed", "maxBudget": null}',
        headers={**JSON, "if-match": '"5d41402abc4b2a76b9719d911017c592"'},
        status=404,
    ),
    "update_user_api_key": Call(
        method="PATCH",
        path=f"{ADMIN}/users/{SUBJECT}/api-keys/{KEY_ID}",
        body=b'{"rpmLimit": 10}',
        headers=JSON,
        status=404,
    ),
    "reset_spend": Call(method="POST", path=f"{KEYS}/{KEY_ID}/reset-spend", status=404),
    "get_api_key": Call(method="GET", path=f"{KEYS}/{KEY_ID}", status=404),
    "rotate_api_key": Call(
        method="POST", path=f"{KEYS}/{KEY_ID}/rotate", body=b'{"gracePeriodSeconds": 3600}', headers=JSON, status=404
    ),
    "complete_rotation": Call(method="POST", path=f"{KEYS}/{KEY_ID}/rotate/complete", status=404),
    "reveal_api_key": Call(
        method="POST", path=f"{KEYS}/{KEY_ID}/reveal", claims=FULL_CLAIMS | {"auth_time": 1_800_000_000}, status=404
    ),
    "get_api_key_stats": Call(method="GET", path=f"{KEYS}/stats"),
    "validate_api_key": Call(
        method="POST", path=f"{KEYS}/validate", body=b'{"key": "sk-not-the-secret-of-any-key"}', headers=JSON
    ),
    "list_all_api_keys": Call(method="GET", path=f"{KEYS}/admin/all?userId={SUBJECT}&limit=50"),
    "list_user_api_keys": Call(method="GET", path=f"{ADMIN}/users/{SUBJECT}/api-keys", status=404),
    "create_user_api_key": Call(
        method="POST", path=f"{ADMIN}/users/{SUBJECT}/api-keys", body=NEW_KEY, headers=JSON, status=404
    ),
    "delete_user_api_key": Call(
        method="DELETE", path=f"{ADMIN}/users/{SUBJECT}/api-keys/{KEY_ID}?permanent=true", status=404
    ),
    "clean_up_expired": Call(method="POST", path=f"{KEYS}/admin/cleanup-expired"),
    "get_key_defaults": Call(method="GET", path="/api/v1/config/api-key-defaults"),
    "get_key_defaults_as_admin": Call(method="GET", path=f"{ADMIN}/settings/api-key-defaults"),
    "set_key_defaults": Call(method="PUT", path=f"{ADMIN}/settings/api-key-defaults", body=KEY_DEFAULTS, headers=JSON),
    "list_audit_records": Call(
        method="GET",
        path=f"{ADMIN}/audit?action=API_KEY_DELETE&from=2026-11-01T00:00:00Z",
        headers={"accept": "application/x-ndjson"},
    ),
    "list_operations": Call(method="GET", path=f"{ADMIN}/operations?state=failed"),
    "retry_operation": Call(method="POST", path=f"{ADMIN}/operations/{KEY_ID}/retry", status=404),
    "check_health": Call(method="GET", path="/health", claims=None),
    "serve_openapi": Call(method="GET", path="/api/v1/openapi.json", claims=None),
    # The awkward ones.
    "create_base64_body": Call(
        method="POST", path=KEYS, body=NEW_KEY, headers={"content-type": "application/octet-stream"}, status=415
    ),
    "create_body_not_utf8": Call(method="POST", path=KEYS, body=b'{"name":"\xff"}', headers=JSON, status=400),
    "create_without_body": Call(method="POST", path=KEYS, headers=JSON, status=400),
    "create_with_correlation": Call(
        method="POST",
        path=KEYS,
        body=NEW_KEY,
        headers={**JSON, "x-request-id": "req-1", "x-correlation-id": "6f0f4c1e-6f1e-4a53-9b0e-2c9d6a4e7b10"},
        status=201,
    ),
    "create_subject_only": Call(
        method="POST", path=KEYS, body=NEW_KEY, headers=JSON, claims={"aud": AUDIENCE, "sub": SUBJECT}, status=201
    ),
    "create_without_subject": Call(
        method="POST", path=KEYS, body=NEW_KEY, headers=JSON, claims={"aud": AUDIENCE}, status=401
    ),
    "list_repeated_parameters": Call(
        method="GET", path=f"{KEYS}?modelIds=gpt-4o&modelIds=gpt-4o-mini&page=2&limit=5&isActive=true"
    ),
    "list_odd_parameters": Call(
        method="GET", path=f"{KEYS}?page=&limit=1.5&cursor=%00&unknown=%F0%9F%94%91", status=400
    ),
    "list_with_cookies": Call(method="GET", path=KEYS, headers={"cookie": "theme=dark; lang=de"}),
    "delete_malformed_id": Call(method="DELETE", path=f"{KEYS}/not%20a%20uuid%27%3B--", status=404),
}


def record() -> dict[str, dict[str, Any]]:
    """Every event, by its name: that of the function's file, unless it is an awkward one."""
    return _of_calls() | {_AUTHORIZER: _of_authorizer()} | _of_jobs()


def _of_calls() -> dict[str, dict[str, Any]]:
    recorded: list[dict[str, Any]] = []

    async def keep(_function: str, event: bytes) -> bytes:
        recorded.append(json.loads(event))
        return b'{"statusCode": 204}'

    with _gateway(CHECKOUT / "template.yaml", invoke=keep) as (client, issuer):
        for call in CALLS.values():
            _send(client, call, issuer)
    return {name: _fixed(event) for name, event in zip(CALLS, recorded, strict=True)}


def _of_authorizer() -> dict[str, Any]:
    """Only the drop-in's template has one."""
    recorded: list[dict[str, Any]] = []

    async def keep(_function: str, event: bytes) -> bytes:
        recorded.append(json.loads(event))
        return b'{"isAuthorized": true, "statusCode": 204}'

    with TemporaryDirectory() as directory:
        template = Path(directory) / "template-litemaas.yaml"
        litemaas_template.write(template)
        with _gateway(template, invoke=keep) as (client, issuer):
            _send(client, CALLS["list_api_keys"], issuer)
    return _fixed(recorded[0]) | {"identitySource": [_TOKEN]}


def _of_jobs() -> dict[str, dict[str, Any]]:
    """What EventBridge Scheduler sends unless a schedule says otherwise; nothing to what only people invoke."""
    events: dict[str, dict[str, Any]] = {}
    for function, resource in read_yaml((CHECKOUT / "template.yaml").read_text())["Resources"].items():
        if resource["Type"] != "AWS::Serverless::Function":
            continue
        name = str(resource["Properties"]["Handler"]).removesuffix(".handler")
        sources = as_mapping(resource["Properties"].get("Events"))
        if not sources:
            events[name] = {}
        for schedule, source in sources.items():
            if source["Type"] == "ScheduleV2":
                events[name] = _scheduled(f"{function}{schedule}")
    return events


def _scheduled(schedule: str) -> dict[str, Any]:
    return {
        "version": "0",
        "id": "3c5b1f0e-6a0d-4d2b-8a57-0d6c2b1f9e44",
        "detail-type": "Scheduled Event",
        "source": "aws.scheduler",
        "account": ACCOUNT_ID,
        "time": "2030-01-01T00:00:00Z",
        "region": REGION,
        "resources": [f"arn:aws:scheduler:{REGION}:{ACCOUNT_ID}:schedule/default/{schedule}"],
        "detail": "{}",
    }


@contextmanager
def _gateway(template: Path, *, invoke: Invoke) -> Generator[tuple[httpx.Client, Issuer]]:
    thread = ServerThread()
    try:
        issuer_listener, api_listener = listen(), listen()
        issuer = Issuer(url=f"http://127.0.0.1:{port_of(issuer_listener)}")
        thread.serve(issuer, [issuer_listener])
        known = Template(template)
        who = {"JwtIssuer": issuer.url, "JwtAudience": AUDIENCE}
        application = known.resolve_offline(**{name: who[name] for name in who.keys() & known.parameter_names})
        thread.serve(Gateway(application, invoke=invoke), [api_listener])
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port_of(api_listener)}", trust_env=False, verify=NO_TLS
        ) as client:
            yield client, issuer
    finally:
        thread.close()


def _send(client: httpx.Client, call: Call, issuer: Issuer) -> None:
    headers = {"host": HOST, "user-agent": "keyservice-client/1.0", "accept-encoding": "gzip", **call.headers}
    if call.claims is not None:
        headers["authorization"] = f"Bearer {issuer.token(call.claims)}"
    answer = client.request(call.method, call.path, content=call.body, headers=headers)
    if answer.status_code != 204:
        raise RuntimeError(f"{call.method} {call.path} was answered {answer.status_code}: {answer.text}")


def _fixed(event: dict[str, Any]) -> dict[str, Any]:
    headers, context = event["headers"], event["requestContext"]
    headers["x-amzn-trace-id"] = "Root=1-68000000-000000000000000000000000"
    if "authorization" in headers:
        headers["authorization"] = _TOKEN
    headers["x-forwarded-for"] = context["http"]["sourceIp"] = "203.0.113.7"
    context |= {"requestId": "JKJaXmPLvHcESHA=", "time": "01/Jan/2030:00:00:00 +0000", "timeEpoch": 1893456000000}
    if "authorizer" in context:
        context["authorizer"]["jwt"]["claims"] |= {"iss": ISSUER, "iat": "1893455900", "exp": "1893459500"}
    return event


def main() -> None:
    EVENTS.mkdir(exist_ok=True)
    for name, event in record().items():
        (EVENTS / f"{name}.json").write_text(text_of(event))


def text_of(event: Mapping[str, Any]) -> str:
    return json.dumps(event, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
