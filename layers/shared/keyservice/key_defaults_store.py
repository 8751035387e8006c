"""The SQL of the defaults and maximums of keys."""

from typing import Any, LiteralString

import msgspec
from psycopg.types.json import Jsonb

from keyservice.database import Database, Statement
from keyservice.journal import audited, identity
from keyservice.models import Caller, KeyDefaults
from keyservice.standing import CALLER, Standing, ask_as_caller, change_as_caller

_READ_KEY_DEFAULTS: LiteralString = (
    """/* read_key_defaults */
WITH """
    + CALLER
    + """
SELECT to_jsonb(standing) AS standing, s.value
FROM standing
LEFT JOIN system_settings AS s ON s.key = 'api_key_defaults'"""
)


def read_key_defaults(database: Database, caller: Caller) -> tuple[Standing, KeyDefaults]:
    """As they are set; a LiteMaaS may have left some out, set them to null or written numbers as text."""
    standing, [row] = ask_as_caller(database, caller, Statement(_READ_KEY_DEFAULTS, identity(caller)))
    stored: dict[str, Any] = row["value"] or {}
    complete: dict[str, Any] = {part: stored.get(part) or {} for part in ("defaults", "maximums")}
    return standing, msgspec.convert(complete, KeyDefaults, strict=False)


# Makes sure that there is a row, and locks it before the next statement takes its snapshot: of two changes at once the
# second then records what the first has set.
_LOCK_KEY_DEFAULTS: LiteralString = (
    """/* lock_key_defaults */
WITH """
    + CALLER
    + """
INSERT INTO system_settings AS s (key, value)
SELECT 'api_key_defaults', '{}' FROM standing WHERE may_change_all
ON CONFLICT (key) DO UPDATE SET updated_at = s.updated_at"""
)

_REPLACE_KEY_DEFAULTS: LiteralString = (
    """/* replace_key_defaults */
WITH """
    + CALLER
    + """,
earlier AS (
    SELECT s.value FROM system_settings AS s WHERE s.key = 'api_key_defaults'
),
replaced AS (
    UPDATE system_settings AS s
    SET value = %(value)s, updated_at = now(), updated_by = standing.user_id
    FROM standing
    WHERE s.key = 'api_key_defaults' AND standing.may_change_all
    RETURNING s.updated_by
),
audited AS (
    INSERT INTO audit_logs (
        user_id, action, resource_type, resource_id, old_values, new_values, ip_address, user_agent, success, metadata
    )
    SELECT
        replaced.updated_by, 'UPDATE_API_KEY_DEFAULTS', 'SYSTEM_SETTINGS', 'api_key_defaults', earlier.value, %(value)s,
        %(ip_address)s::inet, %(user_agent)s, true,
        jsonb_build_object('requestId', %(request_id)s::text, 'settings', %(value)s::jsonb)
    FROM replaced, earlier
)
SELECT to_jsonb(standing) AS standing FROM standing"""
)


def replace_key_defaults(database: Database, caller: Caller, wanted: KeyDefaults) -> Standing:
    """The settings and their audit record in one round trip; nothing for a caller who may not change them."""
    parameters = {
        **identity(caller),
        **audited(caller.actor),
        "value": Jsonb(msgspec.to_builtins(wanted)),
    }
    standing, _ = change_as_caller(
        database, caller, Statement(_LOCK_KEY_DEFAULTS, parameters), Statement(_REPLACE_KEY_DEFAULTS, parameters)
    )
    return standing
