"""The SQL of bringing spend: where the last run stopped, and writing what has changed."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from psycopg.types.json import Jsonb

from keyservice.database import Database, Statement
from keyservice.errors import DatabaseUnavailable
from keyservice.litellm import GatewaySpend


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where to go on; `asked_at` is the database's time, before which nothing of the next pages was read."""

    next_page: int
    asked_at: datetime


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What became of some pages; `age_seconds` of the oldest spend there may be, None before the first round's end."""

    keys: int
    asked_at: datetime
    age_seconds: float | None


_CLAIM_POSITION = """/* claim_position */
UPDATE keyservice_spend_sync
SET lease_until = now() + make_interval(secs => %(lease_seconds)s),
    round_began_at = CASE WHEN next_page = 1 THEN now() ELSE round_began_at END
WHERE lease_until <= now()
RETURNING next_page, now() AS asked_at"""


def claim_position(database: Database, *, lease_seconds: float) -> Position | None:
    """Where the last run stopped; None while another run holds it."""
    [rows] = database.round_trip(Statement(_CLAIM_POSITION, {"lease_seconds": lease_seconds}))
    return msgspec.convert(rows[0], Position) if rows else None


_RELEASE_POSITION = """/* release_position */
UPDATE keyservice_spend_sync SET lease_until = now()"""


def release_position(database: Database) -> None:
    """Not needed for correctness, the lease runs out by itself: a database that is gone is no failure here."""
    try:
        database.round_trip(Statement(_RELEASE_POSITION))
    except DatabaseUnavailable:
        return


# A row that somebody holds at this moment is left for the next round: so a batch waits for nobody and no request can
# deadlock with it. One that was brought into agreement after LiteLLM was asked (a spend that was reset) is newer than
# what LiteLLM said. last_used_at never goes back: LiteMaaS may have written it, too.
_WRITE_SPEND = """/* write_spend */
WITH told AS (
    SELECT hash, least(round(spend, 2), 99999999.99) AS spend, budget_reset_at, last_active
    FROM jsonb_to_recordset(%(keys)s) AS t (
        hash text, spend numeric, budget_reset_at timestamptz, last_active timestamptz
    )
),
differing AS (
    SELECT k.id, told.spend, told.budget_reset_at, greatest(k.last_used_at, told.last_active) AS last_used_at
    FROM told
    JOIN api_keys AS k ON k.key_hash = told.hash
    WHERE k.last_sync_at IS NULL OR (
        k.last_sync_at < %(asked_at)s
        AND (k.current_spend, k.budget_reset_at, k.last_used_at) IS DISTINCT FROM
            (told.spend, told.budget_reset_at, greatest(k.last_used_at, told.last_active))
    )
    FOR NO KEY UPDATE OF k SKIP LOCKED
),
written AS (
    UPDATE api_keys AS k
    SET current_spend = differing.spend, budget_reset_at = differing.budget_reset_at,
        last_used_at = differing.last_used_at, last_sync_at = %(asked_at)s
    FROM differing
    WHERE k.id = differing.id
    RETURNING k.id
),
placed AS (
    UPDATE keyservice_spend_sync
    SET next_page = %(next_page)s,
        complete_as_of = CASE WHEN %(ends_round)s THEN round_began_at ELSE complete_as_of END,
        round_began_at = CASE WHEN %(ends_round)s THEN now() ELSE round_began_at END
    RETURNING complete_as_of
)
SELECT
    (SELECT count(*) FROM written) AS keys, now() AS asked_at,
    extract(epoch FROM now() - placed.complete_as_of)::float8 AS age_seconds
FROM placed"""


def write_spend(
    database: Database, told: Sequence[GatewaySpend], *, asked_at: datetime, next_page: int, ends_round: bool
) -> Written:
    """Brings the rows of these keys, found by their hash, into agreement and moves the position, in one round trip.
    Only rows that differ are written; keys that are nobody's here are passed over."""
    keys = [
        {
            "hash": key.token,
            "spend": key.spend or 0.0,
            "budget_reset_at": key.budget_reset_at and key.budget_reset_at.isoformat(),
            "last_active": key.last_active and key.last_active.isoformat(),
        }
        for key in told
    ]
    parameters = {"keys": Jsonb(keys), "asked_at": asked_at, "next_page": next_page, "ends_round": ends_round}
    [rows] = database.round_trip(Statement(_WRITE_SPEND, parameters))
    return msgspec.convert(rows[0], Written)
