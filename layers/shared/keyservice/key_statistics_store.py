"""The SQL of counting keys."""

from typing import LiteralString

import msgspec

from keyservice.database import Database, Statement
from keyservice.journal import identity
from keyservice.key_status import PENDING_OPERATION, STATUS
from keyservice.models import Caller, KeyStatistics
from keyservice.standing import CALLER, Standing, ask_as_caller

_COUNT_KEYS: LiteralString = (
    """/* count_keys */
WITH """
    + CALLER
    + """,
own AS (
    SELECT
        k.id,
        k.subscription_id,
        """
    + STATUS
    + """ AS status
    FROM known
    JOIN api_keys AS k ON k.user_id = known.id
    """
    + PENDING_OPERATION
    + """
)
SELECT
    to_jsonb(standing) AS standing,
    (SELECT count(*) FROM own) AS total,
    (SELECT count(*) FROM own WHERE status = 'active') AS active,
    (SELECT count(*) FROM own WHERE status = 'expired') AS expired,
    (SELECT count(*) FROM own WHERE status = 'revoked') AS revoked,
    (
        SELECT coalesce(jsonb_object_agg(subscription_id, keys), '{}')
        FROM (
            SELECT subscription_id, count(*) AS keys FROM own WHERE subscription_id IS NOT NULL GROUP BY subscription_id
        ) AS counted
    ) AS by_subscription,
    (
        SELECT coalesce(jsonb_object_agg(model_id, keys), '{}')
        FROM (
            SELECT m.model_id, count(*) AS keys FROM own JOIN api_key_models AS m ON m.api_key_id = own.id GROUP BY m.model_id
        ) AS counted
    ) AS by_model
FROM standing"""
)


def count_keys(database: Database, caller: Caller) -> tuple[Standing, KeyStatistics]:
    """Over all the caller's keys, in one round trip."""
    standing, [row] = ask_as_caller(database, caller, Statement(_COUNT_KEYS, identity(caller)))
    return standing, KeyStatistics(
        total=row["total"],
        active=row["active"],
        expired=row["expired"],
        revoked=row["revoked"],
        by_subscription=msgspec.convert(row["by_subscription"], dict[str, int]),
        by_model=msgspec.convert(row["by_model"], dict[str, int]),
    )
