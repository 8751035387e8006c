"""POST /api/v1/api-keys/{id}/reveal"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint

# LiteMaaS's own.
_NOT_TO_BE_KEPT = {
    "cache-control": "no-store, no-cache, must-revalidate, private",
    "pragma": "no-cache",
    "x-frame-options": "DENY",
}


@endpoint("reveal_api_key")
def handler(request: Request) -> Response:
    revealed = wiring.secret_revelation().reveal(request.caller, request.path_parameters["id"])
    return Response(status=200, body=revealed, headers=_NOT_TO_BE_KEPT)
