"""Anomalies: what the detector found, one row per series, minute and version of the detector."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Final

from asyncpg import Record

from handoff.model import Severity
from handoff.store.connect import Connection

# A repetition finds the same and changes nothing; what is returned is new.
ADD = """
    INSERT INTO anomaly (series_id, bucket, version, severity, shadow, muted, value, expected, lower, upper, strength,
                         confidence, spoke, sentence)
    SELECT * FROM unnest($1::int[], $2::timestamptz[], $3::smallint[], $4::text[], $5::bool[], $6::bool[], $7::float8[],
                         $8::float8[], $9::float8[], $10::float8[], $11::float8[], $12::float8[], $13::jsonb[], $14::text[])
        ON CONFLICT DO NOTHING
    RETURNING severity, shadow, muted, extract(epoch FROM now() - bucket)::float8 AS age_s,
              (SELECT kind FROM series WHERE id = series_id) AS kind
"""
# How many were told in the last week, and for how many weeks series were watched in it, each for one at most.
TOLD = """
    SELECT (SELECT count(*) FROM anomaly
             WHERE NOT shadow AND NOT muted AND bucket > now() - interval '7 days')::float8 AS told,
           (SELECT coalesce(sum(extract(epoch FROM least(now() - begins_at, interval '7 days'))), 0) / 604800
              FROM series WHERE last_at >= now() - interval '8 days')::float8 AS series_weeks
"""
SHOWN: Final = (
    *("at", "labels", "kind", "severity", "value", "expected", "lower", "upper", "strength", "confidence", "spoke"),
    *("sentence", "found_at"),
)
# Newest first. The cursor is the place of the last row: its minute, series and version. An agent's are those of series that
# name it.
LIST = """
    SELECT a.bucket AS at, s.name, s.labels, s.kind, a.severity, a.shadow, a.muted, a.value, a.expected, a.lower, a.upper,
           a.strength, a.confidence, a.spoke, a.sentence, a.found_at, a.series_id, a.version
      FROM anomaly a JOIN series s ON s.id = a.series_id
     WHERE a.bucket >= $1 AND a.bucket < $2 AND (a.bucket, a.series_id, a.version) < ($3, $4, $5)
       AND ($7::text IS NULL OR $7 IN (s.labels ->> 'agent', s.labels ->> 'from', s.labels ->> 'to'))
     ORDER BY a.bucket DESC, a.series_id DESC, a.version DESC
     LIMIT $6
"""
SINCE = """
    SELECT a.bucket AS at, s.labels, a.severity, a.sentence, count(*) OVER () AS total
      FROM anomaly a JOIN series s ON s.id = a.series_id
     WHERE a.bucket >= $1 AND NOT a.shadow
     ORDER BY a.bucket DESC, a.series_id DESC, a.version DESC
     LIMIT $2
"""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A finding about the minute that begins at `bucket`. Nobody is notified if it is a `shadow` or `muted`.

    From a strength of 1 on it is told, as the series is watched now.
    """

    series_id: int
    bucket: datetime
    version: int
    severity: Severity
    shadow: bool
    muted: bool
    value: float
    expected: float
    lower: float
    upper: float
    strength: float
    confidence: float
    spoke: dict[str, float]
    sentence: str


async def add(conn: Connection, found: Sequence[Anomaly]) -> list[Record]:
    """Write what was found; return severity, shadow, muted, age and kind of series of what was not there before."""
    if not found:
        return []
    columns = [list(column) for column in zip(*(astuple(it) for it in found), strict=True)]
    return await conn.fetch(ADD, *columns)


async def told(conn: Connection) -> tuple[float, float]:
    """How many anomalies people were told in the last week, and over how many weeks of series."""
    row = await conn.fetchrow(TOLD)
    return (row["told"], row["series_weeks"]) if row is not None else (0.0, 0.0)


async def newest(
    conn: Connection,
    since: datetime,
    until: datetime,
    agent: str | None,
    after: tuple[datetime, int, int] | None,
    limit: int,
) -> list[Record]:
    """Anomalies from `since` to before `until`, newest first, from below the place `after`; None is those of all agents."""
    return await conn.fetch(LIST, since, until, *(after or (until, 0, 0)), limit, agent)


async def since(conn: Connection, at: datetime, limit: int) -> list[Record]:
    """Anomalies since `at` that are no shadows, newest first; the `total` of each row is how many there are."""
    return await conn.fetch(SINCE, at, limit)
