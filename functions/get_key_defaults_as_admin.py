"""GET /api/v1/admin/settings/api-key-defaults"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint


@endpoint("get_key_defaults_as_admin")
def handler(request: Request) -> Response:
    return Response(status=200, body=wiring.key_defaults().for_administrators(request.caller))
