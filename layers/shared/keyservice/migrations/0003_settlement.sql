-- What settling needs: rows that vanish take their LiteLLM keys with them.

CREATE INDEX api_key_operations_to_show ON api_key_operations (state, created_at, id)
    WHERE state IN ('pending', 'failed');

-- LiteMaaS, a cascade or a hand at psql removes a row without asking the service. What the row stood for in LiteLLM is
-- then condemned, and a delete is queued that settle_operations carries out. After the service's own delete nothing is
-- left to do: its tokens are dead by the end of the statement that removed the row.
-- SECURITY DEFINER: whoever may delete a key has to be able to condemn its tokens, and needs no other right to them.
CREATE FUNCTION keyservice_condemn_tokens() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
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
REVOKE ALL ON FUNCTION keyservice_condemn_tokens() FROM PUBLIC;

-- Triggers of one kind fire in the order of their names, and the cascade to api_key_models is one called "RI_...": this
-- name comes before it, so that the models are still there to be named in the audit record.
CREATE TRIGGER "Condemn_tokens" AFTER DELETE ON api_keys
FOR EACH ROW EXECUTE FUNCTION keyservice_condemn_tokens();
