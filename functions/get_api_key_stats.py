"""GET /api/v1/api-keys/stats"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint


@endpoint("get_api_key_stats")
def handler(request: Request) -> Response:
    return Response(status=200, body=wiring.key_statistics().of_own_keys(request.caller))
