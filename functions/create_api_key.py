"""POST /api/v1/api-keys"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint
from keyservice.models import NewApiKey

_DEPRECATION = {
    "x-api-deprecation-warning": "subscriptionId parameter is deprecated. Use modelIds array instead.",
    "x-api-migration-guide": ("See /docs/api/migration-guide for details on upgrading to multi-model API keys."),
}


@endpoint("create_api_key")
def handler(request: Request) -> Response:
    caller = request.caller
    wanted = request.body(NewApiKey)
    if wanted.subscription_id is not None:
        request.notices.update(_DEPRECATION)
    created = wiring.key_creation().create(
        caller, wanted, idempotency_key=request.idempotency_key, deadline=request.gateway_deadline()
    )
    replayed = {"idempotency-replayed": "true"} if created.is_replayed else {}
    location = {"location": f"/api/v1/api-keys/{created.key.id}"}
    return Response(status=201, body=created.key, headers=location | replayed)
