-- Changing a key: until when an unanswered change may still be carried out by LiteLLM, over what was stored since.

ALTER TABLE api_key_tokens ADD COLUMN IF NOT EXISTS settings_unsafe_until timestamptz;
COMMENT ON COLUMN api_key_tokens.settings_unsafe_until IS
    'Until then an unanswered change may still be carried out; null when every change was answered.';
CREATE INDEX IF NOT EXISTS api_key_tokens_with_unsafe_settings
    ON api_key_tokens (settings_unsafe_until) WHERE settings_unsafe_until IS NOT NULL;
