-- What is held is deleted by no policy and by nobody: a session, all sessions that an agent takes part in, or all of a policy.
CREATE TABLE legal_hold (
    kind    text NOT NULL CHECK (kind IN ('session', 'agent', 'policy')),
    name    text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 255),
    reason  text NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 2000),
    held_by text NOT NULL,
    since   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, name)
);

-- Drops a bucket of the archive as a whole, after moving what belongs to sessions that still exist, because they are held.
CREATE FUNCTION archive_bucket_drop(dropped text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    found archive_bucket := (SELECT b FROM archive_bucket b WHERE name = dropped);
    kept bigint[] := ARRAY(SELECT DISTINCT a.session_id FROM archive a JOIN session s ON s.id = a.session_id
                            WHERE a.bucket = dropped);
BEGIN
    IF archive_bucket_of(found.retention_policy) = dropped THEN
        RAISE EXCEPTION 'The bucket % is that of this week.', dropped;
    END IF;
    IF kept <> '{}' THEN
        UPDATE archive SET bucket = archive_bucket_of(found.retention_policy) WHERE bucket = dropped AND session_id = ANY (kept);
    END IF;
    EXECUTE format('DROP TABLE %I', found.partition);
    DELETE FROM archive_bucket WHERE name = dropped;
END
$$;
