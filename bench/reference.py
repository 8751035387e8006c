"""What the service is compared with: LiteMaaS, and the targets that follow from it.

LiteMaaS was measured on a machine such as this one, with a LiteLLM that answers at once, before this service was written.
"""

from typing import Literal

import msgspec

type Compared = Literal["create", "list", "delete"]


class LiteMaaS(msgspec.Struct, frozen=True, kw_only=True):
    """Medians in milliseconds for 1 client and for 8; `cpu_ms`: processor time of one request, the most of what was seen."""

    one_client_ms: float
    eight_clients_ms: float
    cpu_ms: float
    statements: int
    litellm_calls: int


LITEMAAS: dict[Compared, LiteMaaS] = {
    "create": LiteMaaS(one_client_ms=5.5, eight_clients_ms=23, cpu_ms=6, statements=12, litellm_calls=2),
    "list": LiteMaaS(one_client_ms=3.7, eight_clients_ms=26, cpu_ms=4, statements=6, litellm_calls=10),
    "delete": LiteMaaS(one_client_ms=3.4, eight_clients_ms=15, cpu_ms=1.8, statements=8, litellm_calls=1),
}
# From the start of its process to the first answer.
LITEMAAS_START_MS = 1300.0
OWN_MS: dict[Compared, float] = {"create": 3.0, "list": 1.5, "delete": 3.0}
COLD_START_MS = {"ListApiKeys": 250.0, "CreateApiKey": 400.0, "DeleteApiKey": 400.0}
CURSOR_FACTOR = 2.0
# What LiteLLM may take of one request, and with it what all else may, cold starts of all workers included.
LITELLM_BUDGET_SECONDS = 10.0
SLOW_CREATE_SECONDS = LITELLM_BUDGET_SECONDS + 3.0
# A list while others wait for a slow LiteLLM, beside one while all others list, too.
SLOW_LIST_FACTOR = 2.0
