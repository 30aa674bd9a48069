SET LOCAL lock_timeout = '2s';

-- What to change, opened and closed by what is measured: `figure` and `evidence` at its opening, `figure_now` and `evidence_now` as
-- last measured, which is at its closing once it is closed. NULL: nothing was measured any more.
CREATE TABLE recommendation (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind         text NOT NULL CHECK (char_length(kind) BETWEEN 1 AND 50),
    subject      text NOT NULL CHECK (char_length(subject) BETWEEN 1 AND 300),
    agents       text[] NOT NULL, -- whom it concerns, and who may read it
    opened_at    timestamptz NOT NULL,
    measured_at  timestamptz NOT NULL,
    closed_at    timestamptz,
    figure       float8 NOT NULL,
    figure_now   float8,
    evidence     jsonb NOT NULL,
    evidence_now jsonb NOT NULL
);
CREATE UNIQUE INDEX recommendation_open ON recommendation (kind, subject) WHERE closed_at IS NULL;
CREATE INDEX recommendation_closed ON recommendation (closed_at) WHERE closed_at IS NOT NULL;
CREATE VIEW reporting.recommendation AS
    SELECT id, kind, subject, opened_at, measured_at, closed_at, figure, figure_now FROM recommendation;

-- How a handoff continued a loop when it was offered, as its sender was told: {"kind": "rounds", "count": 2}. NULL if it did not.
ALTER TABLE handoff ADD COLUMN loop jsonb;
CREATE OR REPLACE VIEW reporting.handoff AS
    SELECT id, session_id, request_type, sender, target_agent, target_capability, priority, deadline, state, holder, token,
           lease_expires_at, lapses, as_of_sequence, created_at, accepted_at, updated_at, substr(traceparent, 4, 32) AS trace_id,
           loop ->> 'kind' AS loop
      FROM handoff;
