"""Every five minutes: brings what keys have spent, and when they were last used, from LiteLLM into the rows."""

from keyservice import wiring
from keyservice.jobs import job
from keyservice.models import Deadline, SpendSynced


@job("sync_spend")
def handler(deadline: Deadline) -> SpendSynced:
    return wiring.spend_sync().run(deadline=deadline)
