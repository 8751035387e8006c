"""POST /api/v1/api-keys: what a caller may ask for, what is answered, what is stored and what LiteLLM is told."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from tests.e2e.service import Person, Service, hash_of, violations_of

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
DEPRECATION = "subscriptionId parameter is deprecated. Use modelIds array instead."
MIGRATION_GUIDE = "See /docs/api/migration-guide for details on upgrading to multi-model API keys."


def in_days(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_the_answer_has_its_fields_in_their_order(alice: Person):
    answer = alice.create({"modelIds": ["gpt-4o-mini", "gpt-4o"], "name": "ci", "expiresAt": "2029-01-01T00:00:00Z"})

    key = answer.json()
    assert answer.status_code == 201
    assert list(key) == [
        "id",
        "userId",
        "name",
        "key",
        "keyPrefix",
        "models",
        "modelDetails",
        "isActive",
        "createdAt",
        "expiresAt",
        "status",
    ]
    assert UUID(key["id"]).version == 4
    assert key["userId"] == str(alice.user_id)
    assert key["name"] == "ci"
    assert key["keyPrefix"] == key["key"][:11]
    assert key["models"] == ["gpt-4o-mini", "gpt-4o"]
    assert key["modelDetails"] == [
        {"id": "gpt-4o-mini", "name": "gpt-4o-mini", "provider": "openai"},
        {"id": "gpt-4o", "name": "gpt-4o", "provider": "openai"},
    ]
    assert key["isActive"] is True
    assert TIMESTAMP.fullmatch(key["createdAt"])
    assert key["expiresAt"] == "2029-01-01T00:00:00.000Z"
    assert key["status"] == "active"


def test_the_answer_names_its_place_and_may_not_be_stored(alice: Person):
    answer = alice.create({"modelIds": ["gpt-4o"]})

    assert answer.headers["location"] == f"/api/v1/api-keys/{answer.json()['id']}"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


def test_what_is_not_asked_for_is_left_out_of_the_answer(service: Service, alice: Person):
    key = alice.has_key()

    row = service.key_row(key["id"])
    assert key["name"] == ""
    assert "expiresAt" not in key
    assert "subscriptionId" not in key
    assert row is not None
    assert row["name"] is None
    assert row["max_budget"] is None
    assert row["expires_at"] is None


def test_every_setting_reaches_the_row_and_litellm(service: Service, alice: Person):
    key = alice.has_key(
        modelIds=["gpt-4o", "gpt-4o-mini"],
        maxBudget=25.5,
        softBudget=20,
        budgetDuration="monthly",
        tpmLimit=1000,
        rpmLimit=60,
        maxParallelRequests=4,
        metadata={"env": "prod", "owner": {"team": "ä"}},
        tags=["prod"],
        permissions={"allowChatCompletions": True, "allowEmbeddings": False},
        modelRpmLimit={"gpt-4o": 5},
        modelTpmLimit={"gpt-4o": 100},
        modelMaxBudget={},
        guardrails=[],
    )

    row = service.key_row(key["id"])
    told = service.gateway_key(hash_of(key["key"]))
    assert row is not None
    assert told is not None
    assert row["max_budget"] == Decimal("25.50")
    assert row["soft_budget"] == Decimal("20.00")
    assert row["budget_duration"] == "monthly"
    assert (row["tpm_limit"], row["rpm_limit"], row["max_parallel_requests"]) == (1000, 60, 4)
    assert row["metadata"] == {"env": "prod", "owner": {"team": "ä"}}
    assert told["models"] == ["gpt-4o", "gpt-4o-mini"]
    assert told["max_budget"] == 25.5
    assert told["budget_duration"] == "monthly"
    assert (told["tpm_limit"], told["rpm_limit"], told["max_parallel_requests"]) == (1000, 60, 4)
    assert told["metadata"]["user"] == {"env": "prod", "owner": {"team": "ä"}}
    assert told["user_id"] == str(alice.user_id)
    assert told["permissions"] == {"allow_chat_completions": True, "allow_embeddings": False}
    shown = {
        "tags": ["prod"],
        "permissions": {"allowChatCompletions": True, "allowEmbeddings": False},
        "modelRpmLimit": {"gpt-4o": 5},
        "modelTpmLimit": {"gpt-4o": 100},
    }
    [listed] = alice.listed()
    assert {name: listed[name] for name in shown} == shown
    names = {"tags": "tags", "model_rpm_limit": "modelRpmLimit", "model_tpm_limit": "modelTpmLimit"}
    assert {name: told["metadata"][name] for name in names} == {name: shown[names[name]] for name in names}


def test_a_key_of_a_team_is_litellms_team_too(service: Service, alice: Person):
    lite_llm_team_id = f"team-{alice.subject}"
    assert service.gateway("POST", "/team/new", json={"team_id": lite_llm_team_id}).status_code == 200
    [team] = service.rows(
        "INSERT INTO teams (name, lite_llm_team_id) VALUES ('blue', %(id)s) RETURNING id", id=lite_llm_team_id
    )
    body = {"modelIds": ["gpt-4o"], "teamId": str(team["id"])}

    refused = alice.create(body)
    service.rows(
        "INSERT INTO team_members (team_id, user_id, role) VALUES (%(team)s, %(user)s, 'member')",
        team=team["id"],
        user=alice.user_id,
    )
    key = alice.has_key(**body)

    assert violations_of(refused) == [("teamId", "notMember")]
    told = service.gateway_key(hash_of(key["key"]))
    assert told is not None
    assert told["team_id"] == lite_llm_team_id
    assert service.use(key["key"]) == 200
    assert alice.listed()[0]["teamId"] == str(team["id"])


def test_litellm_is_told_whose_key_it_is(service: Service, alice: Person):
    key = alice.has_key()

    [installation] = service.rows("SELECT mark FROM keyservice_installation")
    mark = installation["mark"]
    told = service.gateway_key(hash_of(key["key"]))
    assert told is not None
    assert re.fullmatch(r"lmk-[0-9a-f]{12}", mark)
    assert told["key_alias"] == f"{mark}:{key['id']}:1"
    assert told["metadata"]["keyservice"] == {"mark": mark, "api_key_id": key["id"]}


def test_the_callers_metadata_cannot_take_the_place_of_the_mark(service: Service, alice: Person):
    key = alice.has_key(metadata={"keyservice": {"mark": "lmk-000000000000"}})

    told = service.gateway_key(hash_of(key["key"]))
    assert told is not None
    assert told["metadata"]["keyservice"]["api_key_id"] == key["id"]
    assert told["metadata"]["user"] == {"keyservice": {"mark": "lmk-000000000000"}}


@pytest.mark.parametrize("path", ["/key/generate", "/key/delete", "/key/update", "/user/new"])
def test_a_key_cannot_manage_keys(service: Service, alice: Person, path: str):
    key = alice.has_key()

    answer = service.gateway("POST", path, key=key["key"], json={"keys": [hash_of(key["key"])], "models": []})

    assert answer.status_code == 403
    assert alice.gateway_keys() == [hash_of(key["key"])]


def test_a_key_may_use_only_its_models(service: Service, alice: Person):
    key = alice.has_key(modelIds=["gpt-4o-mini"])

    assert service.use(key["key"], model="gpt-4o-mini") == 200
    assert service.use(key["key"], model="gpt-4o") == 403


def test_litellm_gets_the_exact_remaining_seconds(service: Service, alice: Person):
    key = alice.has_key(expiresAt=in_days(1.5))

    row = service.key_row(key["id"])
    told = service.gateway_key(hash_of(key["key"]))
    assert row is not None
    assert told is not None
    # Rounded down to a second, and told a moment after the database counted: never later, and never a day off.
    difference = row["expires_at"] - datetime.fromisoformat(told["expires"])
    assert abs(difference) < timedelta(seconds=30)


def test_an_expiry_in_another_timezone_is_answered_in_utc(service: Service, alice: Person):
    key = alice.has_key(expiresAt="2029-06-01T12:00:00.5+02:00")

    row = service.key_row(key["id"])
    assert key["expiresAt"] == "2029-06-01T10:00:00.500Z"
    assert row is not None
    assert row["expires_at"] == datetime(2029, 6, 1, 10, 0, 0, 500_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("daily", "daily"),
        ("weekly", "weekly"),
        ("monthly", "monthly"),
        ("1mo", "1mo"),
        ("30d", "30d"),
        ("45s", "45s"),
        # LiteLLM 1.106.0 knows no year.
        ("yearly", "365d"),
    ],
)
def test_a_budget_duration_litellm_can_keep_is_taken(service: Service, alice: Person, asked: str, told: str):
    key = alice.has_key(maxBudget=10, budgetDuration=asked)

    row = service.key_row(key["id"])
    known = service.gateway_key(hash_of(key["key"]))
    assert row is not None
    assert known is not None
    assert row["budget_duration"] == asked
    assert known["budget_duration"] == told


def test_a_budget_of_zero_is_not_no_budget(service: Service, alice: Person):
    key = alice.has_key(maxBudget=0)

    told = service.gateway_key(hash_of(key["key"]))
    assert told is not None
    assert told["max_budget"] == 0
    assert service.use(key["key"]) == 422


def test_null_means_not_set(service: Service, alice: Person):
    names = ["name", "expiresAt", "maxBudget", "softBudget", "budgetDuration", "tpmLimit", "rpmLimit"]

    key = alice.has_key(
        **dict.fromkeys([*names, "maxParallelRequests", "metadata", "subscriptionId", "teamId", "tags", "unknown"])
    )

    row = service.key_row(key["id"])
    told = service.gateway_key(hash_of(key["key"]))
    assert row is not None
    assert told is not None
    assert [row[column] for column in ("name", "expires_at", "max_budget", "soft_budget", "tpm_limit")] == [None] * 5
    assert row["metadata"] == {}
    assert told["max_budget"] is None
    assert told["expires"] is None


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("🔑 Schlüssel №1 👩‍👩‍👧", id="emoji"),
        pytest.param("🔑" * 255, id="255 emoji"),
        pytest.param("x'); DROP TABLE api_keys; --", id="SQL"),
        pytest.param('"\\\n\t<script>', id="quotes and control characters"),
    ],
)
def test_any_name_of_at_most_255_characters_is_kept_as_it_is(service: Service, alice: Person, name: str):
    key = alice.has_key(name=name)

    row = service.key_row(key["id"])
    assert key["name"] == name
    assert row is not None
    assert row["name"] == name
    assert alice.listed()[0]["name"] == name
    assert alice.audit()[0]["metadata"]["name"] == name


def test_litellm_hears_of_a_user_once(service: Service, alice: Person):
    first = alice.has_key()
    user_after_first = alice.user
    second = alice.has_key()

    known = service.gateway("GET", "/user/info", params={"user_id": str(alice.user_id)}).json()
    assert first["userId"] == second["userId"]
    assert user_after_first is not None
    assert user_after_first["sync_status"] == "synced"
    assert known["user_info"]["user_role"] == "internal_user"
    assert known["user_info"]["user_email"] is None
    assert known["user_info"]["max_budget"] == 100
    assert sorted(alice.gateway_keys()) == sorted([hash_of(first["key"]), hash_of(second["key"])])


def test_a_user_litellm_knows_already_is_no_obstacle(service: Service, alice: Person):
    service.gateway("POST", "/user/new", json={"user_id": str(alice.user_id), "auto_create_key": False})

    key = alice.has_key()

    assert service.use(key["key"]) == 200


def test_two_keys_may_have_one_name(alice: Person):
    first, second = alice.has_key(name="same"), alice.has_key(name="same")

    assert first["id"] != second["id"]
    assert first["key"] != second["key"]


def test_the_journal_and_the_token_hold_no_secret(service: Service, alice: Person):
    key = alice.has_key(name="journal")

    token = service.token_of(key["id"])
    [operation] = service.rows("SELECT * FROM api_key_operations WHERE api_key_id = %(id)s", id=key["id"])
    assert token["hash"] == hash_of(key["key"])
    assert (token["state"], token["unsafe_until"]) == ("live", None)
    assert (operation["kind"], operation["state"], operation["epoch"]) == ("create", "done", 1)
    assert operation["finished_at"] is not None
    assert key["key"] not in repr(token)
    assert key["key"] not in repr(operation)


# The legacy form: one subscription instead of models.


def subscription_of(person: Person, model: str) -> str:
    [row] = person.service.rows(
        "SELECT id FROM subscriptions WHERE user_id = %(user)s AND model_id = %(model)s",
        user=person.user_id,
        model=model,
    )
    return str(row["id"])


def test_a_subscription_makes_a_key_for_its_model_with_two_deprecation_headers(service: Service, alice: Person):
    subscription_id = subscription_of(alice, "gpt-4o-mini")

    answer = alice.create({"subscriptionId": subscription_id, "name": "legacy"})

    key = answer.json()
    row = service.key_row(key["id"])
    assert answer.status_code == 201
    assert answer.headers["x-api-deprecation-warning"] == DEPRECATION
    assert answer.headers["x-api-migration-guide"] == MIGRATION_GUIDE
    assert list(key)[-2:] == ["subscriptionId", "status"]
    assert key["subscriptionId"] == subscription_id
    assert key["models"] == ["gpt-4o-mini"]
    assert row is not None
    assert str(row["subscription_id"]) == subscription_id
    assert service.use(key["key"], model="gpt-4o-mini") == 200
    assert service.use(key["key"], model="gpt-4o") == 403


def test_a_create_by_models_has_no_deprecation_headers(alice: Person):
    answer = alice.create({"modelIds": ["gpt-4o"]})

    assert "x-api-deprecation-warning" not in answer.headers
    assert "x-api-migration-guide" not in answer.headers


@pytest.mark.parametrize("status", ["suspended", "cancelled", "expired", "inactive", "pending", "denied"])
def test_a_subscription_that_is_not_active_makes_no_key(service: Service, alice: Person, status: str):
    subscription_id = subscription_of(alice, "gpt-4o")
    service.rows("UPDATE subscriptions SET status = %(status)s WHERE id = %(id)s", status=status, id=subscription_id)

    answer = alice.create({"subscriptionId": subscription_id})

    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["message"] == f"Cannot create API key for {status} subscription"
    assert [(v["field"], v["code"]) for v in error["details"]["validation"]] == [("subscriptionId", "notActive")]
    assert answer.headers["x-api-deprecation-warning"] == DEPRECATION
    assert answer.headers["x-api-migration-guide"] == MIGRATION_GUIDE
    assert alice.key_rows() == []


def test_somebody_elses_subscription_is_not_found(alice: Person, bob: Person):
    answer = alice.create({"subscriptionId": subscription_of(bob, "gpt-4o")})

    error = answer.json()["error"]
    assert answer.status_code == 404
    assert (error["code"], error["message"]) == ("NOT_FOUND", "Subscription not found")
    assert answer.headers["x-api-deprecation-warning"] == DEPRECATION
    assert alice.key_rows() == []


@pytest.mark.parametrize("field", ["modelRpmLimit", "modelTpmLimit", "permissions", "metadata", "tags"])
def test_what_is_given_but_empty_is_not_set(alice: Person, field: str):
    answer = alice.create({"modelIds": ["gpt-4o"], field: [] if field == "tags" else {}})

    assert answer.status_code == 201, answer.text
    assert not alice.key_rows()[0][
        {"modelRpmLimit": "model_rpm_limit", "modelTpmLimit": "model_tpm_limit"}.get(field, field)
    ]
