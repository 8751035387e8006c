"""PATCH /api/v1/admin/users/{userId}/api-keys/{id}"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint
from keyservice.models import KeyChanges


@endpoint("update_user_api_key")
def handler(request: Request) -> Response:
    updated = wiring.key_alteration().update(
        request.caller,
        request.path_parameters["id"],
        request.body(KeyChanges),
        owner_id=request.path_parameters["userId"],
        if_match=request.if_match,
        deadline=request.gateway_deadline(),
    )
    return Response(status=200, body=updated.key, headers={"etag": updated.entity_tag})
