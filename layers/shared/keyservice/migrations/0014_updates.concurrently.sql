-- What was ever to change of a key, for when LiteLLM may have made something else of it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS api_key_operations_updates ON api_key_operations (api_key_id) WHERE kind = 'update';
