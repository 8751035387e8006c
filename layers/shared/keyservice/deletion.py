"""Deleting a key: hard, in LiteLLM and in PostgreSQL, and 200 only when both are true."""

import uuid
from datetime import timedelta

import msgspec

from keyservice import deletion_store as store
from keyservice import journal, telemetry
from keyservice.database import Database
from keyservice.errors import Unavailable, key_not_found, reason
from keyservice.litellm import LiteLLM
from keyservice.models import Caller, Deadline, DeletedKey, PendingDelete, PendingDeletion, parse_uuid, timestamp


class DeleteRules(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: `lease_seconds` the operation is ours, `gateway_cache_seconds` a replica may remember a deleted key."""

    lease_seconds: float
    gateway_cache_seconds: float


class KeyDeletion:
    def __init__(self, *, database: Database, litellm: LiteLLM, rules: DeleteRules) -> None:
        self._database = database
        self._litellm = litellm
        self._rules = rules

    def delete(self, caller: Caller, api_key_id: str, *, deadline: Deadline) -> DeletedKey | PendingDeletion:
        """DeletedKey: LiteLLM has no such key any more, the row is gone, the audit record is written.
        PendingDeletion: all of that is going to happen without anyone asking again; the row is off already.

        Raises NotFound for a key that is not there or not the caller's, Forbidden for a caller who is inactive or may only look.
        """
        key_id = parse_uuid(api_key_id)
        if key_id is None:
            raise key_not_found(None)
        begun = store.begin_delete(
            self._database,
            caller,
            operation_id=uuid.uuid4(),
            api_key_id=key_id,
            lease_seconds=self._rules.lease_seconds,
        )
        telemetry.identify(key_id=key_id)
        match begun:
            case "not found":
                raise key_not_found(key_id)
            case "running":
                return _pending()
            case PendingDelete():
                telemetry.identify(user_id=begun.user_id)
                return self._finish(begun, deadline=deadline)

    def _finish(self, pending: PendingDelete, *, deadline: Deadline) -> DeletedKey | PendingDeletion:
        try:
            for token in pending.tokens:
                self._litellm.delete(token.hash, deadline=deadline)
            deleted_at = store.finish_delete(
                self._database,
                operation_id=pending.operation_id,
                epoch=pending.epoch,
                api_key_id=pending.api_key_id,
                gone_hashes=[token.hash for token in pending.tokens if token.is_safe],
            )
        except Unavailable as trouble:
            self._release(pending, reason(trouble), waits_for_drain=False)
            return _pending()
        if deleted_at is None:
            self._release(pending, journal.DRAINING, waits_for_drain=True)
            return _pending()
        return DeletedKey(
            message="API key deleted successfully",
            deleted_at=timestamp(deleted_at),
            effective_by=timestamp(deleted_at + timedelta(seconds=self._rules.gateway_cache_seconds)),
        )

    def _release(self, pending: PendingDelete, error: str, *, waits_for_drain: bool) -> None:
        journal.release(
            self._database,
            operation_id=pending.operation_id,
            epoch=pending.epoch,
            error=error,
            waits_for_drain=waits_for_drain,
        )


def _pending() -> PendingDeletion:
    return PendingDeletion(
        message="API key deletion accepted. The key is off in this service; LiteLLM has not confirmed yet."
    )
