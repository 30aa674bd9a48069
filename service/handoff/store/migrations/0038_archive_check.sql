-- Whoever waits for a table here holds up everybody who comes after, so it gives up soon and the next start tries again.
SET LOCAL lock_timeout = '2s';

-- The last block of the archive that was checked.
ALTER TABLE integrity_check
    ADD COLUMN archived_session_id bigint NOT NULL DEFAULT 0,
    ADD COLUMN archived_sequence   bigint NOT NULL DEFAULT 0;
