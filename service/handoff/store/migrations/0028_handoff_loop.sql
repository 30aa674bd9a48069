-- How a handoff continued a loop when it was offered, as its sender was told: {"kind": "rounds", "count": 2}. NULL if it did not.
SET LOCAL lock_timeout = '5s';
ALTER TABLE handoff ADD COLUMN loop jsonb;
CREATE OR REPLACE VIEW reporting.handoff AS
    SELECT id, session_id, request_type, sender, target_agent, target_capability, priority, deadline, state, holder, token,
           lease_expires_at, lapses, as_of_sequence, created_at, accepted_at, updated_at, substr(traceparent, 4, 32) AS trace_id,
           loop ->> 'kind' AS loop
      FROM handoff;
