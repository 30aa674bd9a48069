-- How long the SQL statements of a process took, by bucket of STATEMENT_S: what tells a slow database from a slow service.
SET LOCAL lock_timeout = '2s';

ALTER TABLE process_minute ADD COLUMN statements integer[] CHECK (cardinality(statements) = 14); -- null: an older version wrote it
