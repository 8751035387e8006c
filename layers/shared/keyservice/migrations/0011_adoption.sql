-- What the tables of an older LiteMaaS lack of those in 0001. A column with a constant default, or none, is added without
-- touching a row.

ALTER TABLE users
    ADD COLUMN IF NOT EXISTS full_name varchar(255),
    ADD COLUMN IF NOT EXISTS roles text[] DEFAULT '{user}',
    ADD COLUMN IF NOT EXISTS is_active boolean DEFAULT true,
    ADD COLUMN IF NOT EXISTS max_budget numeric(10, 2) DEFAULT 100,
    ADD COLUMN IF NOT EXISTS tpm_limit integer DEFAULT 10000,
    ADD COLUMN IF NOT EXISTS rpm_limit integer DEFAULT 60,
    ADD COLUMN IF NOT EXISTS budget_duration varchar(20),
    ADD COLUMN IF NOT EXISTS sync_status varchar(20) DEFAULT 'pending',
    ADD COLUMN IF NOT EXISTS last_login_at timestamptz;

ALTER TABLE teams
    ADD COLUMN IF NOT EXISTS lite_llm_team_id varchar(255),
    ADD COLUMN IF NOT EXISTS is_active boolean DEFAULT true;

ALTER TABLE subscriptions
    ADD COLUMN IF NOT EXISTS team_id uuid REFERENCES teams (id),
    ADD COLUMN IF NOT EXISTS expires_at timestamptz;

ALTER TABLE api_keys
    ADD COLUMN IF NOT EXISTS name varchar(255),
    ADD COLUMN IF NOT EXISTS litellm_key_alias varchar(255),
    ADD COLUMN IF NOT EXISTS permissions jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS max_budget numeric(10, 2),
    ADD COLUMN IF NOT EXISTS current_spend numeric(10, 2) DEFAULT 0,
    ADD COLUMN IF NOT EXISTS tpm_limit integer,
    ADD COLUMN IF NOT EXISTS rpm_limit integer,
    ADD COLUMN IF NOT EXISTS max_parallel_requests integer,
    ADD COLUMN IF NOT EXISTS budget_duration varchar(20),
    ADD COLUMN IF NOT EXISTS soft_budget numeric(10, 2),
    ADD COLUMN IF NOT EXISTS budget_reset_at timestamptz,
    ADD COLUMN IF NOT EXISTS model_max_budget jsonb,
    ADD COLUMN IF NOT EXISTS model_rpm_limit jsonb,
    ADD COLUMN IF NOT EXISTS model_tpm_limit jsonb,
    ADD COLUMN IF NOT EXISTS tags text[],
    ADD COLUMN IF NOT EXISTS metadata jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS last_used_at timestamptz,
    ADD COLUMN IF NOT EXISTS updated_at timestamptz DEFAULT now(),
    ADD COLUMN IF NOT EXISTS revoked_at timestamptz,
    ADD COLUMN IF NOT EXISTS last_sync_at timestamptz,
    ADD COLUMN IF NOT EXISTS sync_status varchar(20) DEFAULT 'pending',
    ADD COLUMN IF NOT EXISTS sync_error text,
    -- Keys of several models have no subscription.
    ALTER COLUMN subscription_id DROP NOT NULL;

ALTER TABLE audit_logs
    ADD COLUMN IF NOT EXISTS old_values jsonb,
    ADD COLUMN IF NOT EXISTS new_values jsonb,
    ADD COLUMN IF NOT EXISTS ip_address inet,
    ADD COLUMN IF NOT EXISTS user_agent text,
    ADD COLUMN IF NOT EXISTS success boolean DEFAULT true,
    ADD COLUMN IF NOT EXISTS error_message text,
    ADD COLUMN IF NOT EXISTS metadata jsonb DEFAULT '{}';

-- Where taking over LiteMaaS's keys stands: a run that ends goes on there.
CREATE TABLE keyservice_adoption (
    is_the_only_row boolean PRIMARY KEY DEFAULT true CHECK (is_the_only_row),
    mode text NOT NULL DEFAULT 'dry-run' CHECK (mode IN ('dry-run', 'adopt', 'scrub')),
    stage text NOT NULL DEFAULT 'done' CHECK (stage IN ('collect', 'compare', 'confirm', 'change', 'done')),
    after_id uuid,
    page integer NOT NULL DEFAULT 1 CHECK (page > 0),
    keys_read bigint NOT NULL DEFAULT 0,
    orphans bigint NOT NULL DEFAULT 0,
    orphan_hashes text[] NOT NULL DEFAULT '{}',
    advanced_at timestamptz NOT NULL DEFAULT now(),
    lease_until timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO keyservice_adoption DEFAULT VALUES;
COMMENT ON COLUMN keyservice_adoption.orphans IS 'Keys that LiteMaaS made in LiteLLM and that no row here is about.';

-- The notes of one pass: each row of api_keys, with every hash that its key in LiteLLM may have. Hashes, no secrets.
CREATE TABLE keyservice_adoption_candidates (
    api_key_id uuid NOT NULL,
    rank smallint NOT NULL,
    kind text NOT NULL CHECK (kind IN ('adoptable', 'adopted', 'own', 'revoked', 'busy')),
    hash text,
    is_there boolean,
    outcome text CHECK (outcome IN ('adopted', 'scrubbed', 'conflicting', 'changed')),
    PRIMARY KEY (api_key_id, rank)
);
COMMENT ON COLUMN keyservice_adoption_candidates.is_there IS 'Whether LiteLLM has it; null while it has not been asked.';
CREATE INDEX keyservice_adoption_candidates_of_hash ON keyservice_adoption_candidates (hash);

-- Adopted keys bear no mark: to see whether they are there, a pass of reconcile has to read all of LiteLLM's keys. Its
-- pages are others then, so that is decided when the pass begins.
ALTER TABLE keyservice_reconciliation ADD COLUMN reads_all boolean NOT NULL DEFAULT false;
CREATE INDEX api_key_tokens_adopted ON api_key_tokens (hash) WHERE state = 'live' AND nonce IS NULL;
