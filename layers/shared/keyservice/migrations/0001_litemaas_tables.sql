-- The LiteMaaS tables a key service touches, as LiteMaaS 0.4 has them. Beside a LiteMaaS they exist already and
-- nothing changes; in a database of its own the service makes them.

CREATE TABLE IF NOT EXISTS users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    username varchar(255) NOT NULL UNIQUE,
    email varchar(255) NOT NULL UNIQUE,
    full_name varchar(255),
    oauth_provider varchar(50) NOT NULL,
    oauth_id varchar(255) NOT NULL,
    roles text[] DEFAULT '{user}',
    is_active boolean DEFAULT true,
    max_budget numeric(10, 2) DEFAULT 100,
    tpm_limit integer DEFAULT 10000,
    rpm_limit integer DEFAULT 60,
    budget_duration varchar(20),
    sync_status varchar(20) DEFAULT 'pending' CHECK (sync_status IN ('pending', 'synced', 'error')),
    last_login_at timestamptz,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    UNIQUE (oauth_provider, oauth_id)
);

INSERT INTO users (id, username, email, full_name, oauth_provider, oauth_id, roles, is_active)
VALUES ('00000000-0000-0000-0000-000000000001', 'system', 'system@litemaas.internal', 'System', 'system', 'system',
        '{system}', false)
ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS teams (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL,
    alias varchar(255),
    description text,
    lite_llm_team_id varchar(255),
    max_budget numeric(10, 2),
    current_spend numeric(10, 2) DEFAULT 0,
    budget_duration varchar(20) DEFAULT 'monthly',
    tpm_limit integer,
    rpm_limit integer,
    allowed_models text[],
    metadata jsonb DEFAULT '{}',
    is_active boolean DEFAULT true,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    created_by uuid REFERENCES users (id)
);

CREATE TABLE IF NOT EXISTS team_members (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    team_id uuid NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role varchar(20) NOT NULL CHECK (role IN ('admin', 'member', 'viewer')),
    joined_at timestamptz DEFAULT now(),
    added_by uuid REFERENCES users (id),
    UNIQUE (team_id, user_id)
);

CREATE TABLE IF NOT EXISTS models (
    id varchar(255) PRIMARY KEY,
    name varchar(255) NOT NULL,
    provider varchar(100) NOT NULL,
    description text,
    category varchar(100),
    context_length integer,
    availability varchar(50) DEFAULT 'available',
    metadata jsonb DEFAULT '{}',
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

CREATE TABLE IF NOT EXISTS subscriptions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    model_id varchar(255) NOT NULL REFERENCES models (id),
    team_id uuid REFERENCES teams (id),
    status varchar(20) NOT NULL DEFAULT 'active'
        CHECK (status IN ('active', 'suspended', 'cancelled', 'expired', 'inactive', 'pending', 'denied')),
    quota_requests integer NOT NULL DEFAULT 0,
    quota_tokens integer NOT NULL DEFAULT 0,
    expires_at timestamptz,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    UNIQUE (user_id, model_id)
);

CREATE TABLE IF NOT EXISTS api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    subscription_id uuid REFERENCES subscriptions (id) ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name varchar(255),
    key_hash varchar(255) NOT NULL UNIQUE,
    key_prefix varchar(20) NOT NULL,
    litellm_key_alias varchar(255),
    permissions jsonb DEFAULT '{}',
    max_budget numeric(10, 2),
    current_spend numeric(10, 2) DEFAULT 0,
    tpm_limit integer,
    rpm_limit integer,
    max_parallel_requests integer,
    budget_duration varchar(20),
    soft_budget numeric(10, 2),
    budget_reset_at timestamptz,
    model_max_budget jsonb,
    model_rpm_limit jsonb,
    model_tpm_limit jsonb,
    tags text[],
    metadata jsonb DEFAULT '{}',
    last_used_at timestamptz,
    expires_at timestamptz,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now(),
    revoked_at timestamptz,
    last_sync_at timestamptz,
    is_active boolean DEFAULT true,
    sync_status varchar(20) DEFAULT 'pending' CHECK (sync_status IN ('synced', 'pending', 'error')),
    sync_error text
);

-- LiteLLM's own id of the key, which is sha256(secret). LiteMaaS 0.4 has no such column.
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS lite_llm_key_id varchar(255);

CREATE TABLE IF NOT EXISTS api_key_models (
    api_key_id uuid NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    model_id varchar(255) NOT NULL REFERENCES models (id) ON DELETE CASCADE,
    created_at timestamptz DEFAULT now(),
    PRIMARY KEY (api_key_id, model_id)
);

CREATE TABLE IF NOT EXISTS audit_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid REFERENCES users (id),
    action varchar(100) NOT NULL,
    resource_type varchar(50) NOT NULL,
    resource_id varchar(255),
    old_values jsonb,
    new_values jsonb,
    ip_address inet,
    user_agent text,
    session_id varchar(255),
    success boolean DEFAULT true,
    error_message text,
    metadata jsonb DEFAULT '{}',
    created_at timestamptz DEFAULT now()
);

CREATE TABLE IF NOT EXISTS system_settings (
    key varchar(100) PRIMARY KEY,
    value jsonb NOT NULL DEFAULT '{}',
    updated_at timestamptz DEFAULT now(),
    updated_by uuid REFERENCES users (id)
);
