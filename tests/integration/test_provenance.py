"""Settling in a database that is not, or no longer, the one LiteLLM's keys were made from."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from keyservice.errors import OperationPending
from keyservice.models import PendingDeletion
from keyservice.provenance import Deployment
from tests.integration.service import Service


def pending_create(service: Service) -> UUID:
    """LiteLLM made the key, its answer was lost: for a restored database somebody may be using it by now."""
    before = {row["id"] for row in service.rows("SELECT id FROM api_keys")}
    service.gateway_faults.inject("/key/generate", "reset_after")
    with pytest.raises(OperationPending):
        service.create()
    [key_id] = {row["id"] for row in service.rows("SELECT id FROM api_keys")} - before
    return key_id


def forget(service: Service, key_id: UUID) -> None:
    """As if the database had been restored from a dump that is older than this key: no trigger hears of it."""
    service.rows("SET session_replication_role = replica")
    for statement in (
        "DELETE FROM api_key_operations WHERE api_key_id = %s",
        "DELETE FROM api_key_tokens WHERE api_key_id = %s",
        "DELETE FROM api_key_models WHERE api_key_id = %s",
        "DELETE FROM api_keys WHERE id = %s",
    ):
        service.rows(statement, [key_id])
    service.rows("SET session_replication_role = origin")


def make_due(service: Service) -> None:
    service.rows("UPDATE api_key_operations SET next_attempt_at = now(), lease_until = now()")
    service.rows("UPDATE api_key_tokens SET unsafe_until = now() WHERE unsafe_until IS NOT NULL")


def state_of(service: Service, key_id: UUID) -> tuple[str, str]:
    [row] = service.rows("SELECT state, phase FROM api_key_operations WHERE api_key_id = %s", [key_id])
    return row["state"], row["phase"]


def test_pending_create_is_not_undone_after_a_restore(service: Service):
    key_id = pending_create(service)
    forget(service, service.create().id)
    make_due(service)

    settled = service.settle()

    assert (settled.brake, settled.attempted) == ("unknownKeys", 0)
    assert state_of(service, key_id) == ("pending", "forward")
    assert service.value("SELECT state FROM api_key_tokens WHERE api_key_id = %s", [key_id]) == "intended"


def test_pending_create_is_undone_in_the_database_it_was_made_from(service: Service):
    key_id = pending_create(service)
    service.create()
    make_due(service)

    settled = service.settle()

    assert (settled.attempted, settled.settled) == (1, 1)
    assert state_of(service, key_id) == ("failed", "undo")


def test_accepted_delete_goes_on_after_a_restore(service: Service):
    issued = service.create()
    service.gateway_faults.inject("/key/delete", "status", status=500)
    assert isinstance(service.delete(issued.id), PendingDeletion)
    forget(service, service.create().id)
    make_due(service)

    settled = service.settle()

    assert (settled.brake, settled.settled) == ("unknownKeys", 1)
    assert service.rows("SELECT id FROM api_keys WHERE id = %s", [issued.id]) == []


@pytest.mark.parametrize(
    ("deployment", "brake"),
    [
        pytest.param({"stack_name": "another"}, "otherStack", id="clone under another stack"),
        pytest.param({"litellm_url": "http://another.test"}, "otherGateway", id="another LiteLLM"),
    ],
)
def test_nothing_expires_in_a_clone(service: Service, deployment: dict[str, str], brake: str):
    issued = service.create(expires_at=datetime.now(UTC) + timedelta(hours=1))
    service.rows("UPDATE api_keys SET expires_at = now() - interval '1 second' WHERE id = %s", [issued.id])
    ours = service.deployment

    settled = service.settle(
        deployment=Deployment(
            stack_name=deployment.get("stack_name", ours.stack_name),
            litellm_url=deployment.get("litellm_url", ours.litellm_url),
        )
    )

    assert (settled.brake, settled.expired) == (brake, 0)
    assert service.value("SELECT is_active FROM api_keys WHERE id = %s", [issued.id]) is True


def test_only_deletes_are_tried_while_litellm_cannot_be_asked(service: Service):
    key_id = pending_create(service)
    make_due(service)
    service.gateway_faults.inject("/key/list", "status", status=500)

    settled = service.settle()

    assert (settled.brake, settled.attempted) == ("gatewayUnavailable", 0)
    assert state_of(service, key_id) == ("pending", "forward")
