"""A million keys of ten thousand users, one of whom has a tenth of them, and ten million audit records."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import LiteralString, cast

from bench.stage import Stage
from local.seed import OAUTH_PROVIDER

USERS = 10_000
MANY = "with-many"
FEW = "with-few"
FEW_KEYS = 10
ADMINISTRATOR = "administrator"

_USERS: LiteralString = """
INSERT INTO users (username, email, oauth_provider, oauth_id, roles, sync_status)
SELECT name, name || '@example.com', %(provider)s, name,
    CASE WHEN name = 'administrator' THEN '{admin}'::text[] ELSE '{user}' END, 'synced'
FROM (
    SELECT 'crowd-' || n AS name FROM generate_series(1, %(users)s) AS n
    UNION ALL SELECT unnest(%(others)s::text[])
) AS named"""

# A tenth belongs to one user; the rest goes round. Created one after the other, a minute apart.
_KEYS: LiteralString = """
WITH owners AS (
    SELECT array_agg(id ORDER BY oauth_id) AS ids FROM users WHERE oauth_id LIKE 'crowd-%%'
),
made AS (
    INSERT INTO api_keys (
        user_id, name, key_hash, key_prefix, lite_llm_key_id, is_active, sync_status, tpm_limit, max_budget, created_at
    )
    SELECT
        CASE WHEN n %% 10 = 0 THEN (SELECT id FROM users WHERE oauth_id = 'with-many')
            ELSE owners.ids[1 + n %% %(users)s] END,
        'key ' || n, hash, 'sk-lmk_0000', hash, n %% 17 <> 0, 'synced', 1000, 10, now() - make_interval(mins => n)
    FROM owners, generate_series(%(first)s::integer, %(last)s::integer) AS n
    CROSS JOIN LATERAL (SELECT encode(sha256(n::text::bytea), 'hex') AS hash) AS hashed
    RETURNING id, user_id, key_hash, is_active
),
models_made AS (
    INSERT INTO api_key_models (api_key_id, model_id)
    SELECT made.id, CASE WHEN made.key_hash < '8' THEN 'gpt-4o' ELSE 'gpt-4o-mini' END FROM made
)
INSERT INTO api_key_tokens (hash, api_key_id, user_id, alias, state)
SELECT key_hash, id, user_id, (SELECT mark FROM keyservice_installation) || ':' || id || ':1',
    CASE WHEN is_active THEN 'live' ELSE 'dead' END
FROM made"""

_AUDIT_RECORDS: LiteralString = """
INSERT INTO audit_logs (user_id, action, resource_type, resource_id, metadata, created_at)
SELECT owners.ids[1 + n %% %(users)s],
    CASE n %% 10 WHEN 0 THEN 'API_KEY_DELETE' WHEN 1 THEN 'API_KEY_UPDATE' WHEN 2 THEN 'LOGIN' ELSE 'API_KEY_CREATE' END,
    'API_KEY', n::text, jsonb_build_object('name', 'team ' || n %% 50000), now() - make_interval(secs => n)
FROM (SELECT array_agg(id ORDER BY oauth_id) AS ids FROM users WHERE oauth_id LIKE 'crowd-%%') AS owners,
    generate_series(%(first)s::integer, %(last)s::integer) AS n"""


def insert_users(stage: Stage) -> None:
    stage.execute(_USERS, users=USERS, provider=OAUTH_PROVIDER, others=[MANY, FEW, ADMINISTRATOR])


def fill(stage: Stage, *, keys: int, audit_records: int, report: Callable[[str], None]) -> None:
    """In place of whatever keys and records there are. Two sessions side by side; the audit table gets its indexes, its key
    among them, when it is full."""
    report(f"inserting {keys:,} keys and {audit_records:,} audit records")
    stage.execute("TRUNCATE api_keys, api_key_models, api_key_tokens, api_key_operations, audit_logs CASCADE")
    stage.execute("ALTER TABLE audit_logs SET UNLOGGED")
    # The database's own words about itself are no input.
    indexes = stage.rows(
        """
        SELECT indexdef AS definition, 'DROP INDEX ' || indexname AS drop FROM pg_indexes
        WHERE tablename = 'audit_logs' AND indexname NOT IN (SELECT conname FROM pg_constraint)
        UNION ALL
        SELECT 'ALTER TABLE audit_logs ADD PRIMARY KEY (id)', 'ALTER TABLE audit_logs DROP CONSTRAINT ' || conname
        FROM pg_constraint WHERE conrelid = 'audit_logs'::regclass AND contype = 'p'
        """
    )
    for index in indexes:
        stage.execute(cast("LiteralString", index["drop"]))
    with ThreadPoolExecutor(2) as pool:
        parts: list[tuple[LiteralString, int, int]] = [
            (_KEYS, FEW_KEYS + 1, keys // 2),
            (_KEYS, keys // 2 + 1, keys),
            (_AUDIT_RECORDS, 1, audit_records // 2),
            (_AUDIT_RECORDS, audit_records // 2 + 1, audit_records),
        ]
        filling = [
            pool.submit(stage.execute, statement, users=USERS, first=first, last=last)
            for statement, first, last in parts
        ]
        for one in filling:
            one.result()
        stage.rows(
            """
            UPDATE api_keys SET user_id = (SELECT id FROM users WHERE oauth_id = 'with-few')
            WHERE id IN (SELECT id FROM api_keys ORDER BY created_at DESC LIMIT 10)
            """
        )
        report(f"building {len(indexes)} indexes of {audit_records:,} audit records")
        for one in [pool.submit(stage.execute, cast("LiteralString", index["definition"])) for index in indexes]:
            one.result()
    report("collecting statistics")
    stage.rows("VACUUM ANALYZE")
