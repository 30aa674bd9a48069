-- The history of series: minutes of past days in packed form, and what the minutes of each hour, day and month add up to (UTC).
-- Both have a partition per month, which is dropped as a whole.
SET LOCAL lock_timeout = '2s';

-- A day of a series: 1,440 places, one per minute, null where nothing was measured.
CREATE TABLE series_day (
    day       timestamptz NOT NULL CHECK (date_trunc('day', day, 'UTC') = day),
    series_id integer NOT NULL, -- refers to series, as in series_point
    value     double precision[] NOT NULL CHECK (cardinality(value) = 1440),
    of        double precision[] CHECK (cardinality(of) = 1440), -- null if no minute has one
    PRIMARY KEY (series_id, day)
) PARTITION BY RANGE (day);

CREATE TABLE series_period (
    grain     text NOT NULL CHECK (grain IN ('hour', 'day', 'month')),
    start     timestamptz NOT NULL CHECK (date_trunc(grain, start, 'UTC') = start),
    series_id integer NOT NULL,
    points    integer NOT NULL, -- minutes that were measured
    total     double precision NOT NULL, -- of the values; of a counter, what it rose by
    of        double precision, -- of the denominators of a ratio
    lowest    double precision, -- by the minute: value, share of a ratio, rise of a counter; null if none is known
    highest   double precision,
    last      double precision NOT NULL, -- the value of the last minute
    PRIMARY KEY (series_id, grain, start)
) PARTITION BY RANGE (start);
CREATE INDEX series_period_start ON series_period USING brin (start) WITH (autosummarize = on); -- rows come in the order of time

-- Periods that have to be added up once they are over, or again, because something was written that belongs to them.
CREATE TABLE series_due (
    grain text NOT NULL CHECK (grain IN ('hour', 'day', 'month')),
    start timestamptz NOT NULL,
    PRIMARY KEY (grain, start)
);
INSERT INTO series_due
SELECT 'hour', generate_series(date_trunc('hour', min(bucket), 'UTC'), date_trunc('hour', now(), 'UTC'), '1 hour') FROM series_point;

-- Whoever writes points, of whichever release, says which hours they belong to. The row is locked until the points are committed:
-- whoever adds the hour up waits for that. The hour that follows begins with the rise of counters since this one.
CREATE FUNCTION series_points_written() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO series_due AS d (grain, start)
    SELECT DISTINCT 'hour', date_trunc('hour', at, 'UTC')
      FROM (SELECT DISTINCT bucket FROM written) w, unnest(ARRAY[bucket, bucket + interval '5 minutes']) at
     ORDER BY 2
        ON CONFLICT (grain, start) DO UPDATE SET start = excluded.start;
    RETURN NULL;
END
$$;
CREATE TRIGGER series_points_inserted AFTER INSERT ON series_point
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION series_points_written();
CREATE TRIGGER series_points_updated AFTER UPDATE ON series_point
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION series_points_written();

-- Make the partitions of the month of a moment, unless they are there.
CREATE FUNCTION series_month(at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    month timestamptz := date_trunc('month', at, 'UTC');
    parent text;
    partition text;
BEGIN
    FOREACH parent IN ARRAY '{series_day,series_period}'::text[] LOOP
        partition := parent || to_char(month AT TIME ZONE 'UTC', '_YYYYMM');
        IF to_regclass(partition) IS NULL THEN
            EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)', partition, parent, month,
                           (month AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC');
        END IF;
    END LOOP;
END
$$;

-- Drop the partitions of months that were over before a moment; return how many.
CREATE FUNCTION series_months_drop(before timestamptz) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    partition text;
    dropped integer := 0;
BEGIN
    FOR partition IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent IN ('series_day'::regclass, 'series_period'::regclass)
           AND right(c.relname, 6) < to_char(before AT TIME ZONE 'UTC', 'YYYYMM')
    LOOP
        EXECUTE format('DROP TABLE %I', partition);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;

-- The points from `since` to before `until`, packed or not. A minute that was written after its day was packed counts as it was
-- written last.
CREATE FUNCTION series_minutes(since timestamptz, until timestamptz)
RETURNS TABLE (bucket timestamptz, series_id integer, value double precision, of double precision) LANGUAGE sql STABLE AS $$
    SELECT p.bucket, p.series_id, p.value, p.of FROM series_point p WHERE p.bucket >= since AND p.bucket < until
    UNION ALL
    SELECT m.bucket, d.series_id, m.value, m.of
      FROM series_day d,
           LATERAL (SELECT d.day + (u.place - 1) * interval '1 minute' AS bucket, u.value, u.of
                      FROM unnest(d.value, d.of) WITH ORDINALITY AS u (value, of, place)) m
     WHERE d.day >= date_trunc('day', since, 'UTC') AND d.day < until
       AND m.value IS NOT NULL AND m.bucket >= since AND m.bucket < until
       AND NOT EXISTS (SELECT FROM series_point p
                        WHERE p.series_id = d.series_id AND p.bucket = m.bucket AND p.bucket >= since AND p.bucket < until)
$$;

CREATE VIEW reporting.series_period AS SELECT * FROM series_period;
