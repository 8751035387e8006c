"""GET /api/v1/config/api-key-defaults"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint


@endpoint("get_key_defaults")
def handler(request: Request) -> Response:
    return Response(status=200, body=wiring.key_defaults().for_callers(request.caller))
