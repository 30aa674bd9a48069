-- The versions of what is configured while the service runs; the newest one is in force. Retention policies also stand in
-- retention_policy, which is written in the same transaction.
CREATE TABLE configuration (
    version  bigint PRIMARY KEY CHECK (version >= 1),
    at       timestamptz NOT NULL DEFAULT now(),
    author   text NOT NULL CHECK (char_length(author) BETWEEN 1 AND 100),
    reason   text NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 500),
    document jsonb NOT NULL CHECK (jsonb_typeof(document) = 'object'),
    changes  jsonb NOT NULL CHECK (jsonb_typeof(changes) = 'array') -- from the version before
);
INSERT INTO configuration (version, author, reason, document, changes)
SELECT 1, 'service', 'As shipped.',
       jsonb_build_object('monitoring', '{}'::jsonb, 'retention', jsonb_object_agg(name, jsonb_build_object(
           'active_hours', (extract(epoch FROM active_for) / 3600)::integer,
           'archived_days', (extract(epoch FROM archived_for) / 86400)::integer,
           'logs_days', (extract(epoch FROM logs_for) / 86400)::integer,
           'metrics_days', (extract(epoch FROM metrics_for) / 86400)::integer,
           'dormant_minutes', (extract(epoch FROM dormant_after) / 60)::integer))),
       '[]'
  FROM retention_policy;

CREATE VIEW reporting.configuration AS SELECT version, at, author, reason, changes FROM configuration;
