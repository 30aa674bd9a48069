-- `starts_at` says which alert a row is, as the sender's clock had it, which may be ahead of ours. What readers see as its
-- start is never later than when we first heard of it.
ALTER TABLE alert
    ADD COLUMN began_at timestamptz NOT NULL GENERATED ALWAYS AS (least(starts_at, received_at)) STORED,
    -- Stored from memory after an outage of the database, and not yet sent again: see store/alerts.py.
    ADD COLUMN unconfirmed boolean NOT NULL DEFAULT false;
CREATE INDEX alert_newest_began ON alert ((status = 'firing'), began_at, fingerprint);
DROP INDEX alert_newest;

CREATE OR REPLACE VIEW reporting.alert AS
    SELECT fingerprint, began_at AS starts_at, ends_at, status, labels ->> 'alertname' AS alertname,
           labels ->> 'severity' AS severity, labels ->> 'component' AS component, annotations ->> 'summary' AS summary,
           annotations ->> 'description' AS description, annotations ->> 'runbook_url' AS runbook_url,
           annotations ->> 'dashboard_url' AS dashboard_url, labels, notifications, received_at, updated_at
      FROM alert;
