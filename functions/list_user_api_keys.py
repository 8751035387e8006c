"""GET /api/v1/admin/users/{userId}/api-keys"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint


@endpoint("list_user_api_keys")
def handler(request: Request) -> Response:
    page = wiring.key_listing().users_page(request.caller, request.path_parameters["userId"], request.query)
    return Response(status=200, body=page)
