-- Audit records by what they are about, newest first: of one kind of thing, and of one user whoever did it.
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_logs_of_type_newest_first ON audit_logs (resource_type, created_at DESC, id DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_logs_of_subject_newest_first
    ON audit_logs ((metadata ->> 'userId'), created_at DESC, id DESC) WHERE metadata ->> 'userId' IS NOT NULL;
