"""POST /api/v1/api-keys/{id}/rotate/complete"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint
from keyservice.models import CompletedRotation


@endpoint("complete_rotation")
def handler(request: Request) -> Response:
    outcome = wiring.secret_retirement().complete(
        request.caller, request.path_parameters["id"], deadline=request.gateway_deadline()
    )
    return Response(status=200 if isinstance(outcome, CompletedRotation) else 202, body=outcome)
