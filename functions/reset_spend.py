"""POST /api/v1/api-keys/{id}/reset-spend"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint


@endpoint("reset_spend")
def handler(request: Request) -> Response:
    reset = wiring.key_alteration().reset_spend(
        request.caller, request.path_parameters["id"], deadline=request.gateway_deadline()
    )
    return Response(status=200, body=reset)
