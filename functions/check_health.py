"""GET /health, without a token"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint


@endpoint("check_health")
def handler(_request: Request) -> Response:
    health = wiring.health_check().check()
    return Response(status=503 if health.status == "unhealthy" else 200, body=health)
