"""What the API's description says of each route beside what the code says itself: one entry for each function.

Its route and whether it asks for a token stand in template.yaml; the shapes, with their limits, in keyservice.models;
statuses and codes of errors in keyservice.errors; the names in a query are those its parser asks for. An answer is
given as an example, whose shape is the schema.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from msgspec import Struct

from keyservice.audit_trail import parse_audit_query
from keyservice.deletion import parse_is_permanent
from keyservice.errors import (
    Braked,
    Gone,
    IdempotencyKeyReused,
    InvalidRequest,
    NotFound,
    OperationInProgress,
    OperationOver,
    OperationSuperseded,
    PreconditionFailed,
    ServiceError,
    TooManyRequests,
)
from keyservice.health import Health
from keyservice.listing import parse_list_query
from keyservice.models import (
    AuditPage,
    AuditRecord,
    CleanedUp,
    CompletedRotation,
    CursorPage,
    DefaultSettings,
    DeletedKey,
    IssuedKey,
    KeyChanges,
    KeyDefaults,
    KeyPage,
    KeyStatistics,
    KeyToValidate,
    ListedKey,
    ListedOperation,
    MaximumSettings,
    ModelDetails,
    NewApiKey,
    OldSecret,
    OperationPage,
    Pagination,
    PendingCompletion,
    PendingDeletion,
    ResetSpend,
    RetriedOperation,
    RevealedKey,
    RevokedKey,
    RotatedKey,
    RotationRequest,
    ValidatedKey,
)
from keyservice.operations import parse_operation_query

type Schema = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`body`: an example; several are one of each shape, a mapping is any JSON object, None is no body. `lines`: an example
    of the same as NDJSON.
    """

    description: str
    body: Struct | tuple[Struct, ...] | Mapping[str, Any] | None
    headers: tuple[str, ...] = ()
    lines: str | None = None
    links: tuple[str, ...] = ()
    """Operations that take the `id` of this answer."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """`errors`: those that neither the token, the body, the query nor an id in the path brings with it."""

    tag: str
    summary: str
    answers: Mapping[int, Answer]
    description: str = ""
    body: Struct | None = None
    is_body_optional: bool = False
    query: Callable[[Mapping[str, str]], object] | None = None
    headers: tuple[str, ...] = ()
    errors: tuple[type[ServiceError], ...] = ()


# The query parameters by their names, which mean the same wherever they are asked for.
QUERY: Mapping[str, Schema] = {
    "page": {"type": "integer", "minimum": 1, "maximum": 1_000_000, "default": 1},
    "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
    "cursor": {"type": "string", "description": "The nextCursor of an earlier page; not together with page."},
    "isActive": {"type": "boolean"},
    "permanent": {
        "type": "boolean",
        "default": False,
        "description": "true: the key is deleted; otherwise it is revoked, and still listed.",
    },
    "modelIds": {
        "type": "array",
        "items": {"type": "string", "pattern": r"^[^\u0000]*$"},
        "description": "Keys with any of these models.",
    },
    "subscriptionId": {"type": "string", "format": "uuid"},
    "userId": {"type": "string", "format": "uuid"},
    "subjectId": {"type": "string", "format": "uuid", "description": "Records of what belongs to this user."},
    "state": {"type": "string", "enum": ["pending", "failed"], "default": "pending"},
    "action": {"type": "string", "maxLength": 100, "description": "Such as API_KEY_DELETE."},
    "resourceType": {"type": "string", "maxLength": 50, "description": "Such as API_KEY."},
    "resourceId": {"type": "string", "maxLength": 255},
    "success": {"type": "boolean"},
    "from": {"type": "string", "format": "date-time"},
    "to": {"type": "string", "format": "date-time", "description": "Up to before this moment."},
    "startDate": {"type": "string", "format": "date-time", "description": "Another name of from."},
    "endDate": {"type": "string", "format": "date-time", "description": "Another name of to."},
    "search": {"type": "string", "maxLength": 200, "description": "Beginnings of words, all of which must be there."},
}

# Of requests. HTTP itself takes blanks off both ends of a header's value.
REQUEST_HEADERS: Mapping[str, Schema] = {
    "Idempotency-Key": {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": "^[!-~]([ -~]*[!-~])?$",
        "description": "For 24 hours the same key and body give the same answer and make nothing new.",
    },
    "If-Match": {"type": "string", "description": "An ETag: 412 when the key has changed since."},
    "If-None-Match": {"type": "string", "description": "An ETag of an earlier answer."},
    "X-Request-Id": {"type": "string", "description": "Comes back in the answer and stands in log and audit record."},
    "X-Correlation-Id": {"type": "string", "description": "A UUID of version 4, which comes back in the answer."},
}
ALWAYS_TAKEN = ("X-Request-Id", "X-Correlation-Id")

# Of answers; those that are required come with every such answer.
ANSWER_HEADERS: Mapping[str, Mapping[str, Any]] = {
    "X-Request-Id": {"required": True, "schema": {"type": "string"}},
    "X-Correlation-Id": {"schema": {"type": "string", "format": "uuid"}},
    "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."},
    "ETag": {"required": True, "schema": {"type": "string"}},
    "Location": {"required": True, "schema": {"type": "string"}, "description": "Of the new key."},
    "Idempotency-Replayed": {"schema": {"const": "true"}, "description": "The answer of an earlier request."},
    "X-Api-Deprecation-Warning": {"schema": {"type": "string"}, "description": "Came with subscriptionId."},
    "X-Api-Migration-Guide": {"schema": {"type": "string"}, "description": "Came with subscriptionId."},
    "Link": {"schema": {"type": "string"}, "description": 'The next page of lines, as rel="next".'},
}

KEY_ID = UUID("0b5e7c9a-1d2f-4a6b-8c3d-9e0f1a2b3c4d")
USER_ID = UUID("5d1c9f5e-7b1a-4c55-9a55-3f1f4b1f0c11")
OPERATION_ID = UUID("7a0d4f1e-52f3-4c1b-9b39-6f3c8b0f6a2e")
MODEL = ModelDetails(id="gpt-4o", name="gpt-4o", provider="openai")

KEY = ListedKey(
    id=KEY_ID,
    key_prefix="sk-lmk_3fK9",
    models=["gpt-4o"],
    created_at="2026-11-22T13:00:00.000Z",
    is_active=True,
    name="Research",
    model_details=[MODEL],
    last_used_at="2026-11-22T14:00:00.000Z",
    max_budget=25,
    current_spend=3.5,
    rpm_limit=60,
    budget_duration="monthly",
    model_max_budget={},
    model_rpm_limit={},
    model_tpm_limit={},
    metadata={},
    user_id=USER_ID,
    status="active",
    spend_as_of="2026-11-22T14:05:00.000Z",
)
NEW_KEY = NewApiKey(model_ids=["gpt-4o"], name="Research", max_budget=25, budget_duration="monthly")
ISSUED = IssuedKey(
    id=KEY_ID,
    user_id=USER_ID,
    name="Research",
    key="sk-lmk_…",
    key_prefix="sk-lmk_3fK9",
    models=["gpt-4o"],
    model_details=[MODEL],
    is_active=True,
    created_at="2026-11-22T13:00:00.000Z",
    status="active",
)
DELETED = DeletedKey(
    message="API key deleted successfully",
    deleted_at="2026-11-22T13:00:00.000Z",
    effective_by="2026-11-22T13:01:00.000Z",
)
REVOKED = RevokedKey(
    message="API key revoked successfully",
    revoked_at="2026-11-22T13:00:00.000Z",
    effective_by="2026-11-22T13:01:00.000Z",
)
STILL_ENDING = Answer(
    description="The key is off; LiteLLM will forget it without being asked again here, as soon as it answers.",
    body=PendingDeletion(message="API key deletion accepted."),
)
KEYS = KeyPage(data=[KEY], pagination=Pagination(page=1, limit=20, total=1, total_pages=1))
KEY_DEFAULTS = KeyDefaults(
    defaults=DefaultSettings(max_budget=5, budget_duration="monthly"), maximums=MaximumSettings(max_budget=50)
)
RECORD = AuditRecord(
    id=OPERATION_ID,
    created_at="2026-11-22T13:00:00.000Z",
    action="API_KEY_DELETE",
    resource_type="API_KEY",
    resource_id=str(KEY_ID),
    user_id=USER_ID,
    username="alice",
    success=True,
    metadata={"name": "Research", "keyPrefix": "sk-lmk_3fK9"},
)

CHANGES = KeyChanges(name="Renamed", rpm_limit=120)
CHANGED = Answer(description="The key as it is now, which LiteLLM has stored.", body=KEY, headers=("ETag",))
CREATE_ERRORS = (NotFound, OperationSuperseded, OperationInProgress, Gone, IdempotencyKeyReused)
CHANGE_ERRORS = (OperationInProgress, OperationSuperseded, PreconditionFailed)

# By the names of the files in functions/.
OPERATIONS: Mapping[str, Operation] = {
    "create_api_key": Operation(
        tag="Keys",
        summary="Create a key",
        description="The answer is the only place where the secret, `key`, is shown.",
        body=NEW_KEY,
        headers=("Idempotency-Key",),
        answers={
            201: Answer(
                description="LiteLLM accepts the key.",
                body=ISSUED,
                headers=("Location", "Idempotency-Replayed", "X-Api-Deprecation-Warning", "X-Api-Migration-Guide"),
                links=("get_api_key", "delete_api_key"),
            )
        },
        errors=CREATE_ERRORS,
    ),
    "list_api_keys": Operation(
        tag="Keys",
        summary="List own keys, newest first",
        query=parse_list_query,
        answers={200: Answer(description="A page.", body=KEYS)},
    ),
    "get_api_key": Operation(
        tag="Keys",
        summary="Read one own key",
        answers={200: Answer(description="The key.", body=KEY, headers=("ETag",))},
    ),
    "delete_api_key": Operation(
        tag="Keys",
        summary="Delete an own key",
        answers={
            200: Answer(description="LiteLLM has confirmed it.", body=DELETED),
            202: STILL_ENDING,
        },
    ),
    "rotate_api_key": Operation(
        tag="Keys",
        summary="Give an own key a new secret",
        description="The new secret works before the old one ends; with a grace both do for a while.",
        body=RotationRequest(grace_period_seconds=3600),
        is_body_optional=True,
        headers=("Idempotency-Key",),
        answers={
            200: Answer(
                description="LiteLLM accepts the new secret, which is shown this once.",
                body=RotatedKey(
                    id=KEY_ID,
                    key="sk-lmk_…",
                    key_prefix="sk-lmk_7Qa2",
                    rotated_at="2026-11-22T13:00:00.000Z",
                    old_prefix="sk-lmk_3fK9",
                    old_secret=OldSecret(state="valid", valid_until="2026-11-22T14:00:00.000Z"),
                ),
                headers=("Idempotency-Replayed",),
            )
        },
        errors=(OperationInProgress, OperationSuperseded, Gone, IdempotencyKeyReused),
    ),
    "complete_rotation": Operation(
        tag="Keys",
        summary="End the grace of the earlier secrets now",
        answers={
            200: Answer(
                description="LiteLLM has confirmed it.",
                body=CompletedRotation(
                    message="Rotation completed",
                    completed_at="2026-11-22T13:00:00.000Z",
                    effective_by="2026-11-22T13:01:00.000Z",
                ),
            ),
            202: Answer(
                description="They will end without being asked again as soon as LiteLLM answers.",
                body=PendingCompletion(message="Completion accepted."),
            ),
        },
        errors=(OperationInProgress, OperationOver),
    ),
    "reveal_api_key": Operation(
        tag="Keys",
        summary="Show the secret of an own key again",
        description="Where the stack allows it, and only after a recent login; otherwise 410 says why.",
        answers={
            200: Answer(
                description="Audited before it is shown.",
                body=RevealedKey(key="sk-lmk_…", retrieved_at="2026-11-22T13:00:00.000Z"),
            )
        },
        errors=(InvalidRequest, Gone, TooManyRequests),
    ),
    "update_api_key": Operation(
        tag="Keys",
        summary="Change an own key",
        description="What is left out stays as it is, null clears.",
        body=CHANGES,
        headers=("If-Match",),
        answers={200: CHANGED},
        errors=CHANGE_ERRORS,
    ),
    "reset_spend": Operation(
        tag="Keys",
        summary="Count the key's spend from nothing again",
        description="For administrators, and for owners where the stack lets them.",
        answers={
            200: Answer(
                description="LiteLLM has stored it.",
                body=ResetSpend(id=KEY_ID, current_spend=0.0, reset_at="2026-11-22T13:00:00.000Z"),
            )
        },
        errors=(InvalidRequest, OperationInProgress, OperationSuperseded),
    ),
    "get_api_key_stats": Operation(
        tag="Keys",
        summary="Count own keys",
        answers={
            200: Answer(
                description="Counts by state, subscription and model.",
                body=KeyStatistics(total=2, active=1, expired=1, revoked=0, by_subscription={}, by_model={"gpt-4o": 2}),
            )
        },
    ),
    "validate_api_key": Operation(
        tag="Administration",
        summary="Whether a secret is that of a key that works",
        body=KeyToValidate(key="sk-not-the-secret-of-any-key"),
        answers={200: Answer(description="Yes or no.", body=ValidatedKey(is_valid=False))},
    ),
    "list_all_api_keys": Operation(
        tag="Administration",
        summary="List everybody's keys, newest first",
        query=partial(parse_list_query, takes_user_id=True),
        answers={200: Answer(description="A page.", body=KEYS)},
    ),
    "list_user_api_keys": Operation(
        tag="Administration",
        summary="List a user's keys, newest first",
        query=parse_list_query,
        answers={200: Answer(description="A page.", body=KEYS)},
    ),
    "update_user_api_key": Operation(
        tag="Administration",
        summary="Change a user's key",
        description="What is left out stays as it is, null clears.",
        body=CHANGES,
        headers=("If-Match",),
        answers={200: CHANGED},
        errors=CHANGE_ERRORS,
    ),
    "create_user_api_key": Operation(
        tag="Administration",
        summary="Create a key for a user",
        description="Under the user's rules. The answer is the only place where the secret, `key`, is shown.",
        body=NEW_KEY,
        headers=("Idempotency-Key",),
        answers={
            201: Answer(description="LiteLLM accepts the key.", body=ISSUED, headers=("Idempotency-Replayed",)),
        },
        errors=CREATE_ERRORS,
    ),
    "delete_user_api_key": Operation(
        tag="Administration",
        summary="Revoke or delete a user's key",
        query=parse_is_permanent,
        answers={
            200: Answer(description="LiteLLM has confirmed it.", body=(REVOKED, DELETED)),
            202: STILL_ENDING,
        },
    ),
    "clean_up_expired": Operation(
        tag="Administration",
        summary="Let expired keys leave now",
        description="At most 100 at once, whoever's.",
        answers={
            200: Answer(
                description="All are gone.",
                body=CleanedUp(message="Expired API keys cleaned up successfully", cleaned_count=3, pending_count=0),
            ),
            202: Answer(
                description="Those pending follow without anyone asking.",
                body=CleanedUp(
                    message="Expired API keys are being cleaned up; those pending follow without anyone asking",
                    cleaned_count=100,
                    pending_count=20,
                ),
            ),
        },
        errors=(Braked,),
    ),
    "get_key_defaults": Operation(
        tag="Settings",
        summary="Read the defaults and maximums of keys",
        answers={200: Answer(description="null for what is not set.", body=KEY_DEFAULTS)},
    ),
    "get_key_defaults_as_admin": Operation(
        tag="Settings",
        summary="Read them where administrators of LiteMaaS do",
        answers={200: Answer(description="null for what is not set.", body=KEY_DEFAULTS)},
    ),
    "set_key_defaults": Operation(
        tag="Settings",
        summary="Replace the defaults and maximums of keys",
        description="All at once: what is left out is no longer set.",
        body=KEY_DEFAULTS,
        answers={200: Answer(description="As they are now.", body=KEY_DEFAULTS)},
    ),
    "list_audit_records": Operation(
        tag="Administration",
        summary="List audit records, newest first",
        description="As NDJSON for `Accept: application/x-ndjson`, where `limit` may be 10000 and is 1000 unless given.",
        query=partial(parse_audit_query, default_limit=20, max_limit=100),
        answers={
            200: Answer(
                description="A page; fewer than asked for when they are large.",
                body=AuditPage(data=[RECORD], pagination=CursorPage(limit=20)),
                lines='{"id": "…", "action": "API_KEY_DELETE"}\n',
                headers=("Link",),
            )
        },
    ),
    "list_operations": Operation(
        tag="Administration",
        summary="List pending or failed operations, oldest first",
        query=parse_operation_query,
        answers={
            200: Answer(
                description="A page.",
                body=OperationPage(
                    data=[
                        ListedOperation(
                            id=OPERATION_ID,
                            kind="delete",
                            phase="forward",
                            state="pending",
                            key_id=KEY_ID,
                            user_id=USER_ID,
                            age_seconds=42.0,
                            attempts=1,
                            last_error="key/delete: timeout",
                            created_at="2026-11-22T13:00:00.000Z",
                            next_attempt_at="2026-11-22T13:01:00.000Z",
                        )
                    ],
                    pagination=CursorPage(limit=20),
                ),
            )
        },
    ),
    "retry_operation": Operation(
        tag="Administration",
        summary="Make a pending operation due",
        answers={
            202: Answer(
                description="It will be attempted within a minute.",
                body=RetriedOperation(
                    id=OPERATION_ID, message="The operation is due and will be attempted within a minute"
                ),
            )
        },
        errors=(OperationOver,),
    ),
    "check_health": Operation(
        tag="Operation",
        summary="Whether the backends answer",
        answers={
            200: Answer(
                description="The database answers.", body=Health(status="healthy", database="up", litellm="up")
            ),
            503: Answer(
                description="The database does not answer.",
                body=Health(status="unhealthy", database="down", litellm="up"),
            ),
        },
    ),
    "serve_openapi": Operation(
        tag="Operation",
        summary="This description",
        headers=("If-None-Match",),
        answers={
            200: Answer(description="OpenAPI 3.1.", body={"openapi": "3.1.0"}, headers=("ETag",)),
            304: Answer(description="It is still the one with this ETag.", body=None, headers=("ETag",)),
        },
    ),
}
