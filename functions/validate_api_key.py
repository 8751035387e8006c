"""POST /api/v1/api-keys/validate"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint
from keyservice.models import KeyToValidate


@endpoint("validate_api_key")
def handler(request: Request) -> Response:
    validated = wiring.key_validation().validate(request.caller, request.body(KeyToValidate))
    return Response(status=200, body=validated)
