-- Series are judged in shards of neighbouring numbers, each by one process at a time: by whoever has claimed it last.
SET LOCAL lock_timeout = '2s';

CREATE TABLE detector_shard (
    shard      integer PRIMARY KEY,
    at         timestamptz, -- up to when its series are judged
    holder     uuid, -- the run of the process that judges it
    held_until timestamptz, -- unless it is renewed; then another process may claim it
    newest     jsonb NOT NULL DEFAULT '[]', -- id, value, expected, lower, upper of its most important series, as judged last
    CHECK ((holder IS NULL) = (held_until IS NULL))
);
