"""PATCH /api/v1/api-keys/{id}, and the same for administrators."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.e2e.conftest import FragileService
from tests.e2e.service import KEYS, Person, Row, Service, assert_asks_to_retry, error_of, hash_of, violations_of

NOWHERE = "99999999-9999-4999-8999-999999999999"
EVERYTHING: Row = {
    "name": "renamed",
    "modelIds": ["gpt-4o-mini", "gpt-4o"],
    "expiresAt": "2031-01-01T00:00:00Z",
    "maxBudget": 7.5,
    "softBudget": 5,
    "budgetDuration": "weekly",
    "tpmLimit": 1000,
    "rpmLimit": 20,
    "maxParallelRequests": 3,
    "metadata": {"team": "blue", "nested": {"n": 1.5, "list": [1, None, True]}},
    "permissions": {"allowChatCompletions": True, "allowEmbeddings": False},
    "tags": ["a", "b"],
    "modelRpmLimit": {"gpt-4o": 5},
    "modelTpmLimit": {"gpt-4o-mini": 500},
}


def etag_of(person: Person, key_id: str) -> str:
    answer = person.service.call("GET", f"{KEYS}/{key_id}", token=person.token)
    assert answer.status_code == 200, answer.text
    return answer.headers["etag"]


def updates_of(service: Service, key_id: str) -> list[Row]:
    """The audit records of changes, in their order."""
    return service.rows(
        "SELECT * FROM audit_logs WHERE resource_id = %(id)s AND action LIKE 'API_KEY_%%' AND action <> 'API_KEY_CREATE'"
        " ORDER BY created_at",
        id=key_id,
    )


def unsafe_until(service: Service, key_id: str) -> datetime | None:
    return service.token_of(key_id)["settings_unsafe_until"]


class TestAnswer:
    def test_is_the_whole_key_as_it_is_now(self, service: Service, alice: Person):
        key = alice.has_key(name="first")

        answer = alice.update(key["id"], EVERYTHING)

        assert answer.status_code == 200, answer.text
        got = service.call("GET", f"{KEYS}/{key['id']}", token=alice.token)
        assert answer.json() == got.json()
        assert answer.headers["etag"] == got.headers["etag"]
        shown = {name: value for name, value in answer.json().items() if name in EVERYTHING}
        assert shown == {name: value for name, value in EVERYTHING.items() if name != "modelIds"} | {
            "expiresAt": "2031-01-01T00:00:00.000Z"
        }
        assert answer.json()["models"] == ["gpt-4o", "gpt-4o-mini"]
        assert [model["id"] for model in answer.json()["modelDetails"]] == ["gpt-4o", "gpt-4o-mini"]

    def test_is_what_litellm_enforces(self, service: Service, alice: Person):
        key = alice.has_key()
        token_hash = hash_of(key["key"])
        before = service.gateway_key(token_hash)
        assert before is not None
        assert service.use(key["key"], model="gpt-4o-mini") == 403

        alice.update(key["id"], EVERYTHING)

        known = service.gateway_key(token_hash)
        assert known is not None
        assert {name: known[name] for name in ("max_budget", "budget_duration", "tpm_limit", "rpm_limit")} == {
            "max_budget": 7.5,
            "budget_duration": "weekly",
            "tpm_limit": 1000,
            "rpm_limit": 20,
        }
        assert known["max_parallel_requests"] == 3
        assert known["litellm_budget_table"]["soft_budget"] == 5
        assert sorted(known["models"]) == ["gpt-4o", "gpt-4o-mini"]
        assert known["metadata"] == before["metadata"] | {
            "user": EVERYTHING["metadata"],
            "tags": ["a", "b"],
            "model_rpm_limit": {"gpt-4o": 5},
            "model_tpm_limit": {"gpt-4o-mini": 500},
        }
        assert known["permissions"] == {"allow_chat_completions": True, "allow_embeddings": False}
        expires = datetime.fromisoformat(known["expires"])
        assert abs(expires - datetime(2031, 1, 1, tzinfo=UTC)) < timedelta(seconds=30)
        assert service.use(key["key"], model="gpt-4o-mini") == 200

    def test_shows_null_as_cleared(self, service: Service, alice: Person):
        key = alice.has_key(**EVERYTHING)
        clearing = {name: None for name in EVERYTHING if name != "modelIds"}

        answer = alice.update(key["id"], clearing)

        assert answer.status_code == 200, answer.text
        assert {name for name in clearing if answer.json().get(name)} == set()
        known = service.gateway_key(hash_of(key["key"]))
        assert known is not None
        limits = ("max_budget", "budget_duration", "tpm_limit", "rpm_limit", "max_parallel_requests", "expires")
        assert [known[name] for name in limits] == [None] * 6
        assert known["litellm_budget_table"]["soft_budget"] is None
        assert (known["metadata"].keys(), known["metadata"]["user"]) == ({"keyservice", "user"}, {})
        assert known["permissions"] == {}
        assert sorted(known["models"]) == ["gpt-4o", "gpt-4o-mini"]

    def test_to_nothing_is_the_key_as_it_was(self, service: Service, alice: Person):
        key = alice.has_key(name="same", maxBudget=5)
        tag = etag_of(alice, key["id"])

        for body in ({}, {"name": "same", "maxBudget": 5.00, "modelIds": ["gpt-4o"], "tpmLimit": None}):
            answer = alice.update(key["id"], body)

            assert (answer.status_code, answer.headers["etag"], answer.json()["name"]) == (200, tag, "same")
        assert service.operations_of(key["id"]) == [("create", "done")]

    def test_leaves_out_what_was_left_out(self, service: Service, alice: Person):
        key = alice.has_key(name="first", maxBudget=5, metadata={"a": 1})

        alice.update(key["id"], {"rpmLimit": 7})

        row = service.key_row(key["id"])
        assert row is not None
        assert (row["name"], row["max_budget"], row["metadata"], row["rpm_limit"]) == ("first", 5, {"a": 1}, 7)

    def test_does_not_tell_litellm_of_a_name(self, fragile_service: FragileService):
        grace = fragile_service.person()
        key = grace.has_key()
        fragile_service.gateway_faults.forget_calls()

        assert grace.update(key["id"], {"name": "renamed"}).json()["name"] == "renamed"

        assert fragile_service.gateway_faults.calls == []
        assert unsafe_until(fragile_service, key["id"]) is None

    def test_of_a_budget_that_stays_leaves_its_window(self, fragile_service: FragileService):
        grace = fragile_service.person()
        key = grace.has_key(maxBudget=5, budgetDuration="10d")
        fragile_service.gateway_faults.forget_calls()

        grace.update(key["id"], {"maxBudget": 6})

        [call] = fragile_service.gateway_faults.calls_of("/key/update")
        assert "budget_duration" not in call.body


class TestAuditRecord:
    def test_has_the_old_values_and_the_new(self, service: Service, alice: Person):
        key = alice.has_key(name="first", maxBudget=5)

        alice.update(key["id"], {"name": "second", "maxBudget": None, "modelIds": ["gpt-4o"]})

        [record] = updates_of(service, key["id"])
        assert (record["action"], record["success"], record["user_id"]) == ("API_KEY_UPDATE", True, alice.user_id)
        assert (record["old_values"], record["new_values"]) == (
            {"name": "first", "max_budget": 5},
            {"name": "second", "max_budget": None},
        )
        assert record["metadata"]["name"] == "second"
        assert service.operations_of(key["id"]) == [("create", "done"), ("update", "done")]

    def test_names_administrator_and_owner(self, service: Service, alice: Person):
        key = alice.has_key()
        admin = service.person(roles=["admin"])

        answer = service.call(
            "PATCH",
            f"/api/v1/admin/users/{alice.user_id}/api-keys/{key['id']}",
            token=admin.token,
            json={"tpmLimit": 9},
        )

        assert (answer.status_code, answer.json()["tpmLimit"]) == (200, 9)
        [record] = updates_of(service, key["id"])
        assert record["user_id"] == admin.user_id
        assert record["metadata"]["userId"] == str(alice.user_id)

    def test_of_a_refusal_names_every_rule(self, service: Service, alice: Person):
        key = alice.has_key()

        with service.settings('{"maximums": {"maxBudget": 50, "rpmLimit": 100}}'):
            alice.update(key["id"], {"maxBudget": 51, "rpmLimit": None, "modelIds": ["claude-sonnet"]})

        [record] = updates_of(service, key["id"])
        assert (record["action"], record["success"]) == ("API_KEY_UPDATE", False)
        assert record["error_message"] == "modelIds: notEntitled; maxBudget: maximum; rpmLimit: required"


class TestRules:
    @pytest.mark.parametrize(
        ("body", "violations"),
        [
            pytest.param({"maxBudget": 51}, [("maxBudget", "maximum")], id="budget"),
            pytest.param({"maxBudget": None}, [("maxBudget", "required")], id="no budget"),
            pytest.param({"tpmLimit": 1001}, [("tpmLimit", "maximum")], id="tokens"),
            pytest.param({"tpmLimit": None}, [("tpmLimit", "required")], id="no limit of tokens"),
            pytest.param({"rpmLimit": 101}, [("rpmLimit", "maximum")], id="requests"),
            pytest.param({"expiresAt": None}, [("expiresAt", "required")], id="no end"),
            pytest.param({"modelRpmLimit": {"gpt-4o": 101}}, [("modelRpmLimit", "maximum")], id="requests of a model"),
            pytest.param(
                {"modelIds": ["gpt-4o-mini"], "modelTpmLimit": {"gpt-4o": 1}},
                [("modelTpmLimit", "notSelected")],
                id="tokens of a model it has not",
            ),
            pytest.param({"expiresAt": "2035-01-01T00:00:00Z"}, [("expiresAt", "maximum")], id="end too late"),
            pytest.param({"expiresAt": "2020-01-01T00:00:00Z"}, [("expiresAt", "past")], id="past"),
            pytest.param(
                {"expiresAt": "2099-01-01T00:00:00Z"}, [("expiresAt", "tooFar"), ("expiresAt", "maximum")], id="too far"
            ),
            pytest.param(
                {"maxBudget": 51, "rpmLimit": 500, "modelIds": ["claude-sonnet", "gpt-4o", "none"]},
                [("modelIds", "notEntitled"), ("maxBudget", "maximum"), ("rpmLimit", "maximum")],
                id="several at once",
            ),
        ],
    )
    def test_are_those_of_a_new_key(
        self, service: Service, alice: Person, body: dict[str, Any], violations: list[tuple[str, str]]
    ):
        key = alice.has_key(maxBudget=1, tpmLimit=1, rpmLimit=1, expiresAt=_in_days(10))

        with service.settings(
            '{"maximums": {"maxBudget": 50, "tpmLimit": 1000, "rpmLimit": 100, "expirationDays": 30}}'
        ):
            answer = alice.update(key["id"], body)

        assert violations_of(answer) == violations
        assert service.operations_of(key["id"]) == [("create", "done")]

    def test_say_what_is_wrong(self, service: Service, alice: Person):
        key = alice.has_key()

        with service.settings('{"maximums": {"maxBudget": 50, "rpmLimit": 100}}'):
            answer = alice.update(key["id"], {"maxBudget": 51, "rpmLimit": None})

        error = error_of(answer, status=400, code="VALIDATION_ERROR")
        assert error["message"] == (
            "maxBudget: exceeds maximum 50; rpmLimit: a maximum of 100 is configured; 'Unlimited' is not allowed"
        )

    def test_are_asked_of_what_is_changed_alone(self, service: Service, alice: Person):
        key = alice.has_key(maxBudget=60)

        with service.settings('{"maximums": {"maxBudget": 50, "tpmLimit": 10}}'):
            answer = alice.update(key["id"], {"name": "renamed"})

        assert answer.status_code == 200

    @pytest.mark.parametrize(
        ("body", "violations"),
        [
            pytest.param({"modelIds": []}, [("modelIds", "minItems")], id="no models"),
            pytest.param({"modelIds": None}, [("modelIds", "type")], id="models cleared"),
            pytest.param({"modelIds": ["gpt-4o", "gpt-4o"]}, [("modelIds", "uniqueItems")], id="a model twice"),
            pytest.param({"maxBudget": -5}, [("maxBudget", "minimum")], id="negative budget"),
            pytest.param({"maxBudget": 1.005}, [("maxBudget", "multipleOf")], id="half a cent"),
            pytest.param({"rpmLimit": 1.5}, [("rpmLimit", "type")], id="half a request"),
            pytest.param({"budgetDuration": "fortnight"}, [("budgetDuration", "pattern")], id="unknown duration"),
            pytest.param({"name": "x" * 300}, [("name", "maxLength")], id="long name"),
            pytest.param({"subscriptionId": None}, [("subscriptionId", "additionalProperties")], id="subscription"),
            pytest.param({"teamId": "t"}, [("teamId", "additionalProperties")], id="team"),
            pytest.param(
                {"permissions": {"fly": True}}, [("permissions.fly", "additionalProperties")], id="permission"
            ),
            pytest.param({"colour": "red"}, [("colour", "additionalProperties")], id="unknown field"),
        ],
    )
    def test_of_the_body_come_first(self, alice: Person, body: dict[str, Any], violations: list[tuple[str, str]]):
        assert violations_of(alice.update(NOWHERE, body)) == violations


class TestKeyThatIsNotThere:
    @pytest.mark.parametrize("key_id", [NOWHERE, "zzz"])
    def test_is_404(self, alice: Person, key_id: str):
        error_of(alice.update(key_id, {"name": "x"}), status=404, code="NOT_FOUND")
        error_of(alice.reset_spend(key_id), status=404, code="NOT_FOUND")

    def test_is_what_somebody_elses_looks_like(self, service: Service, alice: Person, bob: Person):
        key = alice.has_key(name="hers")

        error = error_of(bob.update(key["id"], {"name": "hack"}), status=404, code="NOT_FOUND")

        assert error["message"] == f"API key with ID '{key['id']}' not found"
        assert error["details"]["id"] == key["id"]
        assert updates_of(service, key["id"]) == []
        admin = service.person(roles=["admin"])
        error_of(admin.update(key["id"], {"name": "hack"}), status=404, code="NOT_FOUND")
        path = f"/api/v1/admin/users/{bob.user_id}/api-keys/{key['id']}"
        answer = service.call("PATCH", path, token=admin.token, json={"name": "hack"})
        error_of(answer, status=404, code="NOT_FOUND")

    def test_is_404_for_somebody_who_was_never_here(self, service: Service):
        stranger = service.person(is_known=False)

        error_of(stranger.update(NOWHERE, {"name": "x"}), status=404, code="NOT_FOUND")

    def test_in_litellm_alone_is_400_and_the_change_is_over(self, service: Service, alice: Person):
        key = alice.has_key()
        service.gateway("POST", "/key/delete", json={"keys": [hash_of(key["key"])]})

        error = error_of(alice.update(key["id"], {"tpmLimit": 5}), status=400, code="VALIDATION_ERROR")

        assert "Delete it and make a new one" in error["message"]
        assert service.operations_of(key["id"]) == [("create", "done"), ("update", "failed")]
        assert [(record["success"], record["error_message"]) for record in updates_of(service, key["id"])] == [
            (False, "LiteLLM has no such key")
        ]


class TestInactiveKey:
    @pytest.mark.parametrize("why", ["is_active = false", "revoked_at = now()", "expires_at = now()"])
    def test_is_400_and_says_that_only_a_new_one_helps(self, service: Service, alice: Person, why: str):
        key = alice.has_key()
        if why == "is_active = false":
            service.rows("UPDATE api_keys SET is_active = false WHERE id = %(id)s", id=key["id"])
        elif why == "revoked_at = now()":
            service.rows("UPDATE api_keys SET revoked_at = now() WHERE id = %(id)s", id=key["id"])
        else:
            service.rows("UPDATE api_keys SET expires_at = now() WHERE id = %(id)s", id=key["id"])

        error = error_of(alice.update(key["id"], {"name": "x"}), status=400, code="VALIDATION_ERROR")

        assert error["message"] == "Cannot update inactive API key"
        assert error["details"] == {
            "field": "isActive",
            "value": False,
            "suggestion": "A key that is inactive, revoked or expired stays so. Create a new API key",
        }


class TestEntityTag:
    def test_moves_with_a_change_alone(self, service: Service, alice: Person):
        key = alice.has_key()
        tag = etag_of(alice, key["id"])

        service.rows(
            "UPDATE api_keys SET current_spend = 5, updated_at = now(), last_used_at = now() WHERE id = %(id)s",
            id=key["id"],
        )
        assert etag_of(alice, key["id"]) == tag
        changed = alice.update(key["id"], {"metadata": {"a": 1}}).headers["etag"]

        assert changed != tag
        assert etag_of(alice, key["id"]) == changed
        assert alice.update(key["id"], {"metadata": None}).headers["etag"] == tag

    def test_that_fits_lets_the_change_through(self, alice: Person):
        key = alice.has_key()
        tag = etag_of(alice, key["id"])

        for if_match in (tag, f'"other", {tag}', "*"):
            answer = alice.update(key["id"], {}, headers={"if-match": if_match})

            assert answer.status_code == 200

    @pytest.mark.parametrize("if_match", ['"other"', "W/{tag}", ""])
    def test_that_does_not_fit_is_412(self, service: Service, alice: Person, if_match: str):
        key = alice.has_key(name="first")
        tag = etag_of(alice, key["id"])

        answer = alice.update(key["id"], {"name": "x"}, headers={"if-match": if_match.format(tag=tag)})

        error_of(answer, status=412, code="PRECONDITION_FAILED")
        assert answer.headers["etag"] == tag
        row = service.key_row(key["id"])
        assert row is not None
        assert row["name"] == "first"

    def test_lets_one_of_two_writers_win(self, alice: Person):
        key = alice.has_key()
        headers = {"if-match": etag_of(alice, key["id"])}

        statuses = [alice.update(key["id"], {"rpmLimit": limit}, headers=headers).status_code for limit in (1, 2)]

        assert statuses == [200, 412]


class TestLiteLLMRefusing:
    REFUSAL = {"error": {"message": "Invalid tpm_limit", "type": "auth_error", "param": "None", "code": "400"}}

    def test_is_400_that_names_the_field_and_changes_nothing(self, fragile_service: FragileService):
        grace = fragile_service.person()
        key = grace.has_key(tpmLimit=1)
        fragile_service.gateway_faults.inject("/key/update", "status", status=400, body=self.REFUSAL, times=2)

        answer = grace.update(key["id"], {"tpmLimit": 2})

        assert violations_of(answer) == [("tpmLimit", "gatewayRefused")]
        row = fragile_service.key_row(key["id"])
        assert row is not None
        assert row["tpm_limit"] == 1
        assert fragile_service.operations_of(key["id"]) == [("create", "done"), ("update", "failed")]
        assert [record["success"] for record in updates_of(fragile_service, key["id"])] == [False]
        assert unsafe_until(fragile_service, key["id"]) is None
        assert grace.update(key["id"], {"tpmLimit": 3}).status_code == 200

    def test_for_its_database_is_503(self, fragile_service: FragileService):
        grace = fragile_service.person()
        key = grace.has_key()
        broken = {
            "error": {
                "message": "Authentication Error, Can't reach database server",
                "type": "auth_error",
                "param": "None",
                "code": "400",
            }
        }
        fragile_service.gateway_faults.inject("/key/update", "status", status=400, body=broken, times=2)

        assert_asks_to_retry(grace.update(key["id"], {"tpmLimit": 2}))

        assert fragile_service.operations_of(key["id"])[-1] == ("update", "pending")
        assert unsafe_until(fragile_service, key["id"]) is None


class TestWithoutAnAnswer:
    def test_is_503_and_the_row_stays_until_litellm_has_it(self, settling_service: FragileService):
        grace = settling_service.person()
        key = grace.has_key(tpmLimit=1)
        settling_service.gateway_faults.inject("/key/update", "reset_before")

        assert_asks_to_retry(grace.update(key["id"], {"tpmLimit": 2}))

        row = settling_service.key_row(key["id"])
        assert row is not None
        assert row["tpm_limit"] == 1
        assert grace.status_of(key["id"]) == "active"
        settling_service.make_due(key["id"])
        report = settling_service.settle()
        assert (report["attempted"], report["settled"]) == (1, 1)
        row = settling_service.key_row(key["id"])
        known = settling_service.gateway_key(hash_of(key["key"]))
        assert row is not None
        assert known is not None
        assert (row["tpm_limit"], known["tpm_limit"]) == (2, 2)
        # What was lost may still come: it stays marked.
        assert unsafe_until(settling_service, key["id"]) is not None

    def test_that_comes_late_is_corrected(self, settling_service: FragileService):
        grace = settling_service.person()
        key = grace.has_key(tpmLimit=1)
        lost = settling_service.gateway_faults.inject("/key/update", "late")
        assert_asks_to_retry(grace.update(key["id"], {"tpmLimit": 2}))
        settling_service.make_due(key["id"])

        assert grace.update(key["id"], {"tpmLimit": 3}).status_code == 200
        lost.release()
        assert lost.wait()
        known = settling_service.gateway_key(hash_of(key["key"]))
        assert known is not None
        assert known["tpm_limit"] == 2
        settling_service.rows(
            "UPDATE api_key_tokens SET settings_unsafe_until = now() WHERE api_key_id = %(id)s", id=key["id"]
        )
        assert settling_service.settle()["settled"] == 1

        known = settling_service.gateway_key(hash_of(key["key"]))
        assert known is not None
        assert known["tpm_limit"] == 3
        assert unsafe_until(settling_service, key["id"]) is None
        assert settling_service.operations_of(key["id"]) == [
            ("create", "done"),
            ("update", "superseded"),
            ("update", "done"),
            ("update", "done"),
        ]
        records = [(record["success"], record["error_message"]) for record in updates_of(settling_service, key["id"])]
        assert records == [(False, "superseded by a later change"), (True, None), (True, None)]
        assert settling_service.settle()["attempted"] == 0

    def test_holds_up_the_next_change_while_its_lease_runs(self, fragile_service: FragileService):
        grace = fragile_service.person()
        key = grace.has_key()
        fragile_service.gateway_faults.inject("/key/update", "reset_before")
        grace.update(key["id"], {"tpmLimit": 2})
        fragile_service.rows(
            "UPDATE api_key_operations SET lease_until = now() + interval '1 minute' WHERE api_key_id = %(id)s"
            " AND state = 'pending'",
            id=key["id"],
        )

        answer = grace.update(key["id"], {"tpmLimit": 3})
        reset = fragile_service.call(
            "POST", f"{KEYS}/{key['id']}/reset-spend", token=fragile_service.person(roles=["admin"]).token
        )

        for refused in (answer, reset):
            error_of(refused, status=409, code="OPERATION_IN_PROGRESS")
            assert refused.headers["retry-after"] == "5"

    def test_is_undone_by_the_same_values_as_before(self, fragile_service: FragileService):
        """Equal to the row is not equal to what LiteLLM may hold."""
        grace = fragile_service.person()
        key = grace.has_key(tpmLimit=1)
        fragile_service.gateway_faults.inject("/key/update", "reset_after")
        assert_asks_to_retry(grace.update(key["id"], {"tpmLimit": 2}))
        fragile_service.make_due(key["id"])

        assert grace.update(key["id"], {"tpmLimit": 1}).status_code == 200

        known = fragile_service.gateway_key(hash_of(key["key"]))
        assert known is not None
        assert known["tpm_limit"] == 1

    def test_is_taken_over_by_a_delete(self, fragile_service: FragileService):
        grace = fragile_service.person()
        key = grace.has_key()
        fragile_service.gateway_faults.inject("/key/update", "reset_before")
        grace.update(key["id"], {"tpmLimit": 2})

        assert grace.delete(key["id"]).status_code == 200

        assert fragile_service.operations_of(key["id"]) == [
            ("create", "done"),
            ("update", "superseded"),
            ("delete", "done"),
        ]
        assert fragile_service.audit_of_key(key["id"]) == [
            ("API_KEY_CREATE", True),
            ("API_KEY_UPDATE", False),
            ("API_KEY_DELETE", True),
        ]

    def test_of_a_row_that_vanished_becomes_the_end_of_the_key(self, settling_service: FragileService):
        grace = settling_service.person()
        key = grace.has_key()
        settling_service.gateway_faults.inject("/key/update", "reset_before")
        grace.update(key["id"], {"tpmLimit": 2})
        settling_service.rows("DELETE FROM api_keys WHERE id = %(id)s", id=key["id"])
        settling_service.make_due(key["id"])

        settling_service.settle()

        assert settling_service.gateway_key(hash_of(key["key"])) is None
        assert settling_service.token_of(key["id"])["state"] == "dead"
        operations = settling_service.operations_of(key["id"])
        assert operations[-1] == ("delete", "done")
        assert ("update", "done") not in operations


class TestKeyOfLiteMaaS:
    def test_is_changed_by_its_hash(self, service: Service, alice: Person):
        secret = "sk-made-by-litemaas-itself"
        service.gateway("POST", "/key/generate", json={"key": secret, "models": ["gpt-4o"], "metadata": {"theirs": 1}})
        [row] = service.rows(
            "INSERT INTO api_keys (user_id, name, key_hash, key_prefix, sync_status)"
            " VALUES (%(user)s, 'old', %(hash)s, 'sk-made', 'synced') RETURNING id",
            user=alice.user_id,
            hash=hash_of(secret),
        )
        service.rows("INSERT INTO api_key_models (api_key_id, model_id) VALUES (%(id)s, 'gpt-4o')", id=row["id"])

        answer = alice.update(str(row["id"]), {"tpmLimit": 5})

        assert answer.status_code == 200, answer.text
        known = service.gateway_key(hash_of(secret))
        assert known is not None
        assert (known["tpm_limit"], known["metadata"]["theirs"]) == (5, 1)
        assert service.token_of(str(row["id"]))["state"] == "live"


def _in_days(days: int) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat()
