"""Two releases run on one schema while the second goes out, or is taken back: this one meets what a later one has written."""

from typing import LiteralString
from uuid import UUID

import pytest

from keyservice.errors import OperationPending
from keyservice.models import DeletedKey
from tests.integration.service import Service, hash_of

# What an additive migration of a later release may have done to every table.
LATER_SCHEMA: LiteralString = """
DO $$
DECLARE name text;
BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE format('ALTER TABLE %I ADD COLUMN of_a_later_release text, ADD COLUMN with_a_default integer DEFAULT 1', name);
    END LOOP;
END $$;
ALTER TABLE api_key_operations DROP CONSTRAINT api_key_operations_kind_check;
CREATE TABLE of_a_later_release (api_key_id uuid REFERENCES api_keys (id) ON DELETE CASCADE);
"""


@pytest.fixture
def later(service: Service) -> Service:
    service._admin.execute(LATER_SCHEMA)
    return service


def pending_of_a_later_kind(service: Service, key_id: UUID, token_hash: str) -> None:
    """An operation on a living key, due at once."""
    service.rows(
        """
        INSERT INTO api_key_operations (
            id, api_key_id, user_id, actor, kind, lease_until, next_attempt_at, request, token_hash, key_name, key_prefix,
            models
        )
        SELECT gen_random_uuid(), k.id, k.user_id, '{}', 'of_a_later_release', now(), now(), '{"later": true}', %s, k.name,
            k.key_prefix, '{}'
        FROM api_keys AS k WHERE k.id = %s""",
        [token_hash, key_id],
    )


def test_a_keys_life_is_the_same_on_a_later_schema(later: Service):
    issued = later.create()
    listed = later.list_keys()
    deleted = later.delete(issued.id)

    assert [key.id for key in listed.data] == [issued.id]
    assert isinstance(deleted, DeletedKey)
    assert not later.is_live(hash_of(issued.key))


def test_a_pending_operation_of_a_later_kind_is_left_to_the_later_settler(later: Service):
    issued = later.create()
    token_hash = hash_of(issued.key)
    pending_of_a_later_kind(later, issued.id, token_hash)

    report = later.settle()

    assert report.attempted == 0
    assert later.is_live(token_hash)
    assert later.value("SELECT state FROM api_key_operations WHERE kind = 'of_a_later_release'") == "pending"


def test_a_delete_takes_the_key_out_of_an_operation_of_a_later_kind(later: Service):
    issued = later.create()
    pending_of_a_later_kind(later, issued.id, hash_of(issued.key))

    deleted = later.delete(issued.id)

    assert isinstance(deleted, DeletedKey)
    assert later.value("SELECT state FROM api_key_operations WHERE kind = 'of_a_later_release'") == "superseded"


def test_a_create_that_a_later_release_began_is_resumed(later: Service):
    later.gateway_faults.inject("/key/generate", "reset_before")
    with pytest.raises(OperationPending):
        later.ask_for_key(idempotency_key="order-1", max_budget=5)
    later.rows('UPDATE api_key_operations SET request = request || \'{"of_a_later_release": {"deep": [1]}}\'')
    later.let_time_pass()

    resumed = later.ask_for_key(idempotency_key="order-1", max_budget=5)

    assert later.chat(resumed.key.key) == 200
    assert later.value("SELECT state FROM api_key_operations") == "done"


def test_a_create_that_a_later_release_began_is_undone(later: Service):
    later.gateway_faults.inject("/key/generate", "reset_before")
    with pytest.raises(OperationPending):
        later.create()
    later.rows(
        "UPDATE api_key_operations SET request = request || '{\"of_a_later_release\": 1}',"
        " next_attempt_at = now(), lease_until = now()"
    )
    later.rows("UPDATE api_key_tokens SET unsafe_until = now()")

    report = later.settle()

    assert (report.attempted, report.settled) == (1, 1)
    assert later.value("SELECT count(*) FROM api_keys") == 0
