"""GET /api/v1/api-keys/admin/all"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint


@endpoint("list_all_api_keys")
def handler(request: Request) -> Response:
    return Response(status=200, body=wiring.key_listing().everybodys_page(request.caller, request.query))
