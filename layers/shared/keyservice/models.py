"""The shapes that travel between the modules and over the wire."""

import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

_MAX_INTEGER = 2_147_483_647  # a PostgreSQL integer
_MAX_MONEY = 99_999_999.99  # numeric(10,2)

type ModelId = Annotated[str, Meta(min_length=1, max_length=255)]
# `extra_json_schema` is for the API's description alone; decoding does not look at it.
type ModelIds = Annotated[list[ModelId], Meta(min_length=1, max_length=100, extra_json_schema={"uniqueItems": True})]
type Money = Annotated[float, Meta(ge=0, le=_MAX_MONEY, extra_json_schema={"multipleOf": 0.01})]
type Timestamp = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]  # as `timestamp` writes it
type Limit = Annotated[int, Meta(ge=0, le=_MAX_INTEGER)]
type Tag = Annotated[str, Meta(min_length=1, max_length=255)]
type ModelLimits = Annotated[dict[ModelId, Limit], Meta(max_length=100)]
type ExpirationDays = Annotated[int, Meta(ge=1, le=3650)]  # a key lives 10 years at most
# LiteLLM 1.106.0 takes daily, weekly, monthly, 1mo and N s/m/h/d/w; of `yearly` it knows only 365d (see litellm.py).
type BudgetDuration = Annotated[str, Meta(pattern=r"^(daily|weekly|monthly|yearly|1mo|[1-9][0-9]{0,4}[smhdw])\Z")]


class Deadline:
    """A moment, on this process's clock, by which something has to be over."""

    __slots__ = ("_at",)

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def remaining_seconds(self) -> float:
        return max(0.0, self._at - time.monotonic())


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit record says of the request behind a change."""

    ip_address: str | None
    user_agent: str | None
    request_id: str


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls, as the token's claims say; the database knows the rest.

    Either an issuer's name and a subject, who is registered at the first request, or `user_id`: a row of `users` that
    has to be there.
    """

    user_id: UUID | None = None
    provider: str | None = None
    subject: str | None = None
    username: str
    email: str
    full_name: str | None
    roles: tuple[str, ...]
    authenticated_at: float | None = None
    """When they last proved who they are, in seconds since 1970, if the token says so."""
    actor: Actor


class TokenClaims(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed of a token that LiteMaaS issued, times in seconds since 1970; names and roles are the database's."""

    user_id: UUID = msgspec.field(name="userId")
    iat: float
    exp: float
    nbf: float = 0.0


class Permissions(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """LiteLLM 1.106.0 keeps them with the key and lets every call through all the same."""

    allow_chat_completions: bool | None = None
    allow_completions: bool | None = None
    allow_embeddings: bool | None = None


class NewApiKey(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The body of POST /api/v1/api-keys; every field is optional and null means not set. Money is in US dollars.

    `team_id` may be LiteMaaS's id of the team or LiteLLM's.
    """

    model_ids: ModelIds | None = None
    subscription_id: UUID | None = None
    name: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None
    max_budget: Money | None = None
    soft_budget: Money | None = None
    budget_duration: BudgetDuration | None = None
    tpm_limit: Limit | None = None
    rpm_limit: Limit | None = None
    max_parallel_requests: Limit | None = None
    metadata: dict[str, Any] | None = None
    team_id: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    permissions: Permissions | None = None
    tags: Annotated[list[Tag], Meta(max_length=100)] | None = None
    model_rpm_limit: ModelLimits | None = None
    model_tpm_limit: ModelLimits | None = None


class KeyChanges(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The body of PATCH: what is left out stays as it is, null clears. Money is in US dollars."""

    name: Annotated[str, Meta(min_length=1, max_length=255)] | UnsetType | None = UNSET
    model_ids: ModelIds | UnsetType = UNSET
    expires_at: Annotated[datetime, Meta(tz=True)] | UnsetType | None = UNSET
    max_budget: Money | UnsetType | None = UNSET
    soft_budget: Money | UnsetType | None = UNSET
    budget_duration: BudgetDuration | UnsetType | None = UNSET
    tpm_limit: Limit | UnsetType | None = UNSET
    rpm_limit: Limit | UnsetType | None = UNSET
    max_parallel_requests: Limit | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType | None = UNSET
    permissions: Permissions | UnsetType | None = UNSET
    tags: Annotated[list[Tag], Meta(max_length=100)] | UnsetType | None = UNSET
    model_rpm_limit: ModelLimits | UnsetType | None = UNSET
    model_tpm_limit: ModelLimits | UnsetType | None = UNSET


class ModelDetails(msgspec.Struct, frozen=True):
    id: str
    name: str
    provider: str


class KeySettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a key is allowed, after defaults: stored with the operation, sent to LiteLLM. Holds no secret."""

    models: list[str]
    name: str | None = None
    expires_at: datetime | None = None
    max_budget: float | None = None
    soft_budget: float | None = None
    budget_duration: str | None = None
    tpm_limit: int | None = None
    rpm_limit: int | None = None
    max_parallel_requests: int | None = None
    metadata: dict[str, Any] = {}
    lite_llm_team_id: str | None = None
    permissions: dict[str, Any] = {}
    tags: list[str] = []
    model_rpm_limit: dict[str, Any] = {}
    model_tpm_limit: dict[str, Any] = {}


class GatewayUser(msgspec.Struct, frozen=True, kw_only=True):
    """The user as LiteLLM has to know it; `is_known` once LiteLLM confirmed it."""

    id: UUID
    is_known: bool
    max_budget: float | None = None
    tpm_limit: int | None = None
    rpm_limit: int | None = None
    budget_duration: str | None = None


class PendingSecret(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that T1 has committed to; from the second epoch on LiteLLM may have seen it before."""

    operation_id: UUID
    epoch: int
    api_key_id: UUID
    user: GatewayUser
    token_hash: str
    nonce: str
    alias: str
    mark: str
    settings: KeySettings
    remaining_seconds: int | None


class PendingCreate(PendingSecret, frozen=True, kw_only=True):
    """A create that T1 has committed."""

    model_details: list[ModelDetails]
    created_at: datetime
    key_prefix: str
    subscription_id: UUID | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What T2 made of the operation behind a secret. `is_safe`: every generate for its token was answered."""

    state: Literal["done", "failed", "superseded", "pending"]
    phase: Literal["forward", "undo"]
    reason: str | None
    is_safe: bool


class IssuedKey(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer to a create; `key` is the secret."""

    id: UUID
    user_id: UUID
    name: str
    key: str
    key_prefix: str
    models: list[str]
    model_details: list[ModelDetails]
    is_active: bool
    created_at: Timestamp
    expires_at: Timestamp | UnsetType = UNSET
    subscription_id: UUID | UnsetType = UNSET
    status: str


class Creation(msgspec.Struct, frozen=True, kw_only=True):
    """`is_replayed`: the answer of an earlier request with the same Idempotency-Key, given again."""

    key: IssuedKey
    is_replayed: bool


class Idempotency(msgspec.Struct, frozen=True, kw_only=True):
    """A request that may be repeated: sha256 of its Idempotency-Key and of its body in canonical form."""

    key_hash: str
    body_fingerprint: str


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """One secret of a key, known by its hash. `is_safe`: as of the claim, so before LiteLLM is told to delete it, no
    unanswered generate could make it any more; only then does LiteLLM's 200 or 404 prove that it is gone for ever."""

    hash: str
    is_safe: bool


class PendingUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """A change that T1 has committed: LiteLLM has to make these tokens what the settings say, or forget their spend."""

    operation_id: UUID
    epoch: int
    api_key_id: UUID
    settings: KeySettings
    remaining_seconds: int | None
    tokens: list[str]
    """The current one last; earlier ones may have left LiteLLM already."""
    resets_spend: bool
    changed: list[str]
    """Which of the settings are to change, by the row's names."""
    in_doubt: list[str]
    """Which of them earlier changes may have made something else in LiteLLM, by the row's names."""

    @property
    def is_known_to_gateway(self) -> bool:
        """Whether LiteLLM need not be told: nothing that it knows of changes, or is in doubt."""
        return not self.in_doubt and set(self.changed) <= {"name"}


class ResetSpend(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer to a reset; `current_spend` in US dollars."""

    id: UUID
    current_spend: float
    reset_at: Timestamp


class RotationRequest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The body of POST /api/v1/api-keys/{id}/rotate: how long the earlier secret goes on working, a week at most."""

    grace_period_seconds: Annotated[int, Meta(ge=0, le=604_800)] = 0


class PendingRotation(PendingSecret, frozen=True, kw_only=True):
    """A rotation that T1 has committed; `old_hash` is the token of the secret that works until now."""

    old_hash: str
    old_prefix: str
    key_prefix: str


class OldSecret(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What becomes of the secrets before: `valid` until `valid_until`; `ending`, LiteLLM has not confirmed yet; `ended`,
    and from `effective_by` on refused by every LiteLLM replica."""

    state: Literal["valid", "ending", "ended"]
    valid_until: Timestamp | UnsetType = UNSET
    effective_by: Timestamp | UnsetType = UNSET


class RotatedKey(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer to a rotation: LiteMaaS's fields, then what becomes of the secrets before. `key` is the new secret."""

    id: UUID
    key: str
    key_prefix: str
    rotated_at: Timestamp
    old_prefix: str
    old_secret: OldSecret


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """`is_replayed`: the answer of an earlier request with the same Idempotency-Key, given again."""

    key: RotatedKey
    is_replayed: bool


class CompletedRotation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`effective_by`: the moment from which the last LiteLLM replica has forgotten the earlier secrets."""

    message: str
    completed_at: Timestamp
    effective_by: Timestamp


class PendingCompletion(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    status: Literal["pending"] = "pending"


type RevealPolicy = Literal["never", "recent-login"]


class RevealedKey(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The answer to a reveal; `key` is the secret."""

    key: str
    key_type: Literal["litellm"] = "litellm"
    retrieved_at: Timestamp


class PendingEnding(msgspec.Struct, frozen=True, kw_only=True):
    """A delete, or the end of earlier secrets, that T1 has committed: LiteLLM has to forget these tokens."""

    operation_id: UUID
    epoch: int
    api_key_id: UUID
    user_id: UUID
    tokens: list[Token]


class DeletedKey(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`effective_by`: the moment from which the last LiteLLM replica has forgotten the key."""

    message: str
    deleted_at: Timestamp
    effective_by: Timestamp


class RevokedKey(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The same of a key whose row stays."""

    message: str
    revoked_at: Timestamp
    effective_by: Timestamp


class PendingDeletion(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    status: Literal["pending"] = "pending"


class Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where the next page starts: after this key; `total` is carried along so that it is counted once."""

    created_at: Annotated[datetime, Meta(tz=True)]
    id: UUID
    total: Annotated[int, Meta(ge=0, le=_MAX_INTEGER)]


class ListQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The query of a list of keys, checked."""

    page: int = 1
    limit: int = 20
    cursor: Cursor | None = None
    is_active: bool | None = None
    model_ids: list[str] | None = None
    subscription_id: UUID | None = None
    user_id: UUID | None = None
    """Only where administrators look at the keys of others."""


class ListedKey(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A key in a list: LiteMaaS's fields in its order, with its empty values; then what this service adds."""

    id: UUID
    key_prefix: str
    models: list[str]
    created_at: Timestamp
    is_active: bool
    name: str
    model_details: list[ModelDetails]
    subscription_id: UUID | UnsetType = UNSET
    last_used_at: Timestamp | UnsetType = UNSET
    expires_at: Timestamp | UnsetType = UNSET
    max_budget: float | UnsetType = UNSET
    current_spend: float
    tpm_limit: int | UnsetType = UNSET
    rpm_limit: int | UnsetType = UNSET
    budget_duration: str
    model_max_budget: dict[str, Any]
    model_rpm_limit: dict[str, Any]
    model_tpm_limit: dict[str, Any]
    metadata: dict[str, Any]
    user_id: UUID
    status: str
    soft_budget: float | UnsetType = UNSET
    max_parallel_requests: int | UnsetType = UNSET
    team_id: UUID | UnsetType = UNSET
    permissions: dict[str, Any] | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET
    spend_as_of: Timestamp | UnsetType = UNSET


class FoundKey(msgspec.Struct, frozen=True, kw_only=True):
    """`entity_tag`: the value of the header ETag, quotes included."""

    key: ListedKey
    entity_tag: str


class Pagination(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    page: int | UnsetType = UNSET
    limit: int
    total: int
    total_pages: int
    next_cursor: str | UnsetType = UNSET


class KeyPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[ListedKey]
    pagination: Pagination


class KeyStatistics(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    total: int
    active: int
    expired: int
    revoked: int
    by_subscription: dict[str, int]
    by_model: dict[str, int]


class KeyToValidate(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /api/v1/api-keys/validate; `key` is a secret."""

    key: str


class ValidatedKey(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    is_valid: bool


class DefaultSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a key gets that asks for nothing else; None means nothing."""

    max_budget: Money | None = None
    tpm_limit: Limit | None = None
    rpm_limit: Limit | None = None
    budget_duration: BudgetDuration | None = None
    soft_budget: Money | None = None
    expiration_days: ExpirationDays | None = None


class MaximumSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a key may have at most; None means any amount."""

    max_budget: Money | None = None
    tpm_limit: Limit | None = None
    rpm_limit: Limit | None = None
    expiration_days: ExpirationDays | None = None


class KeyDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """system_settings.api_key_defaults: stored, sent and answered in this shape, with null for what is not set."""

    defaults: DefaultSettings
    maximums: MaximumSettings


class OperationQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The query of GET /api/v1/admin/operations, checked."""

    state: Literal["pending", "failed"]
    limit: int
    cursor: Cursor | None


class ListedOperation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`age_seconds` since it was asked for; `last_error` is its latest attempt's."""

    id: UUID
    kind: str
    phase: str
    state: str
    key_id: UUID
    user_id: UUID
    age_seconds: float
    attempts: int
    last_error: str | UnsetType = UNSET
    created_at: Timestamp
    next_attempt_at: Timestamp | UnsetType = UNSET
    finished_at: Timestamp | UnsetType = UNSET


class CursorPage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    limit: int
    next_cursor: str | UnsetType = UNSET


class OperationPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[ListedOperation]
    pagination: CursorPage


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The query of GET /api/v1/admin/audit, checked; from `start` to before `end`, with every one of the words.

    `user_id` did it, `subject_id` is whom it was done to.
    """

    limit: int
    cursor: Cursor | None = None
    action: str | None = None
    user_id: UUID | None = None
    subject_id: UUID | None = None
    resource_type: str | None = None
    resource_id: str | None = None
    success: bool | None = None
    start: datetime | None = None
    end: datetime | None = None
    words: list[str] = []


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """`user_id`, `username` and `email` are those of who did it. `is_truncated`: its large fields were left out."""

    id: UUID
    created_at: Timestamp
    action: str
    resource_type: str
    resource_id: str | UnsetType = UNSET
    user_id: UUID | UnsetType = UNSET
    username: str | UnsetType = UNSET
    email: str | UnsetType = UNSET
    success: bool
    error_message: str | UnsetType = UNSET
    ip_address: str | UnsetType = UNSET
    user_agent: str | UnsetType = UNSET
    metadata: Any = UNSET
    old_values: Any = UNSET
    new_values: Any = UNSET
    is_truncated: bool = False


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[AuditRecord]
    pagination: CursorPage


class RecordLines(msgspec.Struct, frozen=True, kw_only=True):
    """A page as NDJSON; `next_query` asks for the one that follows."""

    text: str
    next_query: str | None


class RetriedOperation(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    message: str


# Why nothing was healed: another stack's database, another LiteLLM, a restored database, more than is plausible.
type Brake = Literal["otherStack", "otherGateway", "unknownKeys", "tooMany"]
# Why a settling only deleted: as above, or LiteLLM could not be asked.
type SettleBrake = Brake | Literal["gatewayUnavailable"]


class Settled(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What one run did, and what it left pending. With a `brake` it only attempted deletes."""

    expired: int
    attempted: int
    settled: int
    brake: SettleBrake | UnsetType = UNSET
    pending_creates: int
    pending_deletes: int
    pending_updates: int
    pending_rotates: int
    pending_retires: int
    oldest_pending_seconds: float


class CleanedUp(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`pending_count`: expired keys that are not gone yet, whoever's."""

    message: str
    cleaned_count: int
    pending_count: int


type ReconcileMode = Literal["report", "heal"]
# orphan: in LiteLLM, over here. missing: the other way round. drift: in both, with other settings. found: was missing.
# unknown: bears our mark, and this database has never heard of it. foreign: bears half of our mark.
type FindingKind = Literal["orphan", "missing", "drift", "found", "unknown", "foreign"]


class FindingSummary(msgspec.Struct, frozen=True, kw_only=True):
    """`due`: how many may be healed now. `hashes`: at most 100."""

    seen: int = 0
    due: int = 0
    hashes: list[str] = []


class Migrated(msgspec.Struct, frozen=True, kw_only=True):
    """`applied` by this run, `version` the newest now in the database."""

    applied: list[str]
    version: str


class SchemaState(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would meet: `pending` migrations it would apply, the newest `version` in the database, and `problems`, each
    of them a sentence for whoever deploys."""

    pending: list[str]
    version: str | None
    problems: list[str]


class ReconcileReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One run. `findings`: what the pass has seen, before any healing; `healed`: counts by kind; `failed`: heals that
    did not work and will be tried again. `interruption`: why the run ended before its pass did."""

    started_at: str
    finished_at: str
    mode: ReconcileMode
    pass_number: int
    is_complete: bool
    interruption: str | None
    brake: Brake | None
    keys_compared: int
    findings: dict[FindingKind, FindingSummary]
    healed: dict[FindingKind, int]
    failed: int


type AdoptionMode = Literal["dry-run", "adopt", "scrub"]
# What became of a row, or would. missing: LiteLLM has none of the keys it may be about. unusable: it tells of none.
# conflicting: another row tells of the same key, or it was deleted here before. changed: it did so, or was held by somebody,
# at that moment. revokedButThere: LiteLLM has its key all the same. own: this service made its key. busy: it is changing it.
type AdoptionOutcome = Literal[
    "adoptable",
    "adopted",
    "alreadyAdopted",
    "scrubbed",
    "missing",
    "revoked",
    "revokedButThere",
    "unusable",
    "conflicting",
    "changed",
    "own",
    "busy",
    "undecided",
]


class AdoptionRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator invokes the job with."""

    mode: AdoptionMode = "dry-run"


class AdoptedRows(msgspec.Struct, frozen=True, kw_only=True):
    """`ids`: at most 100."""

    count: int
    ids: list[UUID]


class OrphanedKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Keys that LiteMaaS made in LiteLLM and that no row is about. `hashes`: at most 100."""

    count: int = 0
    hashes: list[str] = []


class AdoptionReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a pass has come to by the end of one run.

    unfinished = invoke it again, and it goes on; busy = another run was at work; braked = nothing was done, see `brake`.
    """

    mode: AdoptionMode
    state: Literal["complete", "unfinished", "busy", "braked"]
    stage: str | None = None
    interruption: str | None = None
    brake: Brake | None = None
    gateway_keys_read: int = 0
    rows: dict[AdoptionOutcome, AdoptedRows] = {}
    orphaned: OrphanedKeys = OrphanedKeys()


class SpendSynced(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What one run did; `age_seconds` of the oldest spend there may be, None before the first round was complete.

    unfinished = the next run goes on; busy = another run was at work.
    """

    state: Literal["complete", "unfinished", "busy"]
    pages: int = 0
    keys_read: int = 0
    keys_written: int = 0
    age_seconds: float | None = None


def timestamp(moment: datetime) -> str:
    """ISO 8601 UTC with milliseconds and Z, as JavaScript's Date writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def or_unset[T](value: T | None) -> T | UnsetType:
    """Absent values are left out of an answer, never null."""
    return UNSET if value is None else value


def parse_uuid(text: str) -> UUID | None:
    """A UUID in its canonical form only: the one that the database answers with."""
    try:
        parsed = UUID(text)
    except ValueError:
        return None
    return parsed if str(parsed) == text.lower() else None
