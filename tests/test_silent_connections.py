"""Connections that are cut without either end being told, and processes that stop without ending."""

import signal
import subprocess
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from typing import Any

import anyio
import asyncpg
import pytest
from mcp import Client
from pydantic import SecretStr

from handoff import wakeups
from handoff.context import App
from handoff.jobs.runner import LEADER_KEY, run_jobs
from handoff.jobs.table import Job
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store.migrate import LOCK_KEY, migrate
from handoff.telemetry import metrics
from tests.agents import LONG_WAIT_S, Agent, until
from tests.processes import HANDOFF, PATIENCE_S, environment
from tests.proxy import Proxy, proxied

HOLDERS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND granted AND database = $2::oid"


@pytest.fixture
async def proxy(database_url: str) -> AsyncGenerator[Proxy]:
    async with proxied(database_url) as running:
        yield running


@pytest.fixture
def settings(proxy: Proxy) -> Settings:
    """Settings of a service that reaches its database through the proxy."""
    return Settings(
        database_url=SecretStr(proxy.url),
        statement_timeout_s=0.5,
        settle_interval_s=0.02,
        heartbeat_interval_s=0.1,
        jobs=False,
    )


def counting(ran: list[float], every_s: float = 0.01) -> list[Job]:
    async def note(_: App) -> None:
        ran.append(anyio.current_time())

    return [Job("settle", lambda _: every_s, note)]


async def test_the_jobs_go_on_after_all_connections_were_cut_silently(app: App, proxy: Proxy) -> None:
    ran: list[float] = []
    async with anyio.create_task_group() as group:
        group.start_soon(run_jobs, app, counting(ran))
        await until(lambda: ran)
        await proxy.silence()
        await until(lambda: not metrics.LEADER.value())
        before = len(ran)
        await until(lambda: len(ran) > before)  # Postgres has ended the lost session, and so freed its lock
        group.cancel_scope.cancel()


async def test_a_change_is_noticed_after_the_listen_connection_was_cut_silently(
    app: App, agent: Agent, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "_KEEPALIVE_S", 0.1)
    await until(lambda: app.wakeups._listening)
    key = await agent.session()
    found: list[Any] = []

    async def wait() -> None:
        async with Client(build_server(app)) as other:
            found.extend((await Agent(other).ok("get_inbox", agent="bob", wait_seconds=LONG_WAIT_S))["handoffs"])

    with anyio.fail_after(LONG_WAIT_S):  # woken: a wait that runs out finds the offer too
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await until(lambda: app.wakeups._waiters == 1)
            await proxy.silence("handoff-wakeups")
            await agent.offer(key)
    assert [row["target_agent"] for row in found] == ["bob"]


async def test_a_call_whose_connection_was_cut_silently_is_retryable_and_the_next_succeeds(
    agent: Agent, proxy: Proxy
) -> None:
    key = await agent.session()
    await agent.offer(key)
    await proxy.silence("handoff")
    error = await agent.refused("accept_handoff", agent="bob", handoff_id=1, idempotency_key="k")
    assert (error["code"], error["retryable"]) == ("unavailable", True)
    await agent.accept(1)


async def test_a_process_stays_registered_after_its_connections_were_cut_silently(
    app: App, proxy: Proxy, db: asyncpg.Connection
) -> None:
    await until(lambda: app.health.presence.alive)
    await proxy.silence()
    await db.execute("UPDATE instance SET seen_at = now() - interval '1 minute'")
    with anyio.fail_after(PATIENCE_S):
        while await db.fetchval("SELECT seen_at < now() - interval '30 seconds' FROM instance"):
            await anyio.sleep(0.05)


async def test_a_migration_whose_connection_is_cut_silently_ends(
    settings: Settings, proxy: Proxy, db: asyncpg.Connection
) -> None:
    await db.execute("SELECT pg_advisory_lock($1)", LOCK_KEY)
    ended: list[str] = []

    async def wait_to_migrate() -> None:
        with pytest.raises(TimeoutError):
            await migrate(settings)
        ended.append("here")

    async with anyio.create_task_group() as group:
        group.start_soon(wait_to_migrate)
        await proxy.silence("handoff")
    assert ended


async def test_a_leader_that_has_lost_its_lock_runs_no_further_job(app: App, db: asyncpg.Connection) -> None:
    ran: list[float] = []
    before = 0
    holder = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'handoff-jobs'"
    async with anyio.create_task_group() as group:
        group.start_soon(run_jobs, app, counting(ran))
        await until(lambda: len(ran) > 3)
        await db.execute(holder)
        await db.execute("SELECT pg_advisory_lock($1)", LEADER_KEY)  # another process leads
        before = len(ran)
        await until(lambda: not metrics.LEADER.value())
        group.cancel_scope.cancel()
    assert len(ran) - before <= 1  # a run that was allowed just before


class Worker:
    """A `handoff work` that can be stopped without ending, and the events that it logs."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.printed: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.printed.extend(iter(self.process.stdout.readline, ""))

    def count(self, event: str) -> int:
        return sum(f'"event":"{event}"' in line for line in list(self.printed))


@contextmanager
def worker(database_url: str) -> Generator[Worker]:
    settings = environment(database_url=database_url, settle_interval_s=0.1, heartbeat_interval_s=0.5)
    with subprocess.Popen([HANDOFF, "work"], env=settings, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Worker(process)
        finally:
            process.kill()


async def test_a_leader_that_is_stopped_is_replaced_and_follows_when_it_goes_on(
    database_url: str, db: asyncpg.Connection
) -> None:
    with worker(database_url) as one, worker(database_url) as two:
        await until(lambda: one.count("worker.leads") + two.count("worker.leads"))
        leader, follower = (one, two) if one.count("worker.leads") else (two, one)
        leader.process.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: follower.count("worker.leads"))
        finally:
            leader.process.send_signal(signal.SIGCONT)
        await until(lambda: leader.count("worker.follows"))
        await db.execute("UPDATE instance SET jobs_at = NULL")
        with anyio.fail_after(PATIENCE_S):
            while await db.fetchval("SELECT count(jobs_at) FROM instance") == 0:
                await anyio.sleep(0.05)
        database = await db.fetchval("SELECT oid FROM pg_database WHERE datname = current_database()")
        assert await db.fetchval(HOLDERS, LEADER_KEY, database) == 1
        assert leader.count("worker.leads") == follower.count("worker.leads") == 1
        assert await db.fetchval("SELECT count(jobs_at) FROM instance") == 1
