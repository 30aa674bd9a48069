"""The history of series: hours, days and months that minutes add up to, and minutes of past days in packed form.

Migration 0033 describes the form. Every writer of points marks the hours that they belong to as due, so that what comes late
is added up again; an hour marks its day, and a day its month.
"""

from datetime import datetime, timedelta
from typing import Final, Literal

from asyncpg import Record

from handoff.store.connect import Connection

Grain = Literal["hour", "day", "month"]

OVER: Final = timedelta(minutes=5)  # after the end of a period it is added up: what comes later costs adding it up again
LOOSE_DAYS: Final = 2  # whole days before today whose minutes are rows of their own; earlier ones are packed
SERIES_MAX: Final = 100  # of a day, packed by a statement: 144,000 points at most
_BEFORE: Final = timedelta(minutes=5)  # an hour, in which counters are looked for a value from which they have risen
_STEP_S: Final = {"hour": 3_600, "day": 86_400}
_WAIT_S_MAX: Final = 30.0  # per statement: an hour of 10,000 series has 600,000 points

# The hour first, then the day and the month that it belongs to.
TAKE = """
    DELETE FROM series_due
     WHERE (grain, start) = (SELECT grain, start FROM series_due
                              WHERE start + ('1 ' || grain)::interval <= now() - $1::interval
                              ORDER BY array_position('{hour,day,month}', grain), start LIMIT 1)
 RETURNING grain, start
"""
MARK = "INSERT INTO series_due AS d VALUES ($1, date_trunc($1, $2::timestamptz, 'UTC')) ON CONFLICT DO NOTHING"
LIMIT = "SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', '2s', true)"
MONTH = "SELECT series_month($1)"
_PUT = """
        ON CONFLICT (series_id, grain, start) DO UPDATE
       SET points = excluded.points, total = excluded.total, of = excluded.of, lowest = excluded.lowest,
           highest = excluded.highest, last = excluded.last
"""
HOUR = f"""
    INSERT INTO series_period (grain, start, series_id, points, total, of, lowest, highest, last)
    SELECT 'hour', $1, series_id, count(*), sum(coalesce(added, 0)), sum(of), min(shown), max(shown),
           (array_agg(value ORDER BY bucket DESC))[1]
      FROM (SELECT m.bucket, m.series_id, m.value, m.of, a.added,
                   CASE WHEN s.kind = 'ratio' THEN m.value / nullif(m.of, 0) ELSE a.added END AS shown
              FROM (SELECT *, lag(value) OVER (PARTITION BY series_id ORDER BY bucket) AS before
                      FROM series_minutes($1::timestamptz - $2::interval, $1::timestamptz + interval '1 hour')) m
              JOIN series s ON s.id = m.series_id
             CROSS JOIN LATERAL (
                SELECT CASE WHEN s.kind <> 'counter' OR m.value < m.before THEN m.value ELSE m.value - m.before END
                       AS added) a
             WHERE m.bucket >= $1) minutes
     GROUP BY series_id
    {_PUT}
"""
# Of all hours of a day, or all days of a month.
ADD_UP = f"""
    INSERT INTO series_period (grain, start, series_id, points, total, of, lowest, highest, last)
    SELECT $1, $2, series_id, sum(points), sum(total), sum(of), min(lowest), max(highest),
           (array_agg(last ORDER BY start DESC))[1]
      FROM series_period
     WHERE grain = $3 AND start >= $2 AND start < $2::timestamptz + ('1 ' || $1)::interval -- connections are in UTC
     GROUP BY series_id
    {_PUT}
"""
OLDEST = """
    SELECT date_trunc('day', min(bucket), 'UTC') AS day FROM series_point
     WHERE bucket < date_trunc('day', now(), 'UTC') - $1 * interval '1 day'
"""
# The first series of the day: an index has it per minute.
FIRST = """
    SELECT min(of_minute.series_id)
      FROM generate_series($1::timestamptz, $1::timestamptz + interval '1439 minutes', interval '1 minute') minute,
           LATERAL (SELECT series_id FROM series_point p WHERE p.bucket = minute ORDER BY series_id LIMIT 1) of_minute
"""
# What is deleted is what is packed. Minutes that are packed already stay, unless they were written again.
PACK = """
    WITH gone AS (
        DELETE FROM series_point p
         USING generate_series($1::timestamptz, $1::timestamptz + interval '1439 minutes', interval '1 minute') minute
         WHERE p.bucket = minute AND p.series_id >= $2 AND p.series_id < $2 + $3
     RETURNING p.bucket, p.series_id, p.value, p.of)
    INSERT INTO series_day AS d (day, series_id, value, of)
    SELECT $1, s.series_id, array_agg(g.value ORDER BY minute),
           CASE WHEN count(g.of) > 0 THEN array_agg(g.of ORDER BY minute) END
      FROM (SELECT DISTINCT series_id FROM gone) s
     CROSS JOIN generate_series($1::timestamptz, $1::timestamptz + interval '1439 minutes', interval '1 minute') minute
      LEFT JOIN gone g ON g.series_id = s.series_id AND g.bucket = minute
     GROUP BY s.series_id
        ON CONFLICT (series_id, day) DO UPDATE
       SET (value, of) = (
           SELECT array_agg(coalesce(u.new, u.old) ORDER BY u.place),
                  CASE WHEN count(u.new_of) + count(u.old_of) > 0
                       THEN array_agg(CASE WHEN u.new IS NULL THEN u.old_of ELSE u.new_of END ORDER BY u.place) END
             FROM unnest(excluded.value, excluded.of, d.value, d.of) WITH ORDINALITY
                  AS u (new, new_of, old, old_of, place))
"""
# Series per period, the newest first. A week is added up from its days. The cursor is the place of the last row.
READ = """
    SELECT date_trunc($2, p.start, 'UTC') AS start, s.id, s.name, s.labels, s.kind, sum(p.points)::integer AS minutes,
           sum(p.total) AS total, sum(p.of) AS of, min(p.lowest) AS lowest, max(p.highest) AS highest,
           (array_agg(p.last ORDER BY p.start DESC))[1] AS last
      FROM series s JOIN series_period p ON p.series_id = s.id
     WHERE p.grain = $1 AND p.start >= $3 AND p.start < $4 AND s.name = $5
       AND ($6::text IS NULL OR $6 IN (s.labels ->> 'agent', s.labels ->> 'from', s.labels ->> 'to'))
       AND ($7::text IS NULL OR $7 = s.labels ->> 'operation')
     GROUP BY 1, s.id
    HAVING (date_trunc($2, p.start, 'UTC'), s.id) < ($8, $9)
     ORDER BY 1 DESC, s.id DESC LIMIT $10
"""
# The cursor is the last name of the page before, and its kind.
NAMES = """
    WITH found AS MATERIALIZED (
        SELECT name, kind, count(*) AS series FROM series
         WHERE $1::text IS NULL OR $1 IN (labels ->> 'agent', labels ->> 'from', labels ->> 'to')
         GROUP BY name, kind)
    SELECT name, kind, series, (SELECT count(*) FROM found) AS total
      FROM found
     WHERE (name, kind) > ($2, $3)
     ORDER BY name, kind
     LIMIT $4
"""
DROP = "SELECT series_months_drop(now() - (SELECT max(metrics_for) FROM retention_policy))"


async def add_up(conn: Connection) -> bool:
    """Add up the next period that is due and over, in the caller's transaction; return whether there was one."""
    await conn.execute(LIMIT, f"{_WAIT_S_MAX:.0f}s")
    row = await conn.fetchrow(TAKE, OVER)  # waits for those who are writing points of this hour
    if row is None:
        return False
    grain: Grain = row["grain"]
    start: datetime = row["start"]
    await conn.execute(MONTH, start)
    match grain:
        case "hour":
            await conn.execute(HOUR, start, _BEFORE, timeout=_WAIT_S_MAX)
            await conn.execute(MARK, "day", start)
        case "day":
            await conn.execute(ADD_UP, grain, start, "hour", timeout=_WAIT_S_MAX)
            await conn.execute(MARK, "month", start)
        case "month":
            await conn.execute(ADD_UP, grain, start, "day", timeout=_WAIT_S_MAX)
    return True


async def pack(conn: Connection) -> bool:
    """Pack a day of some series, the oldest first, in the caller's transaction; return whether anything was to be packed."""
    day: datetime | None = await conn.fetchval(OLDEST, LOOSE_DAYS)
    if day is None:
        return False
    await conn.execute(LIMIT, f"{_WAIT_S_MAX:.0f}s")
    await conn.execute(MONTH, day)
    first: int = await conn.fetchval(FIRST, day, timeout=_WAIT_S_MAX)
    await conn.execute(PACK, day, first, SERIES_MAX, timeout=_WAIT_S_MAX)
    return True


async def read(
    conn: Connection,
    name: str,
    since: datetime,
    until: datetime,
    per: Literal["hour", "day", "week", "month"],
    *,
    agent: str | None,
    operation: str | None,
    after: tuple[datetime, int],
    limit: int,
) -> list[Record]:
    """The periods from `since` to before `until` of the series of this name that concern the agent and the operation.

    None is all of them. The newest come first, from below the place `after`.
    """
    grain: Grain = "day" if per == "week" else per
    return await conn.fetch(READ, grain, per, since, until, name, agent, operation, *after, limit)


async def names(conn: Connection, agent: str | None, after: tuple[str, str], limit: int) -> list[Record]:
    """The names of all series, or of those that concern the agent, from above the place `after`; `series` counts each.

    The `total` of each row is how many names there are.
    """
    return await conn.fetch(NAMES, agent, *after, limit)


async def drop(conn: Connection) -> int:
    """Drop the months that were over before what any policy keeps metrics for; return how many tables that were."""
    await conn.execute(LIMIT, f"{_WAIT_S_MAX:.0f}s")
    return await conn.fetchval(DROP)
