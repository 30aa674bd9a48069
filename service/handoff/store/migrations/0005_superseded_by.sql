-- Each entry knows which later entry replaced it, and each session how many entries of which type it has, so that a brief
-- reads what is valid by an index and counts nothing. Without the trigger, entries appended by a process of the previous
-- release, which may still be serving while this one starts, would not mark what they replace.
ALTER TABLE context_entry ADD COLUMN superseded_by bigint; -- the newest entry whose `supersedes` names this one
ALTER TABLE session
    -- By type, in the order message, file, tool_call, system, decision, summary. Complete if the sum is last_sequence: the
    -- previous release does not count.
    ADD COLUMN entry_counts bigint[] NOT NULL DEFAULT '{0,0,0,0,0,0}',
    ADD COLUMN superseded_counts bigint[] NOT NULL DEFAULT '{0,0,0,0,0,0}';

CREATE FUNCTION mark_superseded() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    types text[];
BEGIN
    WITH named AS MATERIALIZED (
        SELECT sequence, type, superseded_by FROM context_entry
         WHERE session_id = NEW.session_id AND sequence = ANY (NEW.supersedes)
    ), marked AS (
        UPDATE context_entry SET superseded_by = NEW.sequence
         WHERE session_id = NEW.session_id AND sequence IN (SELECT sequence FROM named)
    )
    SELECT array_agg(type) INTO types FROM named WHERE superseded_by IS NULL;
    UPDATE session
       SET superseded_counts = (SELECT array_agg(before + cardinality(array_positions(types, type)) ORDER BY place)
                                  FROM unnest(superseded_counts, '{message,file,tool_call,system,decision,summary}'::text[])
                                       WITH ORDINALITY AS t (before, type, place))
     WHERE id = NEW.session_id AND types IS NOT NULL;
    RETURN NULL;
END
$$;
CREATE TRIGGER superseding AFTER INSERT ON context_entry
    FOR EACH ROW WHEN (NEW.supersedes IS NOT NULL) EXECUTE FUNCTION mark_superseded();

UPDATE context_entry e SET superseded_by = s.newest
  FROM (SELECT session_id, replaced, max(sequence) AS newest
          FROM (SELECT session_id, sequence, unnest(supersedes) AS replaced
                  FROM context_entry WHERE supersedes IS NOT NULL) named
         GROUP BY session_id, replaced) s
 WHERE e.session_id = s.session_id AND e.sequence = s.replaced;
UPDATE session SET entry_counts = c.counts, superseded_counts = c.superseded
  FROM (SELECT session_id,
               ARRAY[count(*) FILTER (WHERE type = 'message'),
                     count(*) FILTER (WHERE type = 'file'),
                     count(*) FILTER (WHERE type = 'tool_call'),
                     count(*) FILTER (WHERE type = 'system'),
                     count(*) FILTER (WHERE type = 'decision'),
                     count(*) FILTER (WHERE type = 'summary')] AS counts,
               ARRAY[count(*) FILTER (WHERE type = 'message' AND superseded_by IS NOT NULL),
                     count(*) FILTER (WHERE type = 'file' AND superseded_by IS NOT NULL),
                     count(*) FILTER (WHERE type = 'tool_call' AND superseded_by IS NOT NULL),
                     count(*) FILTER (WHERE type = 'system' AND superseded_by IS NOT NULL),
                     count(*) FILTER (WHERE type = 'decision' AND superseded_by IS NOT NULL),
                     count(*) FILTER (WHERE type = 'summary' AND superseded_by IS NOT NULL)] AS superseded
          FROM context_entry GROUP BY session_id) c
 WHERE id = c.session_id;

-- Valid entries, newest first: those with a mark each have an index of their own.
CREATE INDEX context_entry_valid ON context_entry (session_id, type, sequence DESC) WHERE superseded_by IS NULL;
CREATE INDEX context_entry_open_question ON context_entry (session_id, sequence DESC)
    WHERE superseded_by IS NULL AND metadata @> '{"question": true}';
CREATE INDEX context_entry_open_todo ON context_entry (session_id, sequence DESC)
    WHERE superseded_by IS NULL AND metadata @> '{"todo": true}';
CREATE INDEX context_entry_pinned ON context_entry (session_id, sequence DESC)
    WHERE superseded_by IS NULL AND metadata @> '{"pinned": true}';
DROP INDEX context_entry_superseding;
DROP INDEX context_entry_question;
