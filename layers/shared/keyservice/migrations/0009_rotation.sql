-- Rotating: the end of an earlier secret is an operation of its own, and one pending may meet a row that vanishes.

-- NOT VALID: every row there is already passes the narrower check that this one replaces, so none need be read.
ALTER TABLE api_key_operations DROP CONSTRAINT IF EXISTS api_key_operations_kind_check;
ALTER TABLE api_key_operations ADD CONSTRAINT api_key_operations_kind_check
    CHECK (kind IN ('create', 'update', 'rotate', 'retire', 'delete')) NOT VALID;
COMMENT ON COLUMN api_key_operations.kind IS 'retire: LiteLLM is to forget the secrets that a rotation has replaced.';

-- What settle_operations looks for every minute.
CREATE INDEX api_key_tokens_to_retire ON api_key_tokens (valid_until) WHERE state = 'retiring';

-- As before, and: a rotation or a retirement that is pending when the row vanishes ends as superseded, so that the delete of
-- all tokens can take its place. A create is left to be undone, which deletes the one token it has.
CREATE OR REPLACE FUNCTION keyservice_condemn_tokens() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    WITH superseded AS (
        UPDATE api_key_operations
        SET state = 'superseded', finished_at = now(), last_error = 'superseded: the key''s row was removed',
            updated_at = now()
        WHERE api_key_id = OLD.id AND state = 'pending' AND kind IN ('rotate', 'retire')
        RETURNING *
    )
    INSERT INTO audit_logs (
        user_id, action, resource_type, resource_id, ip_address, user_agent, success, error_message, metadata
    )
    SELECT
        (SELECT u.id FROM users AS u WHERE u.id = (o.actor ->> 'user_id')::uuid),
        CASE o.kind WHEN 'retire' THEN 'API_KEY_ROTATE_COMPLETE' ELSE 'API_KEY_ROTATE' END,
        'API_KEY', o.api_key_id, (o.actor ->> 'ip_address')::inet, o.actor ->> 'user_agent', false, o.last_error,
        jsonb_build_object(
            'requestId', o.actor ->> 'request_id', 'operationId', o.id, 'userId', o.user_id, 'name', o.key_name,
            'keyPrefix', o.key_prefix, 'models', o.models, 'modelCount', cardinality(o.models)
        )
    FROM superseded AS o;
    -- A key that LiteMaaS made, or gave another secret, has no token of ours; its hash is LiteLLM's token id all the same.
    IF OLD.key_hash ~ '^[0-9a-f]{64}$'
        AND NOT EXISTS (SELECT FROM api_key_tokens WHERE api_key_id = OLD.id AND hash = OLD.key_hash)
    THEN
        INSERT INTO api_key_tokens (hash, api_key_id, user_id, alias, state)
        VALUES (OLD.key_hash, OLD.id, OLD.user_id, OLD.litellm_key_alias, 'condemned')
        ON CONFLICT (hash) DO UPDATE SET api_key_id = EXCLUDED.api_key_id, state = 'condemned', updated_at = now();
    END IF;
    UPDATE api_key_tokens SET state = 'condemned', updated_at = now()
    WHERE api_key_id = OLD.id AND state IN ('intended', 'live', 'retiring');
    IF EXISTS (SELECT FROM api_key_tokens WHERE api_key_id = OLD.id AND state <> 'dead') THEN
        INSERT INTO api_key_operations (
            id, api_key_id, user_id, actor, kind, lease_until, next_attempt_at, request, key_name, key_prefix, models
        )
        VALUES (
            gen_random_uuid(), OLD.id, OLD.user_id,
            '{"user_id": "00000000-0000-0000-0000-000000000001"}', 'delete', now(), now(),
            '{"reason": "rowRemoved"}', OLD.name, OLD.key_prefix,
            ARRAY(SELECT m.model_id::text FROM api_key_models AS m WHERE m.api_key_id = OLD.id ORDER BY m.model_id)
        )
        ON CONFLICT (api_key_id) WHERE state = 'pending' DO NOTHING;
    END IF;
    RETURN NULL;
END
$$;
