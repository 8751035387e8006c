"""What a key is allowed, as one value of SQL, and the version that callers know it by."""

from typing import LiteralString

# Of `k`, a row of api_keys: the shape of models.KeySettings, every field named. Times are text in UTC, whatever the session's
# zone. Columns that others write may hold what we never would.
SETTINGS: LiteralString = """jsonb_build_object(
        'name', k.name,
        'models', ARRAY(SELECT m.model_id::text FROM api_key_models AS m WHERE m.api_key_id = k.id ORDER BY m.model_id::text),
        'expires_at', CASE WHEN isfinite(k.expires_at)
            THEN to_char(k.expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') END,
        'max_budget', k.max_budget,
        'soft_budget', k.soft_budget,
        'budget_duration', k.budget_duration,
        'tpm_limit', k.tpm_limit,
        'rpm_limit', k.rpm_limit,
        'max_parallel_requests', k.max_parallel_requests,
        'metadata', CASE WHEN jsonb_typeof(k.metadata) = 'object' THEN k.metadata ELSE '{}' END,
        'lite_llm_team_id', k.lite_llm_team_id,
        'permissions', CASE WHEN jsonb_typeof(k.permissions) = 'object' THEN k.permissions ELSE '{}' END,
        'tags', coalesce(array_remove(k.tags, NULL), '{}'),
        'model_rpm_limit', CASE WHEN jsonb_typeof(k.model_rpm_limit) = 'object' THEN k.model_rpm_limit ELSE '{}' END,
        'model_tpm_limit', CASE WHEN jsonb_typeof(k.model_tpm_limit) = 'object' THEN k.model_tpm_limit ELSE '{}' END
    )"""

# Of the same row, the value of the header ETag: of what its owner, a rotation or a revocation changes. Not updated_at, which
# moves with every spend that is brought in.
ENTITY_TAG: LiteralString = (
    """'"' || left(encode(sha256(convert_to(jsonb_build_array(
        k.key_prefix, coalesce(k.is_active, true) AND k.revoked_at IS NULL, """
    + SETTINGS
    + """
    )::text, 'UTF8')), 'hex'), 32) || '"'"""
)

# Of the same row, the names of the settings that unanswered changes may have made something else in LiteLLM: what was ever to
# change, since a late one brings back what it knew.
IN_DOUBT: LiteralString = """(
        SELECT coalesce(jsonb_agg(DISTINCT n.name), '[]')
        FROM api_key_operations AS o
        CROSS JOIN jsonb_object_keys(
            CASE WHEN jsonb_typeof(o.request -> 'new') = 'object' THEN o.request -> 'new' ELSE '{}' END
        ) AS n (name)
        WHERE o.api_key_id = k.id AND o.kind = 'update'
    )"""
