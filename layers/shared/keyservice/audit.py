"""The audit record of an operation that ended: one shape, always part of the statement that ends it."""

from typing import LiteralString


def record_of(ended: LiteralString) -> LiteralString:
    """The INSERT of one audit record for each row of the CTE `ended`, rows of the journal as they ended.

    The row says it all: `done` or not, why not, and whose change it was. The actor may be gone; the subject stands in
    the metadata.
    """
    return (
        """INSERT INTO audit_logs (
        user_id, action, resource_type, resource_id, ip_address, user_agent, success, error_message, old_values, new_values,
        metadata
    )
    SELECT
        (SELECT u.id FROM users AS u WHERE u.id = (o.actor ->> 'user_id')::uuid),
        CASE
            WHEN o.request ->> 'reason' = 'expired' THEN 'API_KEY_EXPIRED'
            WHEN o.request ->> 'reason' = 'revoked' THEN 'API_KEY_REVOKE'
            WHEN o.request ->> 'reason' = 'resetSpend' THEN 'API_KEY_RESET_SPEND'
            WHEN o.kind = 'retire' THEN 'API_KEY_ROTATE_COMPLETE'
            ELSE 'API_KEY_' || upper(o.kind)
        END,
        'API_KEY', o.api_key_id, (o.actor ->> 'ip_address')::inet, o.actor ->> 'user_agent', o.state = 'done',
        o.last_error, o.request -> 'old', o.request -> 'new',
        jsonb_build_object(
            'requestId', o.actor ->> 'request_id', 'operationId', o.id, 'userId', o.user_id, 'name', o.key_name,
            'keyPrefix', o.key_prefix, 'models', o.models, 'modelCount', cardinality(o.models)
        ) || jsonb_strip_nulls(jsonb_build_object(
            'reason', o.request -> 'reason', 'oldPrefix', o.request -> 'old_prefix',
            'gracePeriodSeconds', o.request -> 'grace_seconds'
        ))
    FROM """
        + ended
        + " AS o"
    )
