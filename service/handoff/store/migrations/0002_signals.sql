-- When the present holder took it, and the offering call's W3C trace context, to which what happens later links.
ALTER TABLE handoff ADD COLUMN accepted_at timestamptz,
                    ADD COLUMN traceparent text CHECK (char_length(traceparent) = 55);
CREATE INDEX handoff_offered_at ON handoff (updated_at) WHERE state = 'offered';

-- Processes that are alive: each writes its own row, and those long unseen are deleted.
CREATE TABLE instance (
    id         text PRIMARY KEY CHECK (char_length(id) BETWEEN 1 AND 100),
    kind       text NOT NULL CHECK (kind IN ('service', 'worker')),
    version    text NOT NULL,
    operations text, -- host:port of its operations port; null: it has none
    does_jobs  boolean NOT NULL,
    jobs_at    timestamptz, -- when it last did the jobs, if ever
    started_at timestamptz NOT NULL,
    seen_at    timestamptz NOT NULL
);

-- Changes of a component's status, as the process saw them. Bounded by number (store/health.py).
CREATE TABLE health_event (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL,
    instance  text NOT NULL,
    component text NOT NULL,
    was       text NOT NULL CHECK (was IN ('healthy', 'degraded', 'unhealthy')),
    status    text NOT NULL CHECK (status IN ('healthy', 'degraded', 'unhealthy')),
    figure    double precision,
    threshold double precision,
    unit      text NOT NULL,
    detail    text NOT NULL
);

-- What may be looked at without seeing content: no metadata, instructions, outcomes, reasons, entries, event data or keys.
CREATE SCHEMA IF NOT EXISTS reporting;
CREATE VIEW reporting.session AS
    SELECT id, owner, created_by, cardinality(writers) AS writers, status, retention_policy, created_at, expires_at,
           last_activity_at, last_sequence, content_bytes
      FROM session;
CREATE VIEW reporting.handoff AS
    SELECT id, session_id, request_type, sender, target_agent, target_capability, priority, deadline, state, holder, token,
           lease_expires_at, lapses, as_of_sequence, created_at, accepted_at, updated_at, substr(traceparent, 4, 32) AS trace_id
      FROM handoff;
CREATE VIEW reporting.event AS SELECT id, session_id, handoff_id, kind, agent, at FROM event;
CREATE VIEW reporting.context_entry AS SELECT session_id, sequence, type, size_bytes, author, created_at FROM context_entry;
CREATE VIEW reporting.instance AS SELECT * FROM instance;
CREATE VIEW reporting.health_event AS SELECT * FROM health_event;
