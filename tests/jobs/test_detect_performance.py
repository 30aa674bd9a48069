"""What processes counted goes through the rollup and the detector as any other series."""

from dataclasses import replace
from datetime import datetime, timedelta
from random import Random

import asyncpg
import pytest

from handoff.context import App
from handoff.jobs import detect, rollup
from handoff.settings import Settings
from handoff.store import performance
from handoff.store.performance import Calls, Outcome
from tests.store.test_performance import bucket

MINUTES, FAILING = 300, 10  # of which the last ones fail
FOUND = """
    SELECT DISTINCT labels->>'operation' AS operation FROM anomaly JOIN series ON id = series_id
     WHERE name = $1 AND NOT shadow
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"series_warm_up_s": 3_600.0})


async def test_a_jump_in_the_error_ratio_of_a_tool_becomes_an_anomaly_of_that_tool(app: App, db: asyncpg.Connection) -> None:
    random = Random(5)  # noqa: S311 - repeats the same past
    now: datetime = await db.fetchval("SELECT date_trunc('minute', now())")
    for ago in range(MINUTES, 0, -1):
        calls: list[Calls] = []
        for tool in ("update_context", "get_inbox"):
            total = random.randrange(40, 60)
            failed = total // 2 if tool == "get_inbox" and ago <= FAILING else int(random.random() < 0.2)
            counts: tuple[tuple[Outcome, int], ...] = (("ok", total - failed), ("failed", failed))
            calls += [Calls(tool, outcome, [0, 0, 0, n, *[0] * 15]) for outcome, n in counts]
        await performance.write(db, replace(bucket(now - timedelta(minutes=ago), "service", [], [], 1), calls=calls))
    await rollup.run(app)
    await detect.run(app)
    assert {row["operation"] for row in await db.fetch(FOUND, "calls.failed_ratio")} == {"get_inbox"}
    assert not await db.fetch(FOUND, "calls")
