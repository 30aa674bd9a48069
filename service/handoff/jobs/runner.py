"""Runs the jobs, in one of any number of processes: in the leader, which holds an advisory lock in the database.

When the leader ends, loses its connection, or is stopped for longer than LEASE_S, another process takes over. Two can act
at once only within one run of a job, which is harmless: a second run of a job changes nothing.
"""

import asyncio
import random
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from time import monotonic, time
from typing import Final

import asyncpg
import structlog

from handoff.context import App
from handoff.errors import HandoffError
from handoff.jobs.table import JOBS, Job
from handoff.settings import Settings
from handoff.store.connect import LOST, connect_alone
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

LEADER_KEY: Final = 0x6A6F6273  # "jobs" in ASCII; all advisory locks of a database share one range of numbers
TRY_LOCK = "SELECT pg_try_advisory_lock($1)"
STILL_THERE = "SELECT 1"
LEASE_S: Final = 10.0  # after which Postgres ends the session of a leader that it has heard nothing from
JOB_S_MAX: Final = 60.0  # for one run: no job may keep the others from running for good
_TICK_S = 0.25
_ASK_S = 2.0  # how often a follower tries to lead, and the leader renews its lease; well within LEASE_S
_JITTER = 0.1


async def run_jobs(app: App, jobs: Sequence[Job] = JOBS) -> None:
    """Run the jobs whenever this process leads, until cancelled. While the database is down, it waits.

    A process that begins to lead runs each of them at once: it has no values of what only the leader measures.
    """
    lock = _Lock(app.settings)
    keeping = asyncio.create_task(lock.keep())
    due = {job.name: 0.0 for job in jobs}
    term = 0
    try:
        while True:
            for job in jobs:
                if lock.term != term:
                    term, due = lock.term, dict.fromkeys(due, 0.0)
                if lock.leads and monotonic() >= due[job.name] and await lock.held():
                    await _run(app, job)
                    every_s = app.policies.job_interval_s(job.name, job.every_s(app.settings))
                    due[job.name] = monotonic() + every_s * random.uniform(1 - _JITTER, 1)  # noqa: S311
            await asyncio.sleep(min(_TICK_S, app.settings.settle_interval_s))
    finally:
        keeping.cancel()
        lock.release()
        await asyncio.gather(keeping, return_exceptions=True)


@asynccontextmanager
async def jobs_beside(app: App) -> AsyncGenerator[None]:
    """Run the jobs in this process until the end of the block, if the settings allow it."""
    if not app.settings.jobs:
        yield
        return
    running = asyncio.create_task(run_jobs(app))
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def run_until_signalled(app: App) -> None:
    """Run the jobs until SIGINT, SIGTERM or SIGHUP."""
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) != signal.SIG_IGN:  # SIGHUP is ignored under nohup
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
    running = asyncio.create_task(run_jobs(app))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
    for task in (running, stopped):
        task.cancel()
    await asyncio.gather(stopped, return_exceptions=True)
    if not stop.is_set():
        await running  # it ended unexpectedly: raise its exception


async def _run(app: App, job: Job) -> None:
    began = monotonic()
    outcome = "error"
    limit = asyncio.timeout(JOB_S_MAX)
    try:
        async with limit:
            await job.run(app)
        outcome = "ok"
        metrics.JOB_LAST_SUCCESS.set(time(), job.name)
    except HandoffError as error:
        log.warning("job.failed", job=job.name, code=error.code, cause=repr(error.__cause__))
    except Exception:
        log.exception("job.failed", job=job.name, code="timeout" if limit.expired() else "internal")
    finally:
        metrics.JOB_DURATION.record(monotonic() - began, job.name, outcome)


class _Lock:
    """The leader's lock: an advisory lock, held by a session of its own.

    Postgres releases it when the session ends: when this process ends, and when Postgres has heard nothing from it for
    LEASE_S, because the process is stopped, its machine is asleep or gone, or its connection was cut silently.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._conn: asyncpg.Connection | None = None
        self._one_at_a_time = asyncio.Lock()
        self.leads = False  # as the database said last
        self.term = 0  # how often this process has begun to lead

    async def keep(self) -> None:
        """Try to lead, and go on leading, until cancelled."""
        while True:
            await self.held()
            await asyncio.sleep(_ASK_S)

    async def held(self) -> bool:
        """Ask the database whether this process leads. A process that was stopped learns here that it no longer does."""
        async with self._one_at_a_time:
            leads = await self._ask()
        if leads != self.leads:
            log.info("worker.leads" if leads else "worker.follows")
            if leads:
                self.term += 1
            else:  # gauges that this process no longer updates must not be exported
                for instrument in metrics.LEADERS:
                    instrument.reset()
        self.leads = leads
        metrics.LEADER.set(leads)
        return leads

    async def _ask(self) -> bool:
        try:
            if self._conn is None:
                lease_ms = f"{LEASE_S * 1_000:.0f}"
                self._conn = await connect_alone(
                    self._settings, application_name="handoff-jobs", idle_session_timeout=lease_ms
                )
            elif self.leads:
                await self._conn.fetchval(STILL_THERE)
                return True
            return bool(await self._conn.fetchval(TRY_LOCK, LEADER_KEY))
        except LOST:
            self.release()
        except Exception:  # an unexpected error must not end the worker
            log.exception("worker.lock_failed")
            self.release()
        return False

    def release(self) -> None:
        """Close the connection, so that another process can lead."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.terminate()
