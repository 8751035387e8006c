"""Comparing LiteLLM's keys with the database's and healing what differs, without ever trusting one look.

LiteLLM is read first and the database after, so that a key somebody is just making or ending is not mistaken. A pass
walks both in the order of the hashes, a page at a time; heals come after it, each with a second look and only while
no brake is pulled.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime

import msgspec

from keyservice import reconciliation_store as store
from keyservice import telemetry
from keyservice.database import Database
from keyservice.errors import GatewayRefused, GatewayUnavailable, Unavailable, reason
from keyservice.litellm import GatewayKey, LiteLLM
from keyservice.models import Brake, Deadline, FindingKind, FindingSummary, ReconcileMode, ReconcileReport, timestamp
from keyservice.provenance import Deployment, find_brake
from keyservice.report_archive import ReportArchive

# A page far into a million keys takes LiteLLM's database seconds to find.
_CALL_SECONDS = 30.0
# Keys that no page showed are asked for one by one, until so many were: then it is LiteLLM that lost them.
_CONFIRMATIONS = 1000


class ReconcileRules(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters as they are now. `drain_seconds`: how long a lost LiteLLM request may still come true; more heals
    than `max_heals` and 1 % of all keys are not made; `reserve_seconds` of its time a run keeps for its end."""

    mode: ReconcileMode
    deployment: Deployment
    drain_seconds: float
    max_heals: int
    reserve_seconds: float


class Reconciliation:
    def __init__(
        self, *, database: Database, litellm: LiteLLM, rules: ReconcileRules, archive: ReportArchive | None = None
    ) -> None:
        self._database = database
        self._litellm = litellm
        self._rules = rules
        self._archive = archive

    def run(self, *, deadline: Deadline) -> ReconcileReport:
        """Goes on with the pass an earlier run left, or makes a new one.

        Ends early, with what it found kept, when a backend fails or the deadline comes.
        """
        started, clock = datetime.now(UTC), time.perf_counter()
        run = _Run(database=self._database, litellm=self._litellm, rules=self._rules, deadline=deadline)
        interruption: str | None = None
        try:
            run.carry_out()
        except _OutOfTime:
            interruption = "no time left"
        except Unavailable as trouble:
            interruption = reason(trouble)
        report = _report(run, mode=self._rules.mode, started=started, interruption=interruption)
        _write_metrics(report, duration_ms=(time.perf_counter() - clock) * 1000)
        if self._archive is not None:
            self._archive.keep(report, name=report.started_at)
        return report


class _OutOfTime(Exception):
    """What is left waits for the next run."""


class _Run:
    """One run and what it has come to so far."""

    def __init__(self, *, database: Database, litellm: LiteLLM, rules: ReconcileRules, deadline: Deadline) -> None:
        self._database = database
        self._litellm = litellm
        self._rules = rules
        self._deadline = Deadline(deadline.remaining_seconds() - rules.reserve_seconds)
        self._confirmations = 0
        self.mark = ""
        self.progress: store.Progress | None = None
        self.brake: Brake | None = None
        self.findings: dict[FindingKind, FindingSummary] = {}
        self.healed: Counter[FindingKind] = Counter()
        self.failed = 0

    def carry_out(self) -> None:
        installation = store.read_installation(self._database)
        self.mark = installation.mark
        self.brake = find_brake(
            self._database,
            self._litellm,
            deployment=self._rules.deployment,
            installation=installation,
            deadline=self._call_deadline(),
        )
        progress = store.begin_pass(self._database)
        self.progress = progress
        if self._may_heal():
            self._finish_claimed()
        try:
            while progress.stage == "compare":
                self.progress = progress = self._compare_page(progress)
            store.forget_unseen(self._database, pass_number=progress.pass_number)
        finally:
            self.findings = store.summarize(
                self._database, pass_number=progress.pass_number, drain_seconds=self._rules.drain_seconds
            )
        self.brake = self.brake or self._overdone(progress)
        if self._may_heal():
            self._heal_due(progress.pass_number)
        store.save_progress(self._database, msgspec.structs.replace(progress, stage="done"))

    def _may_heal(self) -> bool:
        return self._rules.mode == "heal" and self.brake is None

    def _overdone(self, progress: store.Progress) -> Brake | None:
        if self._seen("unknown"):
            return "unknownKeys"
        allowed = max(self._rules.max_heals, progress.keys_compared // 100)
        return "tooMany" if sum(summary.due for summary in self.findings.values()) > allowed else None

    def _seen(self, kind: FindingKind) -> int:
        return self.findings.get(kind, FindingSummary()).seen

    def _compare_page(self, progress: store.Progress) -> store.Progress:
        """One page of LiteLLM's keys against the database's live keys up to the page's last hash."""
        page = self._litellm.list_keys(
            mark=self.mark, page=progress.page, of_everybody=progress.reads_all, deadline=self._call_deadline()
        )
        is_last = progress.page >= page.total_pages
        upto = store.END if is_last else max(page.last_token or "", progress.after_hash)
        marked = {key.token: key for key in page.keys}
        unmarked = {key.token for key in page.others}
        self._require_time()
        known, live_keys, reached = store.read_page(
            self._database, list(marked), after=progress.after_hash, upto=upto, of_adopted=progress.reads_all
        )
        findings = self._without_owner(marked, known)
        while True:
            findings += [
                finding
                for live in live_keys
                if (finding := self._compare(live, marked=marked, unmarked=unmarked)) is not None
            ]
            progress = msgspec.structs.replace(
                progress, after_hash=reached, keys_compared=progress.keys_compared + len(live_keys)
            )
            if reached == upto:
                progress = msgspec.structs.replace(
                    progress, page=progress.page + 1, stage="heal" if is_last else "compare"
                )
            store.record(self._database, findings, progress=progress)
            if reached == upto:
                return progress
            self._require_time()
            findings = []
            live_keys, reached = store.read_live_keys(
                self._database, after=progress.after_hash, upto=upto, of_adopted=progress.reads_all
            )

    def _without_owner(
        self, marked: Mapping[str, GatewayKey], known: Mapping[str, store.KnownToken]
    ) -> list[store.Finding]:
        """What LiteLLM has and the database has not, or not any more."""
        findings: list[store.Finding] = []
        for token_hash, key in marked.items():
            token = known.get(token_hash)
            if token is not None and not token.is_over:
                continue
            if not key.is_ours(self.mark):
                findings.append(store.Finding(hash=token_hash, kind="foreign"))
            else:
                findings.append(store.Finding(hash=token_hash, kind="unknown" if token is None else "orphan"))
        return findings

    def _compare(
        self, live: store.LiveKey, *, marked: Mapping[str, GatewayKey], unmarked: AbstractSet[str]
    ) -> store.Finding | None:
        """A key that no page showed is asked for by its hash: pages shift while keys are made and deleted. Of an adopted
        key nothing is asked but whether it is there."""
        key, is_there = marked.get(live.hash), live.is_adopted and live.hash in unmarked
        if key is None and not is_there and not live.is_in_error and self._confirmations < _CONFIRMATIONS:
            self._confirmations += 1
            key = self._find(live.hash)
        if key is None and not is_there:
            return store.Finding(
                hash=live.hash, kind="missing", is_settled=live.is_in_error, row_updated_at=live.row_updated_at
            )
        if key is not None and not live.is_adopted and (fields := key.differences(live.settings)):
            return store.Finding(hash=live.hash, kind="drift", fields=fields)
        return store.Finding(hash=live.hash, kind="found") if live.is_marked_missing else None

    def _finish_claimed(self) -> None:
        """What a run claimed and did not end: LiteLLM may have done it or not, so it is done again, and audited."""
        after = ""
        while claimed := store.read_claimed(self._database, after=after):
            for finding in claimed:
                self._attempt(finding, self._delete_claimed if finding.kind == "orphan" else self._correct_claimed)
            after = claimed[-1].hash

    def _heal_due(self, pass_number: int) -> None:
        heals: dict[FindingKind, Callable[[store.Finding], bool]] = {
            "orphan": self._delete_orphan,
            "drift": self._correct_drift,
            "missing": self._mark_missing,
            "found": self._mark_found,
        }
        after = ""
        while due := store.read_due(
            self._database, pass_number=pass_number, drain_seconds=self._rules.drain_seconds, after=after
        ):
            for finding in due:
                self._attempt(finding, heals[finding.kind])
            after = due[-1].hash

    def _attempt(self, finding: store.Finding, heal: Callable[[store.Finding], bool]) -> None:
        """One that LiteLLM will not heal stays for the next run and holds up none of the others."""
        self._require_time()
        try:
            is_healed = heal(finding)
        except (GatewayRefused, GatewayUnavailable):
            self.failed += 1
            return
        self.healed[finding.kind] += is_healed

    def _delete_orphan(self, finding: store.Finding) -> bool:
        key = self._find(finding.hash)
        if key is None or not key.is_ours(self.mark):
            store.forget(self._database, finding.hash)
            return False
        return store.claim_orphan(self._database, finding.hash) and self._delete_claimed(finding)

    def _delete_claimed(self, finding: store.Finding) -> bool:
        self._litellm.delete(finding.hash, deadline=self._call_deadline())
        return store.finish_orphan(self._database, finding.hash)

    def _correct_drift(self, finding: store.Finding) -> bool:
        """LiteLLM first: a row read before it could be older than what LiteLLM was just told."""
        key = self._find(finding.hash)
        live = store.read_live_key(self._database, finding.hash)
        if key is None or live is None or not (fields := key.differences(live.settings)):
            store.forget(self._database, finding.hash)
            return False
        return store.claim_drift(self._database, live, fields=fields) and self._correct(key, live)

    def _correct_claimed(self, finding: store.Finding) -> bool:
        key = self._find(finding.hash)
        live = store.read_live_key(self._database, finding.hash)
        if key is None or live is None:
            store.finish_drift(self._database, finding.hash, is_corrected=False)
            return False
        return self._correct(key, live)

    def _correct(self, key: GatewayKey, live: store.LiveKey) -> bool:
        """Part after part: what LiteLLM will not take must not keep the rest wrong."""
        refusals: list[GatewayRefused] = []
        for names in key.parts_deviating_by(live.settings):
            try:
                self._litellm.update(
                    key,
                    live.settings,
                    names=names,
                    remaining_seconds=live.remaining_seconds,
                    deadline=self._call_deadline(),
                )
            except GatewayRefused as refused:
                refusals.append(refused)
        if refusals:
            raise refusals[0]
        return store.finish_drift(self._database, live.hash, is_corrected=True)

    def _mark_missing(self, finding: store.Finding) -> bool:
        """Only a row that is as it was at the first look: anything newer is looked at anew."""
        key = self._find(finding.hash)
        live = store.read_live_key(self._database, finding.hash)
        if key is not None or live is None or live.row_updated_at != finding.row_updated_at:
            store.forget(self._database, finding.hash)
            return False
        return store.mark_missing(self._database, live)

    def _mark_found(self, finding: store.Finding) -> bool:
        key = self._find(finding.hash)
        live = store.read_live_key(self._database, finding.hash)
        if key is None or live is None or (not live.is_adopted and key.differences(live.settings)):
            store.forget(self._database, finding.hash)
            return False
        return store.mark_found(self._database, live)

    def _find(self, token_hash: str) -> GatewayKey | None:
        return self._litellm.find(token_hash, deadline=self._call_deadline())

    def _call_deadline(self) -> Deadline:
        return Deadline(min(_CALL_SECONDS, self._deadline.remaining_seconds()))

    def _require_time(self) -> None:
        if self._deadline.remaining_seconds() <= 0:
            raise _OutOfTime


def _report(run: _Run, *, mode: ReconcileMode, started: datetime, interruption: str | None) -> ReconcileReport:
    return ReconcileReport(
        started_at=timestamp(started),
        finished_at=timestamp(datetime.now(UTC)),
        mode=mode,
        pass_number=run.progress.pass_number if run.progress else 0,
        is_complete=interruption is None,
        interruption=interruption,
        brake=run.brake,
        keys_compared=run.progress.keys_compared if run.progress else 0,
        findings=run.findings,
        healed={kind: count for kind, count in run.healed.items() if count},
        failed=run.failed,
    )


def _write_metrics(report: ReconcileReport, *, duration_ms: float) -> None:
    seen = {kind: summary.seen for kind, summary in report.findings.items()}
    telemetry.write_reconciled(
        {
            "Orphans": seen.get("orphan", 0),
            "Missing": seen.get("missing", 0),
            "Drift": seen.get("drift", 0),
            "Unknown": seen.get("unknown", 0),
            "Healed": sum(report.healed.values()),
            "HealsFailed": report.failed,
            "BrakePulled": int(report.brake is not None),
            "ReconcileIncomplete": int(not report.is_complete),
            "KeysCompared": report.keys_compared,
        },
        duration_ms=duration_ms,
    )
