"""What runs beside calls ends with the process, even where its cancellation is lost once."""

import asyncio
from contextlib import suppress

import pytest

from handoff.context import App
from handoff.jobs.runner import run_jobs
from handoff.jobs.table import Job
from handoff.operations.health import Health
from handoff.tasks import PATIENCE_S, end_tasks
from handoff.wakeups import Wakeups
from tests.agents import until
from tests.processes import PATIENCE_S as LONG_S


class Statement:
    """A statement whose time limit ends at the same moment as it is cancelled, so many times."""

    def __init__(self, times: int = 1) -> None:
        self.begun = 0
        self.lost = 0
        self._times = times

    async def run(self, *_: object) -> None:
        self.begun += 1
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            if self.lost == self._times:
                raise
            self.lost += 1
            raise TimeoutError from None


async def again_and_again(statement: Statement) -> None:
    while True:
        with suppress(TimeoutError):
            await statement.run()


async def test_a_task_that_loses_its_cancellation_is_cancelled_again_and_one_that_loses_all_is_left() -> None:
    tasks = [asyncio.create_task(again_and_again(Statement(times))) for times in (0, 1, len(PATIENCE_S))]
    await asyncio.sleep(0)
    await end_tasks(tasks)
    assert [task.cancelled() for task in tasks] == [True, True, False]
    tasks[-1].cancel()
    with suppress(asyncio.CancelledError):
        await tasks[-1]


async def test_jobs_end_although_one_loses_its_cancellation(app: App) -> None:
    statement = Statement()
    running = asyncio.create_task(run_jobs(app, [Job("expire", lambda _: 0.0, statement.run)]))
    await until(lambda: statement.begun)
    running.cancel()
    async with asyncio.timeout(LONG_S):
        await asyncio.wait([running])
    assert statement.lost == 1


async def test_the_listener_ends_although_it_loses_its_cancellation(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    statement = Statement()
    monkeypatch.setattr(Wakeups, "_listen_once", statement.run)
    wakeups = Wakeups(app.pool, app.settings)
    wakeups.start()
    await until(lambda: statement.begun)
    async with asyncio.timeout(LONG_S):
        await wakeups.close()
    assert statement.lost == 1


async def test_health_ends_although_one_of_its_loops_loses_its_cancellation(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement = Statement()
    monkeypatch.setattr(Health, "_read_heartbeat", statement.run)
    running = asyncio.create_task(app.health.run())
    await until(lambda: statement.begun)
    await end_tasks([running])
    assert running.cancelled()
    assert statement.lost == 1
