-- The service's own tables. No foreign keys to LiteMaaS's: it may cascade rows away beside us, and what they
-- stood for in LiteLLM must still be found and ended.

CREATE TABLE keyservice_installation (
    is_the_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_the_only_row),
    mark text NOT NULL CHECK (mark ~ '^lmk-[0-9a-f]{12}$'),
    stack_name text NOT NULL,
    litellm_url text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN keyservice_installation.mark IS 'Begins the alias of every LiteLLM key of this installation.';

CREATE TABLE api_key_tokens (
    hash text PRIMARY KEY,
    api_key_id uuid NOT NULL,
    user_id uuid NOT NULL,
    number integer NOT NULL DEFAULT 1 CHECK (number > 0),
    nonce text CHECK (nonce ~ '^[0-9a-f]{32}$'),
    mac_key_arn text,
    alias text,
    state text NOT NULL CHECK (state IN ('intended', 'live', 'retiring', 'condemned', 'dead')),
    valid_until timestamptz,
    unsafe_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- A token of ours can be derived again; one adopted from LiteMaaS has neither nonce nor key.
    CHECK ((nonce IS NULL) = (mac_key_arn IS NULL))
);
COMMENT ON COLUMN api_key_tokens.hash IS 'sha256 of the secret, in hexadecimal: LiteLLM''s own token id.';
COMMENT ON COLUMN api_key_tokens.unsafe_until IS
    'Until then an unanswered generate may still make the key; null when every generate for it was answered.';
CREATE INDEX api_key_tokens_of_key ON api_key_tokens (api_key_id);

CREATE TABLE api_key_operations (
    id uuid PRIMARY KEY,
    api_key_id uuid NOT NULL,
    user_id uuid NOT NULL,
    actor jsonb NOT NULL,
    kind text NOT NULL CHECK (kind IN ('create', 'update', 'rotate', 'delete')),
    phase text NOT NULL DEFAULT 'forward' CHECK (phase IN ('forward', 'undo')),
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'failed', 'superseded')),
    epoch integer NOT NULL DEFAULT 1 CHECK (epoch > 0),
    lease_until timestamptz NOT NULL,
    idempotency_hash text,
    body_fingerprint text,
    request jsonb NOT NULL DEFAULT '{}',
    token_hash text,
    earlier_answered boolean NOT NULL DEFAULT true,
    key_name text,
    key_prefix text NOT NULL,
    models text[] NOT NULL,
    attempts integer NOT NULL DEFAULT 1,
    next_attempt_at timestamptz NOT NULL,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CHECK ((state = 'pending') = (finished_at IS NULL)),
    CHECK ((idempotency_hash IS NULL) = (body_fingerprint IS NULL))
);
COMMENT ON TABLE api_key_operations IS 'The journal: what was asked, who holds it now (epoch, lease), how it ended.';
COMMENT ON COLUMN api_key_operations.request IS 'What LiteLLM is to be told. Holds no secret.';
COMMENT ON COLUMN api_key_operations.earlier_answered IS
    'Whether every generate of the earlier epochs was answered: then an answered one leaves the token safe.';
CREATE UNIQUE INDEX api_key_operations_one_pending ON api_key_operations (api_key_id) WHERE state = 'pending';
CREATE UNIQUE INDEX api_key_operations_idempotency
    ON api_key_operations (user_id, kind, idempotency_hash) WHERE idempotency_hash IS NOT NULL;
CREATE INDEX api_key_operations_due ON api_key_operations (next_attempt_at) WHERE state = 'pending';
