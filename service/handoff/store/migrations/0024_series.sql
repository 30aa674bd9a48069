-- Series of numbers by the minute, which the worker's detector judges, and what it found.
SET LOCAL lock_timeout = '2s';

CREATE TABLE series (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    labels     jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(labels) = 'object'),
    kind       text NOT NULL CHECK (kind IN ('counter', 'ratio', 'count', 'duration', 'level')),
    absence    text NOT NULL CHECK (absence IN ('zero', 'gap', 'alert')),
    begins_at  timestamptz NOT NULL, -- its first minute
    last_at    timestamptz NOT NULL, -- a minute that it has, at most a day before its newest
    UNIQUE (name, labels)
);

-- What was measured in the minute that begins at `bucket`. A minute without a row was not measured, or had nothing to count.
CREATE TABLE series_point (
    bucket    timestamptz NOT NULL CHECK (date_trunc('minute', bucket, 'UTC') = bucket),
    series_id integer NOT NULL, -- refers to series, which is forgotten after its points: a constraint would need an index more
    value     double precision NOT NULL,
    of        double precision, -- of a ratio: how many there were of which `value` are a part
    PRIMARY KEY (bucket, series_id)
);

-- What the detector knows of a series after the minute `judged_to`, and what it takes to go on turning values into levels:
-- the sums of a ratio so far, the last total of a counter, and when something was measured last.
CREATE TABLE detector_state (
    series_id   integer PRIMARY KEY REFERENCES series ON DELETE CASCADE,
    version     smallint NOT NULL,
    judged_to   timestamptz NOT NULL,
    state       bytea NOT NULL,
    carried     double precision[] NOT NULL CHECK (cardinality(carried) = 3)
);
ALTER TABLE detector_state ALTER COLUMN state SET STORAGE EXTERNAL;

CREATE TABLE anomaly (
    series_id  integer NOT NULL REFERENCES series ON DELETE CASCADE,
    bucket     timestamptz NOT NULL,
    version    smallint NOT NULL, -- of the detector
    severity   text NOT NULL CHECK (severity IN ('warning', 'critical')),
    shadow     boolean NOT NULL, -- found while the series was still being learnt: shown, told to nobody
    value      double precision NOT NULL,
    expected   double precision NOT NULL,
    lower      double precision NOT NULL,
    upper      double precision NOT NULL,
    strength   double precision NOT NULL,
    confidence double precision NOT NULL,
    spoke      jsonb NOT NULL, -- the features that found it rare, with -log10 p
    sentence   text NOT NULL,
    found_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (bucket, series_id, version)
);

-- How far the rollup of raw rows and the detector have come. One row each.
CREATE TABLE analytics_progress (
    stage text PRIMARY KEY CHECK (stage IN ('rolled_up', 'judged')),
    at    timestamptz NOT NULL
);

CREATE VIEW reporting.series AS SELECT id, name, labels, kind, absence, begins_at FROM series;
CREATE VIEW reporting.series_point AS SELECT bucket, series_id, value, of FROM series_point;
CREATE VIEW reporting.anomaly AS SELECT * FROM anomaly;
