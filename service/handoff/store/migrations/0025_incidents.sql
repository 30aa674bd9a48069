-- Incidents: anomalies that belong together, with their likely causes; and what operators say of them.
SET LOCAL lock_timeout = '2s';

CREATE TABLE incident (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    severity     text NOT NULL CHECK (severity IN ('warning', 'critical')),
    component    text NOT NULL CHECK (component IN ('route', 'tool', 'agent', 'service', 'pool', 'database', 'cache', 'host')),
    summary      text NOT NULL,
    causes       jsonb NOT NULL CHECK (jsonb_typeof(causes) = 'array'), -- the likeliest first, each with its evidence
    anomalies    integer NOT NULL,
    opened_at    timestamptz NOT NULL, -- the minute of its first anomaly
    last_at      timestamptz NOT NULL, -- the minute of its latest
    escalated_at timestamptz, -- when it became critical, unless it began so
    closed_at    timestamptz,
    feedback     text CHECK (feedback IN ('useful', 'noise')),
    feedback_by  text,
    feedback_at  timestamptz,
    CHECK (opened_at <= last_at AND (feedback IS NULL) = (feedback_by IS NULL) AND (feedback IS NULL) = (feedback_at IS NULL))
);
CREATE INDEX incident_open ON incident (opened_at) WHERE closed_at IS NULL;
CREATE INDEX incident_by_time ON incident (opened_at DESC, id DESC);

ALTER TABLE anomaly
    ADD COLUMN muted       boolean NOT NULL DEFAULT false, -- the configuration said so when it was found
    ADD COLUMN incident_id bigint REFERENCES incident ON DELETE CASCADE;
CREATE INDEX anomaly_waiting ON anomaly (bucket) WHERE incident_id IS NULL AND NOT shadow AND NOT muted;
CREATE INDEX anomaly_of_incident ON anomaly (incident_id) WHERE incident_id IS NOT NULL;

-- Feedback moves the strength from which a series notifies people: up for noise, down by less for what was useful.
ALTER TABLE series
    ADD COLUMN noise     integer NOT NULL DEFAULT 0,
    ADD COLUMN useful    integer NOT NULL DEFAULT 0,
    ADD COLUMN threshold double precision NOT NULL
        GENERATED ALWAYS AS (least(4, greatest(0.5, power(1.25::float8, least(noise, 100)) / power(1.1::float8, least(useful, 100))))) STORED;

CREATE VIEW reporting.incident AS
SELECT id, severity, component, summary, anomalies, opened_at, last_at, escalated_at, closed_at, feedback FROM incident;
CREATE OR REPLACE VIEW reporting.anomaly AS SELECT * FROM anomaly;
