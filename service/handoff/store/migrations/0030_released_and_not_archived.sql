-- Whoever waits for a table here holds up everybody who comes after, so it gives up soon and the next start tries again.
SET LOCAL lock_timeout = '2s';

-- An operator has looked at the session: it can be archived and deleted again. The row stays, so that the same damage does not
-- put it back.
ALTER TABLE quarantine ADD COLUMN released_at timestamptz, ADD COLUMN released_by text;
CREATE OR REPLACE VIEW reporting.quarantine AS
    SELECT session_id, reason, sequence, found_at FROM quarantine WHERE released_at IS NULL;

-- Sessions that could not be archived, and when that is tried again: each time later, so that others come first.
CREATE TABLE archive_failure (
    session_id bigint PRIMARY KEY REFERENCES session ON DELETE CASCADE,
    attempts   integer NOT NULL CHECK (attempts >= 1),
    error      text NOT NULL CHECK (char_length(error) <= 200),
    failed_at  timestamptz NOT NULL,
    next_at    timestamptz NOT NULL
);
