-- What the jobs did, and what operators ask of them. A row appears when its job first runs, or is paused.
CREATE TABLE job (
    name            text PRIMARY KEY CHECK (char_length(name) BETWEEN 1 AND 50),
    runs            bigint NOT NULL DEFAULT 0,
    failures        bigint NOT NULL DEFAULT 0, -- of the runs
    total_s         double precision NOT NULL DEFAULT 0, -- of all runs
    last_s          double precision,
    last_success_at timestamptz,
    last_failure_at timestamptz,
    last_error      text CHECK (char_length(last_error) <= 200), -- an error code and the class of its cause; it stays after a success
    next_run_at     timestamptz, -- null while paused
    paused_at       timestamptz,
    paused_by       text,
    asked_at        timestamptz -- when somebody asked for a run that has not ended yet
);

CREATE VIEW reporting.job AS
SELECT name, runs, runs - failures AS successes, failures, total_s / nullif(runs, 0) AS mean_s, last_s, last_success_at, last_failure_at,
       last_error, next_run_at, paused_at, paused_by
  FROM job;
