-- What was read of each expression in monitoring.promql. One that has never had a value is probably misspelt, and that a series is
-- absent says something only about minutes that were read.
SET LOCAL lock_timeout = '2s';

CREATE TABLE promql_reading (
    name        text PRIMARY KEY,
    expression  text NOT NULL,
    named_at    timestamptz NOT NULL DEFAULT now(), -- when Prometheus first answered this expression under this name
    answered_at timestamptz, -- when the answer had a value last; null: never
    read_from   timestamptz NOT NULL, -- the minutes that were read without a gap: from this one
    read_to     timestamptz NOT NULL -- to before this one
);
