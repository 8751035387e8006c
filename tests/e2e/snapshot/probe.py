"""A function that opens what it can while it starts, as a snapshot must not find it, and says what it has afterwards."""

import os
import sys
from typing import Any

from keyservice import wiring
from keyservice.database import Statement
from keyservice.endpoint import Request, Response, endpoint


def _connection() -> dict[str, Any]:
    [[row]] = wiring.database().round_trip(Statement("/* own_pid */ SELECT pg_backend_pid() AS pid"))
    return {"pid": row["pid"], "database": id(wiring.database()), "secrets": id(wiring.secret_values())}


# Registers the hooks, as every handler of the service does.
@endpoint("probe")
def unused(_request: Request) -> Response:
    raise NotImplementedError


_AT_START = _connection()
_PARTS_AT_START = wiring.database()


def handler(_event: object, _context: object) -> dict[str, Any]:
    return {
        "start": _AT_START,
        "wasClosed": _PARTS_AT_START._connection is None,
        # Before anything of this request asks for it: the hook after the restore has connected.
        "isConnected": wiring.database()._connection is not None,
        "now": _connection(),
        "imported": sorted({"httpx", "keyservice.creation", "keyservice.litellm"} & set(sys.modules)),
        "accessKeys": sorted(name for name in os.environ if name.startswith("AWS_ACCESS_KEY")),
    }
