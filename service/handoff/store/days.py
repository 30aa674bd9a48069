"""Figures of whole days, which outlive the rows that they were counted from, and what was concluded from them."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Literal

from asyncpg import Record

from handoff.store import statistics
from handoff.store.connect import Connection

KEPT_DAYS: Final = 400

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
    since = datetime(day.year, day.month, day.day, tzinfo=UTC)
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


async def conclude(conn: Connection, type_: Conclusion, document: dict[str, Any]) -> None:
    """Replace what was concluded."""
    await conn.execute(CONCLUDE, type_, document)


async def concluded(conn: Connection, type_: Conclusion) -> Record | None:
    """What was concluded last, and when; None if nothing was yet."""
    return await conn.fetchrow(CONCLUDED, type_)
