"""Figures of whole days, which outlive the rows that they were counted from, and what was concluded from them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Literal

from asyncpg import Record

from handoff.store import performance, statistics
from handoff.store.connect import Connection
from handoff.telemetry.buckets import CALL_S
from handoff.telemetry.instruments import quantile

KEPT_DAYS: Final = 400
CALLS_MIN: Final = 20  # of an operation on a day, before a ratio or a percentile of them says anything

# The days of which all rows are still there begin with the first session, or when the shortest policy may have deleted some.
COMPLETE_SINCE = """
    SELECT greatest((SELECT (min(created_at) AT TIME ZONE 'UTC')::date FROM session),
                    ((now() - min(archived_for)) AT TIME ZONE 'UTC')::date + 1) AS day
      FROM retention_policy
    HAVING EXISTS (SELECT FROM session)
"""
STORAGE = """
    SELECT sum(bytes)::float8 FROM storage_size
     WHERE measured_at = (SELECT max(measured_at) FROM storage_size WHERE measured_at >= $1 AND measured_at < $2)
"""
RECORD = """
    INSERT INTO statistic_day (name, day, value)
    SELECT name, $1, value FROM unnest($2::text[], $3::float8[]) AS figure (name, value)
        ON CONFLICT (name, day) DO UPDATE SET value = excluded.value
"""
FORGET = "DELETE FROM statistic_day WHERE day < $1"
READ = f"SELECT name, day, value FROM statistic_day WHERE day >= $1 ORDER BY name, day LIMIT {20 * KEPT_DAYS}"
DAYS = "SELECT day FROM statistic_day WHERE name = 'sessions' AND day >= $1 ORDER BY day LIMIT 1000"
# Of each day: the calls, and the CPUs that all processes of the service together used in its busiest hour.
OF_SERVICE = """
    SELECT 'calls' AS name, (start AT TIME ZONE 'UTC')::date AS day,
           sum((SELECT sum(n) FROM unnest(durations) n))::float8 AS value
      FROM call_period WHERE grain = 'day' AND start >= $1 AND start < $2
     GROUP BY start
     UNION ALL
    SELECT 'service_cpus', (start AT TIME ZONE 'UTC')::date, max(cpu_s) / 3600
      FROM process_period WHERE grain = 'hour' AND kind = 'service' AND start >= $1 AND start < $2
     GROUP BY 2
     LIMIT 1000
"""
CONCLUDE = """
    INSERT INTO conclusion (type, computed_at, document) VALUES ($1, now(), $2)
        ON CONFLICT (type) DO UPDATE SET computed_at = excluded.computed_at, document = excluded.document
"""
CONCLUDED = "SELECT computed_at, document FROM conclusion WHERE type = $1"

Conclusion = Literal["trends", "capacity"]


async def missing(conn: Connection, today: date, again: int, days_max: int) -> list[date]:
    """The whole days that are to be recorded: those not recorded yet, and the `again` latest, whose handoffs end late."""
    first = await conn.fetchval(COMPLETE_SINCE)
    if first is None:
        return []
    first = max(first, today - timedelta(days=days_max))
    recorded = {row["day"] for row in await conn.fetch(DAYS, first)}
    days = [first + timedelta(days=number) for number in range((today - first).days)]
    return [day for day in days if day not in recorded or day >= today - timedelta(days=again)]


async def count(conn: Connection, day: date, timeout_s: float) -> dict[str, float]:
    """The figures of a day that have a value. Raises Invalid if there are too many rows."""
    since = _begins(day)
    asked = statistics.Asked(since, since + timedelta(days=1), "day")
    sessions = (await statistics.sessions(conn, asked, timeout_s)).all
    handoffs = (await statistics.handoffs(conn, asked, timeout_s)).all
    context = (await statistics.context(conn, asked, timeout_s)).all
    figures = {
        "sessions": sessions["sessions"],
        "handoffs": handoffs["handoffs"],
        "success_ratio": handoffs["success_ratio"],
        "lapsed_ratio": handoffs["lapsed"] / handoffs["handoffs"] if handoffs["handoffs"] else None,
        "to_accept_s": handoffs["to_accept_s"]["p50"] if handoffs["to_accept_s"] else None,
        "to_complete_s": handoffs["to_complete_s"]["p50"] if handoffs["to_complete_s"] else None,
        "entries": context["entries"],
        "content_bytes": context["content_bytes"],
        "large_entries": context["large"],
        "storage_bytes": await conn.fetchval(STORAGE, asked.since, asked.until),
    }
    return {name: float(value) for name, value in figures.items() if value is not None}


async def record(conn: Connection, day: date, figures: Mapping[str, float]) -> None:
    """Record the figures of a day, or replace them, and forget days older than KEPT_DAYS."""
    await conn.execute(RECORD, day, list(figures), list(figures.values()))
    await conn.execute(FORGET, day - timedelta(days=KEPT_DAYS))


async def read(conn: Connection, since: date) -> dict[str, dict[date, float]]:
    """The values of each figure, by day."""
    found: dict[str, dict[date, float]] = {}
    for row in await conn.fetch(READ, since):
        found.setdefault(row["name"], {})[row["day"]] = row["value"]
    return found


async def of_service(conn: Connection, since: date, until: date) -> dict[str, dict[date, float]]:
    """What the service did and used on each day before `until`, as its processes counted it, for as long as that is kept."""
    found: dict[str, dict[date, float]] = {}
    for row in await conn.fetch(OF_SERVICE, _begins(since), _begins(until)):
        found.setdefault(row["name"], {})[row["day"]] = row["value"]
    return found


async def of_operations(conn: Connection, since: date, until: date) -> dict[str, dict[str, dict[date, float]]]:
    """By operation, those with most calls first, and by figure: its values by day, before `until`.

    The ratio of calls that failed has a value on days with CALLS_MIN calls, and the 95th percentile of the duration of those
    that succeeded on days with as many of these; where a call waits for something to happen, how long it takes is no figure.
    """
    counts: dict[str, dict[date, dict[str, Sequence[int]]]] = {}
    for row in await performance.calls(conn, _begins(since), _begins(until), "day"):
        counts.setdefault(row["operation"], {}).setdefault(row["start"].date(), {})[row["outcome"]] = row["durations"]
    found: dict[str, dict[str, dict[date, float]]] = {}
    for operation, of_days in counts.items():
        figures = found[operation] = {"calls": {}, "failed_ratio": {}, "duration_p95_s": {}}
        for day, ends in of_days.items():
            calls = figures["calls"][day] = float(sum(map(sum, ends.values())))
            succeeded = ends.get("ok", ())
            if calls >= CALLS_MIN:
                figures["failed_ratio"][day] = sum(ends.get("failed", ())) / calls
            if sum(succeeded) >= CALLS_MIN and operation not in performance.WAITS:
                figures["duration_p95_s"][day] = quantile(0.95, CALL_S, succeeded)
        if operation in performance.WAITS:
            del figures["duration_p95_s"]
    most = sorted(found, key=lambda it: (-sum(found[it]["calls"].values()), it))[: statistics.PLACES_MAX]
    return {operation: found[operation] for operation in most}


def _begins(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


async def conclude(conn: Connection, type_: Conclusion, document: dict[str, Any]) -> None:
    """Replace what was concluded."""
    await conn.execute(CONCLUDE, type_, document)


async def concluded(conn: Connection, type_: Conclusion) -> Record | None:
    """What was concluded last, and when; None if nothing was yet."""
    return await conn.fetchrow(CONCLUDED, type_)
