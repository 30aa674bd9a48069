-- concurrently: these tables are large, and appends go on while their indexes are built.
-- Events are appended in the order of time, so that this index is a few pages however many there are.
DROP INDEX CONCURRENTLY IF EXISTS event_by_time;
CREATE INDEX CONCURRENTLY event_by_time ON event USING brin (at) WITH (autosummarize = on);
-- Statistics of handoffs read those that were offered in a range of time.
DROP INDEX CONCURRENTLY IF EXISTS handoff_by_creation;
CREATE INDEX CONCURRENTLY handoff_by_creation ON handoff (created_at);
-- Who writes entries that are too large for any brief. Few entries are, so the index is small and most appends do not touch it.
DROP INDEX CONCURRENTLY IF EXISTS context_entry_large;
CREATE INDEX CONCURRENTLY context_entry_large ON context_entry (created_at, author, size_bytes) WHERE size_bytes > 100000;
