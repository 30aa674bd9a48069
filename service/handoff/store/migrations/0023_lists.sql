-- concurrently: one statement after the other, outside of a transaction, so that writes go on while the indexes are built.
-- A run that was cut off leaves an index that Postgres doesn't use, so the next run drops it first.
DROP INDEX CONCURRENTLY IF EXISTS session_by_policy;
CREATE INDEX CONCURRENTLY session_by_policy ON session (retention_policy, created_at DESC, id DESC);
DROP INDEX CONCURRENTLY IF EXISTS handoff_sent;
CREATE INDEX CONCURRENTLY handoff_sent ON handoff (sender, id);
DROP INDEX CONCURRENTLY IF EXISTS handoff_open;
CREATE INDEX CONCURRENTLY handoff_open ON handoff (session_id, id DESC) WHERE state IN ('offered', 'accepted', 'blocked');
