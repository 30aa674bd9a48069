"""What the tables take on disk, how fast that grows, and which change of a retention policy would help most."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from handoff.store.connect import Connection
from handoff.store.holds import HELD

WINDOW: Final = timedelta(days=7)  # over which growth is measured: agents work less at weekends
SPAN_MIN: Final = timedelta(days=1)  # of measurements, before a forecast is made
TABLES_MAX: Final = 200
_DAY_S: Final = 86_400
_SESSIONS_MAX: Final = 100_000  # looked at per policy

MEASURE = """
    INSERT INTO storage_size (name, measured_at, bytes)
    SELECT coalesce((SELECT p.relname FROM pg_class p WHERE p.oid = pg_partition_root(c.oid)), c.relname), now(),
           sum(pg_total_relation_size(c.oid))
      FROM pg_class c
     WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'
     GROUP BY 1
        ON CONFLICT DO NOTHING
"""
FORGET = """
    DELETE FROM storage_size
     WHERE measured_at < now() - greatest($1::interval, (SELECT max(metrics_for) FROM retention_policy))
"""
GROWTH = """
    SELECT name, (array_agg(bytes ORDER BY measured_at DESC))[1] AS bytes,
           coalesce(regr_slope(bytes, extract(epoch FROM measured_at)) * 86400, 0)::float8 AS bytes_per_day,
           max(measured_at) - min(measured_at) AS span
      FROM storage_size
     WHERE measured_at > now() - $1::interval
     GROUP BY name
     ORDER BY bytes DESC, name
     LIMIT $2
"""
# Per policy, the content of its archived sessions, and what of it would be gone if it were kept half as long.
ARCHIVED = f"""
    SELECT p.name, extract(epoch FROM p.archived_for)::float8 / 86400 AS archived_days,
           coalesce(sum(s.content_bytes), 0)::bigint AS content_bytes,
           coalesce(sum(s.content_bytes) FILTER (WHERE s.status_since < now() - p.archived_for / 2), 0)::bigint
               AS older_bytes
      FROM retention_policy p, LATERAL (
        SELECT s.content_bytes, s.status_since FROM session s
         WHERE s.status = 'archived' AND s.retention_policy = p.name AND NOT {HELD}
         ORDER BY s.status_since
         LIMIT $1) s
     GROUP BY p.name, p.archived_for
     ORDER BY 4 DESC, p.name
     LIMIT 100
"""


@dataclass(frozen=True, slots=True)
class Storage:
    """What the tables take, largest first, and their growth per day in bytes; `full_in_s` is the forecast in seconds.

    `full_in_s` is None without a limit, without growth, and until SPAN_MIN has been measured. `advice` is the change of a
    policy that would save most, if any would save anything.
    """

    tables: list[dict[str, Any]]
    bytes: int
    bytes_per_day: float
    full_in_s: float | None
    advice: dict[str, Any] | None


async def measure(conn: Connection) -> None:
    """Measure the tables, and forget what was measured longer ago than any policy keeps metrics, and not within WINDOW."""
    await conn.execute(MEASURE)
    await conn.execute(FORGET, WINDOW)


async def read(conn: Connection, bytes_max: int) -> Storage:
    """Return what was measured last, and when `bytes_max` will be reached; 0 is no limit."""
    rows = await conn.fetch(GROWTH, WINDOW, TABLES_MAX)
    tables = [{name: row[name] for name in ("name", "bytes", "bytes_per_day")} for row in rows]
    total, per_day = sum(row["bytes"] for row in rows), sum(row["bytes_per_day"] for row in rows)
    is_measured = max((row["span"] for row in rows), default=timedelta(0)) >= SPAN_MIN
    full_in_s = None
    if bytes_max and total >= bytes_max:
        full_in_s = 0.0
    elif bytes_max and is_measured and per_day > 0:
        full_in_s = (bytes_max - total) / per_day * _DAY_S
    archive_bytes = sum(row["bytes"] for row in rows if row["name"] == "archive")
    return Storage(tables, total, per_day, full_in_s, await _advice(conn, archive_bytes))


async def _advice(conn: Connection, archive_bytes: int) -> dict[str, Any] | None:
    rows = await conn.fetch(ARCHIVED, _SESSIONS_MAX)
    content_bytes = sum(row["content_bytes"] for row in rows)
    if not content_bytes or not rows[0]["older_bytes"]:
        return None
    best = rows[0]
    return {
        "retention_policy": best["name"],
        "archived_days": best["archived_days"],
        "archived_days_instead": best["archived_days"] / 2,
        "saves_bytes": round(archive_bytes * best["older_bytes"] / content_bytes),
    }
