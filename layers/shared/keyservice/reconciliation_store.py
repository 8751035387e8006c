"""The SQL of reconcile: where a pass stands, what it found, and how each heal begins and ends.

A heal that calls LiteLLM is claimed before the call and ended after it by one statement that hangs on the claim, so
that its audit record is written exactly once, whoever dies in between and however many run at once.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb

from keyservice.database import Database, Rows, Statement
from keyservice.journal import LOCK_KEY, repeated_once
from keyservice.models import FindingKind, FindingSummary, KeySettings

# After every hash: they are hexadecimal.
END = "g"
_CHUNK = 500
_LISTED_PER_KIND = 100
# What a row says whose key LiteLLM does not have; only rows that say just this are ever set back.
_MISSING = "LiteLLM has no such key"
# The migrations' own user, as whom the service acts unasked.
_SYSTEM_USER_ID = UUID("00000000-0000-0000-0000-000000000001")


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    mark: str
    stack_name: str
    litellm_url: str


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a pass stands: `page` is LiteLLM's next one, of the marked keys or of all, up to `after_hash` the database has
    been compared."""

    pass_number: int
    stage: Literal["compare", "heal", "done"]
    page: int
    after_hash: str
    keys_compared: int
    reads_all: bool


class KnownToken(msgspec.Struct, frozen=True, kw_only=True):
    """`is_over`: dead, or condemned with nobody left who would delete it. It never comes back from there."""

    hash: str
    state: Literal["intended", "live", "retiring", "condemned", "dead"]
    is_over: bool


class LiveKey(msgspec.Struct, frozen=True, kw_only=True):
    """An active row with its live token and nothing pending; `remaining_seconds` None means that it never expires.
    `is_adopted`: LiteMaaS made it, so it bears no mark, and LiteMaaS may have told LiteLLM what the row does not say."""

    hash: str
    api_key_id: UUID
    row_updated_at: datetime | None
    is_in_error: bool
    is_marked_missing: bool
    is_adopted: bool
    remaining_seconds: int | None
    settings: KeySettings


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`is_settled`: a missing key whose row says so already. `fields`: what differs in a drift, never the values."""

    hash: str
    kind: FindingKind
    is_settled: bool = False
    fields: list[str] = []
    row_updated_at: datetime | None = None


_READ_INSTALLATION = """/* read_installation */
SELECT mark, stack_name, litellm_url FROM keyservice_installation"""


def read_installation(database: Database) -> Installation:
    [rows] = repeated_once(database, Statement(_READ_INSTALLATION))
    return msgspec.convert(rows[0], Installation)


_NEW_PROGRESS = """/* new_progress */
UPDATE keyservice_reconciliation
SET pass = pass + 1, stage = 'compare', page = 1, after_hash = '', keys_compared = 0, started_at = now(),
    reads_all = EXISTS (SELECT FROM api_key_tokens WHERE state = 'live' AND nonce IS NULL)
WHERE stage = 'done' OR advanced_at <= now() - interval '1 hour'"""

_READ_PROGRESS = """/* read_progress */
UPDATE keyservice_reconciliation SET advanced_at = now()
RETURNING pass AS pass_number, stage, page, after_hash, keys_compared, reads_all"""


def begin_pass(database: Database) -> Progress:
    """The pass that was not finished when it stopped within the last hour, else a new one."""
    _, rows = repeated_once(database, Statement(_NEW_PROGRESS), Statement(_READ_PROGRESS))
    return msgspec.convert(rows[0], Progress)


# Of two runs at once the one that is behind does not take a newer pass back.
_SAVE_PROGRESS = """/* save_progress */
UPDATE keyservice_reconciliation
SET stage = %(stage)s, page = %(page)s, after_hash = %(after_hash)s, keys_compared = %(keys_compared)s,
    advanced_at = now()
WHERE pass = %(pass_number)s"""


def save_progress(database: Database, progress: Progress) -> None:
    repeated_once(database, Statement(_SAVE_PROGRESS, msgspec.structs.asdict(progress)))


_READ_TOKENS = """/* read_tokens */
SELECT
    t.hash, t.state,
    t.state = 'dead' OR (
        t.state = 'condemned'
        AND (t.unsafe_until IS NULL OR t.unsafe_until <= now())
        AND NOT EXISTS (
            SELECT FROM api_key_operations AS o WHERE o.api_key_id = t.api_key_id AND o.state = 'pending'
        )
    ) AS is_over
FROM api_key_tokens AS t
WHERE t.hash = ANY (%(hashes)s)"""


def read_tokens(database: Database, hashes: Sequence[str]) -> dict[str, KnownToken]:
    """Those of the hashes that this database knows."""
    [rows] = repeated_once(database, _tokens_read(hashes))
    return _known_tokens(rows)


def _tokens_read(hashes: Sequence[str]) -> Statement:
    return Statement(_READ_TOKENS, {"hashes": list(hashes)})


def _known_tokens(rows: Rows) -> dict[str, KnownToken]:
    return {row["hash"]: msgspec.convert(row, KnownToken) for row in rows}


# Of an adopted key only the secret that its row is about now: LiteMaaS may have given it another one since.
# A key about to expire is left to those who end it: an update would meet no time left.
_READ_LIVE_KEYS = """/* read_live_keys */
SELECT
    t.hash, t.api_key_id,
    k.updated_at AS row_updated_at,
    coalesce(k.sync_status = 'error', false) AS is_in_error,
    coalesce(k.sync_status = 'error' AND k.sync_error = %(missing)s, false) AS is_marked_missing,
    t.nonce IS NULL AS is_adopted,
    floor(extract(epoch FROM k.expires_at - now()))::bigint AS remaining_seconds,
    ARRAY(SELECT m.model_id::text FROM api_key_models AS m WHERE m.api_key_id = k.id) AS models,
    k.expires_at, k.max_budget::float8 AS max_budget, k.budget_duration, k.tpm_limit, k.rpm_limit,
    k.max_parallel_requests, k.soft_budget::float8 AS soft_budget, k.lite_llm_team_id,
    coalesce(array_remove(k.tags, NULL), '{}') AS tags,
    -- Columns that others write may hold what we never would; one odd row must not stop a pass.
    CASE WHEN jsonb_typeof(k.metadata) = 'object' THEN k.metadata ELSE '{}' END AS metadata,
    CASE WHEN jsonb_typeof(k.permissions) = 'object' THEN k.permissions ELSE '{}' END AS permissions,
    CASE WHEN jsonb_typeof(k.model_rpm_limit) = 'object' THEN k.model_rpm_limit ELSE '{}' END AS model_rpm_limit,
    CASE WHEN jsonb_typeof(k.model_tpm_limit) = 'object' THEN k.model_tpm_limit ELSE '{}' END AS model_tpm_limit
FROM api_key_tokens AS t
JOIN api_keys AS k ON k.id = t.api_key_id
WHERE t.state = 'live' AND t.hash > %(after)s AND t.hash <= %(upto)s
AND (%(hash)s::text IS NULL OR t.hash = %(hash)s)
AND (
    starts_with(t.alias, (SELECT mark FROM keyservice_installation) || ':')
    OR (%(of_adopted)s AND t.nonce IS NULL AND t.hash = k.key_hash)
)
AND k.is_active AND (k.expires_at IS NULL OR k.expires_at > now() + interval '1 minute')
AND NOT EXISTS (SELECT FROM api_key_operations AS o WHERE o.api_key_id = k.id AND o.state = 'pending')
ORDER BY t.hash
LIMIT %(limit)s"""


def read_page(
    database: Database, hashes: Sequence[str], *, after: str, upto: str, of_adopted: bool
) -> tuple[dict[str, KnownToken], list[LiveKey], str]:
    """`read_tokens` and `read_live_keys` in one round trip."""
    known, live = repeated_once(
        database,
        _tokens_read(hashes),
        _live_keys_read(after=after, upto=upto, token_hash=None, of_adopted=of_adopted),
    )
    return _known_tokens(known), *_live_keys_upto(live, upto)


def read_live_keys(database: Database, *, after: str, upto: str, of_adopted: bool) -> tuple[list[LiveKey], str]:
    """Live keys of ours, with those adopted from LiteMaaS or without, with after < hash <= upto, in the order of their
    hashes; how far they go: `upto` when those were all."""
    [rows] = repeated_once(database, _live_keys_read(after=after, upto=upto, token_hash=None, of_adopted=of_adopted))
    return _live_keys_upto(rows, upto)


def read_live_key(database: Database, token_hash: str) -> LiveKey | None:
    """None when it is not live any more, or somebody is about to change it."""
    [rows] = repeated_once(database, _live_keys_read(after="", upto=END, token_hash=token_hash, of_adopted=True))
    return next(map(_live_key, rows), None)


def _live_keys_read(*, after: str, upto: str, token_hash: str | None, of_adopted: bool) -> Statement:
    parameters = {
        "after": after,
        "upto": upto,
        "hash": token_hash,
        "of_adopted": of_adopted,
        "missing": _MISSING,
        "limit": _CHUNK,
    }
    return Statement(_READ_LIVE_KEYS, parameters)


def _live_keys_upto(rows: Rows, upto: str) -> tuple[list[LiveKey], str]:
    keys = [_live_key(row) for row in rows]
    return keys, keys[-1].hash if len(keys) == _CHUNK else upto


def _live_key(row: Mapping[str, Any]) -> LiveKey:
    return msgspec.convert({**row, "settings": msgspec.convert(row, KeySettings)}, LiveKey)


# What is being healed stays as it is until that has ended.
_RECORD_FINDINGS = """/* record_findings */
INSERT INTO keyservice_findings AS f (hash, kind, is_settled, fields, row_updated_at, first_pass, last_pass)
SELECT x.hash, x.kind, x.is_settled, x.fields, x.row_updated_at, %(pass_number)s, %(pass_number)s
FROM jsonb_to_recordset(%(findings)s)
    AS x (hash text, kind text, is_settled boolean, fields text[], row_updated_at timestamptz)
ORDER BY x.hash
ON CONFLICT (hash) DO UPDATE
SET kind = excluded.kind, is_settled = excluded.is_settled, fields = excluded.fields,
    row_updated_at = excluded.row_updated_at,
    first_pass = CASE WHEN f.kind = excluded.kind THEN f.first_pass ELSE excluded.first_pass END,
    first_seen_at = CASE WHEN f.kind = excluded.kind THEN f.first_seen_at ELSE excluded.first_seen_at END,
    last_pass = greatest(f.last_pass, excluded.last_pass), last_seen_at = now()
WHERE f.state = 'seen'"""


def record(database: Database, findings: Sequence[Finding], *, progress: Progress) -> None:
    """Keeps what was found, with where the pass stands now. No hash twice."""
    facts = {"pass_number": progress.pass_number, "findings": Jsonb(msgspec.to_builtins(findings))}
    recorded = [Statement(_RECORD_FINDINGS, facts)] if findings else []
    repeated_once(database, *recorded, Statement(_SAVE_PROGRESS, msgspec.structs.asdict(progress)))


_FORGET_UNSEEN = """/* forget_unseen */
DELETE FROM keyservice_findings WHERE state = 'seen' AND last_pass < %(pass_number)s"""


def forget_unseen(database: Database, *, pass_number: int) -> None:
    """What a whole pass did not see again was no finding."""
    repeated_once(database, Statement(_FORGET_UNSEEN, {"pass_number": pass_number}))


_COUNT_FINDINGS = """/* count_findings */
SELECT
    kind, count(*) AS seen,
    count(*) FILTER (
        WHERE state = 'seen' AND NOT is_settled AND (
            kind IN ('missing', 'drift')
            OR (kind = 'orphan' AND first_pass < last_pass
                AND first_seen_at <= now() - make_interval(secs => %(drain_seconds)s))
        )
    ) AS due
FROM keyservice_findings
WHERE last_pass = %(pass_number)s
GROUP BY kind"""

_LIST_FINDINGS = """/* list_findings */
SELECT kinds.kind, listed.hash
FROM unnest(ARRAY['orphan', 'missing', 'drift', 'found', 'unknown', 'foreign']) AS kinds (kind)
CROSS JOIN LATERAL (
    SELECT f.hash FROM keyservice_findings AS f
    WHERE f.kind = kinds.kind AND f.last_pass = %(pass_number)s
    ORDER BY f.hash
    LIMIT %(limit)s
) AS listed"""


def summarize(database: Database, *, pass_number: int, drain_seconds: float) -> dict[FindingKind, FindingSummary]:
    """What the pass has found so far, by kind."""
    parameters = {"pass_number": pass_number, "drain_seconds": drain_seconds, "limit": _LISTED_PER_KIND}
    counts, listed = repeated_once(
        database, Statement(_COUNT_FINDINGS, parameters), Statement(_LIST_FINDINGS, parameters)
    )
    return {
        row["kind"]: FindingSummary(
            seen=row["seen"],
            due=row["due"],
            hashes=[entry["hash"] for entry in listed if entry["kind"] == row["kind"]],
        )
        for row in counts
    }


_READ_DUE = """/* read_due */
SELECT hash, kind, fields, row_updated_at FROM keyservice_findings
WHERE state = 'seen' AND NOT is_settled AND last_pass = %(pass_number)s AND hash > %(after)s AND (
    kind IN ('missing', 'drift', 'found')
    OR (kind = 'orphan' AND first_pass < last_pass
        AND first_seen_at <= now() - make_interval(secs => %(drain_seconds)s))
)
ORDER BY hash
LIMIT %(limit)s"""


def read_due(database: Database, *, pass_number: int, drain_seconds: float, after: str) -> list[Finding]:
    """Some findings that may be healed now: orphans seen in an earlier pass too, first more than a drain ago."""
    parameters = {"pass_number": pass_number, "drain_seconds": drain_seconds, "after": after, "limit": _CHUNK}
    [rows] = repeated_once(database, Statement(_READ_DUE, parameters))
    return msgspec.convert(rows, list[Finding])


_READ_CLAIMED = """/* read_claimed */
SELECT hash, kind, fields, row_updated_at FROM keyservice_findings
WHERE state = 'healing' AND hash > %(after)s
ORDER BY hash
LIMIT %(limit)s"""


def read_claimed(database: Database, *, after: str) -> list[Finding]:
    """Some heals that an earlier run began and did not end."""
    [rows] = repeated_once(database, Statement(_READ_CLAIMED, {"after": after, "limit": _CHUNK}))
    return msgspec.convert(rows, list[Finding])


_FORGET = """/* forget_finding */
DELETE FROM keyservice_findings WHERE hash = %(hash)s AND state = 'seen'"""


def forget(database: Database, token_hash: str) -> None:
    """A second look did not find it again."""
    repeated_once(database, Statement(_FORGET, {"hash": token_hash}))


_CLAIM_ORPHAN = """/* claim_orphan */
UPDATE keyservice_findings AS f
SET state = 'healing'
FROM api_key_tokens AS t
WHERE f.hash = %(hash)s AND f.kind = 'orphan' AND f.state = 'seen' AND t.hash = f.hash
AND t.state IN ('condemned', 'dead')
AND NOT EXISTS (
    SELECT FROM api_key_operations AS o
    WHERE o.api_key_id = t.api_key_id AND o.state = 'pending' AND t.state = 'condemned'
)
RETURNING f.hash"""


def claim_orphan(database: Database, token_hash: str) -> bool:
    """False when it is not over after all, or another run has it."""
    [rows] = repeated_once(database, Statement(_CLAIM_ORPHAN, {"hash": token_hash}))
    return bool(rows)


_FINISH_ORPHAN = """/* finish_orphan */
WITH gate AS (
    DELETE FROM keyservice_findings
    WHERE hash = %(hash)s AND kind = 'orphan' AND state = 'healing'
    RETURNING hash
),
token_dead AS (
    UPDATE api_key_tokens AS t SET state = 'dead', unsafe_until = NULL, updated_at = now()
    FROM gate
    WHERE t.hash = gate.hash
    RETURNING t.hash, t.api_key_id, t.user_id, t.alias
),
audited AS (
    INSERT INTO audit_logs (user_id, action, resource_type, resource_id, success, metadata)
    SELECT
        (SELECT u.id FROM users AS u WHERE u.id = %(system_user_id)s), 'API_KEY_ORPHAN_DELETED', 'API_KEY',
        t.api_key_id, true,
        jsonb_build_object(
            'userId', t.user_id, 'tokenHash', t.hash, 'alias', t.alias, 'name', o.key_name,
            'keyPrefix', o.key_prefix, 'models', o.models
        )
    FROM token_dead AS t
    LEFT JOIN LATERAL (
        SELECT key_name, key_prefix, models FROM api_key_operations
        WHERE api_key_id = t.api_key_id
        ORDER BY created_at DESC
        LIMIT 1
    ) AS o ON true
)
SELECT hash FROM gate"""


def finish_orphan(database: Database, token_hash: str) -> bool:
    """The end of a claimed orphan, once LiteLLM has said that the key is gone. False when another run ended it."""
    parameters = {"hash": token_hash, "system_user_id": _SYSTEM_USER_ID}
    [rows] = repeated_once(database, Statement(_FINISH_ORPHAN, parameters))
    return bool(rows)


_CLAIM_DRIFT = """/* claim_drift */
UPDATE keyservice_findings AS f
SET state = 'healing', fields = %(fields)s
FROM api_key_tokens AS t
JOIN api_keys AS k ON k.id = t.api_key_id
WHERE f.hash = %(hash)s AND f.kind = 'drift' AND f.state = 'seen' AND t.hash = f.hash AND t.state = 'live'
AND k.is_active AND k.updated_at IS NOT DISTINCT FROM %(row_updated_at)s
AND NOT EXISTS (SELECT FROM api_key_operations AS o WHERE o.api_key_id = k.id AND o.state = 'pending')
RETURNING f.hash"""


def claim_drift(database: Database, live: LiveKey, *, fields: Sequence[str]) -> bool:
    """False when the row has changed since it was read, or another run has it."""
    parameters = {"hash": live.hash, "fields": list(fields), "row_updated_at": live.row_updated_at}
    [rows] = repeated_once(database, Statement(_CLAIM_DRIFT, parameters))
    return bool(rows)


_FINISH_DRIFT = """/* finish_drift */
WITH gate AS (
    DELETE FROM keyservice_findings
    WHERE hash = %(hash)s AND kind = 'drift' AND state = 'healing'
    RETURNING hash, fields
),
audited AS (
    INSERT INTO audit_logs (user_id, action, resource_type, resource_id, success, error_message, metadata)
    SELECT
        (SELECT u.id FROM users AS u WHERE u.id = %(system_user_id)s), 'API_KEY_DRIFT_CORRECTED', 'API_KEY',
        t.api_key_id, %(is_corrected)s,
        CASE WHEN NOT %(is_corrected)s THEN 'the key changed while it was being corrected' END,
        jsonb_build_object(
            'userId', t.user_id, 'tokenHash', t.hash, 'name', k.name, 'keyPrefix', k.key_prefix, 'fields', gate.fields
        )
    FROM gate
    JOIN api_key_tokens AS t ON t.hash = gate.hash
    LEFT JOIN api_keys AS k ON k.id = t.api_key_id
)
SELECT hash FROM gate"""


def finish_drift(database: Database, token_hash: str, *, is_corrected: bool) -> bool:
    """The end of a claimed drift: LiteLLM took the row's settings, or there is nothing left to correct and nobody
    knows whether it had taken them. False when another run ended it."""
    parameters = {"hash": token_hash, "is_corrected": is_corrected, "system_user_id": _SYSTEM_USER_ID}
    [rows] = repeated_once(database, Statement(_FINISH_DRIFT, parameters))
    return bool(rows)


# The row itself is the gate: of two runs one finds it not in error yet.
_MARK_MISSING = """/* mark_missing */
WITH gate AS (
    UPDATE api_keys AS k
    SET sync_status = 'error', sync_error = %(missing)s, last_sync_at = now(), updated_at = now()
    FROM api_key_tokens AS t
    WHERE k.id = %(api_key_id)s AND t.api_key_id = k.id AND t.hash = %(hash)s AND t.state = 'live' AND k.is_active
    AND k.updated_at IS NOT DISTINCT FROM %(row_updated_at)s AND k.sync_status IS DISTINCT FROM 'error'
    AND NOT EXISTS (SELECT FROM api_key_operations AS o WHERE o.api_key_id = k.id AND o.state = 'pending')
    RETURNING k.id, k.user_id, k.name, k.key_prefix, t.hash
),
audited AS (
    INSERT INTO audit_logs (user_id, action, resource_type, resource_id, success, metadata)
    SELECT
        (SELECT u.id FROM users AS u WHERE u.id = %(system_user_id)s), 'API_KEY_MISSING', 'API_KEY', gate.id, true,
        jsonb_build_object(
            'userId', gate.user_id, 'tokenHash', gate.hash, 'name', gate.name, 'keyPrefix', gate.key_prefix
        )
    FROM gate
),
settled AS (
    UPDATE keyservice_findings AS f SET is_settled = true FROM gate WHERE f.hash = gate.hash
)
SELECT id FROM gate"""


def mark_missing(database: Database, live: LiveKey) -> bool:
    """The row says from now on that LiteLLM has no such key. False when it changed meanwhile."""
    return _mark(database, Statement(_MARK_MISSING, _marking(live)), live)


_MARK_FOUND = """/* mark_found */
WITH gate AS (
    UPDATE api_keys AS k
    SET sync_status = 'synced', sync_error = NULL, last_sync_at = now(), updated_at = now()
    FROM api_key_tokens AS t
    WHERE k.id = %(api_key_id)s AND t.api_key_id = k.id AND t.hash = %(hash)s AND t.state = 'live' AND k.is_active
    AND k.updated_at IS NOT DISTINCT FROM %(row_updated_at)s AND k.sync_status = 'error' AND k.sync_error = %(missing)s
    AND NOT EXISTS (SELECT FROM api_key_operations AS o WHERE o.api_key_id = k.id AND o.state = 'pending')
    RETURNING k.id, k.user_id, k.name, k.key_prefix, t.hash
),
audited AS (
    INSERT INTO audit_logs (user_id, action, resource_type, resource_id, success, metadata)
    SELECT
        (SELECT u.id FROM users AS u WHERE u.id = %(system_user_id)s), 'API_KEY_FOUND', 'API_KEY', gate.id, true,
        jsonb_build_object(
            'userId', gate.user_id, 'tokenHash', gate.hash, 'name', gate.name, 'keyPrefix', gate.key_prefix
        )
    FROM gate
),
forgotten AS (
    DELETE FROM keyservice_findings AS f USING gate WHERE f.hash = gate.hash
)
SELECT id FROM gate"""


def mark_found(database: Database, live: LiveKey) -> bool:
    """The row is in step with LiteLLM again. False when it changed meanwhile."""
    return _mark(database, Statement(_MARK_FOUND, _marking(live)), live)


def _marking(live: LiveKey) -> dict[str, Any]:
    return {
        "hash": live.hash,
        "api_key_id": live.api_key_id,
        "row_updated_at": live.row_updated_at,
        "missing": _MISSING,
        "system_user_id": _SYSTEM_USER_ID,
    }


def _mark(database: Database, statement: Statement, live: LiveKey) -> bool:
    _, rows = repeated_once(database, Statement(LOCK_KEY, {"api_key_id": live.api_key_id}), statement)
    return bool(rows)
