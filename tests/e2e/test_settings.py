"""What an administrator sets for all keys in system_settings: defaults that are filled in, maximums that hold."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from tests.e2e.service import Person, Service, hash_of, violations_of

DEFAULTS = """{"defaults": {"maxBudget": 5, "softBudget": 4, "tpmLimit": 500, "rpmLimit": 10,
    "budgetDuration": "monthly", "expirationDays": 10}}"""
MAXIMUMS = """{"maximums": {"maxBudget": 50, "tpmLimit": 5000, "rpmLimit": 100, "expirationDays": 30}}"""


def test_what_is_not_asked_for_comes_from_the_defaults(service: Service, alice: Person):
    with service.settings(DEFAULTS):
        key = alice.has_key(name=None, maxBudget=None)

    row = service.key_row(key["id"])
    told = service.gateway_key(hash_of(key["key"]))
    assert row is not None
    assert told is not None
    assert (row["max_budget"], row["soft_budget"], row["budget_duration"]) == (Decimal(5), Decimal(4), "monthly")
    assert (row["tpm_limit"], row["rpm_limit"]) == (500, 10)
    assert row["expires_at"] - row["created_at"] == timedelta(days=10)
    assert key["expiresAt"] == row["expires_at"].strftime("%Y-%m-%dT%H:%M:%S.") + f"{row['expires_at']:%f}"[:3] + "Z"
    assert (told["max_budget"], told["budget_duration"]) == (5, "monthly")
    assert (told["tpm_limit"], told["rpm_limit"]) == (500, 10)
    assert abs(datetime.fromisoformat(told["expires"]) - row["expires_at"]) < timedelta(seconds=30)


def test_what_is_asked_for_wins_over_the_defaults(service: Service, alice: Person):
    with service.settings(DEFAULTS):
        key = alice.has_key(maxBudget=7, rpmLimit=0, expiresAt="2029-01-01T00:00:00Z")

    row = service.key_row(key["id"])
    assert row is not None
    assert (row["max_budget"], row["rpm_limit"]) == (Decimal(7), 0)
    assert row["expires_at"] == datetime(2029, 1, 1, tzinfo=UTC)


def test_all_maximums_that_are_passed_are_named_in_one_answer(service: Service, alice: Person):
    with service.settings(MAXIMUMS):
        answer = alice.create(
            {
                "modelIds": ["gpt-4o", "claude-sonnet"],
                "maxBudget": 50.01,
                "tpmLimit": 5001,
                "rpmLimit": 101,
                "expiresAt": "2029-01-01T00:00:00Z",
            }
        )

    assert violations_of(answer) == [
        ("modelIds", "notEntitled"),
        ("maxBudget", "maximum"),
        ("tpmLimit", "maximum"),
        ("rpmLimit", "maximum"),
        ("expiresAt", "maximum"),
    ]
    assert [violation["message"] for violation in answer.json()["error"]["details"]["validation"]] == [
        "You do not have active subscriptions for the following models: claude-sonnet",
        "maxBudget: exceeds maximum 50",
        "tpmLimit: exceeds maximum 5000",
        "rpmLimit: exceeds maximum 100",
        "expiresAt: exceeds maximum expiration of 30 days",
    ]
    assert alice.key_rows() == []
    assert [record["success"] for record in alice.audit()] == [False]


def test_exactly_the_maximum_is_allowed(service: Service, alice: Person):
    in_29_days = (datetime.now(UTC) + timedelta(days=29)).isoformat()

    with service.settings(MAXIMUMS):
        key = alice.has_key(maxBudget=50, tpmLimit=5000, rpmLimit=100, expiresAt=in_29_days)

    row = service.key_row(key["id"])
    assert row is not None
    assert (row["max_budget"], row["tpm_limit"], row["rpm_limit"]) == (Decimal(50), 5000, 100)


def test_a_key_that_never_expires_is_refused_where_expiry_has_a_maximum(service: Service, alice: Person):
    with service.settings(MAXIMUMS):
        answer = alice.create({"modelIds": ["gpt-4o"], "expiresAt": None})

    assert violations_of(answer) == [("expiresAt", "required")]
    assert answer.json()["error"]["message"] == (
        "expiresAt: a maximum expiration of 30 days is configured; 'Never' is not allowed"
    )
    assert alice.key_rows() == []


def test_leaving_a_limit_out_does_not_escape_its_maximum(service: Service, alice: Person):
    in_a_day = (datetime.now(UTC) + timedelta(days=1)).isoformat()

    with service.settings(MAXIMUMS):
        key = alice.has_key(expiresAt=in_a_day)

    told = service.gateway_key(hash_of(key["key"]))
    assert told is not None
    assert (told["max_budget"], told["tpm_limit"], told["rpm_limit"]) == (50, 5000, 100)


def test_settings_that_are_null_mean_none(service: Service, alice: Person):
    with service.settings(
        """{"defaults": {"maxBudget": null, "expirationDays": null},
            "maximums": {"maxBudget": null, "tpmLimit": null, "rpmLimit": null, "expirationDays": null}}"""
    ):
        key = alice.has_key(maxBudget=1_000_000)

    row = service.key_row(key["id"])
    assert row is not None
    assert (row["max_budget"], row["expires_at"]) == (Decimal(1_000_000), None)


def test_a_change_of_the_settings_holds_from_the_next_request_on(service: Service, alice: Person):
    alice.has_key(maxBudget=60)

    with service.settings(MAXIMUMS):
        answer = alice.create({"modelIds": ["gpt-4o"], "maxBudget": 60})

    assert ("maxBudget", "maximum") in violations_of(answer)
