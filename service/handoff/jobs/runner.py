"""Runs the jobs, in one of any number of processes: in the leader, which holds an advisory lock in the database.

When the leader ends or loses its connection, another process takes over.
"""

import asyncio
import random
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic, time
from typing import Final

import structlog

from handoff.context import App
from handoff.errors import HandoffError
from handoff.jobs.table import JOBS, Job
from handoff.settings import Settings
from handoff.store.connect import LOST, Connection, connect_alone
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

LEADER_KEY: Final = 0x6A6F6273  # "jobs" in ASCII; all advisory locks of a database share one range of numbers
TRY_LOCK = "SELECT pg_try_advisory_lock($1)"
STILL_THERE = "SELECT 1"
_TICK_S = 0.25
_ASK_S = 2.0  # how often a follower tries to lead, and the leader checks that it still holds the lock
_JITTER = 0.1
_LEADERS_METRICS: Final = (
    metrics.SESSIONS,
    metrics.HANDOFFS_OPEN,
    metrics.INBOX_DEPTH,
    metrics.OLDEST_OFFER,
    metrics.DEEPEST_INBOX,
    metrics.PING_PONG,
    metrics.MEASURED_AT,
    metrics.WATCHDOG_AGE,
    metrics.CERTIFICATE_EXPIRY,
    metrics.CERTIFICATES_UNREADABLE,
)


async def run_jobs(app: App, jobs: Sequence[Job] = JOBS) -> None:
    """Run the jobs whenever this process leads, until cancelled. While the database is down, it waits."""
    lock = _Lock(app.settings)
    due = {job.name: 0.0 for job in jobs}
    try:
        while True:
            if await _holds(lock):
                for job in jobs:
                    if monotonic() >= due[job.name]:
                        await _run(app, job)
                        every_s = job.every_s(app.settings)
                        due[job.name] = monotonic() + every_s * random.uniform(1 - _JITTER, 1)  # noqa: S311
            await asyncio.sleep(min(_TICK_S, app.settings.settle_interval_s))
    finally:
        await lock.release()


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
    try:
        await job.run(app)
        outcome = "ok"
        metrics.JOB_LAST_SUCCESS.set(time(), job.name)
    except HandoffError as error:
        log.warning("job.failed", job=job.name, code=error.code, cause=repr(error.__cause__))
    except Exception:
        log.exception("job.failed", job=job.name, code="internal")
    finally:
        metrics.JOB_DURATION.record(monotonic() - began, job.name, outcome)


async def _holds(lock: "_Lock") -> bool:
    """Whether this process leads. An unexpected error is logged, so that it does not end the worker."""
    try:
        return await lock.held()
    except Exception:
        log.exception("worker.lock_failed")
        return False


class _Lock:
    """The leader's lock. It has its own connection, so Postgres releases it however the process ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._conn: Connection | None = None
        self._leads = False
        self._ask_at = 0.0

    async def held(self) -> bool:
        """Whether this process leads, as the database said within the last `_ASK_S`."""
        if monotonic() < self._ask_at:
            return self._leads
        self._ask_at = monotonic() + _ASK_S
        leads = await self._ask()
        if leads != self._leads:
            log.info("worker.leads" if leads else "worker.follows")
            if not leads:  # gauges that this process no longer updates must not be exported
                for instrument in _LEADERS_METRICS:
                    instrument.reset()
        self._leads = leads
        metrics.LEADER.set(leads)
        return leads

    async def _ask(self) -> bool:
        try:
            if self._conn is None:
                self._conn = await connect_alone(self._settings)
            if self._leads:
                await self._conn.fetchval(STILL_THERE)
                return True
            return bool(await self._conn.fetchval(TRY_LOCK, LEADER_KEY))
        except LOST:
            await self.release()
            return False

    async def release(self) -> None:
        """Close the connection, so that another process can lead."""
        conn, self._conn = self._conn, None
        if conn is not None:
            with suppress(Exception):
                await conn.close(timeout=1)
