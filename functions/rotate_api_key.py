"""POST /api/v1/api-keys/{id}/rotate"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint
from keyservice.models import RotationRequest


@endpoint("rotate_api_key")
def handler(request: Request) -> Response:
    rotated = wiring.key_rotation().rotate(
        request.caller,
        request.path_parameters["id"],
        request.optional_body(RotationRequest),
        idempotency_key=request.idempotency_key,
        deadline=request.gateway_deadline(),
    )
    return Response(
        status=200, body=rotated.key, headers={"idempotency-replayed": "true"} if rotated.is_replayed else {}
    )
