"""What happened becomes series by the minute, and what is unusual in them is found once, whatever ends or begins again."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from handoff.context import App
from handoff.jobs import detect, measure, retention, rollup
from handoff.jobs.judging import RELEARNT
from handoff.settings import Settings
from handoff.store import anomalies, series
from handoff.store.connect import Connection, transact
from handoff.store.series import Point, Spec
from handoff.telemetry import metrics
from tests.agents import Agent

# A quiet past of `minutes`, with `per_minute` offers in each, and then 60 in each of the last half hour.
PAST = """
    INSERT INTO event (session_id, handoff_id, kind, agent, at)
    SELECT $1, $2, 'handoff.offered', 'ada',
           date_trunc('minute', now()) - minute * interval '1 minute' + n * interval '0.5 s'
      FROM generate_series(2, $3::int) minute,
           generate_series(1, CASE WHEN minute BETWEEN 3 AND 30 THEN 60 ELSE 2 + (minute * 7919 % 3) END) n
     ORDER BY 5
"""
FOUND = """
    SELECT bucket, name, labels, severity, shadow, strength, sentence FROM anomaly JOIN series ON id = series_id
     ORDER BY bucket, series_id
"""
FORGET = """
    DELETE FROM detector_state; DELETE FROM detector_shard; DELETE FROM analytics_progress WHERE stage = 'judged'
"""
STATES = "SELECT series_id, judged_to, state, carried FROM detector_state ORDER BY 1"
RAW = """
    SELECT s.name, p.bucket, p.value FROM series_point p JOIN series s ON s.id = p.series_id
     WHERE s.name = 'handoffs.offered' AND s.labels = '{}' ORDER BY 2
"""
SLOW = """
    SELECT 'handoffs.offered' AS name, date_trunc('minute', at) AS bucket, count(*)::float8 AS value
      FROM event WHERE kind = 'handoff.offered' AND at < (SELECT at FROM analytics_progress WHERE stage = 'rolled_up')
     GROUP BY 2 ORDER BY 2
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"series_warm_up_s": 3_600.0})


async def past(agent: Agent, db: asyncpg.Connection, minutes: int) -> None:
    handoff_id = await agent.offer(await agent.session())
    session_id = await db.fetchval("SELECT session_id FROM handoff WHERE id = $1", handoff_id)
    await db.execute("DELETE FROM event")
    await db.execute(PAST, session_id, handoff_id, minutes)


async def test_a_burst_becomes_one_anomaly_that_is_counted_once(app: App, agent: Agent, db: asyncpg.Connection) -> None:
    await past(agent, db, 2_000)
    counted = metrics.ANOMALIES.value("count", "critical") + metrics.ANOMALIES.value("count", "warning")
    await rollup.run(app)
    await rollup.run(app)  # a repetition changes nothing
    assert [tuple(row) for row in await db.fetch(RAW)] == [tuple(row) for row in await db.fetch(SLOW)]
    await detect.run(app)

    found = await db.fetch(FOUND)
    of_all = [row for row in found if row["labels"] == {} or row["labels"] == "{}"]
    assert {row["name"] for row in of_all} == {"handoffs.offered"}
    assert not of_all[0]["shadow"]
    assert of_all[0]["sentence"].startswith("handoffs.offered is 60; ")
    assert {str(row["labels"]) for row in found} > {"{}"}  # the same burst, by route and by agent
    after = metrics.ANOMALIES.value("count", "critical") + metrics.ANOMALIES.value("count", "warning")
    assert after == counted + len(found)
    await measure.run(app)
    assert metrics.DETECTOR_LAG.value() < 180

    read = await agent.read("handoff://analytics/anomalies?limit=2")
    assert [it["sentence"] for it in read["anomalies"]] == [row["sentence"] for row in reversed(found)][:2]
    rest = await agent.read(f"handoff://analytics/anomalies?cursor={read['next_cursor']}")
    assert len(rest["anomalies"]) == len(found) - 2
    of_ada = (await agent.read("handoff://analytics/anomalies?agent=ada"))["anomalies"]
    assert {json.dumps(it["labels"]) for it in of_ada} == {'{"agent": "ada"}'}

    await detect.run(app)
    await db.execute(FORGET)  # a rerun of all
    await detect.run(app)
    assert await db.fetch(FOUND) == found
    assert metrics.ANOMALIES.value("count", "critical") + metrics.ANOMALIES.value("count", "warning") == after


async def test_pieces_leave_the_same_bits_as_the_whole(
    app: App, agent: Agent, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await past(agent, db, 300)
    monkeypatch.setattr(detect, "KEPT_EVERY", timedelta(0))
    await rollup.run(app)
    await detect.run(app)
    whole, found = await db.fetch(STATES), await db.fetch(FOUND)
    await db.execute(f"{FORGET}; DELETE FROM anomaly")
    monkeypatch.setattr(detect, "_RUN_MAX", timedelta(minutes=37))
    added = anomalies.add
    killed = 0

    async def killed_now_and_then(conn: asyncpg.Connection, rows: Any) -> Any:
        nonlocal killed
        result = await added(conn, rows)
        if killed < 5:
            killed += 1
            raise KeyError("killed before the commit")
        return result

    monkeypatch.setattr(anomalies, "add", killed_now_and_then)
    for _ in range(5):
        with pytest.raises(KeyError):
            await detect.run(app)
    await detect.run(app)
    assert str(await db.fetch(STATES)) == str(whole)  # as text: what is not carried is NaN, which equals nothing
    assert await db.fetch(FOUND) == found


async def test_a_tenth_as_many_agents_as_series_have_some_the_first_that_come(app: App, db: asyncpg.Connection) -> None:
    now: datetime = await db.fetchval("SELECT date_trunc('minute', now())")

    async def put(*agents: str) -> int:
        points = [Point(Spec("calls", "count", "zero", {"agent": agent}), now, 1.0) for agent in agents]
        return await transact(app.pool, lambda conn: series.put(conn, points, 20))

    assert await put("z", "a", "b") == 1
    assert await put("c", "a") == 1
    assert await db.fetchval("SELECT array_agg(labels ->> 'agent' ORDER BY id) FROM series") == ["z", "a"]


async def test_series_beyond_the_limit_are_refused_and_told(settings: Settings, app: App, db: asyncpg.Connection) -> None:
    now: datetime = await db.fetchval("SELECT date_trunc('minute', now())")

    def points(*names: str) -> list[Point]:
        return [Point(Spec(name, "level", "gap", {"of": "test"}), now, 1.0) for name in names]

    async def put(*names: str, most: int) -> int:
        return await transact(app.pool, lambda conn: series.put(conn, points(*names), most))

    assert await put("a", "b", most=3) == 0
    assert await put("b", "c", "d", most=3) == 1
    assert [row["name"] for row in await db.fetch("SELECT name FROM series ORDER BY id")] == ["a", "b", "c"]
    assert await put("c", "b", most=3) == 0
    changed = [Point(Spec("a", "count", "zero", {"of": "test"}), now, 1.0)]
    await db.execute("INSERT INTO detector_state SELECT id, 1, now(), '', '{0,0,0}' FROM series")
    assert await transact(app.pool, lambda conn: series.put(conn, changed, 3)) == 0
    known = await db.fetch(
        "SELECT name, kind FROM series LEFT JOIN detector_state ON series_id = id WHERE series_id IS NULL"
    )
    assert [tuple(row) for row in known] == [("a", "count")]  # it is another number now, and is learnt anew


async def test_each_step_of_a_handoff_is_counted_and_its_waits_are_measured(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    first, second = [await agent.offer(await agent.session()) for _ in range(2)]
    await agent.ok("resolve_handoff", agent="bob", handoff_id=second, action="reject", note="No.")
    token = await agent.accept(first)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=first, action="complete", token=token, note="Done.")
    for kind, minutes in (("handoff.offered", 9), ("handoff.accepted", 7), ("handoff.completed", 4), ("other", 5)):
        sql = (
            "UPDATE event SET at = date_trunc('minute', now()) - $2 * interval '1 min' WHERE kind = $1 OR ($1 = 'other' AND "
        )
        await db.execute(sql + "kind <> ALL ('{handoff.offered,handoff.accepted,handoff.completed}'))", kind, minutes)
    await rollup.run(app)
    rows = await db.fetch(
        "SELECT name, labels::text, sum(value) AS value FROM series JOIN series_point ON id = series_id GROUP BY 1, 2"
    )
    found = {(row["name"], row["labels"]): row["value"] for row in rows}
    assert {name: value for (name, labels), value in found.items() if labels == "{}"} == {
        "sessions.registered": 2,
        "handoffs.offered": 2,
        "handoffs.rejected": 1,
        "handoffs.accepted": 1,
        "handoffs.completed": 1,
        "handoffs.time_to_accept": 120,
        "handoffs.time_to_complete": 180,
    }
    assert found["handoffs.rejected", '{"to": "bob", "from": "alice"}'] == 1
    assert found["sessions.registered", '{"agent": "alice"}'] == 2
    assert found["handoffs.completed", '{"agent": "bob"}'] == 1


async def test_history_is_kept_as_the_policy_says_and_a_quiet_series_makes_room_for_others_until_it_is_back(
    app: App, db: asyncpg.Connection
) -> None:
    now: datetime = await db.fetchval("SELECT date_trunc('minute', now())")

    async def put(name: str, days: int) -> None:
        point = Point(Spec(name, "level", "gap"), now - timedelta(days=days), 1.0)
        await transact(app.pool, lambda conn: series.put(conn, [point], 10))

    await db.execute("UPDATE retention_policy SET metrics_for = interval '60 days'")
    for name, days in (("gone", 70), ("alive", 70), ("alive", 2), ("quiet", 40), ("young", 30)):
        await put(name, days)
    await db.execute("INSERT INTO detector_state SELECT id, 3, now(), '', '{0,0,0}' FROM series")
    await retention.run(app)
    assert [row["name"] for row in await db.fetch("SELECT name FROM series ORDER BY name")] == ["alive", "quiet", "young"]
    assert await db.fetchval("SELECT count(*) FROM series_point") == 3  # the history is kept as the policy says

    async def watched() -> list[tuple[str, bool]]:
        return [(row["name"], row["state"] is not None) for row in await transact(app.pool, series.watched)]

    assert await watched() == [("alive", True), ("young", True)]
    assert await transact(app.pool, series.count) == 2
    new = [Point(Spec(name, "level", "gap"), now, 1.0) for name in ("new", "newer")]
    assert await transact(app.pool, lambda conn: series.put(conn, new, 3)) == 1  # what is quiet makes room
    await put("quiet", 0)
    assert await watched() == [("alive", True), ("quiet", False), ("young", True), ("new", False)]  # learnt anew


async def test_a_state_of_another_version_is_learnt_anew_from_a_bounded_past(
    app: App, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    now: datetime = await db.fetchval("SELECT date_trunc('minute', now())")
    point = Point(Spec("old", "level", "gap"), now - timedelta(days=300), 1.0)
    await transact(app.pool, lambda conn: series.put(conn, [point], 10))
    await db.execute(
        "INSERT INTO analytics_progress VALUES ('rolled_up', $1), ('judged', $2)", now, now - timedelta(minutes=20)
    )
    await db.execute("UPDATE series SET last_at = now()")
    await db.execute("INSERT INTO detector_state SELECT id, 0, now(), '', '{NaN,NaN,NaN}' FROM series")
    asked: list[timedelta] = []
    points = series.points

    async def noted(conn: asyncpg.Connection, ids: Sequence[int], since: datetime, until: datetime) -> list[asyncpg.Record]:
        asked.append(until - since)
        return await points(conn, ids, since, until)

    monkeypatch.setattr(series, "points", noted)
    await detect.run(app)
    # Not 300 days at once; and what is kept is that of five minutes ago.
    assert asked == [RELEARNT + timedelta(minutes=19) - series.LATE, series.LATE]
    assert await db.fetchval("SELECT judged_to FROM detector_state") == now - detect.SETTLED - series.LATE


async def test_a_point_that_comes_late_is_judged_as_if_it_had_come_in_time(
    app: App, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    now: datetime = await db.fetchval("SELECT date_trunc('minute', now())")
    late = now - timedelta(minutes=4)

    def told_at(*_: object) -> float:
        return 0.6

    async def there_is(*ago: int, to: datetime) -> None:
        points = [Point(Spec("s", "level", "gap"), now - n * series.MINUTE, 500.0 if n == 4 else n % 5) for n in ago]

        async def work(conn: Connection) -> None:
            await series.put(conn, points, 10)
            await series.advance(conn, "rolled_up", to)

        await transact(app.pool, work)
        await detect.run(app)

    monkeypatch.setattr("handoff.jobs.detect._told_at", told_at)  # so that one point is enough, at whatever time of day
    await there_is(*range(80, 4, -1), 3, 2, to=now - series.MINUTE)
    assert not await db.fetch(FOUND)
    await there_is(4, to=now)
    found = await db.fetch(FOUND)
    assert found
    assert found[0]["bucket"] >= late
    monkeypatch.setattr(detect, "KEPT_EVERY", timedelta(0))
    await there_is(to=now + 9 * series.MINUTE)
    states = str(await db.fetch(STATES))
    await db.execute(f"{FORGET}; DELETE FROM anomaly")
    await there_is(to=now + 9 * series.MINUTE)
    assert (str(await db.fetch(STATES)), await db.fetch(FOUND)) == (states, found)
