"""The SQL of taking LiteMaaS's keys over: where a pass stands, its notes, and each change with its audit record.

The column lite_llm_key_value is there in a LiteMaaS of today only, so it is read as a field of the row as JSON. Secrets
never leave the database: all that a statement returns or writes down is their hash.
"""

from collections.abc import Sequence
from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb

from keyservice.database import Database, Statement
from keyservice.errors import DatabaseUnavailable
from keyservice.litellm import OtherKey
from keyservice.models import AdoptedRows, AdoptionMode, AdoptionOutcome
from keyservice.settlement_store import SYSTEM_USER

_ROWS_AT_ONCE = 1000
_CHANGES_AT_ONCE = 200
_QUESTIONS_AT_ONCE = 50
_LISTED_PER_KIND = 100

type Stage = Literal["collect", "compare", "confirm", "change", "done"]


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass does next: rows after `after_id`, or LiteLLM's keys from `page` on."""

    stage: Stage
    after_id: UUID | None
    page: int


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A hash that no page showed; LiteLLM is to be asked for it by itself."""

    api_key_id: UUID
    rank: int
    hash: str


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """What the pass has found so far; `orphan_hashes`: at most 100."""

    keys_read: int
    orphans: int
    orphan_hashes: list[str]
    rows: dict[AdoptionOutcome, AdoptedRows]


# A pass that stopped within the last hour is gone on with, in its own mode; any other begins anew.
_CLAIM_ADOPTION = """/* claim_adoption */
UPDATE keyservice_adoption AS a
SET lease_until = now() + make_interval(secs => %(lease_seconds)s), mode = %(mode)s,
    stage = CASE WHEN anew THEN 'collect' ELSE a.stage END,
    after_id = CASE WHEN NOT anew THEN a.after_id END,
    page = CASE WHEN anew THEN 1 ELSE a.page END,
    keys_read = CASE WHEN anew THEN 0 ELSE a.keys_read END,
    orphans = CASE WHEN anew THEN 0 ELSE a.orphans END,
    orphan_hashes = CASE WHEN anew THEN '{}' ELSE a.orphan_hashes END,
    advanced_at = now()
FROM (
    SELECT stage = 'done' OR mode <> %(mode)s OR advanced_at <= now() - interval '1 hour' AS anew
    FROM keyservice_adoption
) AS last
WHERE a.lease_until <= now()
RETURNING a.stage, a.after_id, a.page"""

_FORGET_NOTES = """/* forget_notes */
DELETE FROM keyservice_adoption_candidates
WHERE EXISTS (SELECT FROM keyservice_adoption WHERE stage = 'collect' AND after_id IS NULL)"""


def claim(database: Database, *, mode: AdoptionMode, lease_seconds: float) -> Position | None:
    """Where the last run stopped, or the beginning; None while another run holds it."""
    parameters = {"mode": mode, "lease_seconds": lease_seconds}
    rows, _ = database.round_trip(Statement(_CLAIM_ADOPTION, parameters), Statement(_FORGET_NOTES))
    return msgspec.convert(rows[0], Position) if rows else None


_RELEASE_ADOPTION = """/* release_adoption */
UPDATE keyservice_adoption SET lease_until = now()"""


def release(database: Database) -> None:
    """Not needed for correctness, the lease runs out by itself: a database that is gone is no failure here."""
    try:
        database.round_trip(Statement(_RELEASE_ADOPTION))
    except DatabaseUnavailable:
        return


def _hash_of(column: LiteralString) -> LiteralString:
    """LiteLLM's id of the key that the column tells of: by its secret, or by that id itself; else null."""
    return (
        "CASE WHEN starts_with("
        + column
        + ", 'sk-') THEN encode(sha256(convert_to("
        + column
        + ", 'UTF8')), 'hex') WHEN "
        + column
        + " ~ '^[0-9a-f]{64}$' THEN "
        + column
        + " END"
    )


_PLAINTEXT: LiteralString = "(to_jsonb(k) ->> 'lite_llm_key_value')"
_HASHES_OF_ROW: LiteralString = (
    _hash_of(_PLAINTEXT) + ",\n        " + _hash_of("k.lite_llm_key_id") + ",\n        " + _hash_of("k.key_hash")
)
_IS_IDLE: LiteralString = """NOT EXISTS (
        SELECT FROM api_key_operations AS o WHERE o.api_key_id = k.id AND o.state = 'pending'
    )"""
_IS_IN_FORCE: LiteralString = "k.revoked_at IS NULL AND coalesce(k.is_active, true)"

# Rank 0 stands for the row itself. What LiteMaaS stores says most about the key that works: after a rotation that went wrong
# key_hash is that of a secret LiteLLM never had, and in old rows that of one LiteMaaS made up.
_COLLECT: LiteralString = (
    """/* collect_candidates */
WITH batch AS (
    SELECT
        k.id, ARRAY[
        """
    + _HASHES_OF_ROW
    + """
        ] AS hashes, k.key_hash,
        CASE
            WHEN NOT """
    + _IS_IDLE
    + """ THEN 'busy'
            WHEN NOT ("""
    + _IS_IN_FORCE
    + """) THEN 'revoked'
            ELSE coalesce((
                SELECT CASE WHEN t.nonce IS NULL THEN 'adopted' ELSE 'own' END FROM api_key_tokens AS t
                WHERE t.hash = k.key_hash AND t.api_key_id = k.id AND t.state = 'live'
            ), 'adoptable')
        END AS kind
    FROM api_keys AS k
    WHERE %(after_id)s::uuid IS NULL OR k.id > %(after_id)s
    ORDER BY k.id
    LIMIT %(limit)s
),
noted AS (
    INSERT INTO keyservice_adoption_candidates (api_key_id, rank, kind, hash)
    SELECT id, 0, kind, NULL FROM batch
    UNION ALL
    SELECT id, 1, kind, key_hash FROM batch WHERE kind IN ('adopted', 'own')
    UNION ALL
    (
        SELECT DISTINCT ON (batch.id, h.hash) batch.id, h.rank, batch.kind, h.hash
        FROM batch
        CROSS JOIN LATERAL unnest(batch.hashes) WITH ORDINALITY AS h (hash, rank)
        WHERE batch.kind IN ('adoptable', 'revoked') AND h.hash IS NOT NULL
        ORDER BY batch.id, h.hash, h.rank
    )
    ON CONFLICT DO NOTHING
)
UPDATE keyservice_adoption AS a
SET stage = CASE WHEN last.is_last THEN 'compare' ELSE 'collect' END,
    after_id = CASE WHEN NOT last.is_last THEN last.id END, advanced_at = now()
FROM (
    SELECT (SELECT count(*) FROM batch) < %(limit)s AS is_last, (SELECT id FROM batch ORDER BY id DESC LIMIT 1) AS id
) AS last
RETURNING a.stage, a.after_id, a.page"""
)


# Made all at once, they are not known to the planner yet.
_ANALYZE_NOTES = """/* analyze_notes */
ANALYZE keyservice_adoption_candidates"""


def collect(database: Database, position: Position) -> Position:
    """Notes of some rows what their keys may be known by in LiteLLM."""
    parameters = {"after_id": position.after_id, "limit": _ROWS_AT_ONCE}
    [rows] = database.round_trip(Statement(_COLLECT, parameters))
    moved = msgspec.convert(rows[0], Position)
    if moved.stage != "collect":
        database.round_trip(Statement(_ANALYZE_NOTES))
    return moved


# A row that LiteMaaS has made since is not in the notes, but has its key's hash.
_COMPARE = """/* compare_candidates */
WITH told AS (
    SELECT hash, is_litemaas FROM jsonb_to_recordset(%(told)s) AS t (hash text, is_litemaas boolean)
),
there AS (
    UPDATE keyservice_adoption_candidates AS c SET is_there = true
    FROM told
    WHERE c.hash = told.hash
),
orphans AS (
    SELECT told.hash FROM told
    WHERE told.is_litemaas
    AND NOT EXISTS (SELECT FROM keyservice_adoption_candidates AS c WHERE c.hash = told.hash)
    AND NOT EXISTS (SELECT FROM api_key_tokens AS t WHERE t.hash = told.hash)
    AND NOT EXISTS (SELECT FROM api_keys AS k WHERE k.key_hash = told.hash)
)
UPDATE keyservice_adoption AS a
SET stage = CASE WHEN %(is_last)s THEN 'confirm' ELSE 'compare' END, page = %(next_page)s,
    keys_read = a.keys_read + (SELECT count(*) FROM told),
    orphans = a.orphans + (SELECT count(*) FROM orphans),
    orphan_hashes = (a.orphan_hashes || ARRAY(SELECT hash FROM orphans ORDER BY hash))[1:%(listed)s],
    advanced_at = now()
RETURNING a.stage, a.after_id, a.page"""


def compare(database: Database, told: Sequence[OtherKey], *, next_page: int, is_last: bool) -> Position:
    """Notes which candidates are among these keys of LiteLLM's, and which of the keys LiteMaaS made no row is about."""
    parameters = {
        "told": Jsonb([{"hash": key.token, "is_litemaas": key.is_litemaas} for key in told]),
        "next_page": next_page,
        "is_last": is_last,
        "listed": _LISTED_PER_KIND,
    }
    [rows] = database.round_trip(Statement(_COMPARE, parameters))
    return msgspec.convert(rows[0], Position)


_READ_QUESTIONS = """/* read_questions */
SELECT c.api_key_id, c.rank, c.hash FROM keyservice_adoption_candidates AS c
WHERE c.kind IN ('adoptable', 'adopted') AND c.hash IS NOT NULL AND c.is_there IS NULL
AND NOT EXISTS (
    SELECT FROM keyservice_adoption_candidates AS other WHERE other.api_key_id = c.api_key_id AND other.is_there
)
ORDER BY c.api_key_id, c.rank
LIMIT %(limit)s"""


def read_questions(database: Database) -> list[Question]:
    """Some candidates of rows none of whose candidates was on a page: pages shift while keys are made and deleted."""
    [rows] = database.round_trip(Statement(_READ_QUESTIONS, {"limit": _QUESTIONS_AT_ONCE}))
    return msgspec.convert(rows, list[Question])


_RECORD_ANSWERS = """/* record_answers */
WITH answered AS (
    UPDATE keyservice_adoption_candidates AS c SET is_there = x.is_there
    FROM jsonb_to_recordset(%(answers)s) AS x (api_key_id uuid, rank smallint, is_there boolean)
    WHERE c.api_key_id = x.api_key_id AND c.rank = x.rank
)
UPDATE keyservice_adoption AS a
SET stage = CASE WHEN %(is_last)s THEN 'change' ELSE 'confirm' END, advanced_at = now()
RETURNING a.stage, a.after_id, a.page"""


def record_answers(database: Database, answers: Sequence[tuple[Question, bool]]) -> Position:
    """None to record means that no question is left."""
    told = [
        {"api_key_id": str(question.api_key_id), "rank": question.rank, "is_there": is_there}
        for question, is_there in answers
    ]
    [rows] = database.round_trip(Statement(_RECORD_ANSWERS, {"answers": Jsonb(told), "is_last": not answers}))
    return msgspec.convert(rows[0], Position)


def _moving_on(changes: LiteralString) -> LiteralString:
    """A statement that ends by noting how far `listed` went."""
    return (
        changes
        + """
UPDATE keyservice_adoption AS a
SET stage = CASE WHEN last.is_last THEN 'done' ELSE 'change' END,
    after_id = CASE WHEN NOT last.is_last THEN last.id END, advanced_at = now()
FROM (
    SELECT
        (SELECT count(*) FROM listed) < %(limit)s AS is_last,
        (SELECT api_key_id FROM listed ORDER BY api_key_id DESC LIMIT 1) AS id
) AS last
RETURNING a.stage, a.after_id, a.page"""
    )


# The row as it is now has to tell of the same key as when it was noted. One that somebody holds is not waited for, so that
# neither LiteMaaS nor a request ever waits for more than one batch. A hash belongs to one row: where two tell of the same
# key, and where it is a token's that is over, nobody gets it.
_ADOPT: LiteralString = _moving_on(
    """/* adopt_keys */
WITH listed AS (
    SELECT n.api_key_id, best.hash
    FROM keyservice_adoption_candidates AS n
    CROSS JOIN LATERAL (
        SELECT c.hash FROM keyservice_adoption_candidates AS c
        WHERE c.api_key_id = n.api_key_id AND c.is_there
        ORDER BY c.rank
        LIMIT 1
    ) AS best
    WHERE n.rank = 0 AND n.kind = 'adoptable' AND n.outcome IS NULL
    AND (%(after_id)s::uuid IS NULL OR n.api_key_id > %(after_id)s)
    ORDER BY n.api_key_id
    LIMIT %(limit)s
),
conflicting AS (
    SELECT listed.api_key_id FROM listed
    WHERE EXISTS (
        SELECT FROM api_key_tokens AS t
        WHERE t.hash = listed.hash AND (t.api_key_id <> listed.api_key_id OR t.state <> 'live')
    )
    OR EXISTS (SELECT FROM api_keys AS other WHERE other.key_hash = listed.hash AND other.id <> listed.api_key_id)
    OR EXISTS (
        SELECT FROM keyservice_adoption_candidates AS other
        WHERE other.hash = listed.hash AND other.api_key_id <> listed.api_key_id AND other.kind = 'adoptable'
    )
),
taken AS (
    SELECT
        k.id, listed.hash, k.key_hash AS old_hash, k.key_prefix AS old_prefix,
        coalesce(k.lite_llm_key_id, '') <> '' AS had_key_id,
        CASE
            WHEN k.key_hash = listed.hash THEN k.key_prefix
            WHEN starts_with("""
    + _PLAINTEXT
    + """, 'sk-') AND """
    + _hash_of(_PLAINTEXT)
    + """ = listed.hash THEN left("""
    + _PLAINTEXT
    + """, 7)
            WHEN starts_with(k.lite_llm_key_id, 'sk-') AND """
    + _hash_of("k.lite_llm_key_id")
    + """ = listed.hash THEN left(k.lite_llm_key_id, 7)
            ELSE k.key_prefix
        END AS new_prefix
    FROM listed
    JOIN api_keys AS k ON k.id = listed.api_key_id
    WHERE %(changes)s AND NOT EXISTS (SELECT FROM conflicting AS c WHERE c.api_key_id = k.id)
    AND """
    + _IS_IN_FORCE
    + """
    AND listed.hash IN (
        """
    + _HASHES_OF_ROW
    + """
    )
    AND """
    + _IS_IDLE
    + """
    FOR UPDATE OF k SKIP LOCKED
),
gate AS (
    UPDATE api_keys AS k
    SET key_hash = taken.hash, key_prefix = taken.new_prefix,
        lite_llm_key_id = CASE WHEN taken.had_key_id THEN k.lite_llm_key_id ELSE taken.hash END
    FROM taken
    WHERE k.id = taken.id
    RETURNING k.id, k.user_id, k.subscription_id, k.name, k.key_prefix, k.litellm_key_alias, taken.hash, taken.old_hash,
        taken.old_prefix, taken.had_key_id
),
replaced AS (
    -- LiteMaaS has given the key another secret since it was adopted, or made here.
    UPDATE api_key_tokens AS t SET state = 'condemned', updated_at = now()
    FROM gate
    WHERE t.api_key_id = gate.id AND t.state = 'live' AND t.hash <> gate.hash
),
tokens AS (
    INSERT INTO api_key_tokens (hash, api_key_id, user_id, number, alias, state)
    SELECT
        gate.hash, gate.id, gate.user_id,
        1 + coalesce((SELECT max(t.number) FROM api_key_tokens AS t WHERE t.api_key_id = gate.id), 0),
        gate.litellm_key_alias, 'live'
    FROM gate
    ON CONFLICT (hash) DO NOTHING
),
modelled AS (
    -- Keys of one subscription may name no model, and to LiteLLM no model means any, once the key is changed or rotated.
    INSERT INTO api_key_models (api_key_id, model_id)
    SELECT gate.id, s.model_id
    FROM gate
    JOIN subscriptions AS s ON s.id = gate.subscription_id
    WHERE NOT EXISTS (SELECT FROM api_key_models AS m WHERE m.api_key_id = gate.id)
    ON CONFLICT DO NOTHING
),
audited AS (
    INSERT INTO audit_logs (user_id, action, resource_type, resource_id, success, metadata)
    SELECT
        (SELECT u.id FROM users AS u WHERE u.id = %(system_user)s), 'API_KEY_ADOPT', 'API_KEY', gate.id, true,
        jsonb_build_object(
            'userId', gate.user_id, 'name', gate.name, 'keyPrefix', gate.key_prefix, 'tokenHash', gate.hash,
            'previousKeyHash', gate.old_hash, 'previousKeyPrefix', gate.old_prefix, 'hadKeyId', gate.had_key_id
        )
    FROM gate
),
noted AS (
    UPDATE keyservice_adoption_candidates AS n
    SET outcome = CASE
        WHEN EXISTS (SELECT FROM gate WHERE gate.id = n.api_key_id) THEN 'adopted'
        WHEN EXISTS (SELECT FROM conflicting AS c WHERE c.api_key_id = n.api_key_id) THEN 'conflicting'
        WHEN %(changes)s THEN 'changed'
    END
    FROM listed
    WHERE n.api_key_id = listed.api_key_id AND n.rank = 0
)"""
)


def adopt(database: Database, position: Position, *, changes: bool) -> Position:
    """Takes some rows over whose keys LiteLLM has, each with its audit record; without `changes` only notes which not."""
    return _change(database, _ADOPT, position, changes=changes)


def _is_secret(column: LiteralString) -> LiteralString:
    """Whether it is a secret, in the clear, of the key itself."""
    return (
        "coalesce(starts_with("
        + column
        + ", 'sk-') AND EXISTS (SELECT FROM api_key_tokens AS t WHERE t.api_key_id = k.id AND t.hash = "
        + _hash_of(column)
        + "), false)"
    )


def _scrubbing(name: LiteralString, *, also: LiteralString = "") -> LiteralString:
    return _moving_on(
        name
        + """
WITH listed AS (
    SELECT n.api_key_id FROM keyservice_adoption_candidates AS n
    WHERE n.rank = 0 AND n.kind IN ('adopted', 'own') AND n.outcome IS NULL
    AND EXISTS (
        SELECT FROM keyservice_adoption_candidates AS c WHERE c.api_key_id = n.api_key_id AND c.rank = 1 AND c.is_there
    )
    AND (%(after_id)s::uuid IS NULL OR n.api_key_id > %(after_id)s)
    ORDER BY n.api_key_id
    LIMIT %(limit)s
),
taken AS (
    SELECT k.id, """
        + _is_secret(_PLAINTEXT)
        + """ AS has_value, """
        + _is_secret("k.lite_llm_key_id")
        + """ AS has_id
    FROM listed
    JOIN api_keys AS k ON k.id = listed.api_key_id
    JOIN keyservice_adoption_candidates AS c ON c.api_key_id = k.id AND c.rank = 1 AND c.hash = k.key_hash
    WHERE """
        + _IS_IN_FORCE
        + """
    AND ("""
        + _is_secret(_PLAINTEXT)
        + """ OR """
        + _is_secret("k.lite_llm_key_id")
        + """)
    AND EXISTS (
        SELECT FROM api_key_tokens AS t WHERE t.hash = k.key_hash AND t.api_key_id = k.id AND t.state = 'live'
    )
    AND """
        + _IS_IDLE
        + """
    FOR UPDATE OF k SKIP LOCKED
),
gate AS (
    UPDATE api_keys AS k
    SET lite_llm_key_id = CASE WHEN taken.has_id THEN k.key_hash ELSE k.lite_llm_key_id END"""
        + also
        + """
    FROM taken
    WHERE k.id = taken.id
    RETURNING k.id, k.user_id, k.name, k.key_prefix, k.key_hash
),
audited AS (
    INSERT INTO audit_logs (user_id, action, resource_type, resource_id, success, metadata)
    SELECT
        (SELECT u.id FROM users AS u WHERE u.id = %(system_user)s), 'API_KEY_SCRUB', 'API_KEY', gate.id, true,
        jsonb_build_object(
            'userId', gate.user_id, 'name', gate.name, 'keyPrefix', gate.key_prefix, 'tokenHash', gate.key_hash
        )
    FROM gate
),
noted AS (
    UPDATE keyservice_adoption_candidates AS n SET outcome = 'scrubbed'
    FROM gate
    WHERE n.api_key_id = gate.id AND n.rank = 0
)"""
    )


_SCRUB_KEY_ID: LiteralString = _scrubbing("/* scrub_key_ids */")
_SCRUB_VALUE: LiteralString = _scrubbing(
    "/* scrub_key_values */",
    also=",\n        lite_llm_key_value = CASE WHEN taken.has_value THEN k.key_hash ELSE k.lite_llm_key_value END",
)
_HAS_VALUE = """/* find_plaintext_column */
SELECT EXISTS (
    SELECT FROM pg_attribute
    WHERE attrelid = to_regclass('api_keys') AND attname = 'lite_llm_key_value' AND NOT attisdropped
) AS has_value"""


def scrub(database: Database, position: Position) -> Position:
    """Puts the hash in the place of the secret in some rows that are adopted and whose keys LiteLLM has."""
    [rows] = database.round_trip(Statement(_HAS_VALUE))
    return _change(database, _SCRUB_VALUE if rows[0]["has_value"] else _SCRUB_KEY_ID, position, changes=True)


def _change(database: Database, query: LiteralString, position: Position, *, changes: bool) -> Position:
    parameters: dict[str, Any] = {
        "after_id": position.after_id,
        "limit": _CHANGES_AT_ONCE,
        "changes": changes,
        "system_user": SYSTEM_USER,
    }
    [rows] = database.round_trip(Statement(query, parameters))
    return msgspec.convert(rows[0], Position)


_COUNT_ROWS = """/* count_adopted */
WITH outcomes AS (
    SELECT
        n.api_key_id,
        CASE
            WHEN n.outcome IS NOT NULL THEN n.outcome
            WHEN n.kind = 'revoked' THEN CASE WHEN c.is_there THEN 'revokedButThere' ELSE 'revoked' END
            WHEN n.kind IN ('busy', 'own') THEN n.kind
            WHEN c.hashes = 0 THEN 'unusable'
            WHEN c.is_there THEN CASE WHEN n.kind = 'adopted' THEN 'alreadyAdopted' ELSE 'adoptable' END
            WHEN c.is_asked THEN 'missing'
            ELSE 'undecided'
        END AS outcome
    FROM keyservice_adoption_candidates AS n
    CROSS JOIN LATERAL (
        SELECT
            count(*) AS hashes, coalesce(bool_or(c.is_there), false) AS is_there,
            bool_and(c.is_there IS NOT NULL) AS is_asked
        FROM keyservice_adoption_candidates AS c
        WHERE c.api_key_id = n.api_key_id AND c.rank > 0
    ) AS c
    WHERE n.rank = 0
)
SELECT outcome, count(*) AS count, (array_agg(api_key_id ORDER BY api_key_id))[1:%(listed)s] AS ids
FROM outcomes
GROUP BY outcome
ORDER BY outcome"""

_READ_NOTES = """/* read_adoption_notes */
SELECT keys_read, orphans, orphan_hashes FROM keyservice_adoption"""


def summarize(database: Database) -> Notes:
    """What the pass has found so far."""
    counted, [notes] = database.round_trip(Statement(_COUNT_ROWS, {"listed": _LISTED_PER_KIND}), Statement(_READ_NOTES))
    rows = {row["outcome"]: {"count": row["count"], "ids": row["ids"]} for row in counted}
    return msgspec.convert({**notes, "rows": rows}, Notes)
