-- Figures of whole days, recorded while all rows of the day are still kept, so that no deletion looks like a trend.
CREATE TABLE statistic_day (
    name  text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 50),
    day   date NOT NULL, -- in UTC
    value double precision NOT NULL,
    PRIMARY KEY (name, day)
);
-- What the worker concluded from them last: `trends` and `capacity`.
CREATE TABLE conclusion (
    type        text PRIMARY KEY CHECK (type IN ('trends', 'capacity')),
    computed_at timestamptz NOT NULL,
    document    jsonb NOT NULL CHECK (jsonb_typeof(document) = 'object')
);
CREATE VIEW reporting.statistic_day AS SELECT name, day, value FROM statistic_day;
CREATE VIEW reporting.conclusion AS SELECT type, computed_at, document FROM conclusion;
