"""Deleting a key: hard, in LiteLLM and in PostgreSQL, and 200 only when both are true."""

import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec

from keyservice import deletion_store as store
from keyservice import journal, standing, telemetry
from keyservice.database import Database
from keyservice.decoding import invalid
from keyservice.errors import Unavailable, Violation, missing_key, reason
from keyservice.litellm import LiteLLM
from keyservice.models import (
    Caller,
    Deadline,
    DeletedKey,
    PendingDelete,
    PendingDeletion,
    RevokedKey,
    parse_uuid,
    timestamp,
)
from keyservice.queries import parse_boolean


class DeleteRules(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: `lease_seconds` the operation is ours, `gateway_cache_seconds` a replica may remember a deleted key."""

    lease_seconds: float
    gateway_cache_seconds: float


def parse_is_permanent(parameters: Mapping[str, str]) -> bool:
    """What the query says of the row. Raises InvalidRequest for another `permanent` than true and false."""
    violations: list[Violation] = []
    is_permanent = parse_boolean(parameters, "permanent", violations=violations)
    if violations:
        raise invalid(violations)
    return is_permanent or False


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
        return self._delete(caller, api_key_id, owner_id=None, deadline=deadline)

    def end_for(
        self, caller: Caller, user_id: str, api_key_id: str, parameters: Mapping[str, str], *, deadline: Deadline
    ) -> DeletedKey | RevokedKey | PendingDeletion:
        """The same of a user's key with `permanent=true`; otherwise the row stays, off and marked as revoked, and a key
        that is so already is not found.

        Raises InvalidRequest for another `permanent`, Forbidden for anyone but the role admin.
        """
        is_permanent = parse_is_permanent(parameters)
        owner_id = standing.parse_owner(user_id)
        if is_permanent:
            return self._delete(caller, api_key_id, owner_id=owner_id, deadline=deadline)
        return self._revoke(caller, api_key_id, owner_id=owner_id, deadline=deadline)

    def _delete(
        self, caller: Caller, api_key_id: str, *, owner_id: uuid.UUID | None, deadline: Deadline
    ) -> DeletedKey | PendingDeletion:
        ended_at = self._end(caller, api_key_id, owner_id=owner_id, keeps_row=False, deadline=deadline)
        if ended_at is None:
            return PendingDeletion(
                message="API key deletion accepted. The key is off in this service; LiteLLM has not confirmed yet."
            )
        return DeletedKey(
            message="API key deleted successfully",
            deleted_at=timestamp(ended_at),
            effective_by=self._effective_by(ended_at),
        )

    def _revoke(
        self, caller: Caller, api_key_id: str, *, owner_id: uuid.UUID, deadline: Deadline
    ) -> RevokedKey | PendingDeletion:
        ended_at = self._end(caller, api_key_id, owner_id=owner_id, keeps_row=True, deadline=deadline)
        if ended_at is None:
            return PendingDeletion(
                message="API key revocation accepted. The key is off in this service; LiteLLM has not confirmed yet."
            )
        return RevokedKey(
            message="API key revoked successfully",
            revoked_at=timestamp(ended_at),
            effective_by=self._effective_by(ended_at),
        )

    def _effective_by(self, ended_at: datetime) -> str:
        return timestamp(ended_at + timedelta(seconds=self._rules.gateway_cache_seconds))

    def _end(
        self, caller: Caller, api_key_id: str, *, owner_id: uuid.UUID | None, keeps_row: bool, deadline: Deadline
    ) -> datetime | None:
        """None while LiteLLM has not confirmed."""
        key_id = parse_uuid(api_key_id)
        if key_id is None:
            raise missing_key(None)
        begun = store.begin_delete(
            self._database,
            caller,
            owner_id=owner_id,
            operation_id=uuid.uuid4(),
            api_key_id=key_id,
            keeps_row=keeps_row,
            lease_seconds=self._rules.lease_seconds,
        )
        telemetry.identify(key_id=key_id)
        match begun:
            case "not found":
                raise missing_key(key_id)
            case "running":
                return None
            case PendingDelete():
                telemetry.identify(user_id=begun.user_id)
                return self._finish(begun, deadline=deadline)

    def _finish(self, pending: PendingDelete, *, deadline: Deadline) -> datetime | None:
        try:
            for token in pending.tokens:
                self._litellm.delete(token.hash, deadline=deadline)
            ended_at = store.finish_delete(
                self._database,
                operation_id=pending.operation_id,
                epoch=pending.epoch,
                api_key_id=pending.api_key_id,
                gone_hashes=[token.hash for token in pending.tokens if token.is_safe],
            )
        except Unavailable as trouble:
            self._release(pending, reason(trouble), waits_for_drain=False)
            return None
        if ended_at is None:
            self._release(pending, journal.DRAINING, waits_for_drain=True)
        return ended_at

    def _release(self, pending: PendingDelete, error: str, *, waits_for_drain: bool) -> None:
        journal.release(
            self._database,
            operation_id=pending.operation_id,
            epoch=pending.epoch,
            error=error,
            waits_for_drain=waits_for_drain,
        )
