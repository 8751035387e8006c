"""Teams, tags, permissions and limits per model: from the request to both systems, and back."""

from collections.abc import Callable
from typing import Any

import pytest

from keyservice.errors import GatewayRefused, InvalidRequest, OperationPending
from keyservice.models import Permissions
from tests.integration.reconciling import Reconciler, seen
from tests.integration.service import Service, Traces, hash_of

EVERY_FIELD: dict[str, Any] = {
    "model_ids": ["gpt-4o", "gpt-4o-mini"],
    "permissions": Permissions(allow_chat_completions=True, allow_embeddings=False),
    "tags": ["prod", "billing"],
    "model_rpm_limit": {"gpt-4o": 3},
    "model_tpm_limit": {"gpt-4o-mini": 1000},
}
UNDONE = Traces(
    row=None, tokens=[("dead", False)], operations=[("create", "undo", "failed")], audits=[("API_KEY_CREATE", False)]
)


def refused_rules(service: Service, **body: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        service.create(**body)
    assert service.rows("SELECT FROM api_keys") == service.rows("SELECT FROM api_key_operations") == []
    assert service.gateway_faults.calls_of("/key/generate") == []
    return [(violation.field, violation.code) for violation in caught.value.details["validation"]]


def told_of(service: Service, token_hash: str) -> dict[str, Any]:
    """What LiteLLM has of the fields, in its own words."""
    key = service.gateway_key(token_hash)
    kept = {name: key["metadata"].get(name) for name in ("tags", "model_rpm_limit", "model_tpm_limit")}
    return {"team_id": key["team_id"], "permissions": key["permissions"], **kept}


class TestKeyWithEveryField:
    def test_has_them_in_litellm_in_the_row_and_in_the_list(self, service: Service):
        team_id = service.make_team("alice")
        lite_llm_team_id = service.value("SELECT lite_llm_team_id FROM teams")

        issued = service.create(team_id=str(team_id), **EVERY_FIELD)

        assert told_of(service, hash_of(issued.key)) == {
            "team_id": lite_llm_team_id,
            "permissions": {"allow_chat_completions": True, "allow_embeddings": False},
            "tags": ["prod", "billing"],
            "model_rpm_limit": {"gpt-4o": 3},
            "model_tpm_limit": {"gpt-4o-mini": 1000},
        }
        assert service.chat(issued.key) == 200
        [row] = service.rows("SELECT * FROM api_keys")
        assert (row["team_id"], row["lite_llm_team_id"]) == (team_id, lite_llm_team_id)
        assert row["permissions"] == {"allowChatCompletions": True, "allowEmbeddings": False}
        assert (row["tags"], row["model_rpm_limit"], row["model_tpm_limit"]) == (
            ["prod", "billing"],
            {"gpt-4o": 3},
            {"gpt-4o-mini": 1000},
        )
        [listed] = service.list_keys().data
        assert (listed.team_id, listed.tags) == (team_id, ["prod", "billing"])
        assert listed.permissions == {"allowChatCompletions": True, "allowEmbeddings": False}
        assert (listed.model_rpm_limit, listed.model_tpm_limit) == ({"gpt-4o": 3}, {"gpt-4o-mini": 1000})

    def test_is_resumed_with_all_of_them(self, service: Service):
        """LiteLLM has made a key that differs in each: the row wins."""
        team_id = str(service.make_team("alice"))
        service.gateway_faults.inject("/key/generate", "reset_after")
        with pytest.raises(OperationPending):
            service.ask_for_key(idempotency_key="once", team_id=team_id, **EVERY_FIELD)
        token_hash = service.token_hash()
        wanted = told_of(service, token_hash)
        metadata = {"keyservice": service.gateway_key(token_hash)["metadata"]["keyservice"], "others": True}
        change = {"key": token_hash, "metadata": metadata, "permissions": {}}
        assert service._ask("POST", "/key/update", body=change).status_code == 200
        service.let_time_pass()

        created = service.ask_for_key(idempotency_key="once", team_id=team_id, **EVERY_FIELD)

        assert created.is_replayed
        assert told_of(service, token_hash) == wanted
        assert service.gateway_key(token_hash)["metadata"]["others"] is True

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"model_rpm_limit": {"gpt-4o": 999}}, "model_rpm_limit"),
            ({"model_tpm_limit": {}}, "model_tpm_limit"),
            ({"permissions": {}}, "permissions"),
            ({"team_id": None}, "team_id"),
        ],
    )
    def test_whose_field_somebody_changed_in_litellm_is_a_drift(
        self, service: Service, change: dict[str, Any], field: str
    ):
        reconciler = Reconciler(service)
        lite_llm_team_id = _team_in_litellm_with_alice(service)
        team_id = service.make_team("alice", gateway_id=lite_llm_team_id)
        token_hash = hash_of(service.create(team_id=str(team_id), **EVERY_FIELD).key)
        before = service.gateway_key(token_hash)
        reconciler.change(token_hash, **change)

        reports = [reconciler.run() for _ in range(2)]

        assert [seen(report) for report in reports] == [{"drift": [token_hash]}, {}]
        after = service.gateway_key(token_hash)
        assert {name: after[name] for name in ("team_id", "permissions", "metadata")} == {
            name: before[name] for name in ("team_id", "permissions", "metadata")
        }
        [audit] = reconciler.audits("API_KEY_DRIFT_CORRECTED")
        assert audit["metadata"]["fields"] == [field]

    def test_whose_tags_somebody_changed_gets_them_back_and_others_metadata_stays(self, service: Service):
        reconciler = Reconciler(service)
        token_hash = hash_of(service.create(metadata={"mine": 1}, **EVERY_FIELD).key)
        before = service.gateway_key(token_hash)["metadata"]
        reconciler.change(token_hash, metadata=before | {"tags": ["free"], "user": {}, "logging": "theirs"})

        report = reconciler.run()

        assert report.healed == {"drift": 1}
        assert service.gateway_key(token_hash)["metadata"] == before | {"logging": "theirs"}

    def test_written_oddly_beside_us_does_not_stop_a_pass(self, service: Service):
        reconciler = Reconciler(service)
        service.create()
        service.rows(
            "UPDATE api_keys SET permissions = '[1]', model_rpm_limit = '7', metadata = 'null', tags = ARRAY[NULL, 'a']"
        )

        report = reconciler.run()

        assert (report.is_complete, report.healed) == (True, {"drift": 1})


def _team_in_litellm_with_alice(service: Service) -> str:
    """LiteLLM lets a key come back only into a team that its user is in."""
    alice = str(service.value("SELECT id FROM users WHERE oauth_id = 'alice'"))
    members = [{"role": "user", "user_id": alice}]
    answer = service._ask("POST", "/team/new", body={"members_with_roles": members})
    assert answer.status_code == 200, answer.text
    return answer.json()["team_id"]


class TestTeam:
    def test_may_be_named_as_litellm_knows_it(self, service: Service):
        team_id = service.make_team("alice")

        service.create(team_id=service.value("SELECT lite_llm_team_id FROM teams"))

        assert service.value("SELECT team_id FROM api_keys") == team_id

    @pytest.mark.parametrize(
        ("make_team", "code"),
        [
            pytest.param(lambda _: "6f1c7d0e-0000-4000-8000-000000000000", "notMember", id="unknown"),
            pytest.param(lambda _: "blue'; --", "notMember", id="no id at all"),
            pytest.param(lambda service: service.make_team("bob"), "notMember", id="of others"),
            pytest.param(lambda service: service.make_team("alice", role="viewer"), "notMember", id="only to be seen"),
            pytest.param(lambda service: service.make_team("alice", gateway_id=""), "notLinked", id="not in LiteLLM"),
        ],
    )
    def test_that_the_caller_may_not_spend_for_is_refused(
        self, service: Service, make_team: Callable[[Service], Any], code: str
    ):
        service.subscribe("bob", models=[])

        assert refused_rules(service, team_id=str(make_team(service))) == [("teamId", code)]

    def test_that_is_closed_is_refused(self, service: Service):
        team_id = service.make_team("alice")
        service.rows("UPDATE teams SET is_active = false")

        assert refused_rules(service, team_id=str(team_id)) == [("teamId", "notMember")]

    def test_that_litellm_has_lost_is_refused_and_nothing_is_left(self, service: Service):
        team_id = service.make_team("alice", gateway_id="lost")

        with pytest.raises(GatewayRefused) as caught:
            service.create(team_id=str(team_id))

        assert caught.value.fields == ("teamId",)
        assert service.traces() == UNDONE
        assert service.gateway_faults.calls_of("/key/generate") == []

    @pytest.mark.parametrize("fault", ["reset_before", "hang", "status"])
    def test_that_litellm_says_nothing_about_leaves_a_pending_create_that_is_safe(self, service: Service, fault: Any):
        team_id = service.make_team("alice")
        service.gateway_faults.inject("/team/info", fault)

        with pytest.raises(OperationPending):
            service.create(team_id=str(team_id), seconds=0.5)

        assert service.traces().tokens == [("intended", False)]
        assert service.gateway_faults.calls_of("/key/generate") == []

    def test_left_while_the_key_was_being_made_undoes_it(self, service: Service):
        team_id = service.make_team("alice")
        service.gateway_faults.inject(
            "/key/generate", "call_before", call=lambda: service.rows("DELETE FROM team_members")
        )

        with pytest.raises(InvalidRequest):
            service.create(team_id=str(team_id))

        assert service.traces() == UNDONE
        assert not service.is_live(service.token_hash())


class TestLimitPerModel:
    def test_holds(self, service: Service):
        issued = service.create(model_rpm_limit={"gpt-4o": 1})

        assert [service.chat(issued.key) for _ in range(2)] == [200, 429]

    def test_of_a_model_that_is_not_the_keys_is_refused(self, service: Service):
        found = refused_rules(service, model_rpm_limit={"gpt-4": 1}, model_tpm_limit={"gpt-4o": 1, "o3": 1})

        assert found == [("modelRpmLimit", "notSelected"), ("modelTpmLimit", "notSelected")]

    def test_above_the_maximum_is_refused(self, service: Service):
        service.rows(
            "INSERT INTO system_settings (key, value)"
            """ VALUES ('api_key_defaults', '{"maximums": {"tpmLimit": 100, "rpmLimit": 5}}')"""
        )

        found = refused_rules(service, model_rpm_limit={"gpt-4o": 6}, model_tpm_limit={"gpt-4o": 101})

        assert found == [("modelRpmLimit", "maximum"), ("modelTpmLimit", "maximum")]
