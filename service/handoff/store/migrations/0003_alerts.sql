-- What Alertmanager, or the worker, told of: an alert is one row, by fingerprint and start. Bounded (store/alerts.py).
CREATE TABLE alert (
    fingerprint   text NOT NULL CHECK (char_length(fingerprint) BETWEEN 1 AND 64),
    starts_at     timestamptz NOT NULL,
    ends_at       timestamptz,
    status        text NOT NULL CHECK (status IN ('firing', 'resolved')),
    labels        jsonb NOT NULL,
    annotations   jsonb NOT NULL,
    notifications integer NOT NULL DEFAULT 1, -- how often it was told
    received_at   timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (fingerprint, starts_at),
    CHECK ((status = 'firing') = (ends_at IS NULL))
);
CREATE INDEX alert_newest ON alert ((status = 'firing'), starts_at, fingerprint);

-- The heartbeat of Prometheus's Watchdog, and what was said of its silence. One row.
CREATE TABLE watchdog (
    one          boolean PRIMARY KEY DEFAULT true CHECK (one),
    evaluated_at timestamptz, -- of the newest heartbeat, by Prometheus's clock
    silent_since timestamptz,
    told         text NOT NULL DEFAULT 'resolved' CHECK (told IN ('firing', 'resolved')) -- last, outside of Alertmanager
);
INSERT INTO watchdog DEFAULT VALUES;

CREATE INDEX handoff_accepted_at ON handoff (accepted_at) WHERE accepted_at IS NOT NULL;

CREATE VIEW reporting.alert AS
    SELECT fingerprint, starts_at, ends_at, status, labels ->> 'alertname' AS alertname, labels ->> 'severity' AS severity,
           labels ->> 'component' AS component, annotations ->> 'summary' AS summary,
           annotations ->> 'description' AS description, annotations ->> 'runbook_url' AS runbook_url,
           annotations ->> 'dashboard_url' AS dashboard_url, labels, notifications, received_at, updated_at
      FROM alert;
