"""The boundary of the Lambda authorizer: a function that checks a token becomes a handler that lets requests in.

Payload format 2.0 with simple responses, as HTTP APIs ask for them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from keyservice import snapshot, telemetry
from keyservice.errors import Unauthorized
from keyservice.litemaas_tokens import TokenRefused
from keyservice.models import TokenClaims


def authorizer(
    check: Callable[[str], TokenClaims],
) -> Callable[[Mapping[str, Any], object], dict[str, Any]]:
    """Makes a handler; the claims reach the functions as `requestContext.authorizer.lambda`, all of them as text, as
    those of a JWT authorizer do."""
    snapshot.register()

    def handler(event: Mapping[str, Any], _context: object) -> dict[str, Any]:
        try:
            claims = check(event["identitySource"][0])
        except TokenRefused as refusal:
            telemetry.logger.info("token refused", extra={"route": event.get("routeKey"), "reason": refusal.reason})
            # The API answers 401 to this very message only: 403 to isAuthorized false, 500 to all other failures.
            raise Unauthorized("Unauthorized") from None
        context = {"userId": str(claims.user_id), "iat": f"{claims.iat:.0f}", "exp": f"{claims.exp:.0f}"}
        return {"isAuthorized": True, "context": context}

    return handler
