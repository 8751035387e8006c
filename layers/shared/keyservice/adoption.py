"""Taking over the keys that LiteMaaS made: what a row tells of its key is compared with what LiteLLM has.

A pass first notes the hashes that each row's key may have, then reads all of LiteLLM's keys, asks for each key that was
not among them, and only then changes rows. Each step is kept: a run that ends, however, is gone on with by the next.
"""

from concurrent.futures import ThreadPoolExecutor

import msgspec

from keyservice import adoption_store as store
from keyservice.database import Database
from keyservice.errors import Unavailable, reason
from keyservice.litellm import GatewayKeyPage, LiteLLM, OtherKey
from keyservice.models import AdoptionMode, AdoptionReport, Brake, Deadline, OrphanedKeys
from keyservice.provenance import Deployment, find_brake
from keyservice.reconciliation_store import read_installation


class AdoptionRules(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters as they are now. Seconds: `lease` a pass is ours, `gateway` LiteLLM gets for one call, `reserve` of its
    time a run keeps for its end."""

    deployment: Deployment
    lease_seconds: float
    gateway_seconds: float
    reserve_seconds: float
    pages_at_once: int


class Adoption:
    def __init__(self, *, database: Database, litellm: LiteLLM, rules: AdoptionRules) -> None:
        self._database = database
        self._litellm = litellm
        self._rules = rules
        self._mark = ""

    def run(self, *, mode: AdoptionMode, deadline: Deadline) -> AdoptionReport:
        """Goes on with the pass that the last run in this mode left within an hour, or makes a new one.

        `dry-run` changes nothing but its own notes; neither does any mode while a brake is pulled. A second run at the
        same time does nothing. Raises Unavailable when a backend is down before anything was begun.
        """
        installation = read_installation(self._database)
        self._mark = installation.mark
        brake = find_brake(
            self._database,
            self._litellm,
            deployment=self._rules.deployment,
            installation=installation,
            deadline=self._call_deadline(),
        )
        if brake is not None and mode != "dry-run":
            return AdoptionReport(mode=mode, state="braked", brake=brake)
        position = store.claim(self._database, mode=mode, lease_seconds=self._rules.lease_seconds)
        if position is None:
            return AdoptionReport(mode=mode, state="busy", brake=brake)
        try:
            return self._go_on(position, mode=mode, brake=brake, deadline=deadline)
        finally:
            store.release(self._database)

    def _go_on(
        self, position: store.Position, *, mode: AdoptionMode, brake: Brake | None, deadline: Deadline
    ) -> AdoptionReport:
        interruption: str | None = None
        try:
            while position.stage != "done":
                if deadline.remaining_seconds() <= self._rules.gateway_seconds + self._rules.reserve_seconds:
                    interruption = "no time left"
                    break
                position = self._advance(position, mode=mode)
        except Unavailable as trouble:
            interruption = reason(trouble)
        notes = store.summarize(self._database)
        return AdoptionReport(
            mode=mode,
            state="complete" if interruption is None else "unfinished",
            stage=position.stage,
            interruption=interruption,
            brake=brake,
            gateway_keys_read=notes.keys_read,
            rows=notes.rows,
            orphaned=OrphanedKeys(count=notes.orphans, hashes=notes.orphan_hashes),
        )

    def _advance(self, position: store.Position, *, mode: AdoptionMode) -> store.Position:
        match position.stage:
            case "collect":
                return store.collect(self._database, position)
            case "compare":
                return self._compare(position)
            case "confirm":
                return self._confirm()
            case "change" if mode == "scrub":
                return store.scrub(self._database, position)
            case _:
                return store.adopt(self._database, position, changes=mode == "adopt")

    def _compare(self, position: store.Position) -> store.Position:
        """Some pages at once; the first by itself, until which nobody knows how many there are."""
        pages = [self._fetch(position.page)]
        last_page = max(pages[0].total_pages, 1)
        wanted = range(position.page + 1, min(position.page + self._rules.pages_at_once, last_page) + 1)
        with ThreadPoolExecutor(max_workers=self._rules.pages_at_once) as at_once:
            pages += at_once.map(self._fetch, wanted)
        next_page = position.page + len(pages)
        told = [key for page in pages for key in page.others]
        told += [OtherKey(token=key.token) for page in pages for key in page.keys]
        return store.compare(self._database, told, next_page=next_page, is_last=next_page > last_page)

    def _fetch(self, page: int) -> GatewayKeyPage:
        return self._litellm.list_keys(mark=self._mark, page=page, of_everybody=True, deadline=self._call_deadline())

    def _confirm(self) -> store.Position:
        answers = [
            (question, self._litellm.find(question.hash, deadline=self._call_deadline()) is not None)
            for question in store.read_questions(self._database)
        ]
        return store.record_answers(self._database, answers)

    def _call_deadline(self) -> Deadline:
        return Deadline(self._rules.gateway_seconds)
