"""Settling: finishes whatever was interrupted, without anyone asking, and lets expired keys leave the same way."""

import msgspec

from keyservice import journal, telemetry
from keyservice import settlement_store as store
from keyservice.database import Database
from keyservice.deletion_store import finish_delete
from keyservice.errors import GatewayUnavailable, Unavailable, reason
from keyservice.issuing_store import finish_undo
from keyservice.litellm import LiteLLM
from keyservice.models import Deadline, SettleBrake, Settled, or_unset
from keyservice.provenance import Deployment, find_brake
from keyservice.reconciliation_store import read_installation
from keyservice.retirement_store import begin_retirements, finish_retirement

_EXPIRED_AT_ONCE = 100
_RETIRED_AT_ONCE = 100


class SettleRules(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters as they are now. Seconds: `lease` an operation is ours, `gateway` LiteLLM gets for one, `reserve` a
    started one may still need; the waits between attempts double from the first to the longest, with jitter."""

    deployment: Deployment
    lease_seconds: float
    gateway_seconds: float
    reserve_seconds: float
    first_wait_seconds: float
    longest_wait_seconds: float
    keeps_expired_rows: bool


class Settlement:
    """Needs no KMS: it finishes deletes and undoes creates and rotations, and none of them takes a secret."""

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
        expired = self._begin_expiry(deadline=deadline) if brake is None else 0
        self._begin_retirements(deadline=deadline)
        attempted = settled = 0
        while deadline.remaining_seconds() > self._rules.gateway_seconds + self._rules.reserve_seconds:
            claimed = store.claim_due(
                self._database,
                lease_seconds=self._rules.lease_seconds,
                first_wait_seconds=self._rules.first_wait_seconds,
                longest_wait_seconds=self._rules.longest_wait_seconds,
                only_deletes=brake is not None,
            )
            if claimed is None:
                break
            attempted += 1
            settled += self._settle(claimed)
        state = store.read_journal_state(self._database)
        telemetry.write_settled(
            attempted=attempted,
            settled=settled,
            expired=expired,
            pending={
                "create": state.pending_creates,
                "delete": state.pending_deletes,
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

    def _begin_expiry(self, *, deadline: Deadline) -> int:
        expired = 0
        while deadline.remaining_seconds() > self._rules.reserve_seconds:
            begun = store.begin_expiry(
                self._database, keep_row=self._rules.keeps_expired_rows, at_most=_EXPIRED_AT_ONCE
            )
            expired += begun
            if begun < _EXPIRED_AT_ONCE:
                break
        return expired

    def _begin_retirements(self, *, deadline: Deadline) -> None:
        while deadline.remaining_seconds() > self._rules.reserve_seconds:
            begun = begin_retirements(self._database, system_user=store.SYSTEM_USER, at_most=_RETIRED_AT_ONCE)
            if begun < _RETIRED_AT_ONCE:
                break

    def _settle(self, claimed: store.Claimed) -> bool:
        """Whether the operation is over. One that is not stays, with the reason, for its next attempt."""
        deadline = Deadline(self._rules.gateway_seconds)
        try:
            for token in claimed.tokens:
                self._litellm.delete(token.hash, deadline=deadline)
            if all(token.is_safe for token in claimed.tokens) and self._finish(claimed):
                return True
        except Unavailable as trouble:
            self._release(claimed, reason(trouble), waits_for_drain=False)
            return False
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one operation must not stop the others
            telemetry.log_unexpected(f"settling {claimed.operation_id}", error)
            self._release(claimed, type(error).__name__, waits_for_drain=False)
            return False
        self._release(claimed, journal.DRAINING, waits_for_drain=True)
        return False

    def _finish(self, claimed: store.Claimed) -> bool:
        if claimed.kind in ("create", "rotate"):
            return finish_undo(
                self._database,
                operation_id=claimed.operation_id,
                epoch=claimed.epoch,
                api_key_id=claimed.api_key_id,
                reason="undone: LiteLLM did not confirm it and nobody asked for it again",
            )
        finish = finish_retirement if claimed.kind == "retire" else finish_delete
        finished_at = finish(
            self._database,
            operation_id=claimed.operation_id,
            epoch=claimed.epoch,
            api_key_id=claimed.api_key_id,
            gone_hashes=[token.hash for token in claimed.tokens],
        )
        return finished_at is not None

    def _release(self, claimed: store.Claimed, error: str, *, waits_for_drain: bool) -> None:
        journal.release(
            self._database,
            operation_id=claimed.operation_id,
            epoch=claimed.epoch,
            error=error,
            waits_for_drain=waits_for_drain,
        )
