"""DELETE /api/v1/api-keys/{id}"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint
from keyservice.models import DeletedKey


@endpoint("delete_api_key")
def handler(request: Request) -> Response:
    outcome = wiring.key_deletion().delete(
        request.caller, request.path_parameters["id"], deadline=request.gateway_deadline()
    )
    return Response(status=200 if isinstance(outcome, DeletedKey) else 202, body=outcome)
