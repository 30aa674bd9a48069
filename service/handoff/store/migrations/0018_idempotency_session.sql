-- The session to which an append with a key belongs, so that the key is kept for as long as the session takes entries. NULL
-- for appends of earlier releases, and for other tools, whose result names the session.
ALTER TABLE idempotency ADD COLUMN session_id bigint;
