"""The jobs run in one process at a time, are taken over when it stops, and measure what the database holds."""

import signal
import subprocess
import time
from functools import partial
from typing import Any

import anyio
import asyncpg

from handoff.app import open_app
from handoff.context import App
from handoff.jobs import measure
from handoff.jobs.runner import run_jobs
from handoff.jobs.table import JOBS, Job
from handoff.settings import Settings
from handoff.telemetry import metrics
from tests.agents import PAST, Agent, until
from tests.processes import HANDOFF, PATIENCE_S, environment


async def test_one_of_several_processes_runs_the_jobs_and_another_takes_over(settings: Settings) -> None:
    ran: list[str] = []

    def jobs(name: str) -> list[Job]:
        async def note(_: App) -> None:
            ran.append(name)

        return [Job("settle", lambda _: 0.01, note)]

    quick = settings.model_copy(update={"settle_interval_s": 0.02})
    async with open_app(quick) as one, open_app(quick) as two, anyio.create_task_group() as group:
        scopes = {name: anyio.CancelScope() for name in ("one", "two")}

        async def run(name: str, app: App) -> None:
            with scopes[name]:
                await run_jobs(app, jobs(name))

        group.start_soon(run, "one", one)
        await until(lambda: len(ran) > 5)
        group.start_soon(run, "two", two)
        await anyio.sleep(0.5)
        assert set(ran) == {"one"}
        scopes["one"].cancel()
        await until(lambda: "two" in ran)
        scopes["two"].cancel()


async def test_workers_share_a_job_whoever_leads_and_one_that_serves_does_not(settings: Settings) -> None:
    ran: list[tuple[str, str]] = []

    def jobs(name: str) -> list[Job]:
        async def note(job: str, _: App) -> None:
            ran.append((name, job))

        return [Job(job, lambda _: 0.01, partial(note, job), is_shared=job == "detect") for job in ("settle", "detect")]

    quick = settings.model_copy(update={"settle_interval_s": 0.02})
    async with open_app(quick) as app, anyio.create_task_group() as group:
        group.start_soon(run_jobs, app, jobs("leads"))
        await until(lambda: len(ran) > 3)
        for name, shares in (("works", True), ("serves", False)):
            group.start_soon(partial(run_jobs, app, jobs(name), shares=shares))
        await until(lambda: ran.count(("works", "detect")) > 3)
        await until(lambda: ran.count(("leads", "settle")) > 20)
        assert set(ran) == {("leads", "settle"), ("leads", "detect"), ("works", "detect")}
        group.cancel_scope.cancel()


async def test_a_process_that_leads_again_runs_its_hourly_jobs_at_once(settings: Settings, db: asyncpg.Connection) -> None:
    ran: list[int] = []

    async def measure_something(_: App) -> None:
        metrics.CERTIFICATE_EXPIRY.set(1.0)
        ran.append(1)

    async with open_app(settings.model_copy(update={"settle_interval_s": 0.02})) as app, anyio.create_task_group() as group:
        group.start_soon(run_jobs, app, [Job("certificates", lambda _: 3_600, measure_something)])
        await until(lambda: len(ran) > 0)
        before = len(ran)
        await db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'handoff-jobs'"
            " AND datname = current_database()"
        )
        await until(lambda: len(ran) > before)
        assert metrics.CERTIFICATE_EXPIRY.value() == 1.0
        group.cancel_scope.cancel()


async def test_a_job_that_fails_is_logged_counted_and_retried(settings: Settings, logged: list[dict[str, Any]]) -> None:
    tries: list[int] = []

    async def fail(_: App) -> None:
        tries.append(1)
        raise RuntimeError("rosebud")

    async with open_app(settings.model_copy(update={"settle_interval_s": 0.02})) as app, anyio.create_task_group() as group:
        before = metrics.JOB_DURATION.count("settle", "error")
        group.start_soon(run_jobs, app, [Job("settle", lambda _: 0.01, fail)])
        await until(lambda: len(tries) >= 3)
        group.cancel_scope.cancel()
        assert metrics.JOB_DURATION.count("settle", "error") >= before + 3
    failed = [line for line in logged if line["event"] == "job.failed"]
    assert failed[0]["job"] == "settle"


async def test_the_gauges_match_the_database(app: App, agent: Agent, db: asyncpg.Connection) -> None:
    keys = [await agent.session() for _ in range(4)]
    await agent.ok("close_session", agent="alice", session_key=keys[0], outcome="completed")
    held = await agent.offer(keys[1])
    await agent.accept(held)
    for _ in range(2):
        await agent.offer(keys[2], to="carol", request_type="collaboration")
    await agent.offer(keys[3], target_agent=None, target_capability="python")
    await db.execute("UPDATE handoff SET updated_at = now() - interval '100 seconds' WHERE target_agent = 'carol'")

    await measure.run(app)

    assert (metrics.SESSIONS.value("active"), metrics.SESSIONS.value("completed")) == (3, 1)
    assert metrics.HANDOFFS_OPEN.value("offered", "collaboration") == 2
    assert metrics.HANDOFFS_OPEN.value("offered", "context_transfer") == 1
    assert metrics.HANDOFFS_OPEN.value("accepted", "context_transfer") == 1
    assert (metrics.INBOX_DEPTH.value("agent"), metrics.INBOX_DEPTH.value("capability")) == (2, 1)
    assert 100 <= metrics.OLDEST_OFFER.value("agent") < 105
    assert metrics.OLDEST_OFFER.value("capability") < 5
    assert metrics.DEEPEST_INBOX.value("agent") == 2
    assert abs(metrics.MEASURED_AT.value() - time.time()) < 5


async def test_the_worker_settles_overdue_handoffs_and_stops_promptly(
    database_url: str, settings: Settings, db: asyncpg.Connection
) -> None:
    async with open_app(settings.model_copy(update={"jobs": False})) as app:
        from mcp import Client

        from handoff.server.protocol import build_server

        async with Client(build_server(app)) as client:
            agent = Agent(client)
            handoff_id = await agent.offer(await agent.session())
            await agent.accept(handoff_id)
        await db.execute(PAST)
        # It settles when it starts, and then no more: a stop that waited for the next time would wait for an hour.
        with subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
            [HANDOFF, "work"], env=environment(database_url=database_url, settle_interval_s=3_600), stdout=subprocess.PIPE
        ) as worker:
            try:
                state = "SELECT state FROM handoff WHERE id = $1"
                with anyio.fail_after(PATIENCE_S):
                    while await db.fetchval(state, handoff_id) != "offered":
                        await anyio.sleep(0.05)
                    while await db.fetchval("SELECT max(jobs_at) FROM instance WHERE kind = 'worker'") is None:
                        await anyio.sleep(0.05)
                worker.send_signal(signal.SIGTERM)
                await anyio.to_thread.run_sync(worker.communicate, None, PATIENCE_S)
            finally:
                worker.kill()
        assert worker.returncode == 0
        assert await db.fetchval("SELECT count(*) FROM instance WHERE kind = 'worker'") == 0


async def test_a_session_handed_back_and_forth_is_counted_and_one_handed_on_is_not(app: App, agent: Agent) -> None:
    async def hand(key: str, giver: str, taker: str) -> None:
        handoff = await agent.offer(key, taker, giver, request_type="full_handoff")
        token = await agent.accept(handoff, taker)
        await agent.ok("resolve_handoff", agent=taker, handoff_id=handoff, token=token, action="complete")

    async def counted() -> float:
        await measure.run(app)
        return metrics.PING_PONG.value()

    handed_on, back_and_forth = await agent.session(), await agent.session()
    for giver, taker in (("alice", "bob"), ("bob", "carol"), ("carol", "dave"), ("dave", "erin")):
        await hand(handed_on, giver, taker)
    for _ in range(2):
        assert await counted() == 0
        await hand(back_and_forth, "alice", "bob")
        await hand(back_and_forth, "bob", "alice")
    assert await counted() == 1


def test_each_job_stands_in_the_table_once() -> None:
    names = [job.name for job in JOBS]
    assert sorted(set(names)) == sorted(names)
