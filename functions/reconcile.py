"""Every 15 minutes: compares LiteLLM's keys with the database's, and heals what differs if it may."""

from keyservice import wiring
from keyservice.jobs import job
from keyservice.models import Deadline, ReconcileReport


@job("reconcile")
def handler(deadline: Deadline) -> ReconcileReport:
    return wiring.reconciliation().run(deadline=deadline)
