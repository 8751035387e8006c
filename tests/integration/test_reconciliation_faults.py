"""Reconcile when something fails, when two run at once, and when the database is not the one it was."""

import json
import threading
from typing import Any, Literal

import boto3
import pytest

from keyservice.report_archive import ReportArchive
from tests.integration.reconciling import Reconciler, seen
from tests.integration.service import Service, hash_of


@pytest.fixture
def reconciler(service: Service) -> Reconciler:
    return Reconciler(service)


class TestBrake:
    @pytest.mark.parametrize(
        ("parameters", "brake"),
        [({"stack_name": "keyservice-clone"}, "otherStack"), ({"litellm_url": "http://other.test"}, "otherGateway")],
        ids=["stack", "url"],
    )
    def test_in_a_clone_nothing_is_healed(self, parameters: dict[str, Any], brake: str, reconciler: Reconciler):
        orphan, missing, drift = reconciler.make_orphan(), reconciler.make_missing(), reconciler.make_drift()

        reports = [reconciler.run(**parameters) for _ in range(3)]

        assert [(report.brake, report.healed, report.is_complete) for report in reports] == [(brake, {}, True)] * 3
        assert seen(reports[2]) == {
            "orphan": [orphan],
            "missing": [hash_of(missing.key)],
            "drift": [hash_of(drift.key)],
        }
        assert reconciler.is_live(orphan)
        assert reconciler.heal_audits() == []

    def test_in_mode_report_nothing_is_healed(self, reconciler: Reconciler):
        orphan, missing, _ = reconciler.make_orphan(), reconciler.make_missing(), reconciler.make_drift()

        reports = [reconciler.run(mode="report") for _ in range(3)]

        assert [(report.brake, report.healed) for report in reports] == [(None, {})] * 3
        assert reports[2].findings["orphan"].due == 1
        assert reconciler.is_live(orphan)
        assert reconciler.row(missing.id) == (True, "synced", None)
        assert reconciler.heal_audits() == []

    def test_more_heals_than_allowed_are_not_made_at_all(self, reconciler: Reconciler):
        orphans = [reconciler.make_orphan(), reconciler.make_orphan()]
        reconciler.make_drift()
        reconciler.run(mode="report")

        above, within = reconciler.run(max_heals=2), reconciler.run(max_heals=3)

        assert (above.brake, above.healed) == ("tooMany", {})
        assert (within.brake, within.healed) == (None, {"orphan": 2, "drift": 1})
        assert not any(reconciler.is_live(token_hash) for token_hash in orphans)

    def test_a_missing_key_that_is_marked_already_does_not_count(self, reconciler: Reconciler):
        reconciler.make_missing()
        reconciler.run(max_heals=1)
        reconciler.make_missing()

        report = reconciler.run(max_heals=1)

        assert (report.brake, report.healed, report.findings["missing"].seen) == (None, {"missing": 1}, 2)


class TestRestoredDump:
    """A hash that the database never heard of proves that it is not the database that made the key."""

    def test_no_key_dies(self, reconciler: Reconciler, service: Service):
        old, doomed, drifting = service.create(), service.create(), service.create()
        reconciler.dump()
        new = [service.create(), service.create()]
        service.delete(doomed.id)
        reconciler.change(hash_of(drifting.key), max_budget=7.0)
        reconciler.restore()

        reports = [reconciler.run() for _ in range(4)]

        newer = sorted(hash_of(issued.key) for issued in new)
        assert [(report.brake, report.healed) for report in reports] == [("unknownKeys", {})] * 4
        assert [sorted(report.findings["unknown"].hashes) for report in reports] == [newer] * 4
        assert [service.chat(issued.key) for issued in (old, drifting, *new)] == [200] * 4
        assert service.gateway_key(hash_of(drifting.key))["max_budget"] == 7
        assert reports[3].findings["missing"].hashes == [hash_of(doomed.key)]
        assert reconciler.heal_audits() == []

    def test_what_was_over_at_the_dump_is_over_still(self, reconciler: Reconciler):
        orphan = reconciler.make_orphan()
        reconciler.run()
        reconciler.dump()
        reconciler.restore()

        report = reconciler.run()

        assert (report.brake, report.healed) == (None, {"orphan": 1})
        assert not reconciler.is_live(orphan)

    def test_a_key_deleted_since_is_marked_missing(self, reconciler: Reconciler, service: Service):
        issued = service.create()
        reconciler.dump()
        service.delete(issued.id)
        reconciler.restore()

        report = reconciler.run()

        assert report.healed == {"missing": 1}
        assert reconciler.row(issued.id) == (True, "error", "LiteLLM has no such key")

    def test_a_heal_that_was_under_way_at_the_dump_is_not_gone_on_with(self, reconciler: Reconciler, service: Service):
        drifting = reconciler.make_drift()
        service.gateway_faults.inject("/key/update", "reset_before")
        reconciler.run()
        reconciler.dump()
        service.create()
        reconciler.restore()

        report = reconciler.run()

        assert (report.brake, report.healed) == ("unknownKeys", {})
        assert service.gateway_key(hash_of(drifting.key))["max_budget"] == 1000

    def test_a_pass_that_was_under_way_at_the_dump_does_not_hide_the_newer_keys(
        self, reconciler: Reconciler, service: Service
    ):
        reconciler.make_drift()
        reconciler.dump()
        unknown = reconciler.make_unknown()
        reconciler.restore()
        service.rows(
            "UPDATE keyservice_reconciliation SET stage = 'compare', page = 2, after_hash = 'f', advanced_at = now()"
        )

        report = reconciler.run()

        assert (report.brake, report.healed, "unknown" in report.findings) == ("unknownKeys", {}, False)
        assert reconciler.is_live(unknown)

    def test_once_an_operator_has_said_that_they_are_over_they_are_deleted(
        self, reconciler: Reconciler, service: Service
    ):
        unknown = reconciler.make_unknown()
        reconciler.run()
        service.rows(
            """
            INSERT INTO api_key_tokens (hash, api_key_id, user_id, state)
            VALUES (%s, gen_random_uuid(), gen_random_uuid(), 'dead')
            """,
            [unknown],
        )

        healed = [reconciler.run().healed for _ in range(2)]

        assert healed == [{}, {"orphan": 1}]
        assert not reconciler.is_live(unknown)
        assert reconciler.heal_audits() == ["API_KEY_ORPHAN_DELETED"]


class TestCutHeal:
    """Whatever is cut, a heal is finished by the next run, and audited exactly once."""

    @pytest.mark.parametrize("fault", ["reset_before", "reset_after", "status"])
    def test_of_an_orphan_by_litellm(self, fault: Any, reconciler: Reconciler, service: Service):
        token_hash = reconciler.make_orphan()
        reconciler.run()
        service.gateway_faults.inject("/key/delete", fault)

        cut, finished, after = (reconciler.run() for _ in range(3))

        assert (cut.healed, cut.failed, cut.is_complete) == ({}, 1, True)
        assert (finished.healed, finished.failed, after.healed) == ({"orphan": 1}, 0, {})
        assert not reconciler.is_live(token_hash)
        assert reconciler.heal_audits() == ["API_KEY_ORPHAN_DELETED"]

    @pytest.mark.parametrize("fault", ["reset_before", "reset_after", "status"])
    def test_of_a_drift_by_litellm(self, fault: Any, reconciler: Reconciler, service: Service):
        issued = reconciler.make_drift()
        service.gateway_faults.inject("/key/update", fault)

        cut, finished, after = (reconciler.run() for _ in range(3))

        assert (cut.healed, cut.failed) == ({}, 1)
        assert (finished.healed, finished.failed, after.healed) == ({"drift": 1}, 0, {})
        assert service.gateway_key(hash_of(issued.key))["max_budget"] is None
        assert reconciler.heal_audits() == ["API_KEY_DRIFT_CORRECTED"]

    @pytest.mark.parametrize("cut", ["cut_before", "cut_after"])
    @pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
    @pytest.mark.parametrize(
        "step",
        ["claim_orphan", "finish_orphan", "claim_drift", "finish_drift", "mark_missing", "record_findings"],
    )
    def test_by_the_database(
        self,
        step: str,
        times: int,
        cut: Literal["cut_before", "cut_after"],
        reconciler: Reconciler,
        service: Service,
    ):
        orphan, drift, missing = reconciler.make_orphan(), reconciler.make_drift(), reconciler.make_missing()
        reconciler.run(mode="report")
        getattr(service.database_faults, cut)(step, times=times)

        reports = [reconciler.run() for _ in range(3)]

        assert [report.is_complete for report in reports] == [times == 1, True, True]
        assert reconciler.heal_audits() == ["API_KEY_DRIFT_CORRECTED", "API_KEY_MISSING", "API_KEY_ORPHAN_DELETED"]
        assert not reconciler.is_live(orphan)
        assert service.gateway_key(hash_of(drift.key))["max_budget"] is None
        assert reconciler.row(missing.id)[1] == "error"
        assert service.rows("SELECT hash FROM keyservice_findings WHERE state = 'healing'") == []

    def test_of_a_drift_whose_key_was_deleted_since_ends_unconfirmed(self, reconciler: Reconciler, service: Service):
        issued = reconciler.make_drift()
        service.gateway_faults.inject("/key/update", "reset_before")
        reconciler.run()
        service.delete(issued.id)

        healed = [reconciler.run().healed for _ in range(2)]

        assert healed == [{}, {}]
        [audit] = reconciler.audits("API_KEY_DRIFT_CORRECTED")
        assert audit["success"] is False

    def test_one_that_litellm_refuses_holds_up_no_other(self, reconciler: Reconciler, service: Service):
        refused, healed = reconciler.make_drift(), reconciler.make_drift()
        service.gateway_faults.inject(
            "/key/update", "status", times=0, status=400, matches=lambda body: body["key"] == hash_of(refused.key)
        )

        reports = [reconciler.run() for _ in range(3)]

        assert [(report.healed, report.failed) for report in reports] == [({"drift": 1}, 1), ({}, 1), ({}, 1)]
        assert service.gateway_key(hash_of(healed.key))["max_budget"] is None


class TestCutRun:
    @pytest.mark.parametrize("fault", ["reset_before", "reset_after", "status"])
    def test_litellm_fails_while_keys_are_compared(self, fault: Any, reconciler: Reconciler, service: Service):
        orphan, missing = reconciler.make_orphan(), reconciler.make_missing()
        reconciler.run(mode="report")
        service.gateway_faults.inject("/key/list", "delay", seconds=0)  # the look at the newest
        service.gateway_faults.inject("/key/list", fault)

        report = reconciler.run()

        assert (report.is_complete, report.healed) == (False, {})
        assert (report.interruption or "").startswith("key/list: ")
        assert reconciler.is_live(orphan)
        assert reconciler.row(missing.id) == (True, "synced", None)
        assert len(service.rows("SELECT hash FROM keyservice_findings")) == 2

    def test_litellm_fails_at_once(self, reconciler: Reconciler, service: Service):
        orphan = reconciler.make_orphan()
        reconciler.run()
        service.gateway_faults.inject("*", "reset_before", times=0)

        report = reconciler.run()

        assert (report.is_complete, report.healed, report.pass_number) == (False, {}, 0)
        assert reconciler.is_live(orphan)

    def test_litellm_fails_while_healing(self, reconciler: Reconciler, service: Service):
        orphan = reconciler.make_orphan()
        reconciler.run()
        service.gateway_faults.inject("/key/info", "reset_before")

        cut, healed = reconciler.run(), reconciler.run()

        assert (cut.failed, cut.healed) == (1, {})
        assert healed.healed == {"orphan": 1}
        assert not reconciler.is_live(orphan)

    def test_the_database_fails(self, reconciler: Reconciler, service: Service):
        service.database_faults.refuse_connections()
        service.database.close()

        report = reconciler.run()

        assert (report.is_complete, report.interruption) == (False, "DatabaseUnavailable")

    def test_no_time_is_left(self, reconciler: Reconciler):
        orphan = reconciler.make_orphan()
        reconciler.run()

        report = reconciler.run(seconds=0)

        assert (report.is_complete, report.healed) == (False, {})
        assert reconciler.is_live(orphan)

    def test_the_time_kept_for_the_end_is_not_spent(self, reconciler: Reconciler, service: Service):
        service.create()

        report = reconciler.run(seconds=30, reserve_seconds=30)

        assert (report.is_complete, report.keys_compared) == (False, 0)

    def test_a_pass_cut_while_healing_is_gone_on_with(self, reconciler: Reconciler, service: Service):
        orphan = reconciler.make_orphan()
        reconciler.run()
        service.database_faults.cut_before("claim_orphan", times=2)
        cut = reconciler.run()
        service.gateway_faults.forget_calls()

        report = reconciler.run()

        assert (cut.is_complete, report.pass_number) == (False, cut.pass_number)
        assert report.healed == {"orphan": 1}
        assert len(service.gateway_faults.calls_of("/key/list")) == 1
        assert not reconciler.is_live(orphan)

    def test_a_pass_that_was_cut_long_ago_is_not_gone_on_with(self, reconciler: Reconciler, service: Service):
        service.gateway_faults.inject("/key/list", "delay", seconds=0)
        service.gateway_faults.inject("/key/list", "status")
        cut = reconciler.run()
        service.rows("UPDATE keyservice_reconciliation SET advanced_at = now() - interval '61 minutes'")

        report = reconciler.run()

        assert report.pass_number == cut.pass_number + 1


def test_two_runs_at_once_do_no_harm(reconciler: Reconciler, service: Service):
    orphans = [reconciler.make_orphan() for _ in range(3)]
    drifts = [reconciler.make_drift() for _ in range(3)]
    missing = [reconciler.make_missing() for _ in range(3)]
    reconciler.run(mode="report")
    together, healed = threading.Barrier(3), [0, 0, 0]

    def run(place: int) -> None:
        together.wait(timeout=30)
        healed[place] = sum(reconciler.run(fresh=True).healed.values())

    threads = [threading.Thread(target=run, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    reconciler.run()

    assert reconciler.heal_audits() == (
        ["API_KEY_DRIFT_CORRECTED"] * 3 + ["API_KEY_MISSING"] * 3 + ["API_KEY_ORPHAN_DELETED"] * 3
    )
    assert not any(reconciler.is_live(token_hash) for token_hash in orphans)
    assert [service.gateway_key(hash_of(issued.key))["max_budget"] for issued in drifts] == [None] * 3
    assert [reconciler.row(issued.id)[1] for issued in missing] == ["error"] * 3


class TestReport:
    def test_metrics_say_what_was_found_and_done(self, reconciler: Reconciler, capsys: pytest.CaptureFixture[str]):
        reconciler.make_orphan()
        reconciler.make_missing()
        reconciler.make_drift()
        reconciler.make_stranger(key_alias=f"{reconciler.mark}:a:1")
        capsys.readouterr()

        reconciler.run()

        [metrics] = [line for line in emf_lines(capsys) if "Orphans" in line]
        assert {name: metrics[name] for name in METRICS} == {
            "Orphans": [1.0],
            "Missing": [1.0],
            "Drift": [1.0],
            "Unknown": [0.0],
            "Healed": [2.0],
            "HealsFailed": [0.0],
            "BrakePulled": [0.0],
            "ReconcileIncomplete": [0.0],
            "KeysCompared": [2.0],
        }
        assert metrics["ReconcileDuration"][0] > 0

    def test_metrics_tell_a_brake_and_an_interruption(
        self, reconciler: Reconciler, service: Service, capsys: pytest.CaptureFixture[str]
    ):
        reconciler.make_unknown()
        service.gateway_faults.inject("/key/list", "delay", seconds=0)
        service.gateway_faults.inject("/key/list", "status")
        capsys.readouterr()

        reconciler.run()

        [metrics] = [line for line in emf_lines(capsys) if "Orphans" in line]
        assert (metrics["BrakePulled"], metrics["ReconcileIncomplete"]) == ([1.0], [1.0])

    def test_names_no_more_than_a_hundred_keys_of_a_kind(self, reconciler: Reconciler, service: Service):
        service.rows(
            """
            INSERT INTO keyservice_findings (hash, kind, first_pass, last_pass)
            SELECT lpad(to_hex(n), 64, '0'), 'foreign', 1, 1 FROM generate_series(1, 150) AS n
            """
        )
        service.rows("UPDATE keyservice_reconciliation SET pass = 1, stage = 'heal', advanced_at = now()")

        report = reconciler.run()

        assert (report.findings["foreign"].seen, len(report.findings["foreign"].hashes)) == (150, 100)

    def test_is_kept_in_the_bucket(self, reconciler: Reconciler):
        reconciler.make_missing()
        bucket = boto3.client("s3")
        bucket.create_bucket(Bucket="reports", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})

        report = reconciler.run(archive=ReportArchive("reports"))

        kept = bucket.get_object(Bucket="reports", Key=f"reports/{report.started_at}.json")
        told: dict[str, Any] = json.loads(kept["Body"].read())
        assert kept["ContentType"] == "application/json"
        assert (told["mode"], told["isComplete"], told["healed"]) == ("heal", True, {"missing": 1})

    def test_that_the_bucket_refuses_costs_nothing_but_a_line(self, reconciler: Reconciler):
        report = reconciler.run(archive=ReportArchive("there-is-no-such-bucket"))

        assert report.is_complete


METRICS = [
    "Orphans",
    "Missing",
    "Drift",
    "Unknown",
    "Healed",
    "HealsFailed",
    "BrakePulled",
    "ReconcileIncomplete",
    "KeysCompared",
]


def emf_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
