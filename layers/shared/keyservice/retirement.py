"""Retiring the secrets that a rotation has replaced: at once, at the end of their grace, or when their owner says so."""

import uuid
from datetime import datetime

from keyservice import ending, telemetry
from keyservice import retirement_store as store
from keyservice.database import Database
from keyservice.ending import EndRules
from keyservice.errors import OperationInProgress, OperationOver, missing_key
from keyservice.litellm import LiteLLM
from keyservice.models import (
    Caller,
    CompletedRotation,
    Deadline,
    PendingCompletion,
    PendingEnding,
    parse_uuid,
    timestamp,
)


class SecretRetirement:
    def __init__(self, *, database: Database, litellm: LiteLLM, rules: EndRules) -> None:
        self._database = database
        self._litellm = litellm
        self._rules = rules

    def complete(self, caller: Caller, api_key_id: str, *, deadline: Deadline) -> CompletedRotation | PendingCompletion:
        """Ends the grace of a key's earlier secrets now.

        CompletedRotation: LiteLLM has none of them any more. PendingCompletion: that is going to happen without anyone
        asking again. Raises NotFound for a key that is not there or not the caller's, Forbidden for a caller who is
        inactive or may only look, OperationOver when there is no earlier secret, OperationInProgress.
        """
        key_id = parse_uuid(api_key_id)
        if key_id is None:
            raise missing_key(None)
        begun = store.begin_completion(
            self._database,
            caller,
            operation_id=uuid.uuid4(),
            api_key_id=key_id,
            lease_seconds=self._rules.lease_seconds,
        )
        telemetry.identify(key_id=key_id)
        match begun:
            case "not found":
                raise missing_key(key_id)
            case "over":
                raise OperationOver("Only the newest secret of this key works: there is nothing to complete.")
            case "busy":
                raise OperationInProgress("Another change of this key is not finished yet. Try again shortly.")
            case "running":
                return _pending()
            case PendingEnding():
                telemetry.identify(user_id=begun.user_id)
                ended_at = self.carry_out(begun, deadline=deadline)
        if ended_at is None:
            return _pending()
        return CompletedRotation(
            message="The rotation is complete: only the newest secret of this key works",
            completed_at=timestamp(ended_at),
            effective_by=timestamp(self.effective_by(ended_at)),
        )

    def carry_out(self, pending: PendingEnding, *, deadline: Deadline) -> datetime | None:
        """When LiteLLM had forgotten the tokens; None when that is not certain: then the operation is given back, and
        settled."""
        return ending.carry_out(
            self._database, self._litellm, pending, finish=store.finish_retirement, deadline=deadline
        )

    def effective_by(self, ended_at: datetime) -> datetime:
        """From when on every LiteLLM replica refuses what was deleted then."""
        return self._rules.effective_by(ended_at)


def _pending() -> PendingCompletion:
    return PendingCompletion(
        message="Accepted. The earlier secrets of this key are being ended; LiteLLM has not confirmed yet."
    )
