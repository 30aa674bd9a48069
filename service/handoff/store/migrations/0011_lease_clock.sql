-- Leases run only while a process serves agents: see store/lease_clock.py. `until` is NULL before the first has started.
CREATE TABLE lease_clock (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    until  timestamptz
);
INSERT INTO lease_clock (until) VALUES (NULL);
