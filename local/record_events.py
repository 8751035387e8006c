"""`python -m local.record_events`: writes events/*.json, each as the local gateway hands it to a function.

What differs from call to call (ids, times, the token's text) is replaced by fixed values.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from local.gateway import Gateway
from local.issuer import Issuer
from local.loopback import NO_TLS, listen, port_of
from local.serving import ServerThread
from local.template import Application, Template

CHECKOUT = Path(__file__).parent.parent
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


@dataclass(frozen=True, kw_only=True)
class Call:
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    claims: Mapping[str, object] | None = field(default_factory=lambda: FULL_CLAIMS)


CALLS = {
    "create_api_key": Call(method="POST", path=KEYS, body=NEW_KEY, headers=JSON),
    "list_api_keys": Call(method="GET", path=KEYS),
    "delete_api_key": Call(method="DELETE", path=f"{KEYS}/{KEY_ID}"),
    "rotate_api_key": Call(
        method="POST", path=f"{KEYS}/{KEY_ID}/rotate", body=b'{"gracePeriodSeconds": 3600}', headers=JSON
    ),
    "complete_rotation": Call(method="POST", path=f"{KEYS}/{KEY_ID}/rotate/complete"),
    "reveal_api_key": Call(
        method="POST", path=f"{KEYS}/{KEY_ID}/reveal", claims=FULL_CLAIMS | {"auth_time": 1_800_000_000}
    ),
    "get_api_key": Call(method="GET", path=f"{KEYS}/{KEY_ID}"),
    "get_api_key_stats": Call(method="GET", path=f"{KEYS}/stats"),
    "validate_api_key": Call(
        method="POST", path=f"{KEYS}/validate", body=b'{"key": "sk-not-the-secret-of-any-key"}', headers=JSON
    ),
    "list_all_api_keys": Call(method="GET", path=f"{KEYS}/admin/all?userId={SUBJECT}&limit=50"),
    "list_user_api_keys": Call(method="GET", path=f"{ADMIN}/users/{SUBJECT}/api-keys"),
    "get_key_defaults": Call(method="GET", path="/api/v1/config/api-key-defaults"),
    "get_key_defaults_as_admin": Call(method="GET", path=f"{ADMIN}/settings/api-key-defaults"),
    "set_key_defaults": Call(method="PUT", path=f"{ADMIN}/settings/api-key-defaults", body=KEY_DEFAULTS, headers=JSON),
    "list_audit_records": Call(
        method="GET",
        path=f"{ADMIN}/audit?action=API_KEY_DELETE&from=2026-11-01T00:00:00Z",
        headers={"accept": "application/x-ndjson"},
    ),
    "check_health": Call(method="GET", path="/health", claims=None),
    # The awkward ones.
    "create_base64_body": Call(
        method="POST", path=KEYS, body=NEW_KEY, headers={"content-type": "application/octet-stream"}
    ),
    "create_body_not_utf8": Call(method="POST", path=KEYS, body=b'{"name":"\xff"}', headers=JSON),
    "create_without_body": Call(method="POST", path=KEYS, headers=JSON),
    "create_with_correlation": Call(
        method="POST",
        path=KEYS,
        body=NEW_KEY,
        headers={**JSON, "x-request-id": "req-1", "x-correlation-id": "6f0f4c1e-6f1e-4a53-9b0e-2c9d6a4e7b10"},
    ),
    "create_subject_only": Call(
        method="POST", path=KEYS, body=NEW_KEY, headers=JSON, claims={"aud": AUDIENCE, "sub": SUBJECT}
    ),
    "create_without_subject": Call(method="POST", path=KEYS, body=NEW_KEY, headers=JSON, claims={"aud": AUDIENCE}),
    "list_repeated_parameters": Call(
        method="GET", path=f"{KEYS}?modelIds=gpt-4o&modelIds=gpt-4o-mini&page=2&limit=5&isActive=true"
    ),
    "list_odd_parameters": Call(method="GET", path=f"{KEYS}?page=&limit=1.5&cursor=%00&unknown=%F0%9F%94%91"),
    "list_with_cookies": Call(method="GET", path=KEYS, headers={"cookie": "theme=dark; lang=de"}),
    "delete_malformed_id": Call(method="DELETE", path=f"{KEYS}/not%20a%20uuid%27%3B--"),
}


def record() -> dict[str, dict[str, Any]]:
    """Each call's event, by name."""
    recorded: list[dict[str, Any]] = []

    async def keep(_function: str, event: bytes) -> bytes:
        recorded.append(json.loads(event))
        return b'{"statusCode": 204}'

    thread = ServerThread()
    try:
        issuer_listener, api_listener = listen(), listen()
        issuer = Issuer(url=f"http://127.0.0.1:{port_of(issuer_listener)}")
        thread.serve(issuer, [issuer_listener])
        thread.serve(Gateway(_application(issuer.url), invoke=keep), [api_listener])
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port_of(api_listener)}", trust_env=False, verify=NO_TLS
        ) as client:
            for call in CALLS.values():
                _send(client, call, issuer)
    finally:
        thread.close()
    return {name: _fixed(event) for name, event in zip(CALLS, recorded, strict=True)}


def _application(issuer: str) -> Application:
    template = Template(CHECKOUT / "template.yaml")
    secret = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:any"
    # Only the routes and the authorizer matter here; the rest has to be there.
    values = {"VpcSubnetIds": "subnet-1", "VpcSecurityGroupIds": "sg-1", "ReleaseSha": "0" * 64, "DatabaseHost": "any"}
    for name in template.required_parameters - values.keys():
        values[name] = secret if name.endswith("Arn") else issuer if name.endswith("Url") else "any"
    return template.resolve(
        parameters={**values, "JwtIssuer": issuer, "JwtAudience": AUDIENCE},
        references={"AWS::StackName": "any", "MacKey": "any"},
        attributes={"MacKey": {"Arn": "any"}},
    )


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
        headers["authorization"] = "Bearer header.claims.signature"
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
