"""POST /api/v1/admin/operations/{id}/retry"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint


@endpoint("retry_operation")
def handler(request: Request) -> Response:
    return Response(status=202, body=wiring.operations().retry(request.caller, request.path_parameters["id"]))
