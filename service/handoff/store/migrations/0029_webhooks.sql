-- What happened to handoffs, for those who asked to be told. A job distributes the outbox over the endpoints, and delivers.
SET LOCAL lock_timeout = '2s';

CREATE TABLE webhook_outbox (
    event_id   bigint PRIMARY KEY, -- no reference, nor below: a session may be deleted before it is delivered
    handoff_id bigint NOT NULL,
    agents     text[] NOT NULL, -- the parties to the handoff
    kind       text NOT NULL,
    at         timestamptz NOT NULL,
    data       jsonb NOT NULL
);
-- What is yet to be delivered to an endpoint, in order per handoff, and what was given up.
CREATE TABLE webhook_delivery (
    endpoint   text NOT NULL,
    handoff_id bigint NOT NULL,
    event_id   bigint NOT NULL,
    kind       text NOT NULL,
    at         timestamptz NOT NULL,
    data       jsonb NOT NULL,
    attempts   integer NOT NULL DEFAULT 0,
    next_at    timestamptz NOT NULL DEFAULT now(), -- of the next attempt; once it is given up, when that was
    is_dead    boolean NOT NULL DEFAULT false,
    problem    text, -- of the last attempt
    PRIMARY KEY (endpoint, handoff_id, event_id)
);
CREATE INDEX webhook_delivery_due ON webhook_delivery (next_at) WHERE NOT is_dead;

-- Runs when the statement has ended, so it sees the handoff as the statement left it.
CREATE FUNCTION webhook_outbox_add() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO webhook_outbox (event_id, handoff_id, agents, kind, at, data)
    SELECT NEW.id, h.id, array_remove(ARRAY[h.sender, h.target_agent, h.holder, NEW.data ->> 'holder'], NULL), NEW.kind, NEW.at,
           jsonb_strip_nulls(jsonb_build_object(
               'handoff_id', h.id, 'session_key', s.key, 'state', h.state, 'sender', h.sender, 'target_agent', h.target_agent,
               'target_capability', h.target_capability, 'holder', h.holder, 'request_type', h.request_type,
               'priority', h.priority, 'deadline', h.deadline, 'lapses', h.lapses))
      FROM handoff h JOIN session s ON s.id = h.session_id
     WHERE h.id = NEW.handoff_id;
    RETURN NULL;
END
$$;
-- The connections of processes that know of no endpoint leave the setting out: then nothing but this condition is evaluated.
CREATE TRIGGER webhook_outbox AFTER INSERT ON event FOR EACH ROW
    WHEN (NEW.handoff_id IS NOT NULL AND current_setting('handoff.webhooks', true) = 'on'
          AND NEW.kind IN ('handoff.offered', 'handoff.accepted', 'handoff.rejected', 'handoff.blocked', 'handoff.completed',
                           'handoff.lapsed', 'handoff.expired'))
    EXECUTE FUNCTION webhook_outbox_add();

CREATE VIEW reporting.webhook_delivery AS
    SELECT endpoint, handoff_id, event_id, kind, at, attempts, next_at, is_dead, problem FROM webhook_delivery;
