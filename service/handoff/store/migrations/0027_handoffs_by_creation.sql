-- Statistics of handoffs read those that were offered in a range of time.
SET LOCAL lock_timeout = '5s';
CREATE INDEX handoff_by_creation ON handoff (created_at);
