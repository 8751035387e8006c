"""What a key is at the moment, in one word."""

from typing import LiteralString

# Of `k`, a row of api_keys, and `o`, its pending operation if it has one.
STATUS: LiteralString = """CASE
            WHEN o.kind = 'create' THEN 'pending'
            WHEN o.request ->> 'reason' = 'expired' THEN 'expired'
            WHEN o.kind = 'delete' THEN 'deleting'
            WHEN k.revoked_at IS NOT NULL THEN 'revoked'
            WHEN k.sync_status = 'error' THEN 'error'
            WHEN k.expires_at <= now() THEN 'expired'
            WHEN coalesce(k.is_active, true) THEN 'active'
            ELSE 'revoked'
        END"""

PENDING_OPERATION: LiteralString = "LEFT JOIN api_key_operations AS o ON o.api_key_id = k.id AND o.state = 'pending'"
