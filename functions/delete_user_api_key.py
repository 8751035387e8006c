"""DELETE /api/v1/admin/users/{userId}/api-keys/{id}"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint
from keyservice.models import PendingDeletion


@endpoint("delete_user_api_key")
def handler(request: Request) -> Response:
    outcome = wiring.key_deletion().end_for(
        request.caller,
        request.path_parameters["userId"],
        request.path_parameters["id"],
        request.query,
        deadline=request.gateway_deadline(),
    )
    return Response(status=202 if isinstance(outcome, PendingDeletion) else 200, body=outcome)
