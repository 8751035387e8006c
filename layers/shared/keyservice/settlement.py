"""Settling: finishes whatever was interrupted, without anyone asking, and lets expired keys leave the same way."""

from collections.abc import Callable

import msgspec

from keyservice import journal, telemetry
from keyservice import settlement_store as store
from keyservice.alteration_store import MISSING, fail_update, finish_update
from keyservice.database import Database
from keyservice.deletion_store import finish_delete
from keyservice.errors import Braked, GatewayRefused, GatewayUnavailable, Unavailable, reason
from keyservice.issuing_store import finish_undo
from keyservice.litellm import LiteLLM
from keyservice.models import Caller, CleanedUp, Deadline, SettleBrake, Settled, or_unset
from keyservice.provenance import Deployment, find_brake
from keyservice.reconciliation_store import read_installation
from keyservice.retirement_store import begin_retirements, finish_retirement
from keyservice.standing import require_may_change_all

_AT_ONCE = 100


class SettleRules(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters as they are now. Seconds: `lease` an operation is ours, `drain` a lost request may still come true,
    `gateway` LiteLLM gets for one, `reserve` a started one may still need; the waits between attempts double from the first
    to the longest, with jitter."""

    deployment: Deployment
    lease_seconds: float
    drain_seconds: float
    gateway_seconds: float
    reserve_seconds: float
    first_wait_seconds: float
    longest_wait_seconds: float
    keeps_expired_rows: bool


class Settlement:
    """Needs no KMS: it finishes deletes and changes and undoes creates and rotations, and none of them takes a secret."""

    def __init__(self, *, database: Database, litellm: LiteLLM, rules: SettleRules) -> None:
        self._database = database
        self._litellm = litellm
        self._rules = rules

    def run(self, *, deadline: Deadline) -> Settled:
        """Attempts every operation that is due, each once, until the time left does not suffice for another.

        An accepted delete is final, and always attempted; so is the end of a grace. Creates and rotations are undone and
        keys expired only when this database is known to be the one LiteLLM's keys were made from: in a restored one a
        create may have come true since.
        Two runs at once share the work: an operation is claimed by one. Raises DatabaseUnavailable.
        """
        brake = self._find_brake()
        expired = 0
        if brake is None:
            expired = self._begin_all(
                lambda: store.begin_expiry(self._database, keep_row=self._rules.keeps_expired_rows, at_most=_AT_ONCE),
                deadline=deadline,
            )
            self._begin_all(lambda: store.begin_correction(self._database, at_most=_AT_ONCE), deadline=deadline)
        self._begin_all(
            lambda: begin_retirements(self._database, system_user=store.SYSTEM_USER, at_most=_AT_ONCE),
            deadline=deadline,
        )
        attempted = settled = 0
        while deadline.remaining_seconds() > self._rules.gateway_seconds + self._rules.reserve_seconds:
            claimed = store.claim_due(
                self._database,
                lease_seconds=self._rules.lease_seconds,
                drain_seconds=self._rules.drain_seconds,
                first_wait_seconds=self._rules.first_wait_seconds,
                longest_wait_seconds=self._rules.longest_wait_seconds,
                only_deletes=brake is not None,
            )
            if claimed is None:
                break
            attempted += 1
            settled += _settle(self._database, self._litellm, claimed, deadline=Deadline(self._rules.gateway_seconds))
        state = store.read_journal_state(self._database)
        telemetry.write_settled(
            attempted=attempted,
            settled=settled,
            expired=expired,
            pending={
                "create": state.pending_creates,
                "delete": state.pending_deletes,
                "update": state.pending_updates,
                "rotate": state.pending_rotates,
                "retire": state.pending_retires,
            },
            oldest_pending_seconds=state.oldest_pending_seconds,
            is_braked=brake not in (None, "gatewayUnavailable"),
        )
        return Settled(
            expired=expired,
            attempted=attempted,
            settled=settled,
            brake=or_unset(brake),
            **msgspec.structs.asdict(state),
        )

    def _find_brake(self) -> SettleBrake | None:
        try:
            return find_brake(
                self._database,
                self._litellm,
                deployment=self._rules.deployment,
                installation=read_installation(self._database),
                deadline=Deadline(self._rules.gateway_seconds),
            )
        except GatewayUnavailable:
            return "gatewayUnavailable"

    def _begin_all(self, begin: Callable[[], int], *, deadline: Deadline) -> int:
        """How many operations were begun, some at a time."""
        total = 0
        while deadline.remaining_seconds() > self._rules.reserve_seconds:
            begun = begin()
            total += begun
            if begun < _AT_ONCE:
                break
        return total


class CleanupRules(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters as they are now; `lease_seconds` an operation is ours."""

    deployment: Deployment
    lease_seconds: float
    keeps_expired_rows: bool


class ExpiryCleanup:
    def __init__(self, *, database: Database, litellm: LiteLLM, rules: CleanupRules) -> None:
        self._database = database
        self._litellm = litellm
        self._rules = rules

    def run(self, caller: Caller, *, deadline: Deadline) -> CleanedUp:
        """Ends at most 100 expired keys as settling would, with the caller as the actor; those that there is no time for
        are begun, and settled without anyone asking. Raises Forbidden for anyone but the role admin, Braked when this
        database may not be the one that LiteLLM's keys were made from, Unavailable when that cannot be told.
        """
        standing, _ = store.count_expired(self._database, caller)
        require_may_change_all(standing)
        brake = find_brake(
            self._database,
            self._litellm,
            deployment=self._rules.deployment,
            installation=read_installation(self._database),
            deadline=deadline,
        )
        if brake is not None:
            raise Braked(
                "Nothing was deleted: this database may be a copy, or restored. See the runbook of reconcile.",
                details={"brake": brake},
            )
        begun = store.begin_cleanup(
            self._database,
            caller,
            keep_row=self._rules.keeps_expired_rows,
            at_most=_AT_ONCE,
            lease_seconds=self._rules.lease_seconds,
        )
        cleaned = sum(_settle(self._database, self._litellm, claimed, deadline=deadline) for claimed in begun)
        _, pending = store.count_expired(self._database, caller)
        return CleanedUp(
            message="Expired API keys cleaned up successfully"
            if pending == 0
            else "Expired API keys are being cleaned up; those pending follow without anyone asking",
            cleaned_count=cleaned,
            pending_count=pending,
        )


def _settle(database: Database, litellm: LiteLLM, claimed: store.Claimed, *, deadline: Deadline) -> bool:
    """Whether the operation is over. One that is not stays, with the reason, for its next attempt."""
    try:
        if claimed.kind == "update":
            return _settle_update(database, litellm, claimed, deadline=deadline)
        for token in claimed.tokens:
            litellm.delete(token.hash, deadline=deadline)
        if all(token.is_safe for token in claimed.tokens) and _finish(database, claimed):
            return True
    except Unavailable as trouble:
        _release(
            database,
            claimed,
            reason(trouble),
            waits_for_drain=False,
            may_still_happen=not isinstance(trouble, GatewayUnavailable) or trouble.may_still_happen,
        )
        return False
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one operation must not stop the others
        telemetry.log_unexpected(f"settling {claimed.operation_id}", error)
        _release(database, claimed, type(error).__name__, waits_for_drain=False)
        return False
    _release(database, claimed, journal.DRAINING, waits_for_drain=True)
    return False


def _settle_update(database: Database, litellm: LiteLLM, claimed: store.Claimed, *, deadline: Deadline) -> bool:
    """Goes on with a change, or compares after one that may have come late."""
    update = claimed.update()
    try:
        if not litellm.carry_out(update, deadline=deadline):
            return fail_update(database, update, reason=MISSING)
    except GatewayRefused as refused:
        return fail_update(database, update, reason=refused.recorded)
    updated, _ = finish_update(database, update)
    return updated.state == "done"


def _finish(database: Database, claimed: store.Claimed) -> bool:
    if claimed.kind in ("create", "rotate"):
        return finish_undo(
            database,
            operation_id=claimed.operation_id,
            epoch=claimed.epoch,
            api_key_id=claimed.api_key_id,
            reason="undone: LiteLLM did not confirm it and nobody asked for it again",
        )
    finish = finish_retirement if claimed.kind == "retire" else finish_delete
    finished_at = finish(
        database,
        operation_id=claimed.operation_id,
        epoch=claimed.epoch,
        api_key_id=claimed.api_key_id,
        gone_hashes=[token.hash for token in claimed.tokens],
    )
    return finished_at is not None


def _release(
    database: Database, claimed: store.Claimed, error: str, *, waits_for_drain: bool, may_still_happen: bool = True
) -> None:
    journal.release(
        database,
        operation_id=claimed.operation_id,
        epoch=claimed.epoch,
        error=error,
        waits_for_drain=waits_for_drain,
        # Of a delete nothing can come true.
        may_still_happen=may_still_happen or claimed.kind != "update",
    )
