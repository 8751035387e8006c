-- Every index on a table of LiteMaaS's, which may have millions of rows and somebody who writes to it at any moment: each
-- is built outside a transaction, while others read and write. An index of another name may say the same in a LiteMaaS.

-- A caller's keys newest first; all keys newest first; a subscription's keys (cascades); the keys of a model (list filter);
-- the keys to expire.
CREATE INDEX CONCURRENTLY IF NOT EXISTS api_keys_of_user_newest_first ON api_keys (user_id, created_at DESC, id DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS api_keys_newest_first ON api_keys (created_at DESC, id DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS api_keys_of_subscription ON api_keys (subscription_id);
CREATE INDEX CONCURRENTLY IF NOT EXISTS api_key_models_of_model ON api_key_models (model_id);
CREATE INDEX CONCURRENTLY IF NOT EXISTS api_keys_to_expire ON api_keys (expires_at) WHERE is_active AND revoked_at IS NULL;

-- Audit records, newest first as they are read: all of them, by action, by user, by resource.
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_logs_newest_first ON audit_logs (created_at DESC, id DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_logs_of_action_newest_first ON audit_logs (action, created_at DESC, id DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_logs_of_user_newest_first ON audit_logs (user_id, created_at DESC, id DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_logs_of_resource_newest_first
    ON audit_logs (resource_id, created_at DESC, id DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_logs_of_resource ON audit_logs (resource_type, resource_id);

-- The words of a record's action and name, each by its beginning: API_KEY_DELETE of "ci-2026" has api, key, delete, ci, 2026.
-- The query says the same expression (audit_trail_store).
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_logs_words ON audit_logs USING gin (
    to_tsvector('simple'::regconfig,
        regexp_replace(action || ' ' || coalesce(metadata ->> 'name', ''), '[^[:alnum:]]+', ' ', 'g'))
);
