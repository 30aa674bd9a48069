"""Series: numbers by the minute. Their points, and what the detector knows of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from asyncpg import Record

from handoff.encoding import to_json
from handoff.store.connect import Connection

MINUTE: Final = timedelta(minutes=1)
LATE: Final = timedelta(minutes=5)  # after the end of a minute its points may still be written, or written again
PER_AGENT: Final = 10  # series that there may be for each agent that has some: seven of its own, and its routes
BATCH_MAX: Final = 2_000  # rows deleted by a statement, as in retention.py
PUT_MAX: Final = 10_000  # points written by a statement, so that none takes long
NAMED_MAX: Final = 10_000

Kind = Literal["counter", "ratio", "count", "duration", "level"]  # as analytics/kinds.py explains them
Absence = Literal["zero", "gap", "alert"]
Stage = Literal["rolled_up", "judged"]

# One without points for so long is watched no more and makes room for others; its history is kept as the policies say.
_WATCHED = "last_at >= now() - interval '32 days'"
# A series whose kind has changed is learnt anew: what was known of it would be of another number.
REGISTER = f"""
    WITH changed AS (
        UPDATE series s SET kind = w.kind, absence = w.absence
          FROM unnest($1::text[], $2::jsonb[], $3::text[], $4::text[]) AS w (name, labels, kind, absence)
         WHERE s.name = w.name AND s.labels = w.labels AND (s.kind, s.absence) <> (w.kind, w.absence)
        RETURNING s.id),
    agents AS ( -- those that have series, then those whose points come first
        SELECT agent
          FROM (SELECT labels ->> 'agent' AS agent, 0 AS place FROM series WHERE labels ? 'agent'
                UNION ALL
                SELECT w.labels ->> 'agent', w.place
                  FROM unnest($2::jsonb[]) WITH ORDINALITY AS w (labels, place) WHERE w.labels ? 'agent') named
         GROUP BY agent ORDER BY min(place), agent LIMIT $7),
    forgotten AS (DELETE FROM detector_state WHERE series_id IN (SELECT id FROM changed)),
    added AS (
        INSERT INTO series (name, labels, kind, absence, begins_at, last_at)
        SELECT w.name, w.labels, w.kind, w.absence, w.begins_at, w.begins_at
          FROM unnest($1::text[], $2::jsonb[], $3::text[], $4::text[], $6::timestamptz[])
               WITH ORDINALITY AS w (name, labels, kind, absence, begins_at, place)
         WHERE NOT EXISTS (SELECT FROM series s WHERE s.name = w.name AND s.labels = w.labels)
           AND (NOT w.labels ? 'agent' OR w.labels ->> 'agent' IN (SELECT agent FROM agents))
         ORDER BY w.place
         LIMIT greatest($5 - (SELECT count(*) FROM series WHERE {_WATCHED}), 0)
            ON CONFLICT DO NOTHING
        RETURNING id, name, labels)
    SELECT id, name, labels FROM added
    UNION ALL
    SELECT s.id, s.name, s.labels FROM series s
      JOIN unnest($1::text[], $2::jsonb[]) AS w (name, labels) ON s.name = w.name AND s.labels = w.labels
"""
# At most once a day for each series, so that it costs next to nothing.
SEEN = """
    UPDATE series s SET last_at = seen.at
      FROM (SELECT id, max(at) AS at FROM unnest($1::int[], $2::timestamptz[]) AS t (id, at) GROUP BY id) seen
     WHERE s.id = seen.id AND s.last_at < seen.at - interval '1 day'
"""
_KEPT = "(SELECT max(metrics_for) FROM retention_policy)"
FORGET_POINTS = f"""
    DELETE FROM series_point
     WHERE ctid = ANY (ARRAY(SELECT ctid FROM series_point WHERE bucket < now() - {_KEPT} ORDER BY bucket LIMIT $1))
"""
FORGET = f"""
    DELETE FROM series
     WHERE id IN (SELECT id FROM series WHERE last_at < now() - {_KEPT} - interval '2 days' ORDER BY id LIMIT $1)
"""
PUT = """
    INSERT INTO series_point (bucket, series_id, value, of)
    SELECT * FROM unnest($1::timestamptz[], $2::int[], $3::float8[], $4::float8[])
        ON CONFLICT (bucket, series_id) DO UPDATE SET value = excluded.value, of = excluded.of
     WHERE (series_point.value, series_point.of) IS DISTINCT FROM (excluded.value, excluded.of)
"""
# Of each series the numbers of its minutes since $1, and what was measured in them.
POINTS = """
    SELECT series_id, array_agg((extract(epoch FROM bucket - $1) / 60)::integer) AS minutes, array_agg(value) AS values,
           CASE WHEN count(of) > 0 THEN array_agg(of) END AS of
      FROM series_minutes($1, $2) WHERE series_id = ANY ($3) GROUP BY series_id
"""
PROGRESS = "SELECT at FROM analytics_progress WHERE stage = $1"
ADVANCE = """
    INSERT INTO analytics_progress (stage, at) VALUES ($1, $2) ON CONFLICT (stage) DO UPDATE SET at = excluded.at
"""
WATCHED = f"""
    SELECT s.id, s.name, s.labels, s.kind, s.absence, s.begins_at, s.threshold, d.version, d.judged_to, d.state, d.carried,
           r.read_from, r.read_to
      FROM series s LEFT JOIN detector_state d ON d.series_id = s.id
      LEFT JOIN promql_reading r ON s.absence = 'alert' AND s.name = 'promql.' || r.name
     WHERE s.id >= $1 AND s.id < $2 AND s.{_WATCHED}
     ORDER BY s.id
"""
NAMED = f"""
    SELECT s.id, s.name, s.labels, s.kind, s.absence, s.begins_at, s.threshold, r.read_from, r.read_to
      FROM series s LEFT JOIN promql_reading r ON s.absence = 'alert' AND s.name = 'promql.' || r.name
     WHERE s.name = $1 AND s.{_WATCHED}
     ORDER BY s.labels::text, s.id LIMIT $2
"""
COUNT = f"SELECT count(*) FROM series WHERE {_WATCHED}"
REST = f"""
    DELETE FROM detector_state
     WHERE series_id IN (SELECT series_id FROM detector_state JOIN series ON id = series_id WHERE NOT {_WATCHED} LIMIT $1)
"""
KEEP = """
    INSERT INTO detector_state (series_id, version, judged_to, state, carried)
    SELECT id, $2, $3, state, ARRAY[part, whole, measured_at]
      FROM unnest($1::int[], $4::bytea[], $5::float8[], $6::float8[], $7::float8[])
           AS t (id, state, part, whole, measured_at)
        ON CONFLICT (series_id) DO UPDATE
       SET version = excluded.version, judged_to = excluded.judged_to, state = excluded.state, carried = excluded.carried
"""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a series is: its name and labels identify it."""

    name: str
    kind: Kind
    absence: Absence
    labels: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def key(self) -> tuple[str, str]:
        """Its name and labels, as a key."""
        return self.name, label_key(self.labels)


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured of a series in the minute that begins at `bucket`; `of` for a ratio only."""

    spec: Spec
    bucket: datetime
    value: float
    of: float | None = None


def label_key(labels: Mapping[str, str]) -> str:
    """Labels as text that is equal for equal labels."""
    return to_json(dict(sorted(labels.items()))).decode()


def shown(row: Record) -> str:
    """The name of a series for people, with its labels."""
    labels = ", ".join(f"{name} {value}" for name, value in sorted(row["labels"].items()))
    return f"{row['name']} ({labels})" if labels else row["name"]


async def put(conn: Connection, points: Sequence[Point], series_max: int) -> int:
    """Write points, and register the series that are new; return how many series were refused because there are too many.

    Only so many agents have series of their own that they leave room for the others; those whose points come first.
    Points that are there already are replaced, so that a repetition changes nothing.
    """
    keys = {id(point.spec): point.spec.key for point in points}  # sources make one Spec for all points of a series
    specs: dict[tuple[str, str], Spec] = {}
    begins: dict[tuple[str, str], datetime] = {}
    for point in points:
        key = keys[id(point.spec)]
        specs.setdefault(key, point.spec)
        begins[key] = min(begins.get(key, point.bucket), point.bucket)
    if not specs:
        return 0
    wanted = list(specs.values())
    rows = await conn.fetch(
        REGISTER,
        [it.name for it in wanted],
        [dict(it.labels) for it in wanted],
        [it.kind for it in wanted],
        [it.absence for it in wanted],
        series_max,
        list(begins.values()),
        max(1, series_max // PER_AGENT),
    )
    ids = {(row["name"], label_key(row["labels"])): row["id"] for row in rows}
    known = {(ids[key], point.bucket): point for point in points if (key := keys[id(point.spec)]) in ids}
    places = list(known)
    for start in range(0, len(places), PUT_MAX):
        batch = [(place, known[place]) for place in places[start : start + PUT_MAX]]
        buckets, series_ids = [bucket for (_, bucket), _ in batch], [series_id for (series_id, _), _ in batch]
        await conn.execute(PUT, buckets, series_ids, [it.value for _, it in batch], [it.of for _, it in batch])
        await conn.execute(SEEN, series_ids, buckets)
    return len(specs) - len(ids)


async def points(conn: Connection, ids: Sequence[int], since: datetime, until: datetime) -> list[Record]:
    """The points of some series from `since` to before `until`, a row per series: minutes since `since`, values, of."""
    return await conn.fetch(POINTS, since, until, ids)


async def progress(conn: Connection, stage: Stage) -> datetime | None:
    """Up to when a stage is done; None if it has never begun."""
    return await conn.fetchval(PROGRESS, stage)


async def advance(conn: Connection, stage: Stage, at: datetime) -> None:
    """Note up to when a stage is done."""
    await conn.execute(ADVANCE, stage, at)


async def count(conn: Connection) -> int:
    """How many series are watched."""
    return await conn.fetchval(COUNT)


async def watched(conn: Connection, first: int = 0, until: int = (1 << 31) - 1) -> list[Record]:
    """The series with ids from `first` to before `until`, with what the detector knew of each when it was written last."""
    return await conn.fetch(WATCHED, first, until)


async def named(conn: Connection, name: str) -> list[Record]:
    """The series of this name by their labels, at most NAMED_MAX, without what the detector knows of them."""
    return await conn.fetch(NAMED, name, NAMED_MAX)


async def keep(
    conn: Connection,
    ids: Sequence[int],
    states: Sequence[bytes],
    carried: Sequence[Sequence[float]],
    *,
    version: int,
    judged_to: datetime,
) -> None:
    """Write what the detector knows of series after the minute that ends at `judged_to`."""
    part, whole, measured_at = zip(*carried, strict=True) if carried else ((), (), ())
    await conn.execute(KEEP, ids, version, judged_to, states, part, whole, measured_at)


async def forget_points(conn: Connection) -> int:
    """Delete points that are older than any policy keeps metrics; return how many."""
    return int((await conn.execute(FORGET_POINTS, BATCH_MAX)).rsplit(" ", 1)[-1])


async def rest(conn: Connection) -> int:
    """Delete what the detector knows of series that are watched no more; one that comes back is learnt anew."""
    return int((await conn.execute(REST, BATCH_MAX)).rsplit(" ", 1)[-1])


async def forget(conn: Connection) -> int:
    """Delete series that have had no points for so long; return how many."""
    return int((await conn.execute(FORGET, BATCH_MAX)).rsplit(" ", 1)[-1])
