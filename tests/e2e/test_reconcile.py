"""Reconcile as the schedule calls it: its role, its settings, its answer and its traces."""

from local.function_log import objects_in
from tests.e2e.service import Person, Service, hash_of


def test_a_run_reports_and_touches_nothing_by_default(service: Service, alice: Person):
    created = alice.create({"modelIds": ["gpt-4o"], "name": "compared"}).json()

    report = service.stack.invoke("Reconcile", {})

    assert (report["mode"], report["isComplete"], report["healed"]) == ("report", True, {})
    assert report["keysCompared"] >= 1
    compared_badly = [kind for kind, found in report["findings"].items() if hash_of(created["key"]) in found["hashes"]]
    assert compared_badly == []
    assert service.use(created["key"]) == 200


def test_a_run_leaves_one_line_and_its_metrics_in_the_log(service: Service):
    before = len(service.stack.log_path.read_text())

    report = service.stack.invoke("Reconcile", {})

    lines = list(objects_in(service.stack.log_path.read_text()[before:]))
    [told] = [line for line in lines if line.get("job") == "reconcile"]
    assert {name: told.get(name) for name in report} == report
    [metrics] = [line for line in lines if "KeysCompared" in line]
    assert metrics["ReconcileIncomplete"] == [0.0]
