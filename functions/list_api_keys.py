"""GET /api/v1/api-keys"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint


@endpoint("list_api_keys")
def handler(request: Request) -> Response:
    return Response(status=200, body=wiring.key_listing().page(request.caller, request.query))
