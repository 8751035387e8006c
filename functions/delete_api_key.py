"""DELETE /api/v1/api-keys/{id}"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint
from keyservice.models import DeletedKey


@endpoint("delete_api_key")
def handler(request: Request) -> Response:
    key_id = request.path_parameters["id"]
    request.log.update(key_id=key_id)
    outcome = wiring.key_deletion().delete(request.caller, key_id, deadline=request.gateway_deadline())
    return Response(status=200 if isinstance(outcome, DeletedKey) else 202, body=outcome)
