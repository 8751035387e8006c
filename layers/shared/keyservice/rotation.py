"""Rotating a key's secret: the key keeps its id, limits, owner and spend, and the new secret works before the old one ends.

T1 writes what is going to happen, LiteLLM makes the new secret, T2 makes it the key's. What happens to the old ones is an
operation of its own (retirement), so that the end of a grace is as sure as a delete.
"""

import uuid
from datetime import timedelta

import msgspec

from keyservice import rotation_store as store
from keyservice import standing, telemetry
from keyservice.database import Database
from keyservice.derivation import DerivedSecret, KeyDeriver, new_nonce
from keyservice.errors import (
    DatabaseUnavailable,
    DerivationUnavailable,
    Gone,
    InvalidRequest,
    OperationInProgress,
    OperationPending,
    OperationSuperseded,
    ServiceError,
    key_expired,
    key_inactive,
    missing_key,
)
from keyservice.issuing import SecretIssuing, hindrance_of, idempotency_of
from keyservice.issuing_store import NewToken, Repeated
from keyservice.litellm import LiteLLM
from keyservice.models import (
    Caller,
    Deadline,
    OldSecret,
    PendingRotation,
    RotatedKey,
    Rotation,
    RotationRequest,
    parse_uuid,
    timestamp,
)
from keyservice.retirement import SecretRetirement


class RotateRules(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: `lease` an operation is ours, `drain` a lost request may still come true, `resume` a rotation waits to be
    asked for again before it is undone."""

    lease_seconds: float
    drain_seconds: float
    resume_seconds: float


class KeyRotation:
    def __init__(
        self,
        *,
        database: Database,
        litellm: LiteLLM,
        deriver: KeyDeriver,
        retirement: SecretRetirement,
        rules: RotateRules,
    ) -> None:
        self._database = database
        self._deriver = deriver
        self._issuing = SecretIssuing(database=database, litellm=litellm, deriver=deriver)
        self._retirement = retirement
        self._rules = rules

    def rotate(
        self,
        caller: Caller,
        api_key_id: str,
        wanted: RotationRequest,
        *,
        idempotency_key: str | None,
        deadline: Deadline,
    ) -> Rotation:
        """A new secret that LiteLLM accepts, shown this once, and what becomes of the ones before.

        Repeated within 24 hours with the same Idempotency-Key and body it gives the same secret again, or goes on with what
        an earlier request left unfinished. Otherwise it raises IdempotencyKeyReused (another key or body),
        OperationInProgress, or Gone (rotated again or deleted since).

        Raises NotFound for a key that is not there or not the caller's, Forbidden for a caller who is inactive or may only
        look, InvalidRequest for a key that is not active, GatewayRefused, OperationInProgress while another change of the
        key is pending, and OperationPending when LiteLLM cannot confirm: then the old secret goes on working.
        """
        key_id = parse_uuid(api_key_id)
        if key_id is None:
            raise missing_key(None)
        nonce = new_nonce()
        derived = self._deriver.derive(key_id, nonce=nonce)
        begun = store.begin_rotate(
            self._database,
            caller,
            operation_id=uuid.uuid4(),
            api_key_id=key_id,
            token=NewToken(
                hash=derived.token_hash, nonce=nonce, mac_key_arn=self._deriver.mac_key_arn, prefix=derived.prefix
            ),
            grace_seconds=wanted.grace_period_seconds,
            idempotency=idempotency_of(idempotency_key, key_id, wanted),
            lease_seconds=self._rules.lease_seconds,
            drain_seconds=self._rules.drain_seconds,
            resume_seconds=self._rules.resume_seconds,
        )
        telemetry.identify(key_id=key_id)
        if isinstance(begun, str):
            raise _refusal(begun, key_id)
        if isinstance(begun, Repeated):
            telemetry.identify(user_id=begun.user_id)
            return self._replayed(begun)
        telemetry.identify(user_id=begun.user.id)
        try:
            # A resumed operation has a token, and so a secret, of its own.
            own = derived if derived.token_hash == begun.token_hash else self._issuing.derive_again(begun)
            return self._carried_out(begun, own, deadline=deadline)
        except (DatabaseUnavailable, DerivationUnavailable, OperationPending) as error:
            # T1 has committed, and LiteLLM may have acted: the operation stays for whoever comes next.
            raise OperationPending(
                "LiteLLM has not confirmed the new secret, so none was issued, and the old one goes on working. Try again "
                "shortly: with the same Idempotency-Key it goes on, otherwise once this attempt is undone."
            ) from error

    def _replayed(self, repeated: Repeated[store.DoneRotation]) -> Rotation:
        done = repeated.original
        if done is None:
            raise hindrance_of(repeated, what="The secret that this Idempotency-Key made")
        if done.old_valid_until is not None:
            state = "valid" if done.old_valid_until > done.asked_at else "ending"
            old = OldSecret(state=state, valid_until=timestamp(done.old_valid_until))
        else:
            ended_at = done.old_ended_at or done.rotated_at
            old = OldSecret(state="ended", effective_by=timestamp(self._retirement.effective_by(ended_at)))
        return Rotation(
            key=_rotated(
                done.pending, self._issuing.derive_again(done.pending), rotated_at=timestamp(done.rotated_at), old=old
            ),
            is_replayed=True,
        )

    def _carried_out(self, pending: PendingRotation, derived: DerivedSecret, *, deadline: Deadline) -> Rotation:
        spend_usd = self._issuing.make(pending, derived, old_hash=pending.old_hash, deadline=deadline)
        rotated = store.finish_rotate(
            self._database,
            pending,
            spend_usd=spend_usd,
            retirement_id=uuid.uuid4(),
            lease_seconds=self._rules.lease_seconds,
        )
        progress = rotated.progress
        if progress.state == "done" and rotated.rotated_at is not None:
            old = self._old_secret(rotated, deadline=deadline)
            return Rotation(
                key=_rotated(pending, derived, rotated_at=timestamp(rotated.rotated_at), old=old),
                is_replayed=pending.epoch > 1,
            )
        if progress.state == "pending" and progress.phase == "undo":
            self._issuing.undo(pending, progress, deadline=deadline)
            raise _undone(progress.reason)
        if progress.state == "pending":
            raise OperationPending
        raise OperationSuperseded("The key was deleted while it was being rotated. No secret was issued.")

    def _old_secret(self, rotated: store.Rotated, *, deadline: Deadline) -> OldSecret:
        """Without a grace the earlier secrets end now; where LiteLLM does not confirm, settling ends them."""
        if rotated.grace_seconds and rotated.rotated_at is not None:
            valid_until = rotated.rotated_at + timedelta(seconds=rotated.grace_seconds)
            return OldSecret(state="valid", valid_until=timestamp(valid_until))
        ended_at = None
        if rotated.retirement is not None:
            ended_at = self._retirement.carry_out(rotated.retirement, deadline=deadline)
        if ended_at is None:
            return OldSecret(state="ending")
        return OldSecret(state="ended", effective_by=timestamp(self._retirement.effective_by(ended_at)))


def _rotated(pending: PendingRotation, derived: DerivedSecret, *, rotated_at: str, old: OldSecret) -> RotatedKey:
    return RotatedKey(
        id=pending.api_key_id,
        key=derived.secret.reveal(),
        key_prefix=pending.key_prefix,
        rotated_at=rotated_at,
        old_prefix=pending.old_prefix,
        old_secret=old,
    )


def _refusal(refusal: store.Refusal, key_id: uuid.UUID) -> ServiceError:
    match refusal:
        case "busy":
            return OperationInProgress("Another change of this key is not finished yet. Try again shortly.")
        case "inactive":
            return key_inactive()
        case "expired":
            return key_expired()
        case "noModels":
            return InvalidRequest(
                "This key names no models, which to LiteLLM means all of them. Create another key with the models you need.",
                details={"field": "models"},
            )
        case _:
            return missing_key(key_id)


def _undone(reason: str | None) -> ServiceError:
    """T2 found that what T1 allowed may not be any more."""
    match reason:
        case "inactiveUser":
            return standing.inactive()
        case "inactive":
            return key_inactive()
        case "expired":
            return key_expired()
        case _:
            return Gone("The key was removed while it was being rotated. No secret was issued.")
