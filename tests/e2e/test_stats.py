"""GET /api/v1/api-keys/stats: how many keys, by what they are, by subscription, by model."""

from tests.e2e.service import KEYS, Person, Service


def test_somebody_without_keys_has_none_of_anything(service: Service, alice: Person):
    answer = service.call("GET", f"{KEYS}/stats", token=alice.token)

    assert answer.status_code == 200
    assert answer.json() == {
        "total": 0,
        "active": 0,
        "expired": 0,
        "revoked": 0,
        "bySubscription": {},
        "byModel": {},
    }
    assert list(answer.json()) == ["total", "active", "expired", "revoked", "bySubscription", "byModel"]


def test_each_key_counts_once_by_what_it_is(service: Service, alice: Person, bob: Person):
    bob.has_key()
    [subscription] = service.rows(
        "SELECT id::text FROM subscriptions WHERE user_id = %(id)s AND model_id = 'gpt-4o'", id=alice.user_id
    )
    alice.has_key(modelIds=["gpt-4o", "gpt-4o-mini"])
    alice.has_key(modelIds=None, subscriptionId=subscription["id"])
    expired, revoked, off, broken = (alice.has_key()["id"] for _ in range(4))
    service.rows("UPDATE api_keys SET expires_at = now() - interval '1 s' WHERE id = %(id)s", id=expired)
    service.rows("UPDATE api_keys SET is_active = false, revoked_at = now() WHERE id = %(id)s", id=revoked)
    service.rows("UPDATE api_keys SET is_active = false WHERE id = %(id)s", id=off)
    service.rows("UPDATE api_keys SET sync_status = 'error' WHERE id = %(id)s", id=broken)

    answer = service.call("GET", f"{KEYS}/stats", token=alice.token)

    assert answer.json() == {
        "total": 6,
        "active": 2,
        "expired": 1,
        "revoked": 2,
        "bySubscription": {subscription["id"]: 1},
        "byModel": {"gpt-4o": 6, "gpt-4o-mini": 1},
    }
