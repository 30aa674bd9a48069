-- What each process did, minute by minute, as it counted it itself, and the same added up per hour and day (UTC) as it arrives.
-- Histograms are counts by bucket, in the order of the bounds in telemetry/metrics.py: CALL_S, WAIT_S and LAG_S. Other bounds
-- need columns of their own, since these counts could not be added to theirs.
CREATE TABLE process_minute (
    minute        timestamptz NOT NULL, -- in which the bucket began
    id            uuid NOT NULL, -- of this bucket, given by the process, so that a repeated write changes nothing
    instance      text NOT NULL CHECK (char_length(instance) BETWEEN 1 AND 255),
    kind          text NOT NULL CHECK (kind IN ('service', 'worker')),
    seconds       real NOT NULL CHECK (seconds >= 0), -- that the bucket covers
    cpu_s         real NOT NULL CHECK (cpu_s >= 0),
    memory_bytes  bigint NOT NULL CHECK (memory_bytes >= 0),
    disk_ratio    real NOT NULL CHECK (disk_ratio BETWEEN 0 AND 1), -- how full the file system of the data folder is
    pool_timeouts integer NOT NULL CHECK (pool_timeouts >= 0),
    cache_hits    integer NOT NULL CHECK (cache_hits >= 0),
    cache_misses  integer NOT NULL CHECK (cache_misses >= 0),
    cache_errors  integer NOT NULL CHECK (cache_errors >= 0),
    pool_waits    integer[] NOT NULL CHECK (cardinality(pool_waits) = 10),
    loop_lags     integer[] NOT NULL CHECK (cardinality(loop_lags) = 10),
    written_at    timestamptz NOT NULL DEFAULT now(), -- later than the minute if the database was away
    PRIMARY KEY (minute, id)
);
CREATE INDEX process_minute_written ON process_minute (written_at);
CREATE TABLE call_minute (
    minute    timestamptz NOT NULL,
    id        uuid NOT NULL, -- of the bucket in process_minute
    operation text NOT NULL CHECK (char_length(operation) BETWEEN 1 AND 100),
    outcome   text NOT NULL CHECK (outcome IN ('ok', 'refused', 'failed', 'cancelled')),
    durations integer[] NOT NULL CHECK (cardinality(durations) = 19),
    PRIMARY KEY (minute, id, operation, outcome)
);
CREATE TABLE process_period (
    grain         text NOT NULL CHECK (grain IN ('hour', 'day')),
    start         timestamptz NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('service', 'worker')),
    seconds       double precision NOT NULL, -- of all processes together, as are the sums that follow
    cpu_s         double precision NOT NULL,
    memory_byte_s double precision NOT NULL, -- memory times seconds: divided by seconds, it is the mean
    memory_max    bigint NOT NULL,
    disk_max      real NOT NULL,
    pool_timeouts bigint NOT NULL,
    cache_hits    bigint NOT NULL,
    cache_misses  bigint NOT NULL,
    cache_errors  bigint NOT NULL,
    pool_waits    bigint[] NOT NULL CHECK (cardinality(pool_waits) = 10),
    loop_lags     bigint[] NOT NULL CHECK (cardinality(loop_lags) = 10),
    PRIMARY KEY (grain, start, kind)
) WITH (fillfactor = 50); -- each row is updated every minute for as long as its period lasts
CREATE TABLE call_period (
    grain     text NOT NULL CHECK (grain IN ('hour', 'day')),
    start     timestamptz NOT NULL,
    operation text NOT NULL CHECK (char_length(operation) BETWEEN 1 AND 100),
    outcome   text NOT NULL CHECK (outcome IN ('ok', 'refused', 'failed', 'cancelled')),
    durations bigint[] NOT NULL CHECK (cardinality(durations) = 19),
    PRIMARY KEY (grain, start, operation, outcome)
) WITH (fillfactor = 50);
