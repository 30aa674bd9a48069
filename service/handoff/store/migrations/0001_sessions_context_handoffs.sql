-- Times are timestamptz; names are bounded here as well as at the edge, so that no writer can get round it.

CREATE TABLE retention_policy (
    name          text PRIMARY KEY,
    active_for    interval NOT NULL,
    archived_for  interval NOT NULL,
    logs_for      interval NOT NULL,
    metrics_for   interval NOT NULL,
    dormant_after interval NOT NULL
);
INSERT INTO retention_policy VALUES
    ('standard', '24 hours', '30 days', '7 days', '30 days', '2 hours'),
    ('extended', '72 hours', '90 days', '30 days', '90 days', '6 hours'),
    ('short', '4 hours', '7 days', '3 days', '7 days', '1 hour');

CREATE TABLE session (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key              text NOT NULL UNIQUE CHECK (char_length(key) BETWEEN 1 AND 255),
    created_by       text NOT NULL CHECK (char_length(created_by) BETWEEN 1 AND 100),
    owner            text NOT NULL CHECK (char_length(owner) BETWEEN 1 AND 100),
    writers          text[] NOT NULL CHECK (cardinality(writers) BETWEEN 1 AND 64),
    status           text NOT NULL CHECK (status IN ('active', 'dormant', 'completed', 'expired', 'archived', 'cancelled')),
    retention_policy text NOT NULL REFERENCES retention_policy,
    metadata         jsonb NOT NULL CHECK (jsonb_typeof(metadata) = 'object'),
    created_at       timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL,
    last_activity_at timestamptz NOT NULL,
    last_sequence    bigint NOT NULL CHECK (last_sequence >= 0),
    content_bytes    bigint NOT NULL CHECK (content_bytes >= 0),
    version          bigint NOT NULL CHECK (version >= 1)
) WITH (fillfactor = 70); -- an append updates its session in place: room for it keeps the update off the indexes
CREATE INDEX session_by_creation ON session (created_at DESC, id DESC);
CREATE INDEX session_by_status ON session (status, created_at DESC, id DESC);

-- Who has to do with a session and may read it. created_at is the session's own, here so that one index pages the list.
CREATE TABLE participant (
    agent      text NOT NULL CHECK (char_length(agent) BETWEEN 1 AND 100),
    session_id bigint NOT NULL REFERENCES session ON DELETE CASCADE,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (session_id, agent)
);
CREATE INDEX participant_by_agent ON participant (agent, created_at DESC, session_id DESC);

CREATE TABLE context_entry (
    session_id    bigint NOT NULL REFERENCES session ON DELETE CASCADE,
    sequence      bigint NOT NULL CHECK (sequence >= 1),
    type          text NOT NULL CHECK (type IN ('message', 'file', 'tool_call', 'system', 'decision', 'summary')),
    content       text NOT NULL,
    metadata      jsonb,
    supersedes    bigint[],
    size_bytes    integer NOT NULL CHECK (size_bytes >= 0),
    content_hash  bytea NOT NULL CHECK (length(content_hash) = 32), -- SHA-256 of the content's UTF-8
    author        text NOT NULL CHECK (char_length(author) BETWEEN 1 AND 100),
    created_at    timestamptz NOT NULL,
    processing_ms real NOT NULL, -- from the request's arrival to its statement's start
    search        tsvector GENERATED ALWAYS AS (to_tsvector('english', left(content, 100000))) STORED,
    PRIMARY KEY (session_id, sequence)
);
CREATE INDEX context_entry_by_type ON context_entry (session_id, type, sequence DESC);
CREATE INDEX context_entry_superseding ON context_entry (session_id, sequence DESC) WHERE supersedes IS NOT NULL;
CREATE INDEX context_entry_question ON context_entry (session_id, sequence DESC) WHERE metadata @> '{"question": true}';
CREATE INDEX context_entry_search ON context_entry USING gin (search);

CREATE TABLE agent (
    name         text PRIMARY KEY CHECK (char_length(name) BETWEEN 1 AND 100),
    capabilities text[] NOT NULL CHECK (cardinality(capabilities) <= 32),
    declared_at  timestamptz NOT NULL
);
CREATE INDEX agent_by_capability ON agent USING gin (capabilities);

CREATE TABLE handoff (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id        bigint NOT NULL REFERENCES session ON DELETE CASCADE,
    request_type      text NOT NULL CHECK (request_type IN ('context_transfer', 'full_handoff', 'collaboration')),
    sender            text NOT NULL CHECK (char_length(sender) BETWEEN 1 AND 100),
    target_agent      text CHECK (char_length(target_agent) BETWEEN 1 AND 100),
    target_capability text CHECK (char_length(target_capability) BETWEEN 1 AND 100),
    instructions      text NOT NULL CHECK (char_length(instructions) <= 20000),
    priority          smallint NOT NULL CHECK (priority BETWEEN 0 AND 9),
    deadline          timestamptz,
    state             text NOT NULL CHECK (state IN ('offered', 'accepted', 'blocked', 'completed', 'rejected', 'cancelled', 'expired')),
    holder            text CHECK (char_length(holder) BETWEEN 1 AND 100),
    token             bigint NOT NULL CHECK (token >= 0), -- fencing: grows by one with each acceptance, never falls
    lease_expires_at  timestamptz,
    lapses            integer NOT NULL CHECK (lapses >= 0),
    outcome           text,
    reason            text,
    as_of_sequence    bigint NOT NULL,
    context_digest    bytea NOT NULL, -- SHA-256 over the hashes of entries 1..as_of_sequence, in order
    created_at        timestamptz NOT NULL,
    updated_at        timestamptz NOT NULL,
    CHECK (num_nonnulls(target_agent, target_capability) = 1),
    CHECK ((state IN ('accepted', 'blocked')) = (lease_expires_at IS NOT NULL)),
    CHECK (state NOT IN ('accepted', 'blocked', 'completed') OR holder IS NOT NULL)
);
CREATE INDEX handoff_of_session ON handoff (session_id, id DESC);
CREATE INDEX handoff_offered_to_agent ON handoff (target_agent, priority DESC, id) WHERE state = 'offered';
CREATE INDEX handoff_offered_to_capability ON handoff (target_capability, priority DESC, id) WHERE state = 'offered';
CREATE INDEX handoff_held ON handoff (holder, priority DESC, id) WHERE state IN ('accepted', 'blocked');
CREATE INDEX handoff_deadline ON handoff (deadline) WHERE state = 'offered' AND deadline IS NOT NULL;
CREATE INDEX handoff_lease ON handoff (lease_expires_at) WHERE state IN ('accepted', 'blocked');

CREATE TABLE event (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id bigint NOT NULL REFERENCES session ON DELETE CASCADE,
    handoff_id bigint REFERENCES handoff ON DELETE CASCADE,
    kind       text NOT NULL,
    agent      text, -- null: the service itself, by the clock
    at         timestamptz NOT NULL,
    data       jsonb
);
CREATE INDEX event_of_session ON event (session_id, id);
CREATE INDEX event_of_handoff ON event (handoff_id, id) WHERE handoff_id IS NOT NULL;

-- The first result of a write that carried a key. An append's result is its first sequence number; others keep theirs whole.
CREATE TABLE idempotency (
    agent       text NOT NULL,
    key         text NOT NULL CHECK (char_length(key) BETWEEN 1 AND 255),
    tool        text NOT NULL,
    fingerprint bytea NOT NULL, -- SHA-256 of the canonical arguments
    sequence    bigint,
    result      jsonb,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (agent, key)
);
CREATE INDEX idempotency_by_age ON idempotency USING brin (created_at);
