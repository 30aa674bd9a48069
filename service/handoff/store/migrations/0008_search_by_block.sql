-- Each entry's search vector gets a word for its session and its block of 1,024 sequence numbers, so that the index finds the
-- matches of the newest blocks of some sessions without reading any others. No text contains this word: it begins with U+0001.
ALTER TABLE context_entry ALTER COLUMN search SET EXPRESSION AS (
    to_tsvector('english', left(content, 100000))
    || array_to_tsvector(ARRAY[chr(1) || session_id::text || ':' || (sequence / 1024)::text])
);
-- Every search reads the entries that the index has not sorted in yet: fewer of them, at most 256 kB instead of 4 MB.
ALTER INDEX context_entry_search SET (gin_pending_list_limit = 256);
