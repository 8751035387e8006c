-- The team that pays for a key: LiteMaaS's own id, and LiteLLM's as it was when the key was made. No foreign key: a team
-- that goes must not take the rows with it, nor be held back.
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS team_id uuid;
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS lite_llm_team_id varchar(255);
