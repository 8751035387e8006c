"""Changing a key and resetting its spend: LiteLLM is told first, the row follows once LiteLLM has shown that it stored it."""

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from keyservice import alteration_store as store
from keyservice import journal, listing_store, standing, telemetry
from keyservice.database import Database, Statement
from keyservice.decoding import invalid
from keyservice.errors import (
    DatabaseUnavailable,
    Forbidden,
    GatewayRefused,
    GatewayUnavailable,
    InvalidRequest,
    OperationInProgress,
    OperationPending,
    OperationSuperseded,
    PreconditionFailed,
    ServiceError,
    Unavailable,
    key_inactive,
    missing_key,
    reason,
)
from keyservice.key_rules import inconsistencies, refusal_of
from keyservice.litellm import LiteLLM
from keyservice.model_catalog import ModelCatalog
from keyservice.models import Caller, Deadline, FoundKey, KeyChanges, PendingUpdate, ResetSpend, parse_uuid, timestamp
from keyservice.standing import Standing

_PENDING = (
    "LiteLLM has not confirmed the change. The service goes on with it by itself; "
    "look at the key before you change it again."
)


class AlterationRules(msgspec.Struct, frozen=True, kw_only=True):
    """The stack's choices. Seconds: `lease` an operation is ours, `drain` a lost request may still come true."""

    model_access: Literal["subscription", "any"]
    owners_may_reset_spend: bool
    lease_seconds: float
    drain_seconds: float


class KeyAlteration:
    def __init__(self, *, database: Database, litellm: LiteLLM, rules: AlterationRules) -> None:
        self._database = database
        self._litellm = litellm
        self._catalog = ModelCatalog(litellm)
        self._rules = rules

    def update(
        self,
        caller: Caller,
        api_key_id: str,
        wanted: KeyChanges,
        *,
        owner_id: str | None = None,
        if_match: str | None = None,
        deadline: Deadline,
    ) -> FoundKey:
        """The key as it is after the change, which LiteLLM has stored. `owner_id`: whose key it is, for administrators.

        Raises NotFound for a key that is not there or not the owner's, Forbidden, PreconditionFailed when If-Match names
        another version, InvalidRequest with every rule it breaks, GatewayRefused, OperationInProgress while another
        change runs, and OperationPending when LiteLLM cannot confirm: the service then goes on with it by itself.
        """
        key_id = _known_id(api_key_id)
        if violations := inconsistencies(
            model_ids=wanted.model_ids or None,
            money=[("maxBudget", wanted.max_budget or None), ("softBudget", wanted.soft_budget or None)],
        ):
            raise invalid(violations)
        gateway_models = (
            self._catalog.find(wanted.model_ids, deadline=deadline)
            if self._rules.model_access == "any" and wanted.model_ids
            else ()
        )
        begun = store.begin_update(
            self._database,
            caller,
            operation_id=uuid.uuid4(),
            owner_id=None if owner_id is None else standing.parse_owner(owner_id),
            api_key_id=key_id,
            changes=_by_column(wanted),
            entity_tags=None if if_match is None else _entity_tags(if_match),
            model_access=self._rules.model_access,
            gateway_models=gateway_models,
            lease_seconds=self._rules.lease_seconds,
            drain_seconds=self._rules.drain_seconds,
        )
        allow = standing.require_may_change_own if owner_id is None else standing.require_may_change_all
        pending = self._require_begun(begun, key_id, allow=allow, to_do="update")
        show = listing_store.show_key(key_id)
        if pending is None:
            [rows] = journal.repeated_once(self._database, show)
        else:
            _, rows = self._carry_out(pending, shown=[show], deadline=deadline)
        if not rows:
            raise missing_key(key_id)
        return listing_store.found_key(rows[0])

    def reset_spend(self, caller: Caller, api_key_id: str, *, deadline: Deadline) -> ResetSpend:
        """LiteLLM counts the key's spend from nothing again. Raises as `update` does, and Forbidden for an owner where only
        administrators may."""
        key_id = _known_id(api_key_id)
        begun = store.begin_reset(
            self._database,
            caller,
            operation_id=uuid.uuid4(),
            api_key_id=key_id,
            owners_may_reset=self._rules.owners_may_reset_spend,
            lease_seconds=self._rules.lease_seconds,
            drain_seconds=self._rules.drain_seconds,
        )
        pending = self._require_begun(begun, key_id, allow=standing.require_may_change_own, to_do="reset spend for")
        if pending is None:
            raise missing_key(key_id)
        updated, _ = self._carry_out(pending, shown=[], deadline=deadline)
        if updated.finished_at is None:
            raise OperationPending(_PENDING)
        return ResetSpend(id=key_id, current_spend=0.0, reset_at=timestamp(updated.finished_at))

    def _require_begun(
        self, begun: store.Begun, key_id: uuid.UUID, *, allow: Callable[[Standing], None], to_do: str
    ) -> PendingUpdate | None:
        """None when there is nothing to do."""
        if begun.standing is None:
            raise missing_key(key_id)
        allow(begun.standing)
        if begun.verdict != "notFound":
            telemetry.identify(key_id=key_id)
        match begun.verdict:
            case "begun" | "unchanged":
                return begun.pending
            case "changed":
                raise PreconditionFailed(entity_tag=begun.entity_tag or "")
            case "running":
                raise OperationInProgress("Another change of this key is still running. Try again shortly.")
            case "superseded":
                raise _superseded()
            case "forbidden":
                raise Forbidden("Only administrators may reset the spend of a key.")
            case "broken" if begun.refusal is not None:
                if any(rule.code == "inactive" for rule in begun.refusal.rules):
                    raise key_inactive(
                        f"Cannot {to_do} inactive API key",
                        suggestion="A key that is inactive, revoked or expired stays so. Create a new API key",
                    )
                raise refusal_of(begun.refusal.rules, model_access=self._rules.model_access)
            case _:
                raise missing_key(key_id)

    def _carry_out(
        self, pending: PendingUpdate, *, shown: Sequence[Statement], deadline: Deadline
    ) -> tuple[store.Updated, list[dict[str, Any]]]:
        try:
            is_there = pending.is_known_to_gateway or self._litellm.carry_out(pending, deadline=deadline)
            if not is_there:
                self._fail(pending, store.MISSING)
                raise InvalidRequest(
                    "LiteLLM has no such key any more, so it cannot be changed. Delete it and make a new one.",
                    details={"field": "id"},
                )
        except GatewayRefused as refused:
            self._fail(pending, refused.recorded)
            raise
        except Unavailable as trouble:
            self._release(pending, trouble)
            raise OperationPending(_PENDING) from trouble
        try:
            updated, rows = store.finish_update(self._database, pending, shown=shown)
        except DatabaseUnavailable as error:
            raise OperationPending(_PENDING) from error
        if updated.state == "pending":
            raise OperationPending(_PENDING)
        if updated.state != "done":
            raise _superseded()
        return updated, rows

    def _fail(self, pending: PendingUpdate, why: str) -> None:
        try:
            store.fail_update(self._database, pending, reason=why)
        except DatabaseUnavailable as error:
            raise OperationPending(_PENDING) from error

    def _release(self, pending: PendingUpdate, trouble: ServiceError) -> None:
        journal.release(
            self._database,
            operation_id=pending.operation_id,
            epoch=pending.epoch,
            error=reason(trouble),
            may_still_happen=isinstance(trouble, GatewayUnavailable) and trouble.may_still_happen,
        )


def _known_id(api_key_id: str) -> uuid.UUID:
    key_id = parse_uuid(api_key_id)
    if key_id is None:
        raise missing_key(None)
    return key_id


# What cleared means where it is not null.
_EMPTY: dict[str, Any] = {"metadata": {}, "permissions": {}, "tags": [], "model_rpm_limit": {}, "model_tpm_limit": {}}


def _by_column(wanted: KeyChanges) -> dict[str, Any]:
    """What is to change, by the columns of the row, in the very words of key_settings: equal values are equal texts."""
    given: dict[str, Any] = {
        name: _EMPTY.get(name) if value is None else value
        for name, value in msgspec.structs.asdict(wanted).items()
        if value is not UNSET
    }
    if "model_ids" in given:
        given["models"] = given.pop("model_ids")
    if given.get("expires_at") is not None:
        given["expires_at"] = given["expires_at"].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return msgspec.to_builtins(given)


def _entity_tags(if_match: str) -> list[str] | None:
    """The strong tags of the header (RFC 9110, 13.1.1); None for `*`, which any key matches."""
    tags = [tag.strip() for tag in if_match.split(",")]
    return None if tags == ["*"] else tags


def _superseded() -> OperationSuperseded:
    return OperationSuperseded("The key was deleted, or changed once more, while this change was being made.")
