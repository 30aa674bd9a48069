-- What tells a service that is short of processes from one whose database is slow.
SET LOCAL lock_timeout = '2s';

ALTER TABLE process_minute
    ADD COLUMN cpus       real NOT NULL DEFAULT 1 CHECK (cpus > 0), -- that the process may use
    ADD COLUMN overloaded integer NOT NULL DEFAULT 0 CHECK (overloaded >= 0); -- calls refused because too many wait already
