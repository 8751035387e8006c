"""Invoked by an operator: takes the keys over that LiteMaaS made."""

from keyservice import wiring
from keyservice.jobs import requested_job
from keyservice.models import AdoptionReport, AdoptionRequest, Deadline


@requested_job("adopt_litemaas_keys", AdoptionRequest, usage='{"mode": "dry-run" | "adopt" | "scrub"}')
def handler(request: AdoptionRequest, deadline: Deadline) -> AdoptionReport:
    return wiring.adoption().run(mode=request.mode, deadline=deadline)
