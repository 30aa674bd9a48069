"""Incidents: anomalies that belong together, their likely causes, and what operators say of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from asyncpg import Record

from handoff.model import Part, Severity
from handoff.store.connect import Connection
from handoff.store.retention import BATCH_MAX

Feedback = Literal["useful", "noise"]

BATCH: Final = 500  # anomalies grouped per transaction
OPEN_MAX: Final = 500  # incidents; what comes beyond is grouped when some of them have closed
SIGNS_MAX: Final = 200  # per incident that are looked at: those of its first and its last hours look alike
# Without anything unusual, and the incident is over: for so long, one more finding of the same fault may still come
# (TOGETHER_S in analytics/grouping.py).
QUIET: Final = timedelta(minutes=15)
OUTSIDE_MIN: Final = 3  # minutes of QUIET outside the band, and it is not: one is noise
ACCEPTED_AFTER: Final = timedelta(days=3)  # as the detector accepts a new level
NEWS: Final = timedelta(hours=1)
POINTS: Final = timedelta(hours=1)  # before and after an incident, shown with it
POINTS_MAX: Final = 180  # shown per series

LOCK = "SELECT 1 FROM analytics_progress WHERE stage = 'judged' FOR UPDATE"
_SIGN = """
    a.series_id, a.bucket, a.version, a.severity, a.strength, a.value, a.expected, a.lower, a.upper, a.sentence,
    s.name, s.labels, s.kind, p.of
"""
_SERIES = """
    JOIN series s ON s.id = a.series_id LEFT JOIN series_point p ON (p.bucket, p.series_id) = (a.bucket, a.series_id)
"""
WAITING = f"""
    SELECT {_SIGN}
      FROM anomaly a {_SERIES}
     WHERE a.incident_id IS NULL AND NOT a.shadow AND NOT a.muted AND a.bucket < $1
     ORDER BY a.bucket, a.series_id LIMIT $2
"""
OPEN = "SELECT id, severity, opened_at, last_at FROM incident WHERE closed_at IS NULL ORDER BY opened_at, id LIMIT $1"
SIGNS = f"""
    SELECT o.id AS incident_id, it.*
      FROM unnest($1::bigint[]) o(id), LATERAL (
        SELECT {_SIGN} FROM anomaly a {_SERIES}
         WHERE a.incident_id = o.id ORDER BY a.bucket DESC, a.series_id LIMIT $2) it
     ORDER BY o.id, it.bucket, it.series_id
"""
ADD = """
    INSERT INTO incident (severity, component, summary, causes, anomalies, opened_at, last_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id
"""
CHANGE = """
    UPDATE incident
       SET severity = $2, component = $3, summary = $4, causes = $5, anomalies = anomalies + $6,
           last_at = greatest(last_at, $7),
           escalated_at = CASE WHEN severity = 'warning' AND $2 = 'critical' THEN $7 ELSE escalated_at END
     WHERE id = $1
"""
ASSIGN = """
    UPDATE anomaly a SET incident_id = $1
      FROM unnest($2::timestamptz[], $3::int[], $4::smallint[]) AS w (bucket, series_id, version)
     WHERE (a.bucket, a.series_id, a.version) = (w.bucket, w.series_id, w.version)
"""
# An incident is over once nothing was found in QUIET, and each of its series was back within the band of its latest
# anomaly in all but a few of these minutes. A minute in which nothing was measured says what the series declares. Of a
# silence, in which no single minute is unusual, one minute is the end in which something was counted.
CLOSE = f"""
    UPDATE incident i SET closed_at = $1::timestamptz
     WHERE i.closed_at IS NULL AND i.last_at < $1::timestamptz - $2::interval
       AND (i.last_at < $1::timestamptz - $3::interval OR NOT EXISTS (
            SELECT FROM (SELECT DISTINCT ON (series_id) series_id, lower, upper, spoke ? 'silence' AS is_silence FROM anomaly
                          WHERE incident_id = i.id ORDER BY series_id, bucket DESC) a
              JOIN series s ON s.id = a.series_id
             CROSS JOIN generate_series($1::timestamptz - $2::interval, $1::timestamptz - interval '1 minute',
                                        interval '1 minute') minute
              LEFT JOIN series_point p ON p.series_id = a.series_id AND p.bucket = minute
              LEFT JOIN series_point b ON s.kind = 'counter' AND b.series_id = a.series_id
                                      AND b.bucket = minute - interval '1 minute'
             CROSS JOIN LATERAL (
                SELECT CASE WHEN s.kind = 'ratio' THEN p.value / nullif(p.of, 0)
                            WHEN s.kind = 'counter' THEN (p.value - b.value) / 60
                            WHEN s.absence = 'zero' THEN coalesce(p.value, 0)
                            ELSE p.value END AS value) v
             WHERE v.value < a.lower OR v.value > a.upper OR (p.value IS NULL AND s.absence = 'alert')
                OR (a.is_silence AND v.value = 0)
             GROUP BY a.series_id, a.is_silence
            HAVING count(*) >= CASE WHEN a.is_silence THEN {QUIET // timedelta(minutes=1)} ELSE {OUTSIDE_MIN} END))
 RETURNING i.id, i.severity, i.component
"""
CONCERNED = """
    SELECT DISTINCT a.series_id FROM incident i JOIN anomaly a ON a.incident_id = i.id
     WHERE i.closed_at IS NULL ORDER BY a.series_id LIMIT $1
"""
COUNT = "SELECT severity, component, count(*) AS n FROM incident WHERE closed_at IS NULL GROUP BY 1, 2 LIMIT 100"
BEHIND = "SELECT now() - at FROM analytics_progress WHERE stage = 'judged'"
_SHOWN = """
    i.id, CASE WHEN i.closed_at IS NOT NULL THEN 'closed' WHEN i.last_at < p.at - $1::interval THEN 'held' ELSE 'open' END
          AS state,
    i.severity, i.component, i.summary, i.causes, i.anomalies, i.opened_at, i.last_at, i.escalated_at, i.closed_at,
    i.feedback, i.feedback_by, i.feedback_at
"""
_PROGRESS = "CROSS JOIN (SELECT max(at) AS at FROM analytics_progress WHERE stage = 'judged') p"
# Newest first. The cursor is the place of the last row.
PAGE = f"""
    SELECT {_SHOWN} FROM incident i {_PROGRESS}
     WHERE i.opened_at >= $2 AND i.opened_at < $3 AND (i.opened_at, i.id) < ($4, $5)
       AND ($6::text IS NULL OR $6 = CASE WHEN i.closed_at IS NULL THEN 'open' ELSE 'closed' END)
     ORDER BY i.opened_at DESC, i.id DESC LIMIT $7
"""
FIND = f"SELECT {_SHOWN} FROM incident i {_PROGRESS} WHERE i.id = $2"
LOCK_ONE = "SELECT id, feedback FROM incident WHERE id = $1 FOR UPDATE"
# The series of the incident, in one order, so that two that give feedback don't wait for each other in a circle.
JUDGE = """
    WITH told AS (
        UPDATE incident SET feedback = $2, feedback_by = $3, feedback_at = now() WHERE id = $1),
    judged AS (
        SELECT s.id, s.threshold AS was FROM series s
         WHERE s.id IN (SELECT series_id FROM anomaly WHERE incident_id = $1) ORDER BY s.id FOR UPDATE)
    UPDATE series s SET noise = s.noise + $4, useful = s.useful + $5 FROM judged WHERE s.id = judged.id
 RETURNING s.name, s.labels, judged.was, s.threshold
"""
EVIDENCE = """
    SELECT a.series_id, s.name, s.labels, s.kind, s.threshold, a.bucket AS at, a.severity, a.value, a.expected, a.lower,
           a.upper, a.strength, a.confidence, a.spoke, a.sentence
      FROM anomaly a JOIN series s ON s.id = a.series_id
     WHERE a.incident_id = $1 ORDER BY a.strength DESC, a.bucket, a.series_id LIMIT $2
"""
AROUND = """
    SELECT series_id, bucket, value, of FROM series_minutes($2, $3)
     WHERE series_id = ANY ($1::int[]) ORDER BY series_id, bucket LIMIT $4
"""
# Their anomalies go with them. An incident that is open is kept, however old it is.
FORGET = """
    DELETE FROM incident
     WHERE id = ANY (ARRAY(SELECT id FROM incident
                            WHERE opened_at < now() - (SELECT max(metrics_for) FROM retention_policy)
                              AND closed_at IS NOT NULL
                            ORDER BY opened_at, id LIMIT $1))
"""
# Those about which nobody was notified.
FORGET_ANOMALIES = """
    DELETE FROM anomaly
     WHERE ctid = ANY (ARRAY(SELECT ctid FROM anomaly
                              WHERE bucket < now() - (SELECT max(metrics_for) FROM retention_policy)
                                AND incident_id IS NULL
                              ORDER BY bucket LIMIT $1))
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of an incident after its latest anomalies."""

    severity: Severity
    component: Part
    summary: str
    causes: list[dict[str, Any]]
    last_at: datetime


async def lock(conn: Connection) -> None:
    """Let nobody else group anomalies until the end of the transaction."""
    await conn.execute(LOCK)


async def waiting(conn: Connection, before: datetime) -> list[Record]:
    """Anomalies that should notify people and belong to no incident yet, oldest first, at most BATCH."""
    return await conn.fetch(WAITING, before, BATCH)


async def still_open(conn: Connection) -> tuple[list[Record], list[Record]]:
    """The incidents that are open, at most OPEN_MAX, and their anomalies by time, the latest SIGNS_MAX of each."""
    found = await conn.fetch(OPEN, OPEN_MAX)
    return found, await conn.fetch(SIGNS, [row["id"] for row in found], SIGNS_MAX)


async def add(conn: Connection, opened_at: datetime, verdict: Verdict, anomalies: Sequence[Record]) -> int:
    """Open an incident with its anomalies; return its number."""
    it = verdict
    incident_id: int = await conn.fetchval(
        ADD, it.severity, it.component, it.summary, it.causes, len(anomalies), opened_at, it.last_at
    )
    await _assign(conn, incident_id, anomalies)
    return incident_id


async def extend(conn: Connection, incident_id: int, verdict: Verdict, anomalies: Sequence[Record]) -> None:
    """Add anomalies to an incident, and replace what was known of it."""
    it = verdict
    await conn.execute(CHANGE, incident_id, it.severity, it.component, it.summary, it.causes, len(anomalies), it.last_at)
    await _assign(conn, incident_id, anomalies)


async def _assign(conn: Connection, incident_id: int, anomalies: Sequence[Record]) -> None:
    columns = [[row[name] for row in anomalies] for name in ("bucket", "series_id", "version")]
    await conn.execute(ASSIGN, incident_id, *columns)


async def close(conn: Connection, judged_to: datetime) -> list[Record]:
    """Close the incidents that are over at the minute `judged_to`; return what was closed."""
    return await conn.fetch(CLOSE, judged_to, QUIET, ACCEPTED_AFTER)


async def concerned(conn: Connection, limit: int) -> set[int]:
    """The numbers of the series that open incidents are about, at most `limit`."""
    return {row["series_id"] for row in await conn.fetch(CONCERNED, limit)}


async def count_open(conn: Connection) -> list[Record] | None:
    """Count the open incidents by severity and component; None while the detector is NEWS behind.

    It then judges the past: what was open there may be over by now.
    """
    behind: timedelta | None = await conn.fetchval(BEHIND)
    return None if behind is None or behind > NEWS else await conn.fetch(COUNT)


async def page(
    conn: Connection,
    since: datetime,
    until: datetime,
    after: tuple[datetime, int] | None,
    limit: int,
    state: Literal["open", "closed"] | None = None,
) -> list[Record]:
    """Incidents that opened from `since` to before `until`, newest first, from below the place `after`."""
    return await conn.fetch(PAGE, QUIET, since, until, *(after or (until, 0)), state, limit)


async def find(conn: Connection, incident_id: int) -> Record | None:
    """Return an incident, None if there is none with this number."""
    return await conn.fetchrow(FIND, QUIET, incident_id)


async def evidence(conn: Connection, incident: Record) -> tuple[list[Record], list[Record]]:
    """The anomalies of an incident, the strongest first, and the points of its series within POINTS of it."""
    found = await conn.fetch(EVIDENCE, incident["id"], SIGNS_MAX)
    ids = list(dict.fromkeys(row["series_id"] for row in found))
    since, until = incident["opened_at"] - POINTS, incident["last_at"] + POINTS
    return found, await conn.fetch(AROUND, ids, since, until, POINTS_MAX * max(1, len(ids)))


async def judge(conn: Connection, incident_id: int, feedback: Feedback, by: str) -> list[Record] | None:
    """Note whether an incident was useful or noise, and move the thresholds of its series; return these, before and after.

    None if there is no such incident. A second opinion replaces the first.
    """
    row = await conn.fetchrow(LOCK_ONE, incident_id)
    if row is None:
        return None
    noise, useful = ((feedback == it) - (row["feedback"] == it) for it in ("noise", "useful"))
    return await conn.fetch(JUDGE, incident_id, feedback, by, noise, useful)


async def forget(conn: Connection) -> int:
    """Delete closed incidents, with their anomalies, that are older than any policy keeps metrics; return how many."""
    return _count(await conn.execute(FORGET, BATCH_MAX))


async def forget_anomalies(conn: Connection) -> int:
    """Delete anomalies of no incident that are older than any policy keeps metrics; return how many."""
    return _count(await conn.execute(FORGET_ANOMALIES, BATCH_MAX))


def _count(status: str) -> int:
    return int(status.rsplit(" ", 1)[-1])
