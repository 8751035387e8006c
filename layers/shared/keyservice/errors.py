"""The failures a caller can act on, each with its HTTP status and stable code.

ServiceError
├── InvalidRequest          400 VALIDATION_ERROR         the request breaks a rule; `violations` names each
│   └── GatewayRefused      400 VALIDATION_ERROR         LiteLLM answered that it will not take these settings
├── Unauthorized            401 UNAUTHORIZED             the token carries no usable identity
├── Forbidden               403 FORBIDDEN                the caller may not do this
├── NotFound                404 NOT_FOUND                not there, or somebody else's
├── IdentityConflict        409 IDENTITY_CONFLICT        username or email belongs to another identity
├── OperationSuperseded     409 OPERATION_SUPERSEDED     the key was deleted while this change was running
├── OperationInProgress     409 OPERATION_IN_PROGRESS    the same request is still running; retry
├── OperationOver           409 OPERATION_OVER           done, failed or superseded: nothing to try again
├── Braked                  409 BRAKED                   this database may not be the one LiteLLM's keys were made from
├── Gone                    410 GONE                     what the repeated request made is no more
├── PreconditionFailed      412 PRECONDITION_FAILED      the key is not as If-Match says; `entity_tag` is what it is now
├── PayloadTooLarge         413 PAYLOAD_TOO_LARGE
├── UnsupportedMediaType    415 UNSUPPORTED_MEDIA_TYPE
├── IdempotencyKeyReused    422 IDEMPOTENCY_KEY_REUSED   another body came with this Idempotency-Key
├── UnsupportedSetting      422 UNSUPPORTED_SETTING      known, but this stack cannot enforce it
├── TooManyRequests         429 RATE_LIMITED             more of these than a user may ask for; `retry_after_seconds`
└── Unavailable             503 SERVICE_UNAVAILABLE      a dependency is down, slow or unclear; retry
    ├── DatabaseUnavailable
    │   └── OutcomeUnknown                               the connection broke: the statement may have committed
    ├── GatewayUnavailable                               LiteLLM; `may_still_happen` tells whether it can act later
    ├── OperationPending                                 the change is recorded and will be settled
    ├── DerivationUnavailable                            KMS
    └── SecretUnavailable                                Secrets Manager

Anything else that escapes is our own mistake and becomes 500 INTERNAL_ERROR in `endpoint`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar
from uuid import UUID

import msgspec


class Violation(msgspec.Struct, frozen=True):
    """One broken rule: the field as the caller spelled it, a sentence, a stable code."""

    field: str
    message: str
    code: str


class Retry(msgspec.Struct, frozen=True, rename="camel"):
    """When to try again, in seconds."""

    retryable: bool
    retry_after: int


class ErrorDescription(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    code: str
    message: str
    status_code: int
    details: dict[str, Any]
    correlation_id: str | msgspec.UnsetType = msgspec.UNSET
    timestamp: Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
    request_id: str
    retry: Retry | msgspec.UnsetType = msgspec.UNSET


class ErrorEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """What every error is answered with: LiteMaaS's envelope, its keys in LiteMaaS's order."""

    error: ErrorDescription


class ServiceError(Exception):
    """A failure the caller can act on; `message` is written for the caller and holds no secret."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "INTERNAL_ERROR"
    retry_after_seconds: int | None = None

    def __init__(self, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})


class InvalidRequest(ServiceError):
    status = 400
    code = "VALIDATION_ERROR"

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, details=details)
        if violations:
            self.details["validation"] = list(violations)


class GatewayRefused(InvalidRequest):
    """LiteLLM's own 400, 403 or 422; `status_answered` and `fields` tell what it refused."""

    def __init__(self, *, status_answered: int, fields: Sequence[str]) -> None:
        named = ", ".join(fields) or "one of its settings"
        super().__init__(
            f"The LiteLLM gateway refused this key because of {named}. Change it and try again.",
            violations=[
                Violation(field=field, message="refused by the LiteLLM gateway", code="gatewayRefused")
                for field in fields or ["body"]
            ],
        )
        self.status_answered = status_answered
        self.fields = tuple(fields)

    @property
    def recorded(self) -> str:
        """What the journal keeps."""
        return f"refused by LiteLLM: {', '.join(self.fields) or self.status_answered}"


class Unauthorized(ServiceError):
    status = 401
    code = "UNAUTHORIZED"


class Forbidden(ServiceError):
    status = 403
    code = "FORBIDDEN"


class NotFound(ServiceError):
    status = 404
    code = "NOT_FOUND"


class IdentityConflict(ServiceError):
    status = 409
    code = "IDENTITY_CONFLICT"


class OperationSuperseded(ServiceError):
    status = 409
    code = "OPERATION_SUPERSEDED"


class OperationInProgress(ServiceError):
    status = 409
    code = "OPERATION_IN_PROGRESS"
    retry_after_seconds = 5


class OperationOver(ServiceError):
    status = 409
    code = "OPERATION_OVER"


class Gone(ServiceError):
    status = 410
    code = "GONE"


class PreconditionFailed(ServiceError):
    status = 412
    code = "PRECONDITION_FAILED"

    def __init__(self, *, entity_tag: str) -> None:
        super().__init__("The key has changed since. Read it again, and repeat the change if it still makes sense.")
        self.entity_tag = entity_tag


class IdempotencyKeyReused(ServiceError):
    status = 422
    code = "IDEMPOTENCY_KEY_REUSED"


class PayloadTooLarge(ServiceError):
    status = 413
    code = "PAYLOAD_TOO_LARGE"


class UnsupportedMediaType(ServiceError):
    status = 415
    code = "UNSUPPORTED_MEDIA_TYPE"


class Braked(ServiceError):
    status = 409
    code = "BRAKED"


class UnsupportedSetting(ServiceError):
    status = 422
    code = "UNSUPPORTED_SETTING"


class TooManyRequests(ServiceError):
    status = 429
    code = "RATE_LIMITED"

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(ServiceError):
    status = 503
    code = "SERVICE_UNAVAILABLE"
    retry_after_seconds = 5


class DatabaseUnavailable(Unavailable):
    def __init__(self) -> None:
        super().__init__("The database is not available. Nothing was changed; try again shortly.")


class OutcomeUnknown(DatabaseUnavailable):
    """The connection broke after the statement was sent: it may or may not have committed."""

    def __init__(self) -> None:
        Unavailable.__init__(
            self,
            "The database connection was lost. The change may have been made; look at the key before trying again.",
        )


class GatewayUnavailable(Unavailable):
    """LiteLLM did not do what was asked, and not because it refused.

    `may_still_happen`: LiteLLM may have received the request and carry it out later, even minutes
    later (seen with LiteLLM 1.106.0: client timed out, key live 8 s on). False when nothing was sent
    or LiteLLM itself answered that it did not do it.
    """

    def __init__(self, reason: str, *, may_still_happen: bool) -> None:
        super().__init__("The LiteLLM gateway is not available; try again shortly.")
        self.reason = reason
        self.may_still_happen = may_still_happen


class OperationPending(Unavailable):
    """LiteLLM has not confirmed the change; the operation stays in the journal until it is settled."""

    def __init__(
        self,
        message: str = "LiteLLM has not confirmed the change, so no key was issued. What may have been made is cleared up "
        "by the service itself; try again shortly.",
    ) -> None:
        super().__init__(message)


class DerivationUnavailable(Unavailable):
    def __init__(self) -> None:
        super().__init__("The key material service is not available. Nothing was changed; try again shortly.")


class SecretUnavailable(Unavailable):
    def __init__(self) -> None:
        super().__init__("A secret this service needs is not available. Nothing was changed; try again shortly.")


def key_inactive(
    message: str = "API key is inactive", *, suggestion: str = "This API key has been deactivated and cannot be used"
) -> InvalidRequest:
    """LiteMaaS words it differently where a key is to be changed."""
    return InvalidRequest(message, details={"field": "isActive", "value": False, "suggestion": suggestion})


def key_expired() -> InvalidRequest:
    return InvalidRequest(
        "API key has expired",
        details={"field": "expiresAt", "suggestion": "Please create a new API key to continue using the service"},
    )


def reason(trouble: ServiceError) -> str:
    """What the journal and the log keep of a failure: its kind and what LiteLLM did, never its answer's text."""
    if isinstance(trouble, OperationPending) and isinstance(trouble.__cause__, ServiceError):
        return reason(trouble.__cause__)
    return trouble.reason if isinstance(trouble, GatewayUnavailable) else type(trouble).__name__


def missing_key(key_id: UUID | None) -> NotFound:
    """A key that is not there, or somebody else's; None for an id that is none."""
    named = "" if key_id is None else f" with ID '{key_id}'"
    return NotFound(
        f"API key{named} not found",
        details={
            "resource": "API key",
            **({} if key_id is None else {"id": str(key_id)}),
            "suggestion": "API key not found or you do not have permission to access it",
        },
    )
