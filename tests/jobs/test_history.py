"""Minutes of series add up to hours, days and months, and past days are packed: what is read stays the same."""

from datetime import datetime, timedelta
from itertools import product
from typing import Any, Final

import asyncpg
import pytest

from handoff.context import App
from handoff.jobs import history, retention
from handoff.store import history as periods
from handoff.store import series
from handoff.store.connect import transact
from handoff.store.series import Point, Spec
from tests.agents import Agent

MINUTE: Final = timedelta(minutes=1)
COUNT = Spec("counted", "count", "zero")
SHARE = Spec("share", "ratio", "gap", {"of": "calls"})
TOTAL = Spec("total", "counter", "gap")
READ = """
    SELECT s.name, m.bucket, m.value, m.of FROM series_minutes($1, $2) m JOIN series s ON s.id = m.series_id ORDER BY 1, 2
"""
PERIODS = """
    SELECT s.name, p.grain, p.start, p.points, p.total, p.of, p.lowest, p.highest, p.last
      FROM series_period p JOIN series s ON s.id = p.series_id ORDER BY 1, 2, 3
"""
# Slow and obvious: from the minutes of each whole period.
OBVIOUS = """
    SELECT s.name, grain, date_trunc(grain, m.bucket, 'UTC') AS start, count(*)::integer AS points, sum(m.value) AS total,
           sum(m.of) AS of, min(m.value / coalesce(m.of, 1)) AS lowest, max(m.value / coalesce(m.of, 1)) AS highest,
           (array_agg(m.value ORDER BY m.bucket DESC))[1] AS last
      FROM unnest('{hour,day,month}'::text[]) grain, series_minutes('-infinity', 'infinity') m
      JOIN series s ON s.id = m.series_id AND s.kind <> 'counter'
     WHERE date_trunc(grain, m.bucket, 'UTC') + ('1 ' || grain)::interval <= now() - interval '5 minutes'
     GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
# The same of whole periods, as it is shown.
SHOWN = """
    SELECT date_trunc($1, m.bucket, 'UTC') AS start, count(*)::integer AS minutes,
           min(m.value / coalesce(m.of, 1)) AS lowest,
           max(m.value / coalesce(m.of, 1)) AS highest, (array_agg(m.value ORDER BY m.bucket DESC))[1] AS last,
           CASE s.kind WHEN 'ratio' THEN sum(m.value) / sum(m.of)
                       WHEN 'count' THEN sum(m.value) ELSE avg(m.value) END AS value
      FROM series_minutes('-infinity', 'infinity') m JOIN series s ON s.id = m.series_id
     WHERE date_trunc($1, m.bucket, 'UTC') + ('1 ' || $1)::interval <= now() - interval '5 minutes' AND s.name = $2
     GROUP BY 1, s.kind ORDER BY 1 DESC
"""
FIGURES = ("value", "lowest", "highest", "last", "minutes")
PACKED = "SELECT count(*) FROM series_day"
LOOSE = "SELECT count(*) FROM series_point"


@pytest.fixture
async def now(db: asyncpg.Connection) -> datetime:
    return await db.fetchval("SELECT date_trunc('minute', now())")


async def put(app: App, *points: Point) -> None:
    await transact(app.pool, lambda conn: series.put(conn, points, 100))


def measured(now: datetime) -> list[Point]:
    """On every fifth of the last 40 days a count every 17 minutes of five hours, and a share in three of them."""
    begins = [now - timedelta(days=days, hours=5) for days in range(0, 41, 5)]
    counts = [Point(COUNT, it + n * 17 * MINUTE, float(n % 7)) for it in begins for n in range(18)]
    return counts + [Point(SHARE, it + n * 90 * MINUTE, float(n), 3.0 + n) for it in begins for n in range(3)]


async def whole(app: App) -> None:
    """The job, run until nothing is due."""
    while await transact(app.pool, periods.add_up):
        pass
    while await transact(app.pool, periods.pack):
        pass


async def test_what_is_read_and_what_it_adds_up_to_is_the_same_once_days_are_packed(
    app: App, db: asyncpg.Connection, now: datetime
) -> None:
    await put(app, *measured(now))
    since = now - timedelta(days=50)
    before = await db.fetch(READ, since, now)
    some_of_a_day = (now - timedelta(days=5, minutes=77), now - timedelta(days=5, minutes=30))
    part = await db.fetch(READ, *some_of_a_day)
    assert len(before) == len(measured(now)) == 9 * 21
    await whole(app)

    assert await db.fetchval(PACKED) >= 8 * 2
    assert await db.fetchval(LOOSE) == 21
    assert await db.fetch(READ, since, now) == before
    assert await db.fetch(READ, *some_of_a_day) == part != []
    added = await db.fetch(PERIODS)
    assert added == await db.fetch(OBVIOUS)
    assert {row["grain"] for row in added} == {"hour", "day", "month"}
    await whole(app)
    assert await db.fetch(PERIODS) == added


async def test_the_history_of_a_series_is_read_as_a_resource_page_by_page(
    app: App, agent: Agent, db: asyncpg.Connection, now: datetime
) -> None:
    levels = [Point(Spec("stood", "level", "gap"), now - timedelta(days=n), n * 1.5) for n in range(40)]
    await put(app, *measured(now), *levels)
    await whole(app)
    since = (now - timedelta(days=70)).isoformat()
    for per, name in product(("hour", "day", "week", "month"), ("counted", "share", "stood")):
        found: list[dict[str, Any]] = []
        cursor: str | None = ""
        while cursor is not None:
            uri = f"handoff://analytics/series?series={name}&granularity={per}&since={since}&limit=17{cursor}"
            page = await agent.read(uri)
            found += page["periods"]
            cursor = f"&cursor={page['next_cursor']}" if "next_cursor" in page else None
        slow = await db.fetch(SHOWN, per, name)
        assert [datetime.fromisoformat(it["start"]) for it in found] == [it["start"] for it in slow] != []
        for one, other in zip(found, slow, strict=True):
            assert {it: one[it] for it in FIGURES} == pytest.approx({it: other[it] for it in FIGURES})


async def test_an_agent_sees_the_history_of_its_own_series(app: App, agent: Agent, now: datetime) -> None:
    routes = [Spec("handoffs.offered", "count", "zero", {"from": "ada", "to": to}) for to in ("bob", "eve")]
    ours = [Spec("handoffs.offered", "count", "zero"), Spec("calls", "count", "zero", {"operation": "get_inbox"})]
    await put(app, *(Point(spec, now - timedelta(hours=3), 1.0) for spec in (*routes, *ours)))
    await whole(app)

    async def read(query: str) -> Any:
        return await agent.read(f"handoff://analytics/series?granularity=hour{query}")

    assert [(it["name"], it["series"]) for it in (await read(""))["names"]] == [("calls", 1), ("handoffs.offered", 3)]
    assert [(it["name"], it["series"]) for it in (await read("&agent=bob"))["names"]] == [("handoffs.offered", 1)]
    first = await read("&limit=1")
    rest = await read(f"&limit=1&cursor={first['next_cursor']}")
    assert [(it["names"][0]["name"], it["total"], "next_cursor" in it) for it in (first, rest)] == [
        ("calls", 2, True),
        ("handoffs.offered", 2, False),
    ]
    assert len((await read("&series=handoffs.offered"))["periods"]) == 3
    of_bob = (await read("&series=handoffs.offered&agent=bob"))["periods"]
    assert [(it["labels"], it["value"]) for it in of_bob] == [({"from": "ada", "to": "bob"}, 1.0)]
    assert len((await read("&series=calls&operation=get_inbox"))["periods"]) == 1
    assert (await read("&series=calls&operation=other"))["periods"] == []


async def test_what_comes_late_replaces_what_is_packed_and_is_added_up_again(
    app: App, db: asyncpg.Connection, now: datetime
) -> None:
    await put(app, *measured(now))
    await whole(app)
    late = now - timedelta(days=35, hours=5)
    await put(app, Point(COUNT, late, 1_000.0), Point(COUNT, late + MINUTE, 2_000.0), Point(SHARE, late, 0.0, 9.0))
    await put(app, Point(Spec("unheard of", "level", "gap"), late, 5.0))
    before = await db.fetch(READ, late - timedelta(days=1), late + timedelta(days=1))
    assert [row["value"] for row in before if row["bucket"] == late] == [1_000.0, 0.0, 5.0]  # each once

    await history.run(app)
    assert await db.fetch(READ, late - timedelta(days=1), late + timedelta(days=1)) == before
    assert not await db.fetchval("SELECT count(*) FROM series_point WHERE bucket < $1", late + timedelta(days=1))
    await whole(app)
    assert await db.fetch(PERIODS) == await db.fetch(OBVIOUS)


async def test_a_counter_adds_up_to_what_it_rose_by_also_over_the_hour_and_a_restart(
    app: App, db: asyncpg.Connection, now: datetime
) -> None:
    hour = now.replace(minute=0) - timedelta(hours=3)
    for ago, total in ((-2, 100.0), (-1, 110.0), (0, 125.0), (1, 5.0), (58, 8.0), (61, 18.0)):
        await put(app, Point(TOTAL, hour + ago * MINUTE, total))
    await whole(app)
    found = [tuple(row)[4:] for row in await db.fetch(PERIODS) if row["grain"] == "hour"]
    #         rose  of   by the minute  last
    assert found == [
        (10.0, None, 10.0, 10.0, 110.0),
        (15.0 + 5.0 + 3.0, None, 3.0, 15.0, 8.0),
        (10.0, None, 10.0, 10.0, 18.0),
    ]


async def test_a_month_is_dropped_as_a_whole_when_no_policy_keeps_its_metrics(
    app: App, db: asyncpg.Connection, now: datetime
) -> None:
    for days in (100, 31, 5):
        await put(app, Point(COUNT, now - timedelta(days=days), 1.0))
    await whole(app)
    await db.execute("UPDATE retention_policy SET metrics_for = interval '30 days'")
    await history.run(app)
    kept = [row["bucket"] for row in await db.fetch(READ, now - timedelta(days=200), now)]
    assert kept == [now - timedelta(days=31), now - timedelta(days=5)] or kept == [now - timedelta(days=5)]
    assert min(row["start"] for row in await db.fetch(PERIODS)) > now - timedelta(days=62)
    await retention.run(app)
    assert [row["bucket"] for row in await db.fetch(READ, now - timedelta(days=200), now)] == kept


async def test_points_that_are_written_while_their_hour_is_added_up_are_not_missed(
    app: App, db: asyncpg.Connection, now: datetime
) -> None:
    hour = now.replace(minute=0) - timedelta(hours=2)
    await put(app, Point(COUNT, hour, 1.0))
    async with app.pool.acquire() as writer:
        writing = writer.transaction()
        await writing.start()
        await series.put(writer, [Point(COUNT, hour + MINUTE, 2.0)], 100)
        await db.execute("SET lock_timeout = '50ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):  # who adds up waits for the writer
            await db.fetch(periods.TAKE, periods.OVER)
        await writing.commit()
    await whole(app)
    assert [row["total"] for row in await db.fetch(PERIODS) if row["grain"] == "hour"] == [3.0]
