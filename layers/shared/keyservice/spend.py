"""Bringing spend, budget reset time and last activity from LiteLLM into the rows, page by page of all its keys.

LiteLLM tells spend only with whole keys, at most 100 a call. All its keys are read, those of others too: it can page
neither by our mark nor by the hashes of the keys that LiteMaaS made.
"""

from concurrent.futures import ThreadPoolExecutor

import msgspec

from keyservice import spend_store as store
from keyservice import telemetry
from keyservice.database import Database
from keyservice.litellm import GatewaySpendPage, LiteLLM
from keyservice.models import Deadline, SpendSynced


class SpendRules(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: `lease` the position is ours, `gateway` LiteLLM gets for one page, `reserve` the last write may need."""

    lease_seconds: float
    gateway_seconds: float
    reserve_seconds: float
    pages_at_once: int


class SpendSync:
    def __init__(self, *, database: Database, litellm: LiteLLM, rules: SpendRules) -> None:
        self._database = database
        self._litellm = litellm
        self._rules = rules

    def run(self, *, deadline: Deadline) -> SpendSynced:
        """Goes on where the last run stopped, until a whole round has been made or the time is over.

        The position moves with each write: whatever ends a run, nothing is read twice and nothing left out. A second
        run at the same time does nothing. Raises Unavailable when LiteLLM or the database is.
        """
        position = store.claim_position(self._database, lease_seconds=self._rules.lease_seconds)
        if position is None:
            return SpendSynced(state="busy")
        try:
            synced = self._go_on(position, deadline=deadline)
        finally:
            store.release_position(self._database)
        telemetry.write_spend(
            pages=synced.pages,
            keys_read=synced.keys_read,
            keys_written=synced.keys_written,
            age_seconds=synced.age_seconds,
        )
        return synced

    def _go_on(self, position: store.Position, *, deadline: Deadline) -> SpendSynced:
        page, asked_at, age_seconds = position.next_page, position.asked_at, None
        round_is_whole = page == 1
        # The first page is fetched by itself: until then nobody knows how many there are.
        last_page = page
        pages = keys_read = keys_written = 0
        with ThreadPoolExecutor(max_workers=self._rules.pages_at_once) as at_once:
            while deadline.remaining_seconds() > self._rules.gateway_seconds + self._rules.reserve_seconds:
                wanted = range(page, min(page + self._rules.pages_at_once, last_page + 1))
                told = list(at_once.map(self._fetch, wanted))
                last_page = max(told[-1].total_pages, 1)
                ends_round = wanted[-1] >= last_page
                page = 1 if ends_round else wanted[-1] + 1
                keys = [key for one in told for key in one.keys]
                written = store.write_spend(
                    self._database, keys, asked_at=asked_at, next_page=page, ends_round=ends_round
                )
                asked_at, age_seconds = written.asked_at, written.age_seconds
                pages, keys_read, keys_written = pages + len(wanted), keys_read + len(keys), keys_written + written.keys
                if ends_round and round_is_whole:
                    break
                round_is_whole = round_is_whole or ends_round
            else:
                round_is_whole = False
        return SpendSynced(
            state="complete" if round_is_whole else "unfinished",
            pages=pages,
            keys_read=keys_read,
            keys_written=keys_written,
            age_seconds=None if age_seconds is None else round(age_seconds, 1),
        )

    def _fetch(self, page: int) -> GatewaySpendPage:
        return self._litellm.list_spend(page=page, deadline=Deadline(self._rules.gateway_seconds))
