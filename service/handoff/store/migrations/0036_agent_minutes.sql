-- What each agent called in a process, minute by minute, as the process counted it: who is gone, refused, or sends ever more.
CREATE TABLE agent_minute (
    minute        timestamptz NOT NULL,
    id            uuid NOT NULL, -- of the bucket in process_minute
    agent         text NOT NULL CHECK (char_length(agent) BETWEEN 1 AND 255),
    calls         integer NOT NULL CHECK (calls > 0),
    refused       integer NOT NULL CHECK (refused >= 0),
    succeeded     integer NOT NULL CHECK (succeeded >= 0),
    request_bytes bigint NOT NULL CHECK (request_bytes >= 0), -- of those that succeeded
    PRIMARY KEY (minute, id, agent)
);
