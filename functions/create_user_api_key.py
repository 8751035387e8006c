"""POST /api/v1/admin/users/{userId}/api-keys"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint
from keyservice.models import NewApiKey


@endpoint("create_user_api_key")
def handler(request: Request) -> Response:
    caller = request.caller
    created = wiring.key_creation().create_for(
        caller,
        request.path_parameters["userId"],
        request.body(NewApiKey),
        idempotency_key=request.idempotency_key,
        deadline=request.gateway_deadline(),
    )
    replayed = {"idempotency-replayed": "true"} if created.is_replayed else {}
    return Response(status=201, body=created.key, headers=replayed)
