"""Ending the tokens that T1 has condemned: LiteLLM forgets them, and T2 writes that it did."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

import msgspec

from keyservice import journal
from keyservice.database import Database
from keyservice.errors import Unavailable, reason
from keyservice.litellm import LiteLLM
from keyservice.models import Deadline, PendingEnding


class EndRules(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: `lease_seconds` the operation is ours, `gateway_cache_seconds` a replica may remember a deleted key."""

    lease_seconds: float
    gateway_cache_seconds: float

    def effective_by(self, ended_at: datetime) -> datetime:
        """From when on every LiteLLM replica refuses what was deleted then."""
        return ended_at + timedelta(seconds=self.gateway_cache_seconds)


class Finish(Protocol):
    """T2: the moment of it; None when it may not be done yet or somebody else has taken the operation over."""

    def __call__(
        self, database: Database, *, operation_id: UUID, epoch: int, api_key_id: UUID, gone_hashes: Sequence[str]
    ) -> datetime | None: ...


def carry_out(
    database: Database, litellm: LiteLLM, pending: PendingEnding, *, finish: Finish, deadline: Deadline
) -> datetime | None:
    """When LiteLLM had forgotten the tokens; None when that is not certain: then the operation is given back, and settled."""
    try:
        for token in pending.tokens:
            litellm.delete(token.hash, deadline=deadline)
        ended_at = finish(
            database,
            operation_id=pending.operation_id,
            epoch=pending.epoch,
            api_key_id=pending.api_key_id,
            gone_hashes=[token.hash for token in pending.tokens if token.is_safe],
        )
    except Unavailable as trouble:
        _release(database, pending, reason(trouble), waits_for_drain=False)
        return None
    if ended_at is None:
        _release(database, pending, journal.DRAINING, waits_for_drain=True)
    return ended_at


def _release(database: Database, pending: PendingEnding, error: str, *, waits_for_drain: bool) -> None:
    journal.release(
        database,
        operation_id=pending.operation_id,
        epoch=pending.epoch,
        error=error,
        waits_for_drain=waits_for_drain,
    )
