"""Workers share the series: each shard is judged by one at a time, and what one leaves another finishes."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import uuid4

import anyio
import asyncpg
import pytest

from handoff.app import open_app
from handoff.context import App
from handoff.jobs import detect
from handoff.settings import Settings
from handoff.store import series, shards
from handoff.store.connect import transact
from handoff.store.series import Point, Spec
from tests.jobs.test_detect import FORGET, FOUND, STATES

SERIES, MINUTES = 6, 60
SHARDS = "SELECT shard, at, holder FROM detector_shard ORDER BY shard"


@pytest.fixture(autouse=True)
def _one_series_per_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SERIES", 1)
    monkeypatch.setattr(detect, "_OTHERS_S", 0.01)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"series_warm_up_s": 0.0})


@asynccontextmanager
async def another(settings: Settings) -> AsyncGenerator[App]:
    """Another worker."""
    async with open_app(settings, "worker") as app:
        yield app


async def past(app: App, db: asyncpg.Connection) -> datetime:
    """An hour of some series, at the end of which each jumps; return the minute up to which it can be judged."""
    now: datetime = await db.fetchval("SELECT date_trunc('minute', now())")
    points = [
        Point(Spec(f"s{number}", "level", "gap"), now - (MINUTES - n) * series.MINUTE, (3 * n + number) % 5 + 100 * (n > 55))
        for number in range(SERIES)
        for n in range(MINUTES)
    ]

    async def work(conn: Any) -> None:
        await series.put(conn, points, 100)
        await series.advance(conn, "rolled_up", now)

    await transact(app.pool, work)
    return now - detect.SETTLED


async def test_two_workers_share_the_shards_and_a_killed_one_is_taken_over_within_seconds(
    app: App, settings: Settings, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = await past(app, db)
    await detect.run(app)
    alone, found = str(await db.fetch(STATES)), await db.fetch(FOUND)  # as text: NaN equals nothing
    assert len({row["name"] for row in found}) == SERIES
    await db.execute(f"{FORGET}; DELETE FROM anomaly")

    judged: dict[App, set[int]] = {}
    stuck = asyncio.Event()
    judge_some = detect._judge_some

    async def noted(worker: App, shard: int, *arguments: Any) -> datetime:
        judged.setdefault(worker, set()).add(shard)
        if worker is app and len(judged[worker]) == 2:  # in the middle of its second shard
            stuck.set()
            await asyncio.Event().wait()
        return await judge_some(worker, shard, *arguments)

    monkeypatch.setattr(detect, "_judge_some", noted)
    monkeypatch.setattr(shards, "RENEWED_S", 3_600)  # a process that is gone renews nothing
    monkeypatch.setattr(shards, "RELEASE", "SELECT $1::uuid")  # nor does it release anything
    held = 0
    async with another(settings) as other, anyio.create_task_group() as group:
        group.start_soon(detect.run, app)
        await stuck.wait()
        held = next(row["shard"] for row in await db.fetch(SHARDS) if row["holder"] and row["at"] is None)
        async with asyncio.timeout(60):
            async with anyio.create_task_group() as race:
                race.start_soon(detect.run, other)
                while [row["shard"] for row in await db.fetch(SHARDS) if row["at"] is None] != [held]:
                    await asyncio.sleep(0.01)  # all that is free
                await db.execute("UPDATE detector_shard SET held_until = now() WHERE shard = $1", held)  # the lease is over
        group.cancel_scope.cancel()
    assert len(judged[other]) == SERIES - 1
    assert judged[app] & judged[other] == {held}
    assert {row["at"] for row in await db.fetch(SHARDS)} == {end}
    assert str(await db.fetch(STATES)) == alone
    assert await db.fetch(FOUND) == found
    assert await db.fetchval("SELECT at FROM analytics_progress WHERE stage = 'judged'") == end


async def test_a_shard_that_cannot_be_judged_fails_the_run_and_holds_up_no_other(app: App, db: asyncpg.Connection) -> None:
    end = await past(app, db)
    await detect.run(app)
    await db.execute("UPDATE detector_state SET state = 'damaged' WHERE series_id = 1")
    await db.execute("UPDATE detector_shard SET at = at - interval '1 minute'")

    with pytest.raises(ValueError, match="The detector's state"):
        await detect.run(app)
    assert [row["shard"] for row in await db.fetch(SHARDS) if row["at"] < end] == [1]
    assert all(row["holder"] is None for row in await db.fetch(SHARDS))


async def test_a_worker_that_was_stopped_writes_nothing_once_another_has_its_shard(
    app: App, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]]
) -> None:
    end = await past(app, db)
    judge, thief = detect._judge, uuid4()

    async def slow(*arguments: Any) -> Any:
        watch = await judge(*arguments)
        await db.execute("UPDATE detector_shard SET held_until = now() - interval '1 s' WHERE holder IS NOT NULL")
        taken = await shards.claim(db, thief, end)
        assert taken is not None
        monkeypatch.setattr(detect, "_judge", judge)
        return watch

    monkeypatch.setattr(detect, "_judge", slow)
    running = asyncio.create_task(detect.run(app))
    while not (lost := [line for line in logged if line["event"] == "detector.shard_lost"]):
        assert not running.done()
        await asyncio.sleep(0.01)
    number = lost[0]["shard"]
    while [row["shard"] for row in await db.fetch(SHARDS) if row["at"] is None] != [number]:
        await asyncio.sleep(0.01)
    assert not await db.fetchval("SELECT count(*) FROM anomaly WHERE series_id = $1", number)  # one series per shard
    await shards.release(db, thief)
    await running
    assert await db.fetchval("SELECT count(*) FROM anomaly WHERE series_id = $1", number) > 0


async def test_progress_is_that_of_the_last_shard_whoever_commits_first(app: App, db: asyncpg.Connection) -> None:
    end = await past(app, db)
    await shards.appear(db)
    holders = [uuid4(), uuid4()]
    claimed = [await shards.claim(db, it, end) for it in holders]
    await db.execute("UPDATE detector_shard SET at = $1 WHERE holder IS NULL", end)
    async with app.pool.acquire() as first, app.pool.acquire() as second:
        writing = first.transaction()
        await writing.start()
        assert claimed[0] is not None
        assert claimed[1] is not None
        await shards.advance(first, claimed[0]["shard"], holders[0], end)
        waits = asyncio.create_task(shards.advance(second, claimed[1]["shard"], holders[1], end))
        while not await db.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
        await writing.commit()
        assert await waits == end
    assert await db.fetchval("SELECT at FROM analytics_progress WHERE stage = 'judged'") == end
