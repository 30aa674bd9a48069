"""What the configuration says of a series decides whether a fault of it becomes an incident: from its points to people."""

import json
from datetime import datetime
from typing import Any, Final

import asyncpg
import pytest

from handoff.analytics import watch
from handoff.analytics.watch import go_on
from handoff.context import App
from handoff.jobs import detect, incidents, measure
from handoff.settings import Settings
from handoff.store import series
from handoff.store.connect import Connection, transact
from handoff.store.series import MINUTE, Point, Spec
from handoff.telemetry import metrics
from tests.agents import Agent

TOOL: Final = Spec("calls", "count", "zero", {"operation": "search_context"})
PAST, FAULT = 300, 12  # minutes; the fault is the last of them
FOUND: Final = "SELECT DISTINCT shadow, muted FROM anomaly"
LONG_S, NONE_S = 86_400.0, 0.0
HOUR: Final = 60 * MINUTE


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"admin": True, "series_warm_up_s": NONE_S})


async def burst(app: App, agent: Agent, now: datetime, *rules: dict[str, Any], noise: int = 0) -> None:
    """Calls of a tool rise from 30 per minute to hundreds of times that; the jobs judge that with these rules in force.

    So many earlier incidents of the series were noise, as operators said.
    """
    if rules:
        change = json.dumps({"analytics": {"series": list(rules)}})
        asked = {"action": "set", "changes": change, "expected_version": 1, "reason": "a test"}
        await agent.ok("configuration", agent="ops", **asked)
        await app.policies.refresh()
    begins = now - PAST * MINUTE
    values = [600.0 + 40 * minute if minute >= PAST - FAULT else 30.0 + minute * 7919 % 4 for minute in range(PAST)]
    points = [Point(TOOL, begins + minute * MINUTE, value) for minute, value in enumerate(values)]

    async def work(conn: Connection) -> None:
        await series.put(conn, points, 10)
        await conn.execute("UPDATE series SET noise = $1", noise)
        await series.advance(conn, "rolled_up", now + detect.SETTLED)

    await transact(app.pool, work)
    await detect.run(app)
    await incidents.run(app)


@pytest.fixture
async def now(db: asyncpg.Connection) -> datetime:
    # A whole hour: the strength of a finding depends a little on where the detector's bins of the day lie.
    return await db.fetchval("SELECT date_trunc('hour', now())")


def counted() -> float:
    return sum(metrics.ANOMALIES.value("count", it) for it in ("warning", "critical"))


def window(now: datetime, begins: int, ends: int) -> dict[str, Any]:
    """Maintenance from so many minutes before now to so many before now."""
    return {"muted": True, "since": (now - begins * MINUTE).isoformat(), "until": (now - ends * MINUTE).isoformat()}


async def test_a_fault_of_a_series_that_nothing_is_said_of_is_one_incident(
    app: App, agent: Agent, db: asyncpg.Connection, now: datetime
) -> None:
    await burst(app, agent, now, {"tool": "get_inbox", "muted": True}, window(now, 200, 100))
    assert [tuple(row) for row in await db.fetch(FOUND)] == [(False, False)]
    assert [row["component"] for row in await db.fetch("SELECT component FROM incident")] == ["tool"]


@pytest.mark.parametrize("by", ["tool", "name", "maintenance"])
async def test_of_a_muted_series_everything_is_found_and_nobody_told(
    app: App, agent: Agent, db: asyncpg.Connection, now: datetime, by: str
) -> None:
    rules = {
        "tool": {"tool": "search_context", "muted": True},
        "name": {"series": "calls", "muted": True},
        "maintenance": window(now, 30, 0),
    }
    before = counted()
    await burst(app, agent, now, rules[by])
    assert [tuple(row) for row in await db.fetch(FOUND)] == [(False, True)]
    assert await db.fetchval("SELECT count(*) FROM incident") == 0
    assert counted() == before


async def test_what_is_more_than_an_hour_old_when_it_is_found_is_an_incident_but_not_counted(
    app: App, agent: Agent, db: asyncpg.Connection, now: datetime
) -> None:
    before = counted()
    await burst(app, agent, now - 2 * HOUR)
    assert await db.fetchval("SELECT count(*) FROM incident") == 1
    assert counted() == before


async def test_the_alert_budget_is_configured_given_to_the_detector_and_its_use_is_measured(
    app: App, agent: Agent, db: asyncpg.Connection, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = json.dumps({"analytics": {"alerts_per_series_week": 0.05}})
    asked = {"action": "set", "changes": change, "expected_version": 1, "reason": "a test"}
    changed = await agent.ok("configuration", agent="ops", **asked)
    assert [it["field"] for it in changed["changes"]] == ["analytics.alerts_per_series_week"]
    await app.policies.refresh()
    budgets: set[float] = set()

    def noted(*arguments: Any) -> Any:
        budgets.add(arguments[-1])
        return go_on(*arguments)

    monkeypatch.setattr(watch, "go_on", noted)
    await burst(app, agent, now)
    await measure.run(app)
    assert budgets == {0.5}  # of the usual
    told = await db.fetchval("SELECT count(*) FROM anomaly")
    weeks = await db.fetchval("SELECT extract(epoch FROM now() - begins_at)::float8 / 604800 FROM series")
    assert metrics.ALERT_BUDGET.value() == 0.05
    assert metrics.ALERT_BUDGET_USED.value() == pytest.approx(told / (0.05 * weeks), rel=0.01)
    assert told > 0


async def test_with_less_sensitivity_the_same_fault_is_nothing(
    app: App, agent: Agent, db: asyncpg.Connection, now: datetime
) -> None:
    await burst(app, agent, now, {"series": "calls", "sensitivity": 0.25})
    assert await db.fetch(FOUND) == []


async def test_after_feedback_that_it_is_noise_the_same_fault_is_nothing(
    app: App, agent: Agent, db: asyncpg.Connection, now: datetime
) -> None:
    await burst(app, agent, now, noise=7)
    assert await db.fetch(FOUND) == []


@pytest.mark.parametrize(("sensitivity", "severity"), [(0.7, "warning"), (1.0, "critical")])
async def test_what_is_half_as_strong_again_as_what_is_told_is_critical(
    app: App, agent: Agent, db: asyncpg.Connection, now: datetime, sensitivity: float, severity: str
) -> None:
    await burst(app, agent, now, {"series": "calls", "sensitivity": sensitivity})
    found = await db.fetch("SELECT strength >= 1.5 AS is_critical, severity FROM anomaly")
    assert [tuple(row) for row in found] == [(severity == "critical", severity)]
    assert await db.fetchval("SELECT severity FROM incident") == severity


@pytest.mark.parametrize("tell", ["learnt", "always"])
async def test_a_series_that_is_still_learnt_tells_people_only_if_that_is_asked_for(
    app: App, agent: Agent, db: asyncpg.Connection, now: datetime, tell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    object.__setattr__(app.settings, "series_warm_up_s", LONG_S)
    monkeypatch.setattr(detect, "NEWS_S", LONG_S)  # `now` may be an hour ago
    before = counted()
    await burst(app, agent, now, {"series": "calls", "tell": tell})
    assert [tuple(row) for row in await db.fetch(FOUND)] == [(tell == "learnt", False)]
    assert (counted() > before) == (tell == "always")
    assert await db.fetchval("SELECT count(*) FROM incident") == (tell == "always")
