"""POST /api/v1/api-keys/admin/cleanup-expired"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint


@endpoint("clean_up_expired")
def handler(request: Request) -> Response:
    cleaned = wiring.expiry_cleanup().run(request.caller, deadline=request.gateway_deadline())
    return Response(status=202 if cleaned.pending_count else 200, body=cleaned)
