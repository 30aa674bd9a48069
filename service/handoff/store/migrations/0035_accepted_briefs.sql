-- Whoever waits for a table here holds up everybody who comes after, so it gives up soon and the next start tries again.
SET LOCAL lock_timeout = '2s';

-- What accept_handoff returned for each token, so that it can be shown as it was: later entries, states and settings change what
-- a brief would say.
CREATE TABLE accepted_brief (
    handoff_id bigint NOT NULL REFERENCES handoff ON DELETE CASCADE,
    token      bigint NOT NULL,
    agent      text NOT NULL,
    at         timestamptz NOT NULL,
    brief      text NOT NULL, -- JSON
    PRIMARY KEY (handoff_id, token)
);
