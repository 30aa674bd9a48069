"""What jobs did is on record, and an administrator runs, pauses and resumes them."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import asyncpg
import pytest
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.errors import HandoffError
from handoff.jobs.runner import LEADER_KEY, RETRY_S, run_jobs
from handoff.jobs.table import Job
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store import audit
from handoff.telemetry import metrics
from tests.agents import Agent, until


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def admin(settings: Settings) -> AsyncGenerator[tuple[App, Agent]]:
    quick = settings.model_copy(update={"admin": True, "jobs": False, "settle_interval_s": 0.02})
    async with open_app(quick) as app, Client(build_server(app)) as client:
        yield app, Agent(client)


class Counted:
    """A job that counts its runs. Each ends as `how` says."""

    def __init__(self, name: str, every_s: float, how: Callable[[], Any] = lambda: None, limit_s: float = 60.0) -> None:
        self.runs = 0
        self.how = how
        self.job = Job(name, lambda _: every_s, self.run, limit_s)

    async def run(self, _: App) -> None:
        self.runs += 1
        found = self.how()
        if asyncio.iscoroutine(found):
            await found


class Running:
    """The jobs, running by a clock, until the end of the block."""

    def __init__(self, app: App, clock: Callable[[], float], *counted: Counted) -> None:
        self._begin = lambda: run_jobs(app, [it.job for it in counted], clock)

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._begin())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def fail() -> None:
    raise HandoffError("rosebud", "It failed.", "Wait.")


async def test_a_job_that_hangs_delays_no_other_and_is_ended(admin: tuple[App, Agent]) -> None:
    app, agent = admin
    hangs, goes_on = Counted("archive", 3_600, lambda: asyncio.sleep(3_600), limit_s=0.5), Counted("settle", 0.01)
    async with Running(app, asyncio.get_running_loop().time, hangs, goes_on):
        await until(lambda: hangs.runs == 1 and goes_on.runs > 5)
    async with Running(app, asyncio.get_running_loop().time, hangs):
        await until(lambda: hangs.runs == 2)
        await asyncio.sleep(0.6)
    assert (await agent.read("handoff://jobs/archive"))["last_error"] == "timeout: TimeoutError"


async def test_the_statistics_tell_of_every_run_once(
    admin: tuple[App, Agent], db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, agent = admin
    monkeypatch.setattr("random.uniform", min)  # jobs drift apart by up to a tenth of their interval
    good, bad, clock = Counted("certificates", 3_600), Counted("archive", 3_600, fail), Clock()
    async with Running(app, clock, good, bad):
        await until(lambda: (good.runs, bad.runs) == (1, 1))
        for retry in range(3):
            before = bad.runs
            clock.now += RETRY_S * 2**retry
            await until(lambda before=before: bad.runs == before + 1)
        clock.now += 3_600
        await until(lambda: good.runs == 2)
    found = {job["name"]: job for job in (await agent.read("handoff://jobs"))["jobs"]}

    assert found.keys() == set(metrics.JOB.values)
    assert found["settle"] == {"name": "settle", "runs": 0, "successes": 0, "failures": 0}
    counts = {name: [found[name][it] for it in ("runs", "successes", "failures")] for name in ("certificates", "archive")}
    assert counts == {"certificates": [2, 2, 0], "archive": [bad.runs, 0, bad.runs]}
    assert found["archive"]["last_error"] == "rosebud"
    assert ("last_success_at" in found["archive"], "last_failure_at" in found["certificates"]) == (False, False)
    ahead = "SELECT extract(epoch FROM next_run_at - now()) FROM job WHERE name = 'certificates'"
    assert 3_000 < float(await db.fetchval(ahead)) <= 3_240


async def test_a_failed_run_is_repeated_sooner_than_the_interval_and_then_less_and_less_often(
    admin: tuple[App, Agent],
) -> None:
    app, _ = admin
    bad, clock = Counted("archive", 60, fail), Clock()
    async with Running(app, clock, bad):
        await until(lambda: bad.runs == 1)
        for after_s in (10, 20, 40, 60, 60):
            runs = bad.runs
            clock.now += 0.8 * after_s
            await asyncio.sleep(0.1)
            assert bad.runs == runs, after_s
            clock.now += 0.2 * after_s
            await until(lambda runs=runs: bad.runs == runs + 1)


async def test_a_paused_job_does_not_run_until_it_is_resumed_but_can_be_asked_to(
    admin: tuple[App, Agent], db: asyncpg.Connection
) -> None:
    app, agent = admin
    job, clock = Counted("archive", 60), Clock()

    async def control(action: str) -> dict[str, Any]:
        return await agent.ok("job", agent="alice", job="archive", action=action, reason=f"to {action} it")

    async with Running(app, clock, job):
        await until(lambda: job.runs == 1)
        assert (await control("pause"))["paused_by"] == "alice"
        await until(lambda: metrics.JOBS_PAUSED.value() == 1)
        clock.now += 600
        await asyncio.sleep(0.1)
        assert job.runs == 1
        await control("run")
        await until(lambda: job.runs == 2)
        await until_async(lambda: agent.read("handoff://jobs/archive"), lambda it: "asked_at" not in it)
        clock.now += 600
        await asyncio.sleep(0.1)
        assert job.runs == 2
        assert "next_run_at" not in await agent.read("handoff://jobs/archive")
        assert "paused_at" not in await control("resume")
        await until(lambda: job.runs == 3)

    kept = await db.fetch("SELECT actor, action, target, details FROM audit ORDER BY id")
    assert [(row["actor"], row["action"], row["target"]) for row in kept] == [
        ("alice", "job.pause", "archive"),
        ("alice", "job.run", "archive"),
        ("alice", "job.resume", "archive"),
    ]
    assert (await audit.check_whole(db)).broken_id is None


async def test_a_leader_asks_before_each_run_whether_it_still_leads(
    admin: tuple[App, Agent], db: asyncpg.Connection, database_url: str
) -> None:
    job, clock = Counted("archive", 60), Clock()
    other = await asyncpg.connect(database_url)
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
    ends = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name = 'handoff-jobs'"""
    try:
        async with Running(admin[0], clock, job):
            await until(lambda: job.runs == 1)
            leads = asyncio.create_task(other.execute("SELECT pg_advisory_lock($1)", LEADER_KEY))
            await until_async(lambda: db.fetchval(waits), lambda it: it == 1)
            assert await db.fetchval(ends) == 1
            await leads
            clock.now += 600
            await asyncio.sleep(0.5)  # twice as long as a leader takes to begin what is due
            assert job.runs == 1
            await other.close()
            await until(lambda: job.runs == 2)
    finally:
        other.terminate()


async def until_async(ask: Callable[[], Any], holds: Callable[[Any], bool]) -> None:
    while not holds(await ask()):
        await asyncio.sleep(0.05)


async def test_a_job_that_does_not_exist_is_named_as_such_and_nothing_changes(
    admin: tuple[App, Agent], db: asyncpg.Connection
) -> None:
    _, agent = admin
    unknown = await agent.refused("job", agent="alice", job="rosebud", action="pause", reason="x")
    assert (unknown["code"], "archive" in unknown["try"]) == ("job_not_found", True)
    empty = await agent.refused("job", agent="alice", job="archive", action="pause", reason=" ")
    assert empty["code"] == "invalid_arguments"
    assert await db.fetchval("SELECT count(*) FROM job") == await db.fetchval("SELECT count(*) FROM audit") == 0
