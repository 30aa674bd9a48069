-- The entries of archived sessions, in blocks of up to 256: one array per column, which Postgres compresses as a whole. Each
-- partition holds what was archived under one policy within one week. When the policy's time has passed, it is dropped as a whole.
CREATE TABLE archive (
    bucket         text NOT NULL, -- the policy and the Monday of the week
    session_id     bigint NOT NULL, -- no foreign key: its check would lock out appends whenever a partition is made
    first_sequence bigint NOT NULL,
    last_sequence  bigint NOT NULL,
    types          text[] NOT NULL,
    contents       text[] NOT NULL,
    metadata       jsonb[] NOT NULL,
    supersedes     text[] NOT NULL, -- each the text of a bigint[]
    superseded_by  bigint[] NOT NULL,
    sizes_bytes    integer[] NOT NULL,
    content_hashes bytea[] NOT NULL,
    authors        text[] NOT NULL,
    created_at     timestamptz[] NOT NULL,
    words          tsvector, -- of all entries, without positions: what it does not match, no entry does; NULL if too many
    PRIMARY KEY (session_id, first_sequence, bucket)
) PARTITION BY LIST (bucket);

CREATE TABLE archive_bucket (
    name             text PRIMARY KEY,
    retention_policy text NOT NULL,
    week             date NOT NULL,
    partition        text NOT NULL UNIQUE
);

-- The bucket for what is archived now under this policy, with its partition, which is made if there is none yet.
CREATE FUNCTION archive_bucket_of(policy text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    monday date := date_trunc('week', now() AT TIME ZONE 'UTC');
    bucket text := policy || ' ' || monday;
    partition text := 'archive_' || to_char(monday, 'YYYYMMDD') || '_' || left(md5(policy), 8);
BEGIN
    IF NOT EXISTS (SELECT FROM archive_bucket WHERE name = bucket) THEN
        INSERT INTO archive_bucket VALUES (bucket, policy, monday, partition);
        EXECUTE format('CREATE TABLE %I PARTITION OF archive FOR VALUES IN (%L)', partition, bucket);
    END IF;
    RETURN bucket;
END
$$;

-- The entries of archived sessions, as context_entry had them, without `search`.
CREATE VIEW archived_entry AS
SELECT a.session_id, a.first_sequence + e.place - 1 AS sequence, e.type, e.content, e.metadata,
       e.supersedes::bigint[] AS supersedes, e.superseded_by, e.size_bytes, e.content_hash, e.author, e.created_at,
       a.first_sequence AS block_first, a.last_sequence AS block_last
  FROM archive a,
       unnest(a.types, a.contents, a.metadata, a.supersedes, a.superseded_by, a.sizes_bytes, a.content_hashes, a.authors,
              a.created_at) WITH ORDINALITY
       AS e (type, content, metadata, supersedes, superseded_by, size_bytes, content_hash, author, created_at, place);

CREATE INDEX session_closed ON session (status_since) WHERE status IN ('completed', 'cancelled', 'expired');
CREATE INDEX session_archived ON session (retention_policy, status_since) WHERE status = 'archived';
