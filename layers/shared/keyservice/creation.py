"""Creating a key: the rules, and the order in which PostgreSQL and LiteLLM are told.

T1 writes what is going to happen, LiteLLM does it, T2 writes that it happened together with the audit record. Whatever
dies in between leaves an operation that anybody can finish or undo.
"""

import uuid
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from keyservice import creation_store as store
from keyservice import standing, telemetry
from keyservice.database import Database
from keyservice.decoding import invalid
from keyservice.derivation import DerivedSecret, KeyDeriver, new_nonce
from keyservice.errors import (
    DatabaseUnavailable,
    DerivationUnavailable,
    InvalidRequest,
    NotFound,
    OperationPending,
    OperationSuperseded,
    OutcomeUnknown,
    ServiceError,
    Violation,
)
from keyservice.issuing import SecretIssuing, hindrance_of, idempotency_of
from keyservice.issuing_store import NewToken, Repeated
from keyservice.key_rules import Refusal, RuleViolation, inconsistencies, refusal_of
from keyservice.litellm import LiteLLM
from keyservice.model_catalog import ModelCatalog
from keyservice.models import (
    Caller,
    Creation,
    Deadline,
    Idempotency,
    IssuedKey,
    ModelDetails,
    NewApiKey,
    PendingCreate,
    or_unset,
    timestamp,
)


class CreateRules(msgspec.Struct, frozen=True, kw_only=True):
    """The stack's choices. Seconds: `lease` an operation is ours, `drain` a lost request may still come true, `resume` a
    create waits to be asked for again before it is undone."""

    model_access: Literal["subscription", "any"]
    max_active_keys: int
    lease_seconds: float
    drain_seconds: float
    resume_seconds: float


class KeyCreation:
    def __init__(self, *, database: Database, litellm: LiteLLM, deriver: KeyDeriver, rules: CreateRules) -> None:
        self._database = database
        self._catalog = ModelCatalog(litellm)
        self._issuing = SecretIssuing(database=database, litellm=litellm, deriver=deriver)
        self._deriver = deriver
        self._rules = rules

    def create(
        self,
        caller: Caller,
        wanted: NewApiKey,
        *,
        idempotency_key: str | None,
        deadline: Deadline,
    ) -> Creation:
        """A key of the caller's own that LiteLLM accepts, with its secret, shown this once.

        Repeated within 24 hours with the same Idempotency-Key and body it gives the same key and secret again, or goes on
        with what an earlier request left unfinished; it never makes a second key. Otherwise it raises
        IdempotencyKeyReused (another body), OperationInProgress, or Gone (the key was deleted since).

        Raises InvalidRequest with every rule it breaks, NotFound for a subscription that is not the caller's,
        Forbidden for a caller who is inactive or may only look, and OperationPending when LiteLLM cannot confirm:
        then no key was issued and the service itself clears up what may have been made.
        """
        return self._create(caller, wanted, owner_id=None, idempotency_key=idempotency_key, deadline=deadline)

    def create_for(
        self,
        caller: Caller,
        user_id: str,
        wanted: NewApiKey,
        *,
        idempotency_key: str | None,
        deadline: Deadline,
    ) -> Creation:
        """The same for a user, whose subscriptions and limits count; the Idempotency-Key is the caller's.

        Raises Forbidden for anyone but the role admin, NotFound for a user who is not there.
        """
        return self._create(
            caller,
            wanted,
            owner_id=standing.parse_owner(user_id),
            idempotency_key=idempotency_key,
            deadline=deadline,
        )

    def _create(
        self,
        caller: Caller,
        wanted: NewApiKey,
        *,
        owner_id: uuid.UUID | None,
        idempotency_key: str | None,
        deadline: Deadline,
    ) -> Creation:
        require_consistent(wanted)
        # An administrator's never meets the owner's, nor another administrator's.
        maker = () if owner_id is None else (caller.user_id, caller.provider, caller.subject)
        idempotency = idempotency_of(idempotency_key, wanted, maker=maker)
        gateway_models = self._gateway_models(wanted, deadline=deadline)
        api_key_id = uuid.uuid4()
        nonce = new_nonce()
        derived = self._deriver.derive(api_key_id, nonce=nonce)
        begun = self._begin(
            caller,
            wanted,
            owner_id=owner_id,
            idempotency=idempotency,
            api_key_id=api_key_id,
            token=NewToken(
                hash=derived.token_hash, nonce=nonce, mac_key_arn=self._deriver.mac_key_arn, prefix=derived.prefix
            ),
            gateway_models=gateway_models,
        )
        if isinstance(begun, Repeated):
            return self._replayed(begun)
        # A resumed operation has a token, and so a secret, of its own.
        try:
            own = derived if derived.token_hash == begun.token_hash else self._issuing.derive_again(begun)
            return self._carried_out(begun, own, deadline=deadline)
        except (DatabaseUnavailable, DerivationUnavailable) as error:
            # T1 has committed, and LiteLLM may have acted: the operation stays for whoever comes next.
            raise OperationPending from error

    def _replayed(self, repeated: Repeated[PendingCreate]) -> Creation:
        if repeated.original is None:
            raise hindrance_of(repeated, what="The key that this Idempotency-Key made")
        derived = self._issuing.derive_again(repeated.original)
        return Creation(key=_issued(repeated.original, derived), is_replayed=True)

    def _carried_out(self, pending: PendingCreate, derived: DerivedSecret, *, deadline: Deadline) -> Creation:
        self._issuing.make(pending, derived, deadline=deadline)
        created = store.finish_create(self._database, pending)
        if created.state == "done":
            return Creation(key=_issued(pending, derived), is_replayed=pending.epoch > 1)
        if created.state == "pending" and created.phase == "undo":
            self._issuing.undo(pending, created, deadline=deadline)
            raise _undone(created.reason)
        if created.state == "pending":
            raise OperationPending
        raise OperationSuperseded("The key was deleted while it was being created. No key was issued.")

    def _gateway_models(self, wanted: NewApiKey, *, deadline: Deadline) -> Sequence[ModelDetails]:
        if self._rules.model_access == "subscription" or not wanted.model_ids:
            return ()
        return self._catalog.find(wanted.model_ids, deadline=deadline)

    def _begin(
        self,
        caller: Caller,
        wanted: NewApiKey,
        *,
        owner_id: uuid.UUID | None,
        idempotency: Idempotency | None,
        api_key_id: uuid.UUID,
        token: NewToken,
        gateway_models: Sequence[ModelDetails],
    ) -> PendingCreate | Repeated[PendingCreate]:
        operation_id = uuid.uuid4()

        def begin() -> PendingCreate | Repeated[PendingCreate] | Refusal:
            return store.begin_create(
                self._database,
                caller,
                wanted,
                owner_id=owner_id,
                operation_id=operation_id,
                api_key_id=api_key_id,
                token=token,
                model_access=self._rules.model_access,
                gateway_models=gateway_models,
                max_active_keys=self._rules.max_active_keys,
                idempotency=idempotency,
                lease_seconds=self._rules.lease_seconds,
                drain_seconds=self._rules.drain_seconds,
                resume_seconds=self._rules.resume_seconds,
            )

        try:
            begun = begin()
        except OutcomeUnknown:
            begun = self._begun_after_all(begin, operation_id)
        if isinstance(begun, Refusal):
            telemetry.identify(user_id=begun.user_id)
            raise _refusal(begun.rules, model_access=self._rules.model_access)
        if isinstance(begun, PendingCreate):
            telemetry.identify(user_id=begun.user.id, key_id=begun.api_key_id)
        else:
            telemetry.identify(user_id=begun.user_id)
        return begun

    def _begun_after_all(
        self, begin: Callable[[], PendingCreate | Repeated[PendingCreate] | Refusal], operation_id: uuid.UUID
    ) -> PendingCreate | Repeated[PendingCreate] | Refusal:
        """After a T1 whose answer was lost. Begins with the same ids again: a first try that did commit, even one that
        does so only now, is found by them and never doubled."""
        try:
            return store.read_create(self._database, operation_id) or begin()
        except OutcomeUnknown:
            found = store.read_create(self._database, operation_id)
            if found is None:
                raise
            return found
        except DatabaseUnavailable as error:
            raise OutcomeUnknown from error


def require_consistent(wanted: NewApiKey) -> None:
    """Raises InvalidRequest for what is wrong with a well-typed body before any rule of the database is asked."""
    violations: list[Violation] = []
    if wanted.model_ids is None and wanted.subscription_id is None:
        violations.append(Violation("modelIds", "At least one model must be selected", "required"))
    if wanted.model_ids is not None and wanted.subscription_id is not None:
        violations.append(Violation("subscriptionId", "must not be given together with modelIds", "not"))
    violations += inconsistencies(
        model_ids=wanted.model_ids, money=[("maxBudget", wanted.max_budget), ("softBudget", wanted.soft_budget)]
    )
    if violations:
        raise invalid(violations)


def _issued(pending: PendingCreate, derived: DerivedSecret) -> IssuedKey:
    expires_at = pending.settings.expires_at
    return IssuedKey(
        id=pending.api_key_id,
        user_id=pending.user.id,
        name=pending.settings.name or "",
        key=derived.secret.reveal(),
        key_prefix=pending.key_prefix,
        models=pending.settings.models,
        model_details=pending.model_details,
        is_active=True,
        created_at=timestamp(pending.created_at),
        expires_at=or_unset(expires_at and timestamp(expires_at)),
        subscription_id=or_unset(pending.subscription_id),
        status="active",
    )


def _undone(reason: str | None) -> ServiceError:
    """T2 found that the caller is no longer entitled to what T1 allowed."""
    match reason:
        case "inactiveUser":
            return standing.inactive()
        case "notEntitled":
            return InvalidRequest("A subscription this key needs ended while the key was being created.")
        case "notMember":
            return InvalidRequest("The membership in this key's team ended while the key was being created.")
        case "past":
            return invalid([Violation("expiresAt", "must be in the future", "past")])
        case _:
            return OperationSuperseded("The key was removed while it was being created. No key was issued.")


def _refusal(broken: Sequence[RuleViolation], *, model_access: Literal["subscription", "any"]) -> ServiceError:
    codes = {(rule.field, rule.code) for rule in broken}
    if ("user", "inactiveUser") in codes:
        return standing.inactive()
    if ("user", "readOnly") in codes:
        return standing.read_only()
    if ("subscriptionId", "notFound") in codes:
        return NotFound(
            "Subscription not found",
            details={
                "resource": "Subscription",
                "suggestion": "Subscription not found. Please verify the subscription exists and is accessible",
            },
        )
    return refusal_of(broken, model_access=model_access)
