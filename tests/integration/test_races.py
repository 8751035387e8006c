"""What many do at once: limits hold, and each change happens and is audited once."""

from uuid import uuid4

from keyservice import deletion_store
from keyservice.errors import InvalidRequest, NotFound
from keyservice.models import Creation, Deadline, DeletedKey, NewApiKey, PendingDeletion, PendingEnding
from keyservice.schema import migrate
from local.roles import APP, MIGRATOR
from tests.integration.service import Service, Traces, all_at_once, caller


def test_thirty_creates_at_once_make_exactly_ten_keys(service: Service):
    creations = [service.creation(fresh=True) for _ in range(30)]

    outcomes = all_at_once(
        [
            lambda creation=creation: creation.create(
                caller(), NewApiKey(model_ids=["gpt-4o"]), idempotency_key=None, deadline=Deadline(60)
            )
            for creation in creations
        ]
    )

    issued = [outcome for outcome in outcomes if isinstance(outcome, Creation)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, InvalidRequest)]
    assert (len(issued), len(refused)) == (10, 20)
    assert {refusal.details["validation"][0].code for refusal in refused} == {"keyLimit"}
    assert service.value("SELECT count(*) FROM api_keys WHERE is_active") == 10
    assert service.value("SELECT count(*) FROM audit_logs WHERE success") == 10
    assert service.value("SELECT count(*) FROM audit_logs WHERE NOT success") == 20
    assert len({creation.key.key for creation in issued}) == 10


def test_first_requests_of_one_caller_at_once_register_one_user(service: Service):
    service.rows("INSERT INTO models (id, name, provider) VALUES ('o3', 'o3', 'openai')")
    creations = [service.creation(fresh=True, model_access="any") for _ in range(8)]

    outcomes = all_at_once(
        [
            lambda creation=creation: creation.create(
                caller("carol"), NewApiKey(model_ids=["gpt-4o"]), idempotency_key=None, deadline=Deadline(60)
            )
            for creation in creations
        ]
    )

    assert [type(outcome) for outcome in outcomes] == [Creation] * 8
    assert service.value("SELECT count(*) FROM users WHERE oauth_id = 'carol'") == 1


def test_eight_ends_of_one_delete_write_one_audit_record(service: Service):
    issued = service.create()
    begun = deletion_store.begin_delete(
        service.database,
        caller(),
        owner_id=None,
        operation_id=uuid4(),
        api_key_id=issued.id,
        keeps_row=False,
        lease_seconds=30,
    )
    assert isinstance(begun, PendingEnding)
    operation_id, epoch, hashes = begun.operation_id, begun.epoch, [token.hash for token in begun.tokens]
    databases = [service.connect_database() for _ in range(8)]

    outcomes = all_at_once(
        [
            lambda database=database: deletion_store.finish_delete(
                database, operation_id=operation_id, epoch=epoch, api_key_id=issued.id, gone_hashes=hashes
            )
            for database in databases
        ]
    )

    assert len(set(outcomes)) == 1
    assert outcomes[0] is not None
    assert service.value("SELECT count(*) FROM audit_logs WHERE action = 'API_KEY_DELETE'") == 1


def test_deletes_at_once_end_in_one_delete(service: Service):
    issued = service.create()
    deletions = [service.deletion(fresh=True) for _ in range(8)]

    outcomes = all_at_once(
        [
            lambda deletion=deletion: deletion.delete(caller(), str(issued.id), deadline=Deadline(60))
            for deletion in deletions
        ]
    )

    kinds = [type(outcome) for outcome in outcomes]
    assert kinds.count(DeletedKey) == 1
    assert set(kinds) <= {DeletedKey, PendingDeletion, NotFound}
    assert service.traces(issued.id) == Traces(
        row=None,
        tokens=[("dead", False)],
        operations=[("create", "forward", "done"), ("delete", "forward", "done")],
        audits=[("API_KEY_CREATE", True), ("API_KEY_DELETE", True)],
    )


def test_creates_and_deletes_at_once_never_lock_each_other_out(service: Service):
    issued = [service.create() for _ in range(4)]
    deletions = [service.deletion(fresh=True) for _ in issued]
    creations = [service.creation(fresh=True) for _ in issued]

    outcomes = all_at_once(
        [
            *(
                lambda key=key, deletion=deletion: deletion.delete(caller(), str(key.id), deadline=Deadline(60))
                for key, deletion in zip(issued, deletions, strict=True)
            ),
            *(
                lambda creation=creation: creation.create(
                    caller(), NewApiKey(model_ids=["gpt-4o-mini"]), idempotency_key=None, deadline=Deadline(60)
                )
                for creation in creations
            ),
        ]
    )

    assert [type(outcome) for outcome in outcomes] == [DeletedKey] * 4 + [Creation] * 4


def test_migrations_at_once_apply_each_step_once(service: Service):
    server = service.database_under_test.server
    name = f"{service.database_under_test.name}_empty"
    server.create_database(name, owner=MIGRATOR)
    dsn = server.dsn(name, user=MIGRATOR, password=service.database_under_test.passwords.migrator)

    def run() -> list[str]:
        import psycopg

        with psycopg.connect(dsn, autocommit=True) as connection:
            return migrate(connection, app_user=APP, stack_name="s", litellm_url="http://l").applied

    try:
        outcomes = all_at_once([run, run, run])
    finally:
        server.drop_database(name)

    assert sorted(map(bool, outcomes)) == [False, False, True]
