"""Anomalies that belong together are one incident, which opens, escalates, is held and closes, and which people judge."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from handoff.context import App
from handoff.jobs import incidents, retention
from handoff.model import Severity
from handoff.settings import Settings
from handoff.store import anomalies, series
from handoff.store.anomalies import Anomaly
from handoff.store.connect import Connection, transact
from handoff.store.series import Point, Spec
from handoff.telemetry import metrics
from tests.agents import Agent

MINUTE = timedelta(minutes=1)
TOTAL = Spec("handoffs.rejected", "count", "zero")
ROUTE = Spec("handoffs.rejected", "count", "zero", {"from": "ada", "to": "bob"})
TOOL = Spec("calls.failed", "ratio", "gap", {"tool": "get_inbox"})
EDGE = Spec("promql.edge", "level", "alert", {"job": "edge"})
ALL = "SELECT id, severity, component, anomalies, opened_at, last_at, escalated_at, closed_at FROM incident ORDER BY id"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"admin": True})


class World:
    """Series of which something is found, minute by minute, as the detector writes it."""

    def __init__(self, app: App, db: asyncpg.Connection, now: datetime) -> None:
        self.app, self.db, self.now = app, db, now

    def at(self, minute: int) -> datetime:
        return self.now + minute * MINUTE

    async def found(self, minute: int, *specs: Spec, value: float = 30, severity: Severity = "warning", **more: Any) -> None:
        """Something is found about these series in a minute."""

        async def work(conn: Connection) -> None:
            await series.put(conn, [Point(it, self.at(minute), value, 40) for it in specs], 100)
            rows = [await self._anomaly(conn, it, minute, value, severity, **more) for it in specs]
            await anomalies.add(conn, rows)

        await transact(self.app.pool, work)

    async def _anomaly(
        self, conn: Connection, spec: Spec, minute: int, value: float, severity: Severity, **more: Any
    ) -> Anomaly:
        sql = "SELECT id FROM series WHERE name = $1 AND labels = $2"
        told = {"shadow": False, "muted": False} | more
        return Anomaly(
            series_id=await conn.fetchval(sql, spec.name, dict(spec.labels)),
            bucket=self.at(minute),
            version=1,
            severity=severity,
            value=value,
            expected=2,
            lower=0,
            upper=5,
            strength=1.5,
            confidence=0.6,
            spoke={"silence": 6.2} if value == 0 else {"step": 3.1},
            sentence=f"{spec.name} is {value}.",
            **told,
        )

    async def goes_on(self, spec: Spec, minutes: Sequence[int], value: float) -> None:
        """A series has this value."""
        points = [Point(spec, self.at(minute), value, 40) for minute in minutes]
        await transact(self.app.pool, lambda conn: series.put(conn, points, 100))

    async def judged(self, minute: int) -> list[asyncpg.Record]:
        """The detector has come to the beginning of a minute, and the job has run twice; return all incidents."""
        await transact(self.app.pool, lambda conn: series.advance(conn, "judged", self.at(minute)))
        await incidents.run(self.app)
        await incidents.run(self.app)  # a repetition changes nothing
        return await self.db.fetch(ALL)


@pytest.fixture
async def world(app: App, db: asyncpg.Connection) -> World:
    return World(app, db, await db.fetchval("SELECT date_trunc('minute', now()) - interval '55 minutes'"))


async def test_one_fault_is_one_incident_that_escalates_is_held_and_closes(
    world: World, agent: Agent, logged: list[dict[str, Any]]
) -> None:
    await world.found(0, ROUTE, TOTAL)
    await world.found(0, TOOL, shadow=True)  # still being learnt
    await world.found(1, TOOL, muted=True)
    (one,) = await world.judged(2)
    assert tuple(one)[1:] == ("warning", "route", 2, world.at(0), world.at(0), None, None)
    assert metrics.INCIDENTS_OPEN.value("warning", "route") == 1
    (shown,) = (await agent.read("handoff://analytics/incidents"))["incidents"]
    assert shown["state"] == "open"
    assert shown["summary"] == "handoffs.rejected is 30. 1 more anomaly with it. Likeliest cause: route ada -> bob."
    assert shown["causes"][0] == {
        "component": "route",
        "names": ["ada", "bob"],
        "score": 1.0,
        "sentence": "one of its series is unusual; route ada -> bob accounts for 100% of what was found.",
        "evidence": ["handoffs.rejected is 30."],
    }

    await world.found(6, ROUTE, severity="critical", value=60)
    (one,) = await world.judged(7)
    assert tuple(one)[1:] == ("critical", "route", 3, world.at(0), world.at(6), world.at(6), None)
    assert (metrics.INCIDENTS_OPEN.value("warning", "route"), metrics.INCIDENTS_OPEN.value("critical", "route")) == (0, 1)

    await world.found(7, ROUTE)
    (one,) = await world.judged(8)
    assert (one["severity"], one["escalated_at"]) == ("critical", world.at(6)), "it does not fall back"

    await world.goes_on(ROUTE, range(8, 30), 40)  # a new level, of which the detector says nothing more
    assert [it["closed_at"] for it in await world.judged(30)] == [None]
    assert (await agent.read("handoff://analytics/incidents"))["incidents"][0]["state"] == "held"
    assert [it["closed_at"] for it in await world.judged(42)] == [None]
    (one,) = await world.judged(43)  # 13 minutes without a rejection, which count as 0: within the band
    assert one["closed_at"] == world.at(43)
    assert metrics.INCIDENTS_OPEN.value("critical", "route") == 0

    await world.found(45, ROUTE)
    assert [it["anomalies"] for it in await world.judged(46)] == [4, 1], "after the end it is another incident"
    events = [it["event"] for it in logged if it["event"].startswith("incident.")]
    assert events == [f"incident.{it}" for it in ("opened", "escalated", "extended", "closed", "opened")]


async def test_a_silence_lasts_until_the_first_count_however_often_a_minute_without_one_is_usual(world: World) -> None:
    await world.found(0, ROUTE, value=0)
    (one,) = await world.judged(1)
    assert [it["closed_at"] for it in await world.judged(25)] == [None]
    await world.goes_on(ROUTE, [29], 1)
    (one,) = await world.judged(30)  # 0 in the 14 minutes before
    assert one["closed_at"] == world.at(30)


async def test_an_absence_that_is_an_alert_lasts_until_there_are_values_again(world: World) -> None:
    await world.found(0, EDGE)
    assert [it["closed_at"] for it in await world.judged(25)] == [None]
    await world.goes_on(EDGE, range(25, 41), 3)
    assert [it["closed_at"] for it in await world.judged(37)] == [None]  # absent in 3 of the last 15 minutes
    assert [it["closed_at"] for it in await world.judged(38)] == [world.at(38)]


async def test_so_many_series_that_are_unusual_together_are_critical_however_weak_each_is(world: World) -> None:
    tools = [Spec("calls", "count", "zero", {"operation": f"tool_{number}"}) for number in range(incidents.CRITICAL_SERIES)]
    await world.found(0, *tools[1:])
    await world.found(1, *tools[1:])  # the same series again are no further evidence
    (one,) = await world.judged(2)
    assert (one["severity"], one["anomalies"]) == ("warning", 8)
    await world.found(3, tools[0])
    (one,) = await world.judged(4)
    assert (one["severity"], one["escalated_at"]) == ("critical", world.at(3))


async def test_an_incident_is_explained_and_feedback_moves_the_thresholds_of_its_series_within_bounds(
    world: World, agent: Agent
) -> None:
    await world.goes_on(ROUTE, [0], 2)
    await world.goes_on(TOOL, range(-3, 0), 2)
    await world.found(0, TOOL)
    (one,) = await world.judged(1)
    number = one["id"]
    told = await agent.ok("explain_anomaly", agent="ops", incident=number)
    assert told["incident"]["component"] == "tool"
    assert told["series"] == [{"series": TOOL.name, "labels": TOOL.labels, "kind": "ratio", "threshold": 1}]
    assert (told["found"][0]["sentence"], told["found"][0]["spoke"]) == ("calls.failed is 30.", {"step": 3.1})
    assert told["points"][0]["by_minute"] == [0.05, 0.05, 0.05, 0.75]

    async def judged(feedback: str) -> float:
        said = await agent.ok("explain_anomaly", agent="ops", incident=number, feedback=feedback)
        assert (said["incident"]["feedback"], said["incident"]["feedback_by"]) == (feedback, "ops")
        return said["series"][0]["threshold"]

    assert [await judged(it) for it in ("noise", "noise", "useful", "noise")] == [1.25, 1.25, 0.909, 1.25]
    assert await world.db.fetchval("SELECT threshold FROM series WHERE name = $1", ROUTE.name) == 1  # it has no part in it
    audited = await world.db.fetch("SELECT actor, action, target, details ->> 'feedback' FROM audit ORDER BY id")
    assert tuple(audited[-1]) == ("ops", "incident.feedback", f"incident {number}", "noise")
    bounds = "UPDATE series SET noise = $1, useful = $2 RETURNING threshold"
    assert [await world.db.fetchval(bounds, *it) for it in ((900, 0), (0, 900))] == [4, 0.5]

    assert (await agent.refused("explain_anomaly", agent="ops", incident=number + 9))["code"] == "incident_not_found"
    assert (await agent.refused("explain_anomaly", agent="ops", incident=number + 9, feedback="noise"))["code"] == (
        "incident_not_found"
    )


async def test_what_is_over_when_the_detector_comes_to_it_tells_nobody(world: World, db: asyncpg.Connection) -> None:
    metrics.INCIDENTS_OPEN.reset()
    world.now -= timedelta(hours=9)
    await world.found(0, TOTAL)
    assert len(await world.judged(3)) == 1
    assert metrics.INCIDENTS_OPEN.value("warning", "service") == 0, "the detector is hours behind"
    await world.judged(9 * 60 + 40)
    assert [it["closed_at"] is None for it in await db.fetch(ALL)] == [False]


async def test_incidents_are_kept_as_long_as_metrics(world: World, app: App, db: asyncpg.Connection) -> None:
    world.now -= timedelta(days=400)
    await world.found(0, TOTAL)
    await world.found(1, TOOL, muted=True)
    await world.judged(30)
    world.now += timedelta(days=398)
    await world.found(0, ROUTE)
    await world.judged(1)
    await retention.run(app)
    assert [it["component"] for it in await db.fetch(ALL)] == ["route"]
    assert [tuple(it) for it in await db.fetch("SELECT bucket FROM anomaly")] == [(world.at(0),)]


async def test_two_that_group_at_once_do_it_once(world: World, app: App, db: asyncpg.Connection) -> None:
    await world.found(0, ROUTE, TOTAL)
    await transact(app.pool, lambda conn: series.advance(conn, "judged", world.at(1)))
    await asyncio.gather(*(incidents.run(app) for _ in range(4)))
    assert [it["anomalies"] for it in await db.fetch(ALL)] == [2]
