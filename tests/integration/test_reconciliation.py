"""What reconcile takes for a finding, what it leaves alone, and how it heals."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from keyservice.errors import OperationPending
from tests.integration.reconciling import Reconciler, seen
from tests.integration.service import Service, hash_of

SYSTEM_USER_ID = UUID("00000000-0000-0000-0000-000000000001")
MISSING = (True, "error", "LiteLLM has no such key")
SYNCED = (True, "synced", None)


@pytest.fixture
def reconciler(service: Service) -> Reconciler:
    return Reconciler(service)


def test_systems_that_agree_are_found_to_agree(reconciler: Reconciler, service: Service):
    kept, deleted = service.create(max_budget=5, tpm_limit=10, expires_at=None), service.create()
    service.create(model_ids=["gpt-4o-mini", "gpt-4o"], budget_duration="yearly", max_budget=0.01)
    service.delete(deleted.id)

    report = reconciler.run()

    assert (report.is_complete, report.brake, report.findings, report.healed) == (True, None, {}, {})
    assert report.keys_compared == 2
    assert reconciler.row(kept.id) == SYNCED


class TestOrphan:
    def test_seen_once_is_left_alone(self, reconciler: Reconciler):
        token_hash = reconciler.make_orphan()

        report = reconciler.run()

        assert (seen(report), report.healed) == ({"orphan": [token_hash]}, {})
        assert reconciler.is_live(token_hash)

    def test_seen_twice_is_deleted_and_audited_once(self, reconciler: Reconciler):
        token_hash = reconciler.make_orphan()

        healed = [reconciler.run().healed for _ in range(3)]

        assert healed == [{}, {"orphan": 1}, {}]
        assert not reconciler.is_live(token_hash)
        [audit] = reconciler.audits("API_KEY_ORPHAN_DELETED")
        assert (audit["user_id"], audit["success"]) == (SYSTEM_USER_ID, True)
        assert audit["metadata"]["tokenHash"] == token_hash
        assert (audit["metadata"]["name"], audit["metadata"]["models"]) == ("notebook", ["gpt-4o"])
        assert audit["metadata"]["keyPrefix"].startswith("sk-lmk_")

    def test_is_left_alone_until_a_drain_has_passed(self, reconciler: Reconciler, service: Service):
        token_hash = reconciler.make_orphan()

        healed = [reconciler.run(drain_seconds=900).healed for _ in range(3)]
        service.rows("UPDATE keyservice_findings SET first_seen_at = first_seen_at - interval '900 seconds'")
        healed.append(reconciler.run(drain_seconds=900).healed)

        assert healed == [{}, {}, {}, {"orphan": 1}]
        assert not reconciler.is_live(token_hash)

    def test_is_deleted_when_it_is_blocked_too(self, reconciler: Reconciler):
        token_hash = reconciler.make_orphan(blocked=True)

        reconciler.run()
        reconciler.run()

        assert not reconciler.is_live(token_hash)

    def test_that_went_by_itself_is_forgotten(self, reconciler: Reconciler, service: Service):
        token_hash = reconciler.make_orphan()
        reconciler.run()
        reconciler.lose(token_hash)

        report = reconciler.run()

        assert (report.findings, report.healed) == ({}, {})
        assert service.rows("SELECT hash FROM keyservice_findings") == []

    def test_that_goes_between_the_two_looks_is_not_said_to_be_deleted(self, reconciler: Reconciler, service: Service):
        token_hash = reconciler.make_orphan()
        reconciler.run()
        service.gateway_faults.inject("/key/info", "call_before", call=lambda: reconciler.lose(token_hash))

        report = reconciler.run()

        assert report.healed == {}
        assert reconciler.heal_audits() == []

    def test_condemned_with_nobody_to_delete_it_is_deleted(self, reconciler: Reconciler, service: Service):
        token_hash = hash_of(service.create().key)
        service.rows("UPDATE api_key_tokens SET state = 'condemned'")
        service.rows("UPDATE api_keys SET is_active = false")

        reconciler.run()
        report = reconciler.run()

        assert report.healed == {"orphan": 1}
        assert not reconciler.is_live(token_hash)
        assert reconciler.token_state(token_hash) == "dead"

    def test_seen_again_after_it_was_gone_begins_anew(self, reconciler: Reconciler, service: Service):
        issued = service.create()
        service.delete(issued.id)
        token_hash = reconciler.revive(issued)
        reconciler.run()
        reconciler.lose(token_hash)
        reconciler.run()
        reconciler.revive(issued)

        report = reconciler.run()

        assert (seen(report), report.healed) == ({"orphan": [token_hash]}, {})


class TestInFlight:
    """What an operation is working on is no finding."""

    def test_a_create_that_was_not_answered(self, reconciler: Reconciler, service: Service):
        service.gateway_faults.inject("/key/generate", "reset_after")
        with pytest.raises(OperationPending):
            service.create()
        token_hash = service.token_hash()

        reports = [reconciler.run() for _ in range(3)]

        assert [report.findings for report in reports] == [{}] * 3
        assert reconciler.is_live(token_hash)
        assert reconciler.token_state(token_hash) == "intended"

    def test_a_create_that_litellm_has_not_heard_of(self, reconciler: Reconciler, service: Service):
        service.gateway_faults.inject("/key/generate", "reset_before")
        with pytest.raises(OperationPending):
            service.create()

        assert [reconciler.run().findings for _ in range(2)] == [{}, {}]

    def test_a_delete_that_was_not_confirmed(self, reconciler: Reconciler, service: Service):
        issued = service.create()
        service.gateway_faults.inject("/key/delete", "reset_before")
        service.delete(issued.id)

        assert [reconciler.run().findings for _ in range(3)] == [{}] * 3
        assert reconciler.is_live(hash_of(issued.key))

    def test_a_drift_while_an_operation_is_pending(self, reconciler: Reconciler, service: Service):
        issued = reconciler.make_drift()
        service.rows(
            """
            INSERT INTO api_key_operations
                (id, api_key_id, user_id, actor, kind, lease_until, next_attempt_at, key_prefix, models)
            SELECT gen_random_uuid(), id, user_id, '{}', 'update', now(), now(), key_prefix, '{}' FROM api_keys
            """
        )

        report = reconciler.run()

        assert (report.findings, report.keys_compared) == ({}, 0)
        assert service.gateway_key(hash_of(issued.key))["max_budget"] == 1000

    def test_a_key_made_while_litellms_page_is_on_its_way(self, reconciler: Reconciler, service: Service):
        service.create()
        service.gateway_faults.inject("/key/list", "delay", seconds=0)  # the look at the newest
        service.gateway_faults.inject("/key/list", "call_after", call=reconciler.create_meanwhile)

        report = reconciler.run()

        assert (report.findings, report.healed, report.keys_compared) == ({}, {}, 2)

    def test_a_key_deleted_while_litellms_page_is_on_its_way(self, reconciler: Reconciler, service: Service):
        issued = service.create()
        service.gateway_faults.inject("/key/list", "delay", seconds=0)
        service.gateway_faults.inject("/key/list", "call_after", call=lambda: reconciler.delete_meanwhile(issued.id))

        first, second = reconciler.run(), reconciler.run()

        assert seen(first) == {"orphan": [hash_of(issued.key)]}
        assert (second.findings, second.healed) == ({}, {})
        assert reconciler.heal_audits() == []


class TestStranger:
    """Keys that are not ours are never touched, whatever they look like."""

    @pytest.mark.parametrize(
        "look",
        [
            pytest.param(lambda _: {}, id="no-alias"),
            pytest.param(lambda mark: {"key_alias": f"eu-{mark}:a:1", "metadata": of(f"eu-{mark}")}, id="our-mark-is-its-suffix"),
            pytest.param(lambda mark: {"key_alias": f"{mark}2:a:1", "metadata": of(f"{mark}2")}, id="our-mark-begins-its"),
            pytest.param(lambda mark: {"key_alias": f"{mark.upper()}:b:1", "metadata": of(mark)}, id="other-case"),
            pytest.param(lambda mark: {"key_alias": f"x{mark}:b:1", "metadata": of(mark)}, id="our-metadata-only"),
            pytest.param(lambda mark: {"key_alias": mark, "metadata": of(mark)}, id="mark-without-colon"),
        ],
    )  # fmt: skip
    def test_is_not_even_seen(self, look: Any, reconciler: Reconciler):
        token_hash = reconciler.make_stranger(**look(reconciler.mark))

        reports = [reconciler.run() for _ in range(3)]

        assert [(report.findings, report.brake) for report in reports] == [({}, None)] * 3
        assert reconciler.is_live(token_hash)

    @pytest.mark.parametrize(
        "metadata",
        [{}, {"keyservice": "mark"}, {"keyservice": {"mark": "lmk-000000000000"}}, {"mark": "mark"}],
        ids=["none", "text", "other-mark", "elsewhere"],
    )
    def test_with_our_alias_alone_is_reported_and_left(self, metadata: dict[str, Any], reconciler: Reconciler):
        token_hash = reconciler.make_stranger(key_alias=f"{reconciler.mark}:a:1", metadata=metadata)

        reports = [reconciler.run() for _ in range(3)]

        assert [(seen(report), report.brake) for report in reports] == [({"foreign": [token_hash]}, None)] * 3
        assert reconciler.is_live(token_hash)

    def test_that_took_a_dead_keys_secret_without_our_metadata_is_left(self, reconciler: Reconciler):
        token_hash = reconciler.make_orphan(metadata={})

        reports = [reconciler.run() for _ in range(3)]

        assert [seen(report) for report in reports] == [{"foreign": [token_hash]}] * 3
        assert reconciler.is_live(token_hash)

    def test_that_lost_our_mark_between_the_two_looks_is_left(self, reconciler: Reconciler, service: Service):
        token_hash = reconciler.make_orphan()
        reconciler.run()
        service.gateway_faults.inject(
            "/key/info", "call_before", call=lambda: reconciler.change(token_hash, metadata={"kept": "by a person"})
        )

        report = reconciler.run()

        assert report.healed == {}
        assert reconciler.is_live(token_hash)


def of(mark: str) -> dict[str, Any]:
    return {"keyservice": {"mark": mark}}


class TestMissing:
    def test_is_marked_and_audited_once_and_not_made_again(self, reconciler: Reconciler):
        issued = reconciler.make_missing()

        reports = [reconciler.run() for _ in range(3)]

        assert [seen(report) for report in reports] == [{"missing": [hash_of(issued.key)]}] * 3
        assert [report.healed for report in reports] == [{"missing": 1}, {}, {}]
        assert reconciler.row(issued.id) == MISSING
        [audit] = reconciler.audits("API_KEY_MISSING")
        assert (audit["user_id"], audit["resource_id"]) == (SYSTEM_USER_ID, str(issued.id))
        assert not reconciler.is_live(hash_of(issued.key))
        assert reconciler.token_state(hash_of(issued.key)) == "live"

    def test_found_again_is_in_step_again(self, reconciler: Reconciler):
        issued = reconciler.make_missing()
        reconciler.run()
        reconciler.revive(issued)

        reports = [reconciler.run() for _ in range(2)]

        assert [report.healed for report in reports] == [{"found": 1}, {}]
        assert reconciler.row(issued.id) == SYNCED
        assert reconciler.heal_audits() == ["API_KEY_FOUND", "API_KEY_MISSING"]

    def test_found_again_with_other_settings_is_corrected_first(self, reconciler: Reconciler, service: Service):
        issued = reconciler.make_missing()
        reconciler.run()
        reconciler.revive(issued, max_budget=1000)

        healed = [reconciler.run().healed for _ in range(2)]

        assert healed == [{"drift": 1}, {"found": 1}]
        assert service.gateway_key(hash_of(issued.key))["max_budget"] is None
        assert reconciler.row(issued.id) == SYNCED

    def test_is_not_believed_of_a_key_that_only_the_list_left_out(self, reconciler: Reconciler, service: Service):
        issued = service.create()
        empty = {"keys": [], "total_count": 0, "current_page": 1, "total_pages": 0}
        service.gateway_faults.inject("/key/list", "status", times=2, status=200, body=empty)

        report = reconciler.run()

        assert (report.findings, report.keys_compared) == ({}, 1)
        assert reconciler.row(issued.id) == SYNCED

    def test_is_not_believed_of_a_key_whose_alias_somebody_changed(self, reconciler: Reconciler, service: Service):
        issued = service.create()
        reconciler.change(hash_of(issued.key), key_alias=f"renamed-{issued.id}")

        report = reconciler.run()

        assert report.findings == {}
        assert reconciler.row(issued.id) == SYNCED

    def test_is_not_believed_of_an_answer_that_is_not_litellms_own(self, reconciler: Reconciler, service: Service):
        issued = reconciler.make_missing()
        service.gateway_faults.inject("/key/info", "status", times=0, status=404, body="no such path")

        report = reconciler.run()

        assert (report.is_complete, report.interruption) == (False, "key/info: answered 404")
        assert reconciler.row(issued.id) == SYNCED

    def test_is_not_marked_on_a_row_that_changed_between_the_looks(self, reconciler: Reconciler, service: Service):
        issued = reconciler.make_missing()

        def touch() -> None:
            service.rows("UPDATE api_keys SET updated_at = now(), name = 'renamed'")

        service.gateway_faults.inject("/key/info", "delay", seconds=0)  # the first look
        service.gateway_faults.inject("/key/info", "call_before", call=touch)

        report = reconciler.run()

        assert report.healed == {}
        assert reconciler.row(issued.id) == SYNCED

    @pytest.mark.parametrize(
        "ended",
        ["is_active = false", "expires_at = now()", "expires_at = now() - interval '1 day'"],
        ids=["inactive", "just-expired", "expired"],
    )
    def test_is_not_said_of_a_row_that_is_over(self, ended: Any, reconciler: Reconciler, service: Service):
        reconciler.make_missing()
        service._admin.execute(f"UPDATE api_keys SET {ended}")  # type: ignore[arg-type]

        report = reconciler.run()

        assert (report.findings, report.keys_compared) == ({}, 0)

    def test_leaves_an_error_of_somebody_elses_as_it_is(self, reconciler: Reconciler, service: Service):
        issued = reconciler.make_missing()
        service.rows("UPDATE api_keys SET sync_status = 'error', sync_error = 'LiteMaaS says so'")

        first = reconciler.run()
        reconciler.revive(issued)
        second = reconciler.run()

        assert (seen(first), first.healed) == ({"missing": [hash_of(issued.key)]}, {})
        assert (second.findings, second.healed) == ({}, {})
        assert reconciler.row(issued.id) == (True, "error", "LiteMaaS says so")


class TestDrift:
    @pytest.mark.parametrize(
        ("changes", "fields"),
        [
            ({"max_budget": 1000.0}, ["max_budget"]),
            ({"max_budget": None}, ["max_budget"]),
            ({"models": ["gpt-4o", "gpt-4o-mini"]}, ["models"]),
            ({"tpm_limit": None, "rpm_limit": 7}, ["tpm_limit", "rpm_limit"]),
            ({"duration": "-1"}, ["expires"]),
            ({"duration": "1h"}, ["expires"]),
            ({"budget_duration": "1d"}, ["budget_duration"]),
        ],
        ids=["more-money", "no-limit", "more-models", "rates", "for-ever", "sooner", "budget-period"],
    )
    def test_the_row_wins(self, changes: dict[str, Any], fields: list[str], reconciler: Reconciler, service: Service):
        issued = service.create(max_budget=5, tpm_limit=10, expires_at=datetime.now(UTC) + timedelta(days=30))
        token_hash = hash_of(issued.key)
        before = service.gateway_key(token_hash)
        reconciler.change(token_hash, **changes)

        reports = [reconciler.run() for _ in range(2)]

        assert seen(reports[0]) == {"drift": [token_hash]}
        assert [report.healed for report in reports] == [{"drift": 1}, {}]
        assert reports[1].findings == {}
        after = service.gateway_key(token_hash)
        told = ["models", "max_budget", "tpm_limit", "rpm_limit", "budget_duration", "metadata", "key_alias"]
        assert {name: after[name] for name in told} == {name: before[name] for name in told}
        [audit] = reconciler.audits("API_KEY_DRIFT_CORRECTED")
        assert (audit["user_id"], audit["success"], audit["resource_id"]) == (SYSTEM_USER_ID, True, str(issued.id))
        assert audit["metadata"]["fields"] == fields
        assert set(audit["metadata"]) == {"userId", "tokenHash", "name", "keyPrefix", "fields"}

    @pytest.mark.parametrize("refused", ["a team without its owner", "a value"])
    def test_that_litellm_will_not_take_whole_is_corrected_as_far_as_it_will(
        self, refused: str, reconciler: Reconciler, service: Service
    ):
        if refused == "a value":
            token_hash = hash_of(service.create().key)
            service.rows("UPDATE api_keys SET budget_duration = '1y'")
        else:
            token_hash = hash_of(service.create(team_id=str(service.make_team("alice"))).key)
            reconciler.change(token_hash, team_id=None)
        reconciler.change(token_hash, max_budget=1000, metadata={})

        report = reconciler.run()

        assert (report.healed, report.failed) == ({}, 1)
        stored = service.gateway_key(token_hash)
        assert (stored["max_budget"], stored["budget_duration"], stored["team_id"]) == (None, None, None)

    def test_is_no_other_order_of_the_models(self, reconciler: Reconciler, service: Service):
        issued = service.create(model_ids=["gpt-4o", "gpt-4o-mini"])
        reconciler.change(hash_of(issued.key), models=["gpt-4o-mini", "gpt-4o"])

        assert reconciler.run().findings == {}

    def test_gone_at_the_second_look_is_not_corrected(self, reconciler: Reconciler, service: Service):
        issued = reconciler.make_drift()
        service.gateway_faults.inject(
            "/key/info", "call_before", call=lambda: reconciler.change(hash_of(issued.key), max_budget=None)
        )

        report = reconciler.run()

        assert (seen(report), report.healed) == ({"drift": [hash_of(issued.key)]}, {})
        assert service.gateway_faults.calls_of("/key/update") == []
        assert service.rows("SELECT hash FROM keyservice_findings") == []

    def test_of_a_row_that_changes_just_then_waits_for_the_next_run(self, reconciler: Reconciler, service: Service):
        reconciler.make_drift()

        service.database_faults.inject(
            "call_before", "claim_drift", call=lambda: service.rows("UPDATE api_keys SET updated_at = now()")
        )
        healed = [reconciler.run().healed for _ in range(2)]

        assert healed == [{}, {"drift": 1}]

    @pytest.mark.parametrize("ended", ["expires_at = now() - interval '1 day'", "is_active = false"])
    def test_of_a_row_that_is_over_is_left(self, ended: Any, reconciler: Reconciler, service: Service):
        issued = reconciler.make_drift()
        service._admin.execute(f"UPDATE api_keys SET {ended}")  # type: ignore[arg-type]

        report = reconciler.run()

        assert report.findings == {}
        assert service.gateway_key(hash_of(issued.key))["max_budget"] == 1000

    def test_of_a_key_whose_metadata_somebody_replaced_is_corrected_too(self, reconciler: Reconciler, service: Service):
        issued = reconciler.make_drift(max_budget=1000.0, metadata={})

        report = reconciler.run()

        assert report.healed == {"drift": 1}
        assert service.gateway_key(hash_of(issued.key))["max_budget"] is None
