-- An index for each query of the administrators that LiteMaaS has none for. All newest first, as they are read: keys over
-- all users, and audit records over all, by action, by user and by resource.

CREATE INDEX IF NOT EXISTS api_keys_newest_first ON api_keys (created_at DESC, id DESC);

CREATE INDEX IF NOT EXISTS audit_logs_newest_first ON audit_logs (created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS audit_logs_of_action_newest_first ON audit_logs (action, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS audit_logs_of_user_newest_first ON audit_logs (user_id, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS audit_logs_of_resource_newest_first ON audit_logs (resource_id, created_at DESC, id DESC);
-- These two say no more than the ones above.
DROP INDEX IF EXISTS audit_logs_newest;
DROP INDEX IF EXISTS audit_logs_of_user;

-- The words of a record's action and name, each by its beginning: API_KEY_DELETE of "ci-2026" has api, key, delete, ci, 2026.
-- The query says the same expression (audit_trail_store).
CREATE INDEX IF NOT EXISTS audit_logs_words ON audit_logs USING gin (
    to_tsvector('simple'::regconfig,
        regexp_replace(action || ' ' || coalesce(metadata ->> 'name', ''), '[^[:alnum:]]+', ' ', 'g'))
);
