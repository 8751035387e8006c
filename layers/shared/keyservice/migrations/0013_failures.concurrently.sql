-- Audit records of what failed, newest first: among many that went well, few are met by looking at one after the other.
CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_logs_failed_newest_first ON audit_logs (created_at DESC, id DESC)
    WHERE NOT coalesce(success, true);
