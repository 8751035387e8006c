"""The tables of LiteMaaS, as far as they concern keys, in its two eras: with a plaintext secret in each row, and before."""

from typing import LiteralString

# LiteMaaS 0.4: columns, names and indexes of its own, and its trigger.
CURRENT: LiteralString = """
CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), username varchar(255) NOT NULL UNIQUE,
    email varchar(255) NOT NULL UNIQUE, full_name varchar(255), oauth_provider varchar(50) NOT NULL,
    oauth_id varchar(255) NOT NULL, roles text[] DEFAULT '{user}', is_active boolean DEFAULT true,
    max_budget numeric(10, 2) DEFAULT 100, tpm_limit integer DEFAULT 10000, rpm_limit integer DEFAULT 60,
    budget_duration varchar(20), sync_status varchar(20) DEFAULT 'pending'
        CHECK (sync_status IN ('pending', 'synced', 'error')),
    last_login_at timestamptz, created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now(),
    UNIQUE (oauth_provider, oauth_id)
);
CREATE TABLE teams (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name varchar(255) NOT NULL, lite_llm_team_id varchar(255),
    is_active boolean DEFAULT true
);
CREATE TABLE team_members (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), team_id uuid NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE, role varchar(20) NOT NULL, UNIQUE (team_id, user_id)
);
CREATE TABLE models (
    id varchar(255) PRIMARY KEY, name varchar(255) NOT NULL, provider varchar(100) NOT NULL, features text[],
    encrypted_api_key text, created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now()
);
CREATE TABLE subscriptions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    model_id varchar(255) NOT NULL REFERENCES models (id), team_id uuid REFERENCES teams (id),
    status varchar(20) NOT NULL DEFAULT 'active', quota_requests integer NOT NULL DEFAULT 0,
    quota_tokens integer NOT NULL DEFAULT 0, lite_llm_key_value varchar(255), expires_at timestamptz,
    created_at timestamptz DEFAULT now(), UNIQUE (user_id, model_id)
);
CREATE TABLE api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), subscription_id uuid REFERENCES subscriptions (id) ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE, name varchar(255),
    key_hash varchar(255) NOT NULL UNIQUE, key_prefix varchar(20) NOT NULL, lite_llm_key_value varchar(255),
    litellm_key_alias varchar(255), permissions jsonb DEFAULT '{}', max_budget numeric(10, 2),
    current_spend numeric(10, 2) DEFAULT 0, tpm_limit integer, rpm_limit integer, max_parallel_requests integer,
    budget_duration varchar(20), soft_budget numeric(10, 2), budget_reset_at timestamptz, model_max_budget jsonb,
    model_rpm_limit jsonb, model_tpm_limit jsonb, tags text[], metadata jsonb DEFAULT '{}', last_used_at timestamptz,
    expires_at timestamptz, created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now(),
    revoked_at timestamptz, last_sync_at timestamptz, is_active boolean DEFAULT true,
    sync_status varchar(20) DEFAULT 'pending' CHECK (sync_status IN ('synced', 'pending', 'error')), sync_error text,
    migration_status varchar(20) DEFAULT 'pending'
);
CREATE TABLE api_key_models (
    api_key_id uuid NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    model_id varchar(255) NOT NULL REFERENCES models (id) ON DELETE CASCADE,
    created_at timestamptz DEFAULT now(), PRIMARY KEY (api_key_id, model_id)
);
CREATE TABLE audit_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id uuid REFERENCES users (id), action varchar(100) NOT NULL,
    resource_type varchar(50) NOT NULL, resource_id varchar(255), old_values jsonb, new_values jsonb, ip_address inet,
    user_agent text, session_id varchar(255), success boolean DEFAULT true, error_message text,
    metadata jsonb DEFAULT '{}', created_at timestamptz DEFAULT now()
);
CREATE TABLE system_settings (
    key varchar(100) PRIMARY KEY, value jsonb NOT NULL DEFAULT '{}', updated_at timestamptz DEFAULT now(),
    updated_by uuid REFERENCES users (id)
);
CREATE INDEX idx_api_keys_value ON api_keys (lite_llm_key_value);
CREATE INDEX idx_audit_logs_user ON audit_logs (user_id);
CREATE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = CURRENT_TIMESTAMP;
    RETURN NEW;
END
$$;
CREATE TRIGGER update_api_keys_updated_at BEFORE UPDATE ON api_keys
FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
"""

CURRENT_ROWS: LiteralString = """
INSERT INTO users (id, username, email, oauth_provider, oauth_id, roles, is_active)
VALUES ('00000000-0000-0000-0000-000000000001', 'system', 'old-system@litemaas', 'system', 'system', '{admin}', true),
       ('11111111-1111-4111-8111-111111111111', 'alice', 'alice@example.com', 'openshift', 'alice', '{user}', true);
INSERT INTO models (id, name, provider) VALUES ('gpt-4o', 'GPT-4o', 'openai');
INSERT INTO subscriptions (user_id, model_id) VALUES ('11111111-1111-4111-8111-111111111111', 'gpt-4o');
INSERT INTO api_keys (user_id, name, key_hash, key_prefix, lite_llm_key_value, is_active, revoked_at, sync_status)
VALUES ('11111111-1111-4111-8111-111111111111', 'live', repeat('a', 64), 'sk-live', 'sk-live-in-the-clear', true, NULL,
        'synced'),
       ('11111111-1111-4111-8111-111111111111', 'revoked', repeat('b', 64), 'sk-gone', 'sk-gone-in-the-clear', false,
        '2025-01-01T00:00:00Z', 'error');
INSERT INTO api_key_models (api_key_id, model_id) SELECT id, 'gpt-4o' FROM api_keys;
INSERT INTO audit_logs (user_id, action, resource_type, resource_id)
SELECT user_id, 'API_KEY_REVOKE', 'API_KEY', id FROM api_keys WHERE revoked_at IS NOT NULL;
INSERT INTO system_settings (key, value) VALUES ('api_key_defaults', '{"defaults": {"maxBudget": 5}}');
"""

# January 2025: a key belongs to a subscription, to one model with it, and names LiteLLM's key.
SEED_ERA: LiteralString = """
CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), username varchar(255) NOT NULL UNIQUE,
    email varchar(255) NOT NULL UNIQUE, full_name varchar(255), oauth_provider varchar(50) NOT NULL,
    oauth_id varchar(255) NOT NULL, roles text[] DEFAULT '{user}', is_active boolean DEFAULT true,
    last_login_at timestamptz, created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now(),
    UNIQUE (oauth_provider, oauth_id)
);
CREATE TABLE teams (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name varchar(255) NOT NULL, created_at timestamptz DEFAULT now()
);
CREATE TABLE team_members (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), team_id uuid NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE, role varchar(20) NOT NULL, UNIQUE (team_id, user_id)
);
CREATE TABLE models (
    id varchar(255) PRIMARY KEY, name varchar(255) NOT NULL, provider varchar(100) NOT NULL,
    created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now()
);
CREATE TABLE subscriptions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    model_id varchar(255) NOT NULL REFERENCES models (id), status varchar(20) NOT NULL DEFAULT 'active',
    quota_requests integer NOT NULL DEFAULT 0, quota_tokens integer NOT NULL DEFAULT 0,
    created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now(), UNIQUE (user_id, model_id)
);
CREATE TABLE api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    subscription_id uuid NOT NULL REFERENCES subscriptions (id) ON DELETE CASCADE,
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE, name varchar(255),
    key_hash varchar(255) NOT NULL UNIQUE, key_prefix varchar(20) NOT NULL, lite_llm_key_id varchar(255),
    max_budget numeric(10, 2), current_spend numeric(10, 2) DEFAULT 0, tpm_limit integer, rpm_limit integer,
    last_used_at timestamptz, expires_at timestamptz, is_active boolean DEFAULT true,
    created_at timestamptz DEFAULT now(), revoked_at timestamptz, last_sync_at timestamptz,
    sync_status varchar(20) DEFAULT 'pending' CHECK (sync_status IN ('synced', 'pending', 'error'))
);
CREATE TABLE audit_logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), user_id uuid REFERENCES users (id), action varchar(100) NOT NULL,
    resource_type varchar(50) NOT NULL, resource_id varchar(255), ip_address inet, user_agent text,
    session_id varchar(255), success boolean DEFAULT true, error_message text, metadata jsonb DEFAULT '{}',
    created_at timestamptz DEFAULT now()
);
"""

SEED_ERA_ROWS: LiteralString = """
INSERT INTO users (id, username, email, oauth_provider, oauth_id)
VALUES ('11111111-1111-4111-8111-111111111111', 'alice', 'alice@example.com', 'openshift', 'alice');
INSERT INTO models (id, name, provider) VALUES ('gpt-4o', 'GPT-4o', 'openai');
INSERT INTO subscriptions (user_id, model_id) VALUES ('11111111-1111-4111-8111-111111111111', 'gpt-4o');
INSERT INTO api_keys (subscription_id, user_id, name, key_hash, key_prefix, lite_llm_key_id, is_active, revoked_at)
SELECT id, user_id, 'live', repeat('c', 64), 'sk-live', repeat('a', 64), true, NULL::timestamptz FROM subscriptions
UNION ALL
SELECT id, user_id, 'revoked', repeat('b', 64), 'sk-gone', NULL, false, timestamptz '2024-12-01T00:00:00Z' FROM subscriptions;
INSERT INTO audit_logs (user_id, action, resource_type, resource_id)
SELECT user_id, 'API_KEY_REVOKE', 'API_KEY', id FROM api_keys WHERE revoked_at IS NOT NULL;
"""
