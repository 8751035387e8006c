"""Invoked on deploy: brings the schema up to date. Safe to run twice and at once."""

from typing import Any

import msgspec

from keyservice import wiring


def handler(_event: dict[str, Any], _context: object) -> dict[str, Any]:
    return msgspec.to_builtins(wiring.migrate_schema())
