-- An entry whose metadata has {"retraction": true} withdraws the entries that it supersedes, without replacing them. It marks
-- itself as superseded too: once it has had its effect it is no valid entry, so that no brief shows it as one.
CREATE OR REPLACE FUNCTION mark_superseded() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    types text[];
    ended bigint[] := NEW.supersedes;
BEGIN
    IF NEW.metadata @> '{"retraction": true}' THEN
        ended := ended || NEW.sequence;
    END IF;
    WITH named AS MATERIALIZED (
        SELECT sequence, type, superseded_by FROM context_entry
         WHERE session_id = NEW.session_id AND sequence = ANY (ended)
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
