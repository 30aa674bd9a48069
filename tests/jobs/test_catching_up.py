"""Series after an hour without the database, after a clock that jumped, and with a million points at once."""

from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from handoff.context import App
from handoff.jobs import detect, rollup
from handoff.settings import Settings
from handoff.store import series
from handoff.store.connect import transact
from handoff.store.series import Point, Spec
from tests.agents import Agent
from tests.jobs.test_detect import FORGET, FOUND, RAW, SLOW, past

HOUR = timedelta(hours=1)
POINTS = "SELECT bucket, series_id, value, of FROM series_point ORDER BY 1, 2"
# A thousand minutes of a thousand series: something around 3, and 60 in the last twenty minutes of the last series.
A_MILLION = """
    INSERT INTO series_point (bucket, series_id, value)
    SELECT $1::timestamptz + minute * interval '1 minute', s.id,
           CASE WHEN minute >= 980 AND s.place = 1000 THEN 60 ELSE 2 + (minute * 7919 + s.place) % 3 END
      FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM series) s, generate_series(0, 999) minute
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"series_warm_up_s": 3_600.0})


@pytest.fixture
async def clock(db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the database's clock as the rollup reads it, to so long after now."""
    now: datetime = await db.fetchval("SELECT now()")

    def set_to(after: timedelta) -> None:
        monkeypatch.setattr(rollup, "NOW", f"SELECT timestamptz '{now + after}'")

    set_to(timedelta(0))
    return set_to


async def everything(app: App, db: asyncpg.Connection) -> tuple[list[Any], list[Any]]:
    """Run the jobs; return all points and all anomalies."""
    await rollup.run(app)
    await detect.run(app)
    return await db.fetch(POINTS), await db.fetch(FOUND)


async def test_after_an_hour_without_the_database_all_is_as_if_it_had_been_there(
    app: App, agent: Agent, db: asyncpg.Connection, clock: Any
) -> None:
    await past(agent, db, 2_000)
    clock(-HOUR)
    before, nothing = await everything(app, db)
    assert nothing == []
    clock(timedelta(0))
    points, found = await everything(app, db)
    assert len(points) > len(before)
    assert [tuple(row) for row in await db.fetch(RAW)] == [tuple(row) for row in await db.fetch(SLOW)]

    await db.execute(f"{FORGET}; DELETE FROM anomaly; DELETE FROM series_point; DELETE FROM analytics_progress")
    assert found
    assert await everything(app, db) == (points, found)


async def test_a_clock_that_goes_back_changes_nothing_and_one_that_goes_forward_leaves_a_gap(
    app: App, agent: Agent, db: asyncpg.Connection, clock: Any
) -> None:
    await past(agent, db, 300)
    once = await everything(app, db)
    clock(-2 * HOUR)
    assert await everything(app, db) == once
    clock(3 * HOUR)
    points, found = await everything(app, db)
    assert found[: len(once[1])] == once[1]
    assert [row for row in points if row["value"]] == once[0]
    clock(timedelta(0))
    assert await everything(app, db) == (points, found)


async def test_a_million_points_at_once_are_judged_in_bounded_parts(
    app: App, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin: datetime = await db.fetchval("SELECT date_trunc('minute', now()) - interval '1000 minutes'")

    async def register(conn: Any) -> None:
        specs = [Spec(f"s{number}", "count", "zero") for number in range(1_000)]
        await series.put(conn, [Point(it, begin, 3.0) for it in specs], 1_000)
        await series.advance(conn, "rolled_up", begin + timedelta(minutes=1_000))

    await transact(app.pool, register)
    await db.execute("DELETE FROM series_point")
    await db.execute(A_MILLION, begin)
    assert await db.fetchval("SELECT count(*) FROM series_point") == 1_000_000
    read: list[int] = []
    points = series.points

    async def counted(*arguments: Any) -> list[Any]:
        rows = await points(*arguments)
        read.append(sum(len(row["minutes"]) for row in rows))
        return rows

    monkeypatch.setattr(series, "points", counted)
    await detect.run(app)

    assert max(read) <= 720_000
    assert sum(read) >= 999_000  # all but the last minute, which is not settled
    assert {row["name"] for row in await db.fetch(FOUND)} == {"s999"}
