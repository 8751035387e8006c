"""Creating a key: the rules, and the order in which PostgreSQL and LiteLLM are told.

T1 writes what is going to happen, LiteLLM does it, T2 writes that it happened together with the audit record. Whatever
dies in between leaves an operation that anybody can finish or undo.
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from keyservice import creation_store as store
from keyservice import journal, standing, telemetry
from keyservice.database import Database
from keyservice.decoding import invalid
from keyservice.derivation import DerivedSecret, KeyDeriver, new_nonce
from keyservice.errors import (
    DatabaseUnavailable,
    DerivationUnavailable,
    GatewayRefused,
    GatewayUnavailable,
    Gone,
    IdempotencyKeyReused,
    InvalidRequest,
    NotFound,
    OperationInProgress,
    OperationPending,
    OperationSuperseded,
    OutcomeUnknown,
    ServiceError,
    Unavailable,
    Violation,
    reason,
)
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
        self._litellm = litellm
        self._catalog = ModelCatalog(litellm)
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
        idempotency = (
            None if idempotency_key is None else _idempotency(idempotency_key, wanted, caller=caller, owner_id=owner_id)
        )
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
            token=store.NewToken(
                hash=derived.token_hash, nonce=nonce, mac_key_arn=self._deriver.mac_key_arn, prefix=derived.prefix
            ),
            gateway_models=gateway_models,
        )
        if isinstance(begun, store.Repeated):
            return self._replayed(begun)
        # A resumed operation has a token, and so a secret, of its own.
        try:
            own = derived if derived.token_hash == begun.token_hash else self._derived_again(begun)
            return self._carried_out(begun, own, deadline=deadline)
        except (DatabaseUnavailable, DerivationUnavailable) as error:
            # T1 has committed, and LiteLLM may have acted: the operation stays for whoever comes next.
            raise OperationPending from error

    def _replayed(self, repeated: store.Repeated) -> Creation:
        if repeated.original is None:
            raise _hindrance(repeated)
        derived = self._derived_again(repeated.original)
        return Creation(key=_issued(repeated.original, derived), is_replayed=True)

    def _derived_again(self, pending: PendingCreate) -> DerivedSecret:
        """The secret of the operation's own token; fails closed when KMS's key is not the one it was made with."""
        derived = self._deriver.derive(pending.api_key_id, nonce=pending.nonce)
        if derived.token_hash != pending.token_hash:
            raise DerivationUnavailable
        return derived

    def _carried_out(self, pending: PendingCreate, derived: DerivedSecret, *, deadline: Deadline) -> Creation:
        if pending.epoch == 1:
            self._make_in_gateway(pending, derived, deadline=deadline)
        else:
            self._make_again_in_gateway(pending, derived, deadline=deadline)
        created = store.finish_create(self._database, pending)
        if created.state == "done":
            return Creation(key=_issued(pending, derived), is_replayed=pending.epoch > 1)
        if created.state == "pending" and created.phase == "undo":
            self._undo(pending, created, deadline=deadline)
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
        token: store.NewToken,
        gateway_models: Sequence[ModelDetails],
    ) -> PendingCreate | store.Repeated:
        operation_id = uuid.uuid4()

        def begin() -> PendingCreate | store.Repeated | Refusal:
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
        self, begin: Callable[[], PendingCreate | store.Repeated | Refusal], operation_id: uuid.UUID
    ) -> PendingCreate | store.Repeated | Refusal:
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

    def _make_again_in_gateway(self, pending: PendingCreate, derived: DerivedSecret, *, deadline: Deadline) -> None:
        """After an attempt whose fate is unknown: what LiteLLM has, not what it answers, says whether the key is right.

        It echoes a repeated generate without storing it, and answers 400 when the first one worked.
        """
        try:
            if pending.remaining_seconds is not None and pending.remaining_seconds < 1:
                raise GatewayUnavailable("the key expired before LiteLLM confirmed it", may_still_happen=False)
            found = self._litellm.find(pending.token_hash, deadline=deadline)
            if found is None:
                self._prepare(pending, deadline=deadline)
                self._generate(pending, derived, deadline=deadline)
                found = self._litellm.find(pending.token_hash, deadline=deadline)
            if found is None:
                raise GatewayUnavailable("key/info: the key is not there", may_still_happen=True)
            if found.differences(pending.settings):
                self._litellm.update(
                    found,
                    pending.settings,
                    remaining_seconds=pending.remaining_seconds,
                    deadline=deadline,
                )
        except (GatewayRefused, Unavailable) as trouble:
            self._release(pending, trouble, may_still_happen=True)
            raise OperationPending from trouble

    def _make_in_gateway(self, pending: PendingCreate, derived: DerivedSecret, *, deadline: Deadline) -> None:
        started = time.monotonic()
        try:
            self._prepare(pending, deadline=deadline)
            pending = _aged(pending, seconds=time.monotonic() - started)
        except GatewayRefused as refused:
            self._give_up_refused(pending, refused, deadline=deadline)
            raise
        except Unavailable as trouble:
            self._release(pending, trouble, may_still_happen=False)
            raise OperationPending from trouble
        try:
            self._generate(pending, derived, deadline=deadline)
        except GatewayRefused as refused:
            self._give_up_refused(pending, refused, deadline=deadline)
            raise
        except Unavailable as trouble:
            self._release(pending, trouble, may_still_happen=_may_still_happen(trouble))
            raise OperationPending from trouble

    def _prepare(self, pending: PendingCreate, *, deadline: Deadline) -> None:
        """What has to be there in LiteLLM before the key. Raises GatewayRefused for a team that is not."""
        if not pending.user.is_known:
            self._litellm.ensure_user(pending.user, deadline=deadline)
        team_id = pending.settings.lite_llm_team_id
        if team_id is not None and not self._litellm.has_team(team_id, deadline=deadline):
            raise GatewayRefused(status_answered=404, fields=["teamId"])

    def _generate(self, pending: PendingCreate, derived: DerivedSecret, *, deadline: Deadline) -> None:
        self._litellm.generate(
            derived.secret,
            alias=pending.alias,
            mark=pending.mark,
            api_key_id=pending.api_key_id,
            user_id=pending.user.id,
            settings=pending.settings,
            remaining_seconds=pending.remaining_seconds,
            token_hash=pending.token_hash,
            deadline=deadline,
        )

    def _give_up_refused(self, pending: PendingCreate, refused: GatewayRefused, *, deadline: Deadline) -> None:
        """Ends the operation once LiteLLM confirms that it made no key."""
        try:
            is_absent = self._litellm.find(pending.token_hash, deadline=deadline) is None
        except Unavailable as trouble:
            self._release(pending, trouble, may_still_happen=False)
            raise OperationPending from trouble
        if not is_absent:
            self._release(pending, refused, may_still_happen=True)
            raise OperationPending from refused
        self._finish_undo(pending, refused.recorded)

    def _undo(self, pending: PendingCreate, created: store.Created, *, deadline: Deadline) -> None:
        """Takes the key back as far as possible now; the operation is committed to it and is settled otherwise."""
        try:
            self._litellm.delete(pending.token_hash, deadline=deadline)
            if created.is_safe:
                self._finish_undo(pending, created.reason or "undone")
                return
        except Unavailable as trouble:
            self._release(pending, trouble, may_still_happen=True)
            return
        journal.release(
            self._database,
            operation_id=pending.operation_id,
            epoch=pending.epoch,
            error=journal.DRAINING,
            waits_for_drain=True,
        )

    def _finish_undo(self, pending: PendingCreate, reason: str) -> None:
        store.finish_undo(
            self._database,
            operation_id=pending.operation_id,
            epoch=pending.epoch,
            api_key_id=pending.api_key_id,
            reason=reason,
        )

    def _release(self, pending: PendingCreate, trouble: ServiceError, *, may_still_happen: bool) -> None:
        journal.release(
            self._database,
            operation_id=pending.operation_id,
            epoch=pending.epoch,
            error=reason(trouble),
            may_still_happen=may_still_happen,
        )


def _aged(pending: PendingCreate, *, seconds: float) -> PendingCreate:
    """LiteLLM counts a key's life from its own now: what has gone by since T1 is taken off."""
    if pending.remaining_seconds is None:
        return pending
    return msgspec.structs.replace(pending, remaining_seconds=max(1, pending.remaining_seconds - int(seconds)))


def _idempotency(idempotency_key: str, wanted: NewApiKey, *, caller: Caller, owner_id: uuid.UUID | None) -> Idempotency:
    """An administrator's never meets the owner's, nor another administrator's: no header can hold what stands between."""
    maker = () if owner_id is None else (caller.user_id or "", caller.provider or "", caller.subject or "")
    scoped = "\0".join([*map(str, maker), idempotency_key])
    return Idempotency(
        key_hash=hashlib.sha256(scoped.encode()).hexdigest(),
        body_fingerprint=hashlib.sha256(msgspec.json.encode(wanted, order="sorted")).hexdigest(),
    )


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


def _may_still_happen(trouble: Unavailable) -> bool:
    """A generate that was never sent (no master key, say) cannot come true."""
    return isinstance(trouble, GatewayUnavailable) and trouble.may_still_happen


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


def _hindrance(repeated: store.Repeated) -> ServiceError:
    match repeated.hindrance:
        case "otherBody":
            return IdempotencyKeyReused("This Idempotency-Key came with another body before. Use a new one.")
        case "gone":
            return Gone("The key that this Idempotency-Key made is no more. Use a new one to make another.")
        case "undoing":
            return OperationInProgress("What this Idempotency-Key began is being undone. Try again shortly.")
        case _:
            return OperationInProgress("A request with this Idempotency-Key is still running. Try again shortly.")


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
