"""What API Gateway would send a function once it has checked the token (payload format 2.0)."""

import json
from typing import Any

from bench.clients import KEYS
from bench.stage import Stage

# Of `Stage.people`: its first is who calls.
CALLER = "caller"


def event_of(stage: Stage, route: str, *, body: object = None, **path: str) -> dict[str, Any]:
    method, _, pattern = route.partition(" ")
    raw_path = pattern
    for name, value in path.items():
        raw_path = raw_path.replace(f"{{{name}}}", value)
    subject = f"{CALLER}-0"
    claims = {
        "iss": stage.stack.issuer_url,
        "sub": subject,
        "preferred_username": subject,
        "email": f"{subject}@example.com",
    }
    return {
        "version": "2.0",
        "routeKey": route,
        "rawPath": raw_path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json"},
        "pathParameters": path,
        "requestContext": {
            "authorizer": {"jwt": {"claims": claims, "scopes": None}},
            "http": {"method": method, "path": raw_path, "sourceIp": "127.0.0.1", "userAgent": "bench"},
            "requestId": "bench",
            "stage": "$default",
        },
        "body": None if body is None else json.dumps(body),
        "isBase64Encoded": False,
    }


def create_event(stage: Stage) -> dict[str, Any]:
    return event_of(stage, f"POST {KEYS}", body={"modelIds": ["gpt-4o"]})


def list_event(stage: Stage) -> dict[str, Any]:
    return event_of(stage, f"GET {KEYS}")


def delete_event(stage: Stage, key_id: str) -> dict[str, Any]:
    return event_of(stage, f"DELETE {KEYS}/{{id}}", id=key_id)
