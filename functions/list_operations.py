"""GET /api/v1/admin/operations"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint


@endpoint("list_operations")
def handler(request: Request) -> Response:
    return Response(status=200, body=wiring.operations().page(request.caller, request.query))
