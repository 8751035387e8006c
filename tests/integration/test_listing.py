from typing import Any
from uuid import UUID

import msgspec
import pytest

from keyservice.errors import Forbidden, IdentityConflict
from tests.integration.service import Service


@pytest.fixture
def alice(service: Service) -> UUID:
    return service.value("SELECT id FROM users WHERE oauth_id = 'alice'")


def insert_keys(service: Service, user_id: UUID, count: int, *, name: str = "key") -> None:
    """Rows as LiteMaaS writes them, a minute apart; every two of them share their moment."""
    service.rows(
        """
        INSERT INTO api_keys (user_id, name, key_hash, key_prefix, created_at, sync_status)
        SELECT %(user_id)s, %(name)s || '-' || n, md5(%(name)s || n) || md5('b' || n), 'sk-abcd',
            '2026-01-01T00:00:00Z'::timestamptz + (n / 2) * interval '1 minute', 'synced'
        FROM generate_series(1, %(count)s) AS n
        """,
        {"user_id": user_id, "count": count, "name": name},
    )


def names(service: Service, **parameters: str) -> list[str]:
    return [key.name for key in service.list_keys(**parameters).data]


class TestPages:
    def test_first_request_ever_is_an_empty_page_and_registers_the_caller(self, service: Service):
        page = service.list_keys("bob")

        assert page.data == []
        assert msgspec.to_builtins(page.pagination) == {"page": 1, "limit": 20, "total": 0, "totalPages": 0}
        assert service.value("SELECT email FROM users WHERE oauth_id = 'bob'") == "bob@example.com"

    def test_newest_comes_first_and_every_key_once(self, service: Service, alice: UUID):
        insert_keys(service, alice, 7)

        pages = [names(service, limit="3", page=str(page)) for page in (1, 2, 3)]

        expected = [row["name"] for row in service.rows("SELECT name FROM api_keys ORDER BY created_at DESC, id DESC")]
        assert pages == [expected[:3], expected[3:6], expected[6:]]

    def test_page_says_how_many_there_are(self, service: Service, alice: UUID):
        insert_keys(service, alice, 7)

        page = service.list_keys(limit="3", page="2")

        assert isinstance(page.pagination.next_cursor, str)
        counted = msgspec.to_builtins(page.pagination)
        assert counted | {"nextCursor": None} == {
            "page": 2,
            "limit": 3,
            "total": 7,
            "totalPages": 3,
            "nextCursor": None,
        }

    @pytest.mark.parametrize(("limit", "page"), [("7", "1"), ("3", "3"), ("20", "1"), ("3", "9")])
    def test_last_page_has_no_cursor(self, service: Service, alice: UUID, limit: str, page: str):
        insert_keys(service, alice, 7)

        pagination = service.list_keys(limit=limit, page=page).pagination

        assert pagination.next_cursor is msgspec.UNSET
        assert pagination.total == 7

    def test_cursor_leads_through_all_keys_while_others_come_and_go(self, service: Service, alice: UUID):
        insert_keys(service, alice, 9)
        expected = [row["name"] for row in service.rows("SELECT name FROM api_keys ORDER BY created_at DESC, id DESC")]

        first = service.list_keys(limit="4")
        insert_keys(service, alice, 1, name="newer")
        service.rows("UPDATE api_keys SET created_at = now() WHERE name = 'newer-1'")
        service.rows("DELETE FROM api_keys WHERE name = %s", [expected[3]])
        second = service.list_keys(limit="4", cursor=str(first.pagination.next_cursor))
        third = service.list_keys(limit="4", cursor=str(second.pagination.next_cursor))

        assert [key.name for key in [*first.data, *second.data, *third.data]] == expected
        assert (second.pagination.page, second.pagination.total) == (msgspec.UNSET, 9)
        assert third.pagination.next_cursor is msgspec.UNSET

    def test_cursor_before_the_calendar_finds_nothing(self, service: Service, alice: UUID):
        insert_keys(service, alice, 2)
        forged = "WyIwMDAxLTAxLTAxVDAwOjAwOjAwKzE0OjAwIiwiM2YyNTA0ZTAtNGY4OS00MWQzLTlhMGMtMDMwNWU4MmMzMzAxIiwxXQ"

        assert service.list_keys(cursor=forged).data == []

    def test_takes_one_round_trip_and_no_call(self, service: Service, alice: UUID):
        insert_keys(service, alice, 30)

        service.list_keys()

        assert [trip.steps for trip in service.database_faults.trips] == [("list_keys",)]
        assert service.database_faults.round_trips == 1
        assert service.gateway_faults.calls == []


class TestWhoSees:
    def test_nobody_sees_the_keys_of_others(self, service: Service, alice: UUID):
        bob = service.subscribe("bob", models=[])
        insert_keys(service, alice, 2)
        insert_keys(service, bob, 1, name="bob")

        assert [key.name for key in service.list_keys("bob").data] == ["bob-1"]

    def test_cursor_of_another_shows_only_ones_own(self, service: Service, alice: UUID):
        service.subscribe("bob", models=[])
        insert_keys(service, alice, 3)
        cursor = str(service.list_keys(limit="1").pagination.next_cursor)

        assert service.list_keys("bob", cursor=cursor).data == []

    def test_inactive_caller_is_forbidden(self, service: Service, alice: UUID):
        insert_keys(service, alice, 1)
        service.rows("UPDATE users SET is_active = false")

        with pytest.raises(Forbidden):
            service.list_keys()

    def test_inactive_caller_without_keys_is_forbidden(self, service: Service):
        service.rows("UPDATE users SET is_active = false")

        with pytest.raises(Forbidden):
            service.list_keys()

    def test_email_of_another_identity_is_a_conflict(self, service: Service):
        service.subscribe("mallory", models=[])
        service.rows("UPDATE users SET email = 'bob@example.com' WHERE oauth_id = 'mallory'")

        with pytest.raises(IdentityConflict):
            service.list_keys("bob")


class TestFilters:
    def test_by_activity(self, service: Service, alice: UUID):
        insert_keys(service, alice, 5)
        service.rows("UPDATE api_keys SET is_active = false WHERE name = 'key-1'")
        service.rows("UPDATE api_keys SET revoked_at = now() WHERE name = 'key-2'")
        service.rows("UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE name = 'key-3'")
        service.rows("UPDATE api_keys SET expires_at = now() + interval '1 h' WHERE name = 'key-4'")

        assert set(names(service, isActive="true")) == {"key-4", "key-5"}
        assert set(names(service, isActive="false")) == {"key-1", "key-2", "key-3"}
        assert service.list_keys(isActive="true").pagination.total == 2

    def test_by_model_shows_all_models_of_the_key(self, service: Service, alice: UUID):
        insert_keys(service, alice, 3)
        service.rows(
            "INSERT INTO api_key_models (api_key_id, model_id) SELECT k.id, m.id FROM api_keys AS k, models AS m"
            " WHERE (k.name, m.id) IN (('key-1', 'gpt-4o'), ('key-2', 'gpt-4o'), ('key-2', 'gpt-4o-mini'))"
        )

        page = service.list_keys(modelIds="gpt-4o-mini,unknown")

        assert [(key.name, key.models) for key in page.data] == [("key-2", ["gpt-4o", "gpt-4o-mini"])]
        assert set(names(service, modelIds="gpt-4o,gpt-4o-mini")) == {"key-1", "key-2"}
        assert names(service, modelIds="unknown") == []

    def test_by_subscription(self, service: Service, alice: UUID):
        insert_keys(service, alice, 2)
        subscription_id = service.value("SELECT id FROM subscriptions WHERE model_id = 'gpt-4o'")
        service.rows("UPDATE api_keys SET subscription_id = %s WHERE name = 'key-1'", [subscription_id])

        assert names(service, subscriptionId=str(subscription_id)) == ["key-1"]
        assert names(service, subscriptionId="3f2504e0-4f89-41d3-9a0c-0305e82c3301") == []


class TestListedKey:
    def test_shows_litemaas_fields_in_litemaas_order(self, service: Service):
        issued = service.create(
            expires_at=None, max_budget=5.5, soft_budget=4, tpm_limit=7, rpm_limit=8, max_parallel_requests=9
        )
        service.rows(
            "UPDATE api_keys SET created_at = '2026-01-02T03:04:05.678Z', last_sync_at = '2026-02-02T00:00:00Z',"
            " last_used_at = '2026-02-01T00:00:00Z', current_spend = 1.25, expires_at = '2126-01-01T00:00:00Z'"
        )

        [key] = service.list_keys().data
        shown: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(key))

        assert shown == {
            "id": str(issued.id),
            "userId": str(issued.user_id),
            "keyPrefix": issued.key_prefix,
            "models": ["gpt-4o"],
            "createdAt": "2026-01-02T03:04:05.678Z",
            "isActive": True,
            "status": "active",
            "name": "notebook",
            "modelDetails": [{"id": "gpt-4o", "name": "gpt-4o", "provider": "openai"}],
            "currentSpend": 1.25,
            "budgetDuration": "",
            "modelMaxBudget": {},
            "modelRpmLimit": {},
            "modelTpmLimit": {},
            "metadata": {},
            "lastUsedAt": "2026-02-01T00:00:00.000Z",
            "expiresAt": "2126-01-01T00:00:00.000Z",
            "maxBudget": 5.5,
            "softBudget": 4.0,
            "tpmLimit": 7,
            "rpmLimit": 8,
            "maxParallelRequests": 9,
            "spendAsOf": "2026-02-02T00:00:00.000Z",
        }
        assert list(shown) == [
            *("id", "keyPrefix", "models", "createdAt", "isActive", "name", "modelDetails", "lastUsedAt", "expiresAt"),
            *("maxBudget", "currentSpend", "tpmLimit", "rpmLimit", "budgetDuration", "modelMaxBudget", "modelRpmLimit"),
            *("modelTpmLimit", "metadata", "userId", "status", "softBudget", "maxParallelRequests", "spendAsOf"),
        ]

    def test_leaves_out_what_it_has_not(self, service: Service, alice: UUID):
        insert_keys(service, alice, 1)

        shown = msgspec.to_builtins(service.list_keys().data[0])

        assert not {"maxBudget", "expiresAt", "lastUsedAt", "subscriptionId", "spendAsOf"} & shown.keys()
        assert None not in shown.values()

    def test_never_shows_a_secret(self, service: Service):
        issued = service.create()

        assert issued.key not in msgspec.json.encode(service.list_keys()).decode()

    @pytest.mark.parametrize(
        ("change", "status", "is_active"),
        [
            pytest.param("UPDATE api_keys SET name = 'x'", "active", True, id="active"),
            pytest.param("UPDATE api_keys SET revoked_at = now()", "revoked", False, id="revoked"),
            pytest.param("UPDATE api_keys SET is_active = false", "revoked", False, id="switched off"),
            pytest.param("UPDATE api_keys SET expires_at = now()", "expired", False, id="expired"),
            pytest.param("UPDATE api_keys SET sync_status = 'error'", "error", True, id="error"),
        ],
    )
    def test_status_says_how_it_stands(
        self, service: Service, alice: UUID, change: Any, status: str, *, is_active: bool
    ):
        insert_keys(service, alice, 1)
        service.rows(change)

        [key] = service.list_keys().data

        assert (key.status, key.is_active) == (status, is_active)
