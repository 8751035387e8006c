"""Called by the stack in each release, before the new code: brings the schema up to date. Safe to run twice and at once.

By hand `{"check": true}` only says what is pending, and anything else does the same as a release.
"""

from collections.abc import Mapping
from typing import Any

from keyservice import wiring
from keyservice.custom_resource import custom_resource
from keyservice.models import Deadline, Migrated, SchemaState


@custom_resource("keyservice-schema")
def handler(event: Mapping[str, Any], deadline: Deadline) -> Migrated | SchemaState:
    return wiring.schema_state() if event.get("check") is True else wiring.migrate_schema(deadline)
