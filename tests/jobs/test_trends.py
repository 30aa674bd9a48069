"""Days are recorded while their rows are complete, and what is concluded from them can be read."""

from bisect import bisect_left
from datetime import UTC, date, datetime, time, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import asyncpg
import numpy as np
import pytest

from handoff.analytics import forecast, trend
from handoff.context import App
from handoff.jobs import trends
from handoff.settings import Settings
from handoff.store import days, performance, statistics
from handoff.telemetry.buckets import CALL_S
from tests.agents import Agent
from tests.past import filled
from tests.store.test_performance import Seen, bucket

if TYPE_CHECKING:
    from handoff.store.performance import Outcome

TODAY = datetime.now(UTC).date()
LIMIT = 100 << 30


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"storage_bytes_max": LIMIT})


async def recorded(db: asyncpg.Connection) -> dict[tuple[str, date], float]:
    return {(row["name"], row["day"]): row["value"] for row in await db.fetch("SELECT name, day, value FROM statistic_day")}


async def test_days_are_recorded_while_all_their_rows_are_kept(app: App, agent: Agent, db: asyncpg.Connection) -> None:
    await trends.run(app)
    assert await recorded(db) == {}  # nothing has happened yet
    assert forecast.POINTS_MIN == trend.POINTS_MIN == trends.DAYS_MIN

    await filled(db)
    await db.execute(
        "INSERT INTO storage_size VALUES ('a', now() - interval '2 days', 5), ('b', now() - interval '2 days', 7)"
    )
    await trends.run(app)
    first = await recorded(db)
    days = {day for _, day in first}
    assert days == {TODAY - timedelta(days=number) for number in range(1, 7)}  # the policy `short` keeps 7 days
    for day in days:
        answer = await agent.read(
            f"handoff://analytics/context?since={day}T00:00:00Z&until={day + timedelta(days=1)}T00:00:00Z"
        )
        assert first["entries", day] == answer["total"]["entries"]
        assert first["large_entries", day] == answer["total"]["large"]
    assert {value for (name, _), value in first.items() if name == "storage_bytes"} == {12.0}

    await db.execute("DELETE FROM session")  # the days stay as they were, except those that are counted again
    await agent.session()
    await db.execute("UPDATE session SET created_at = created_at - interval '20 days'")
    await trends.run(app)
    again = await recorded(db)
    assert {key: value for key, value in again.items() if key[1] < TODAY - timedelta(days=3)} == {
        key: value for key, value in first.items() if key[1] < TODAY - timedelta(days=3)
    }
    assert again["sessions", TODAY - timedelta(days=1)] == 0


async def test_trends_and_capacity_say_what_rises_falls_and_ends(app: App, agent: Agent, db: asyncpg.Connection) -> None:
    assert await agent.read("handoff://analytics/trends") == {"type": "trends", "trends": [], "computed_at": None}
    chance = np.random.default_rng(3)
    days = [TODAY - timedelta(days=number) for number in range(40, 0, -1)]
    figures = {
        "storage_bytes": (50 << 30) + (1 << 30) * np.arange(40) + 1e7 * chance.normal(size=40),
        "to_accept_s": 60 + 3 * np.arange(40) + 5 * chance.normal(size=40),
        "success_ratio": 0.9 + 0.02 * chance.normal(size=40),
        "lapsed_ratio": 0.5 - 0.01 * np.arange(40) + 0.01 * chance.normal(size=40),
        "sessions": chance.poisson(100, 40).astype(float),
        "entries": np.full(40, 7.0)[:10],
    }
    for name, values in figures.items():
        for day, value in zip(days[-len(values) :], values, strict=True):
            await db.execute("INSERT INTO statistic_day VALUES ($1, $2, $3)", name, day, float(value))
    await trends.run(app)

    found = {it["figure"]: it for it in (await agent.read("handoff://analytics/trends"))["trends"]}
    assert found["to_accept_s"]["verdict"] == "degrading"
    assert found["to_accept_s"]["p_value"] < 0.001
    assert found["to_accept_s"]["per_day"] == pytest.approx(3, rel=0.1)
    assert {name: it["verdict"] for name, it in found.items() if it["verdict"] != "unknown"} == {
        "storage_bytes": "rising",
        "to_accept_s": "degrading",
        "success_ratio": "steady",
        "lapsed_ratio": "improving",
        "sessions": "steady",
    }
    assert found["entries"] == {"figure": "entries", "verdict": "unknown", "days": 10, "days_needed": 14}

    answer = await agent.read("handoff://analytics/capacity")
    assert datetime.fromisoformat(answer["computed_at"]) > datetime.now(UTC) - timedelta(minutes=5)
    forecasts: dict[str, dict[str, Any]] = {it["figure"]: it for it in answer["forecasts"]}
    storage = forecasts["storage_bytes"]
    assert storage["limit"] == LIMIT
    week = storage["ahead"][0]
    assert week["in_days"] == 7
    assert week["low"] < (50 << 30) + (1 << 30) * 46 < week["high"]
    reached = {name: date.fromisoformat(day) for name, day in storage["limit_reached"].items()}
    assert reached["earliest"] <= reached["expected"] <= reached["latest"]
    assert abs((reached["expected"] - TODAY).days - 10) <= 1
    assert 0.85 <= storage["coverage_measured"] <= 1
    assert forecasts["entries"]["days_needed"] == 14
    assert "limit_reached" not in forecasts["sessions"]


async def test_each_operation_is_improving_degrading_or_steady_by_its_days_as_the_raw_calls_say(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    chance = Random(5)  # noqa: S311 - repeats the same past
    began = datetime.combine(TODAY, time(12), UTC) - timedelta(days=30)
    seen: list[Seen] = []
    for number in range(31):  # the last one is today, which is not over
        at = began + timedelta(days=number)
        waited: Seen = (at, "get_inbox", "ok", 30.0)
        few: Seen = (at, "accept_handoff", "ok", 0.01)
        calls: list[Seen] = [*[waited] * 25, *[few] * (number % 21)]  # too few to say how long they take
        for operation, slower, failed in (("update_context", 1.03**number, 0.0), ("get_brief", 1.0, 0.4 - 0.01 * number)):
            for _ in range(60):
                end: Outcome = "failed" if chance.random() < failed else "ok"
                calls.append((at, operation, end, 0.01 * slower * chance.lognormvariate(0, 0.3)))
        await performance.write(db, bucket(at, "service", calls, [], 1))
        seen += calls if number < 30 else []

    since = (began - timedelta(days=1)).date()
    found = await days.of_operations(db, since, TODAY)
    assert list(found) == ["get_brief", "update_context", "get_inbox", "accept_handoff"]
    for operation, figures in found.items():
        of_days = {
            day: [it for it in seen if it[1] == operation and it[0].date() == day] for day in {it[0].date() for it in seen}
        }
        of_days = {day: calls for day, calls in of_days.items() if calls}
        enough = {day: calls for day, calls in of_days.items() if len(calls) >= 20}
        assert figures["calls"] == {day: len(calls) for day, calls in of_days.items()}
        assert figures["failed_ratio"] == {
            day: pytest.approx(sum(it[2] == "failed" for it in calls) / len(calls)) for day, calls in enough.items()
        }
        succeeded = {day: sorted(it[3] for it in calls if it[2] == "ok") for day, calls in of_days.items()}
        slowest = {day: them[-(-95 * len(them) // 100) - 1] for day, them in succeeded.items() if len(them) >= 20}
        assert {day: bisect_left(CALL_S, value) for day, value in figures.get("duration_p95_s", {}).items()} == (
            {day: bisect_left(CALL_S, value) for day, value in slowest.items()} if operation != "get_inbox" else {}
        )
    used = await days.of_service(db, since, TODAY)
    assert used["calls"] == {day: sum(it[0].date() == day for it in seen) for day in {it[0].date() for it in seen}}

    await trends.run(app)
    told = (await agent.read("handoff://analytics/performance?since=" + since.isoformat() + "T00:00:00Z"))["operations"]
    verdicts = {it["operation"]: {trend["figure"]: trend["verdict"] for trend in it["trends"]} for it in told}
    assert verdicts["update_context"] == {"calls": "steady", "failed_ratio": "steady", "duration_p95_s": "degrading"}
    assert verdicts["get_brief"] == {"calls": "steady", "failed_ratio": "improving", "duration_p95_s": "steady"}
    assert verdicts["get_inbox"] == {"calls": "steady", "failed_ratio": "steady"}
    assert verdicts["accept_handoff"]["duration_p95_s"] == "unknown"
    of_trends = (await agent.read("handoff://analytics/trends"))["operations"]
    (slower,) = (it for it in of_trends if (it["operation"], it["figure"]) == ("update_context", "duration_p95_s"))
    assert slower["p_value"] < 0.01
    assert slower["change"] > 0.5
    known = {it["figure"]: it["days"] for it in (await agent.read("handoff://analytics/capacity"))["forecasts"]}
    assert (known["calls"], known["service_cpus"]) == (30, 30)


async def test_a_day_with_too_many_rows_has_no_figures_and_the_others_do(
    app: App, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]]
) -> None:
    await filled(db)
    per_day = await db.fetch("SELECT count(*) FROM context_entry GROUP BY date_trunc('day', created_at, 'UTC')")
    monkeypatch.setattr(statistics, "ROWS_MAX", sorted(row["count"] for row in per_day)[len(per_day) // 2])
    await trends.run(app)
    assert 0 < len({day for _, day in await recorded(db)}) < 6
    assert "trends.day_not_counted" in {entry["event"] for entry in logged}
