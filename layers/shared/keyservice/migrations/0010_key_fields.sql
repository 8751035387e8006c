-- The team that pays for a key: LiteMaaS's own id, and LiteLLM's as it was when the key was made. No foreign key: a team
-- that goes must not take the rows with it, nor be held back.
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS team_id uuid;
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS lite_llm_team_id varchar(255);

-- Audit records by what they are about, newest first: of one kind of thing, and of one user whoever did it.
CREATE INDEX IF NOT EXISTS audit_logs_of_type_newest_first ON audit_logs (resource_type, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS audit_logs_of_subject_newest_first
    ON audit_logs ((metadata ->> 'userId'), created_at DESC, id DESC) WHERE metadata ->> 'userId' IS NOT NULL;
