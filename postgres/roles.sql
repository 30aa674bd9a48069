-- Roles and their privileges. Runs at every start, so that existing volumes and changed passwords are brought up to date.
SET log_min_error_statement = panic; -- otherwise a failing statement would be logged with its password
SET log_statement = none;

\set handoff_password `cat /run/secrets/database-handoff`
\set grafana_password `cat /run/secrets/database-grafana`
\set otel_password `cat /run/secrets/database-otel`

SELECT format('CREATE ROLE %I LOGIN', name)
  FROM unnest(ARRAY['handoff', 'grafana', 'otel']) AS name
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec
ALTER ROLE handoff PASSWORD :'handoff_password';
ALTER ROLE grafana PASSWORD :'grafana_password' CONNECTION LIMIT 20;
ALTER ROLE otel PASSWORD :'otel_password' CONNECTION LIMIT 10;

REVOKE ALL ON DATABASE handoff, postgres, template1 FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;

-- handoff owns the database, and therefore the schema public. Its migrations create everything else.
ALTER DATABASE handoff OWNER TO handoff;

-- otel reads statistics, which contain statements but no values.
GRANT CONNECT ON DATABASE handoff, postgres TO otel;
GRANT pg_monitor TO otel;
ALTER ROLE otel SET default_transaction_read_only = on;

-- grafana can only read the views in `reporting`, which contain no session content.
GRANT CONNECT ON DATABASE handoff TO grafana;
ALTER ROLE grafana SET default_transaction_read_only = on;
ALTER ROLE grafana SET statement_timeout = '10s';
ALTER ROLE grafana SET search_path = reporting;
CREATE SCHEMA IF NOT EXISTS reporting AUTHORIZATION handoff;
GRANT USAGE ON SCHEMA reporting TO grafana;
GRANT SELECT ON ALL TABLES IN SCHEMA reporting TO grafana;
ALTER DEFAULT PRIVILEGES FOR ROLE handoff IN SCHEMA reporting GRANT SELECT ON TABLES TO grafana;
