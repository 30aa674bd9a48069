"""A quiet past for the series of a running stack, so that its detector knows what is normal.

The past is written into the tables as the rollups would have written it, from the recording of a quiet day
(tests/bench/recording.py) of the same agents at the same pace. What depends on the machine, durations and levels, is
drawn from minutes that this stack has just had instead, or left out where there are none: such a series is then new, and
nobody is notified.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np

from handoff.store.series import MINUTE, Spec, label_key
from tests.bench.faults import RECORDED, longer
from tests.bench.recording import Recording
from tests.stack.bundle import Stack

TURNS: Final = 100
DAYS: Final = 3  # two of them are learnt before anybody is told
SHOWN_S: Final = 900  # from which durations and levels are drawn
MINUTES_MIN: Final = 5
SPREAD: Final = 0.2  # of the logarithm of what is drawn from a few minutes
OF_THE_MACHINE: Final = frozenset({"duration", "level"})
OF_THE_AGENTS: Final = "handoffs."  # how long these take is up to the agents
# The superuser's, without the triggers that keep events as they are.
_WRITE: Final = """
SET session_replication_role = replica;
BEGIN;
DELETE FROM event WHERE at < '{until}';
DELETE FROM process_minute WHERE minute < '{until}';
DELETE FROM call_minute WHERE minute < '{until}';
TRUNCATE series, series_point, series_day, series_period, series_due, detector_state, detector_shard, anomaly, incident,
         analytics_progress RESTART IDENTITY;
CREATE TEMPORARY TABLE given (place integer, name text, labels jsonb, kind text, absence text);
COPY given FROM stdin;
{series}
\\.
CREATE TEMPORARY TABLE points (place integer, minute integer, value float8, of float8);
COPY points FROM stdin;
{points}
\\.
INSERT INTO series (name, labels, kind, absence, begins_at, last_at)
SELECT name, labels, kind, absence, '{begin}', '{until}' FROM given ORDER BY place;
INSERT INTO series_point (bucket, series_id, value, of)
SELECT timestamptz '{begin}' + minute * interval '1 minute', s.id, p.value, p.of
  FROM points p JOIN given USING (place) JOIN series s USING (name, labels);
INSERT INTO analytics_progress VALUES ('rolled_up', '{until}');
COMMIT;
"""
# Durations and levels of minutes that are over, if there are enough.
_SHOWN: Final = f"""
    SELECT coalesce(json_agg(it), '[]')
      FROM (SELECT name, labels, kind, absence, array_agg(value) AS values
              FROM series JOIN series_point ON series_id = id
             WHERE kind IN ('duration', 'level') AND name NOT LIKE '{OF_THE_AGENTS}%'
               AND bucket > now() - interval '{SHOWN_S} seconds'
             GROUP BY id HAVING count(*) >= {MINUTES_MIN}) it
"""
OVER: Final = "UPDATE incident SET closed_at = now() WHERE closed_at IS NULL"
_JUDGED: Final = (
    "SELECT 'yes' FROM analytics_progress WHERE stage = 'judged' AND at >= timestamptz '{until}' - interval '1 minute'"
)


def give_past(stack: Stack, *, of_machine: bool = False, seed: int = 1) -> None:
    """Replace all series by a quiet past that ends with the minute before this one, and wait until it is learnt.

    `of_machine`: also durations and levels, of which this stack must have shown some minutes.
    """
    shown = json.loads(stack.sql(_SHOWN)) if of_machine else []
    assert shown or not of_machine, "the stack has not run for long enough"
    stack.compose("stop", "worker")
    try:
        until = datetime.fromisoformat(stack.sql("SELECT date_trunc('minute', now())"))
        past = _of_this_machine(longer(Recording.load(RECORDED / "quiet.npz"), DAYS, seed), shown, seed)
        series = [_line(n, it.name, label_key(it.labels), it.kind, it.absence) for n, it in enumerate(past.specs)]
        begin = until - len(past.values) * MINUTE
        stack.script(_WRITE.format(until=until, begin=begin, series="\n".join(series), points="\n".join(_points(past))))
    finally:
        stack.compose("start", "worker")
    stack.eventually(lambda: stack.sql(_JUDGED.format(until=until)), most=TURNS)
    stack.sql(OVER)


def _of_this_machine(quiet: Recording, shown: Sequence[Mapping[str, Any]], seed: int) -> Recording:
    """The recording with what this stack has shown of durations and levels."""
    kept = [n for n, it in enumerate(quiet.specs) if it.kind not in OF_THE_MACHINE or it.name.startswith(OF_THE_AGENTS)]
    draw = np.random.default_rng(seed)
    drawn = [draw.choice(it["values"], len(quiet.values)) * draw.lognormal(0, SPREAD, len(quiet.values)) for it in shown]
    nothing = np.full((len(quiet.values), len(drawn)), np.nan)
    return Recording(
        [*(quiet.specs[n] for n in kept), *(Spec(it["name"], it["kind"], it["absence"], it["labels"]) for it in shown)],
        np.column_stack([quiet.values[:, kept], *drawn]),
        np.column_stack([quiet.of[:, kept], nothing]),
    )


def _points(recording: Recording) -> Iterator[str]:
    for minute, column in np.argwhere(np.isfinite(recording.values)):
        of = recording.of[minute, column]
        yield _line(column, minute, recording.values[minute, column], "\\N" if np.isnan(of) else of)


def _line(*fields: object) -> str:
    """A line of COPY's text format; none of these fields needs an escape."""
    return "\t".join(map(str, fields))
