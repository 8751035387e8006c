"""Deleting a key: hard, in LiteLLM and in PostgreSQL, and 200 only when both are true."""

import uuid
from collections.abc import Mapping
from datetime import datetime

from keyservice import deletion_store as store
from keyservice import ending, standing, telemetry
from keyservice.database import Database
from keyservice.decoding import invalid
from keyservice.ending import EndRules
from keyservice.errors import Violation, missing_key
from keyservice.litellm import LiteLLM
from keyservice.models import (
    Caller,
    Deadline,
    DeletedKey,
    PendingDeletion,
    PendingEnding,
    RevokedKey,
    parse_uuid,
    timestamp,
)
from keyservice.queries import parse_boolean


def parse_is_permanent(parameters: Mapping[str, str]) -> bool:
    """What the query says of the row. Raises InvalidRequest for another `permanent` than true and false."""
    violations: list[Violation] = []
    is_permanent = parse_boolean(parameters, "permanent", violations=violations)
    if violations:
        raise invalid(violations)
    return is_permanent or False


class KeyDeletion:
    def __init__(self, *, database: Database, litellm: LiteLLM, rules: EndRules) -> None:
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
            effective_by=timestamp(self._rules.effective_by(ended_at)),
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
            effective_by=timestamp(self._rules.effective_by(ended_at)),
        )

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
            case PendingEnding():
                telemetry.identify(user_id=begun.user_id)
                return ending.carry_out(
                    self._database, self._litellm, begun, finish=store.finish_delete, deadline=deadline
                )
