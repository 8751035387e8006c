"""Every minute: finishes what was interrupted, and lets expired keys leave."""

from keyservice import wiring
from keyservice.jobs import job
from keyservice.models import Deadline, Settled


@job("settle_operations")
def handler(deadline: Deadline) -> Settled:
    return wiring.settlement().run(deadline=deadline)
