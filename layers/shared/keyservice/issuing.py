"""Having LiteLLM make a secret, which creating and rotating a key have in common: whatever it answers, or does not.

T1 has committed the token and the operation before, and T2 follows. In between nothing that LiteLLM says is taken for more
than it proves.
"""

import hashlib
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from keyservice import issuing_store as store
from keyservice import journal
from keyservice.database import Database
from keyservice.derivation import DerivedSecret, KeyDeriver
from keyservice.errors import (
    DerivationUnavailable,
    Forbidden,
    GatewayRefused,
    GatewayUnavailable,
    Gone,
    IdempotencyKeyReused,
    OperationInProgress,
    OperationPending,
    ServiceError,
    Unavailable,
    reason,
)
from keyservice.issuing_store import Repeated
from keyservice.litellm import GatewayKey, LiteLLM
from keyservice.models import Deadline, Idempotency, PendingSecret, Progress


class SecretIssuing:
    def __init__(self, *, database: Database, litellm: LiteLLM, deriver: KeyDeriver) -> None:
        self._database = database
        self._litellm = litellm
        self._deriver = deriver

    def derive_again(self, pending: PendingSecret) -> DerivedSecret:
        """The secret of the operation's own token. Raises DerivationUnavailable, also when KMS's key is not the one it was
        made with."""
        derived = self._deriver.derive(pending.api_key_id, nonce=pending.nonce)
        if derived.token_hash != pending.token_hash:
            raise DerivationUnavailable
        return derived

    def make(
        self, pending: PendingSecret, derived: DerivedSecret, *, old_hash: str | None = None, deadline: Deadline
    ) -> float:
        """Returns once LiteLLM has the key as it was asked for, with what the key of `old_hash` has spent counted as spent:
        that many US dollars.

        Raises GatewayRefused, and Gone or Forbidden when LiteLLM does not have the old one or blocks it: then the operation
        has failed, or will be undone. Raises OperationPending when LiteLLM cannot confirm.
        """
        make = self._make_first if pending.epoch == 1 else self._make_again
        return make(pending, derived, old_hash=old_hash, deadline=deadline)

    def undo(self, pending: PendingSecret, progress: Progress, *, deadline: Deadline) -> None:
        """Takes the secret back as far as possible now; the operation is committed to it and is settled otherwise."""
        try:
            self._litellm.delete(pending.token_hash, deadline=deadline)
            if progress.is_safe:
                self._finish_undo(pending, progress.reason or "undone")
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

    def _make_again(
        self, pending: PendingSecret, derived: DerivedSecret, *, old_hash: str | None, deadline: Deadline
    ) -> float:
        """After an attempt whose fate is unknown: what LiteLLM has, not what it answers, says whether the key is right.

        It echoes a repeated generate without storing it, and answers 400 when the first one worked.
        """
        try:
            if pending.remaining_seconds is not None and pending.remaining_seconds < 1:
                raise GatewayUnavailable("the key expired before LiteLLM confirmed it", may_still_happen=False)
            found = self._litellm.find(pending.token_hash, deadline=deadline)
            if found is None:
                old = self._old_key(old_hash, deadline=deadline)
                pending = _in_team_of(old, pending)
                self._prepare(pending, deadline=deadline)
                self._generate(pending, derived, spend_usd=old and old.spend, deadline=deadline)
                found = self._litellm.find(pending.token_hash, deadline=deadline)
            elif old_hash is not None:
                pending = _in_team_of(found, pending)
            if found is None:
                raise GatewayUnavailable("key/info: the key is not there", may_still_happen=True)
            if found.differences(pending.settings):
                self._litellm.update(
                    found,
                    pending.settings,
                    remaining_seconds=pending.remaining_seconds,
                    deadline=deadline,
                )
        except (Gone, Forbidden) as refusal:
            # An earlier attempt may have made the key: left to settling, which deletes it and waits for the drain.
            self._release(pending, refusal, may_still_happen=True)
            raise
        except (GatewayRefused, Unavailable) as trouble:
            self._release(pending, trouble, may_still_happen=True)
            raise OperationPending from trouble
        return found.spend

    def _make_first(
        self, pending: PendingSecret, derived: DerivedSecret, *, old_hash: str | None, deadline: Deadline
    ) -> float:
        started = time.monotonic()
        try:
            old = self._old_key(old_hash, deadline=deadline)
            pending = _in_team_of(old, pending)
            self._prepare(pending, deadline=deadline)
        except (Gone, Forbidden) as refusal:
            self._finish_undo(pending, refusal.message)
            raise
        except GatewayRefused as refused:
            self._give_up_refused(pending, refused, deadline=deadline)
            raise
        except Unavailable as trouble:
            self._release(pending, trouble, may_still_happen=False)
            raise OperationPending from trouble
        try:
            asked = _aged(pending, seconds=time.monotonic() - started)
            self._generate(asked, derived, spend_usd=old and old.spend, deadline=deadline)
        except GatewayRefused as refused:
            self._give_up_refused(pending, refused, deadline=deadline)
            raise
        except Unavailable as trouble:
            self._release(pending, trouble, may_still_happen=_may_still_happen(trouble))
            raise OperationPending from trouble
        return old.spend if old is not None else 0.0

    def _prepare(self, pending: PendingSecret, *, deadline: Deadline) -> None:
        """What has to be there in LiteLLM before the key. Raises GatewayRefused for a team that is not."""
        if not pending.user.is_known:
            self._litellm.ensure_user(pending.user, deadline=deadline)
        team_id = pending.settings.lite_llm_team_id
        if team_id is not None and not self._litellm.has_team(team_id, deadline=deadline):
            raise GatewayRefused(status_answered=404, fields=["teamId"])

    def _old_key(self, old_hash: str | None, *, deadline: Deadline) -> GatewayKey | None:
        """The key so far. One that LiteLLM has lost, or that somebody blocked there, gets no new secret."""
        if old_hash is None:
            return None
        old = self._litellm.find(old_hash, deadline=deadline)
        if old is None:
            raise Gone("LiteLLM does not know this key any more. Delete it and create another.")
        if old.blocked:
            raise Forbidden("This key is blocked in LiteLLM. Ask an administrator.")
        return old

    def _generate(
        self, pending: PendingSecret, derived: DerivedSecret, *, spend_usd: float | None, deadline: Deadline
    ) -> None:
        self._litellm.generate(
            derived.secret,
            alias=pending.alias,
            mark=pending.mark,
            api_key_id=pending.api_key_id,
            user_id=pending.user.id,
            settings=pending.settings,
            remaining_seconds=pending.remaining_seconds,
            token_hash=pending.token_hash,
            spend_usd=spend_usd,
            deadline=deadline,
        )

    def _give_up_refused(self, pending: PendingSecret, refused: GatewayRefused, *, deadline: Deadline) -> None:
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

    def _finish_undo(self, pending: PendingSecret, why: str) -> None:
        store.finish_undo(
            self._database,
            operation_id=pending.operation_id,
            epoch=pending.epoch,
            api_key_id=pending.api_key_id,
            reason=why,
        )

    def _release(self, pending: PendingSecret, trouble: ServiceError, *, may_still_happen: bool) -> None:
        journal.release(
            self._database,
            operation_id=pending.operation_id,
            epoch=pending.epoch,
            error=reason(trouble),
            may_still_happen=may_still_happen,
        )


def idempotency_of(idempotency_key: str | None, *asked: object, maker: Iterable[object] = ()) -> Idempotency | None:
    """What a request says that may be repeated; `asked` is all that has to be the same then. `maker`: who asks, where it is
    not the key's owner; no header can hold what stands between their names and the Idempotency-Key."""
    if idempotency_key is None:
        return None
    scoped = "\0".join([*(str(name or "") for name in maker), idempotency_key])
    return Idempotency(
        key_hash=hashlib.sha256(scoped.encode()).hexdigest(),
        body_fingerprint=hashlib.sha256(
            b"\n".join(msgspec.json.encode(part, order="sorted") for part in asked)
        ).hexdigest(),
    )


def hindrance_of(repeated: Repeated[Any], *, what: str) -> ServiceError:
    """Why a request cannot be repeated; `what` the first one made, as the beginning of a sentence."""
    match repeated.hindrance:
        case "otherBody":
            return IdempotencyKeyReused("This Idempotency-Key came with another body before. Use a new one.")
        case "gone":
            return Gone(f"{what} is no more. Use a new one to make another.")
        case "undoing":
            return OperationInProgress("What this Idempotency-Key began is being undone. Try again shortly.")
        case _:
            return OperationInProgress("A request with this Idempotency-Key is still running. Try again shortly.")


def _in_team_of[P: PendingSecret](other: GatewayKey | None, pending: P) -> P:
    """A key that LiteMaaS made may be in a team that its row does not name: its next secret is in it, too."""
    if other is None or pending.settings.lite_llm_team_id is not None:
        return pending
    settings = msgspec.structs.replace(pending.settings, lite_llm_team_id=other.team_id)
    return msgspec.structs.replace(pending, settings=settings)


def _aged[P: PendingSecret](pending: P, *, seconds: float) -> P:
    """LiteLLM counts a key's life from its own now: what has gone by since T1 is taken off."""
    if pending.remaining_seconds is None:
        return pending
    return msgspec.structs.replace(pending, remaining_seconds=max(1, pending.remaining_seconds - int(seconds)))


def _may_still_happen(trouble: Unavailable) -> bool:
    """A generate that was never sent (no master key, say) cannot come true."""
    return isinstance(trouble, GatewayUnavailable) and trouble.may_still_happen
