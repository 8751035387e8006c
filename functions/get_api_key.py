"""GET /api/v1/api-keys/{id}"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint


@endpoint("get_api_key")
def handler(request: Request) -> Response:
    found = wiring.key_listing().one(request.caller, request.path_parameters["id"])
    return Response(status=200, body=found.key, headers={"etag": found.entity_tag})
