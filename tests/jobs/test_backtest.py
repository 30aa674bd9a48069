"""The tool `backtest` says of the past what the worker says of the present, within bounds, and changes nothing."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest

from handoff.app import open_app
from handoff.context import App
from handoff.jobs import detect, judging
from handoff.settings import Settings
from handoff.store import series
from handoff.store.connect import Connection, transact
from handoff.store.series import MINUTE, Point, Spec
from handoff.tools import backtest
from tests.agents import Agent

HOUR: Final = 60  # minutes


@pytest.fixture
async def app(settings: Settings) -> AsyncGenerator[App]:
    async with open_app(settings.model_copy(update={"admin": True, "series_warm_up_s": 0.0})) as opened:
        yield opened


@pytest.fixture
async def now(db: asyncpg.Connection) -> datetime:
    return await db.fetchval("SELECT date_trunc('minute', now())")


def calls(operation: str) -> Spec:
    return Spec("calls", "count", "zero", {"operation": operation})


async def past(app: App, now: datetime, specs: Sequence[Spec], minutes: int, faults: Sequence[tuple[int, int]]) -> None:
    """So many minutes of some 30 calls each, and hundreds between so many minutes ago and so many."""

    async def work(conn: Connection) -> None:
        for spec in specs:
            values = [
                600.0 + 40 * ago if any(end <= ago < begin for begin, end in faults) else 30.0 + ago * 7_919 % 4
                for ago in range(1, minutes + 1)
            ]
            await series.put(conn, [Point(spec, now - ago * MINUTE, it) for ago, it in enumerate(values, 1)], 100)
        await series.advance(conn, "rolled_up", now + detect.SETTLED)

    await transact(app.pool, work)


async def test_it_says_what_the_worker_says_piece_by_piece_and_changes_nothing(
    app: App, agent: Agent, db: asyncpg.Connection, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "_PIECE", timedelta(minutes=70))
    await past(app, now, [calls("get_inbox"), calls("search_context")], 5 * HOUR, [(12, 0)])
    tables = ("anomaly", "incident", "detector_state", "audit", "event")

    found = await agent.ok("backtest", series="calls", sensitivity=1)

    assert [await db.fetchval(f"SELECT count(*) FROM {it}") for it in tables] == [0] * len(tables)
    await detect.run(app)
    worker = "SELECT a.bucket, s.labels, a.sentence FROM anomaly a JOIN series s ON s.id = series_id"
    said = {(it["at"], it["labels"]["operation"], it["sentence"]) for it in found["alerts"]}
    rows = await db.fetch(f"SELECT bucket, labels ->> 'operation' AS operation, sentence FROM ({worker}) w")
    assert said == {(row["bucket"].isoformat().replace("+00:00", "Z"), row["operation"], row["sentence"]) for row in rows}
    assert {operation for _, operation, _ in said} == {"get_inbox", "search_context"}
    assert [it["alerts"] for it in found["series"]] == [len(said) / 2] * 2
    assert found["alerts_per_series_week"] == pytest.approx(len(said) / 2 / (300 / 10_080), rel=0.02)


async def test_one_series_is_named_by_its_labels_and_feedback_and_sensitivity_count(
    app: App, agent: Agent, db: asyncpg.Connection, now: datetime
) -> None:
    await past(app, now, [calls("get_inbox"), calls("search_context")], 5 * HOUR, [(12, 0)])
    one = "calls (operation search_context)"

    usual = await agent.ok("backtest", series=one)
    assert [it["labels"] for it in usual["series"]] == [{"operation": "search_context"}]
    counts = usual["alerts_by_sensitivity"]
    assert len(usual["alerts"]) == counts["1"] > 0
    assert counts["0.5"] <= counts["1"] <= counts["2"]
    strongest = max(it["strength"] for it in usual["alerts"])
    twice = await agent.ok("backtest", series=one, sensitivity=2)
    assert (len(twice["alerts"]), twice["alerts_by_sensitivity"]) == (counts["2"], counts)
    assert max(it["strength"] for it in twice["alerts"]) == pytest.approx(2 * strongest, abs=0.02)

    await db.execute("UPDATE series SET noise = 2 WHERE labels ->> 'operation' = 'search_context'")
    noisy = await agent.ok("backtest", series=one)
    assert max((it["strength"] for it in noisy["alerts"]), default=0) == pytest.approx(strongest / 1.25**2, abs=0.02)


async def test_only_the_days_asked_for_are_told_after_a_time_from_which_they_are_learnt(
    app: App, agent: Agent, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await past(app, now, [calls("get_inbox")], 30 * HOUR, [(25 * HOUR, 25 * HOUR - 9)])
    monkeypatch.setattr(backtest, "RELEARNT", timedelta(hours=4))
    asked: list[datetime] = []
    points = series.points

    async def noted(conn: Connection, ids: Sequence[int], since: datetime, until: datetime) -> list[asyncpg.Record]:
        asked.extend((since, until))
        return await points(conn, ids, since, until)

    monkeypatch.setattr(series, "points", noted)
    assert (await agent.ok("backtest", series="calls", days=1))["alerts"] == []
    assert asked[-1] - asked[0] == timedelta(hours=28)
    assert (await agent.ok("backtest", series="calls", days=2))["alerts"]


async def test_what_is_left_out_is_counted_and_what_is_not_there_refused(app: App, agent: Agent, now: datetime) -> None:
    await past(app, now, [calls(f"tool{number:02}") for number in range(23)], 3, [])
    found = await agent.ok("backtest", series="calls")
    assert (len(found["series"]), found["series_left_out"], found["alerts"]) == (20, 3, [])
    assert (await agent.refused("backtest", series="calls (operation tool99)"))["code"] == "series_not_found"
    assert (await agent.refused("backtest", series="cal"))["code"] == "series_not_found"
    for wrong in ({"days": 15}, {"days": 0}, {"sensitivity": 0.1}, {"sensitivity": 5}, {"series": ""}):
        assert (await agent.refused("backtest", **{"series": "calls", **wrong}))["code"] == "invalid_arguments"


async def test_one_runs_at_a_time_and_one_that_takes_too_long_is_ended(
    app: App, agent: Agent, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await past(app, now, [calls("get_inbox")], 3, [])
    begun = asyncio.Event()

    async def hangs(*_: Any) -> list[judging.Told]:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    with monkeypatch.context() as patched:
        patched.setattr(backtest, "judge_anew", hangs)
        patched.setattr(backtest, "LIMIT_S", 1.0)
        first = asyncio.create_task(agent.refused("backtest", series="calls"))
        await begun.wait()
        second = await agent.refused("backtest", series="calls")
        assert (second["code"], second["retryable"], "one at a time" in second["message"]) == ("overloaded", True, True)
        ended = await first
    assert (ended["code"], "took more than 1 s" in ended["message"]) == ("overloaded", True)
    assert (await agent.ok("backtest", series="calls"))["alerts"] == []
