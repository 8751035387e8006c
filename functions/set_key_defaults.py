"""PUT /api/v1/admin/settings/api-key-defaults"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint
from keyservice.models import KeyDefaults


@endpoint("set_key_defaults")
def handler(request: Request) -> Response:
    replaced = wiring.key_defaults().replace(request.caller, request.body(KeyDefaults))
    return Response(status=200, body=replaced)
