"""GET /api/v1/openapi.json, without a token: what `make openapi` has put beside this file."""

from functools import cache
from hashlib import sha256
from pathlib import Path

from keyservice.endpoint import Request, Response, endpoint


@cache
def _description() -> tuple[str, str]:
    """The text, and its ETag."""
    text = Path(__file__).with_name("openapi.json").read_text()
    return text, f'"{sha256(text.encode()).hexdigest()[:32]}"'


@endpoint("serve_openapi")
def handler(request: Request) -> Response:
    text, entity_tag = _description()
    headers = {"etag": entity_tag, "cache-control": "public, max-age=300"}
    if entity_tag in request.headers.get("if-none-match", ""):
        return Response(status=304, body="", headers=headers)
    return Response(status=200, body=text, content_type="application/json", headers=headers)
