"""Every 15 minutes: LiteLLM's keys against the database's. By hand with {"maxHeals": N} to heal more than the brake lets."""

from typing import Any

import msgspec

from keyservice import wiring
from keyservice.models import Deadline


def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    max_heals = msgspec.convert(event.get("maxHeals"), int | None)
    deadline = Deadline(wiring.settings().job_budget_seconds)
    return msgspec.to_builtins(wiring.reconciliation().run(deadline=deadline, max_heals=max_heals))
