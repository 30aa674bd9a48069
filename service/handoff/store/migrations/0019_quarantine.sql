-- Sessions in which something does not fit, as a job found. They are neither archived nor deleted until somebody has looked.
CREATE TABLE quarantine (
    session_id bigint PRIMARY KEY REFERENCES session ON DELETE CASCADE,
    reason     text NOT NULL CHECK (reason IN ('content', 'sequence', 'receipt')), -- store/integrity.py says what each means
    sequence   bigint, -- the entry at which it was found; null for a receipt
    found_at   timestamptz NOT NULL DEFAULT now()
);

-- The last entry that was checked. One row.
CREATE TABLE integrity_check (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    session_id bigint NOT NULL DEFAULT 0,
    sequence   bigint NOT NULL DEFAULT 0
);
INSERT INTO integrity_check DEFAULT VALUES;

CREATE VIEW reporting.quarantine AS SELECT session_id, reason, sequence, found_at FROM quarantine;
