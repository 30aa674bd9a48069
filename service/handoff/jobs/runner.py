"""Runs the jobs, in one of any number of processes: in the leader, which holds an advisory lock in the database.

Each job has a task of its own, so that one that is slow or hangs delays no other. Jobs that are shared run in every worker,
and claim what they work on. When the leader ends, loses its
connection, or is stopped for longer than LEASE_S, another process takes over. Two can act at once only within one run of a
job, which is harmless: a second run of a job changes nothing.
"""

import asyncio
import random
import signal
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic, time
from typing import Final

import asyncpg
import structlog

from handoff.context import App
from handoff.errors import HandoffError
from handoff.jobs.ledger import Ledger, Run
from handoff.jobs.table import JOBS, Job
from handoff.settings import Settings
from handoff.store.connect import LOST, connect_alone
from handoff.tasks import end_tasks
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

LEADER_KEY: Final = 0x6A6F6273  # "jobs" in ASCII; all advisory locks of a database share one range of numbers
TRY_LOCK = "SELECT pg_try_advisory_lock($1)"
STILL_THERE = "SELECT 1"
LEASE_S: Final = 10.0  # after which Postgres ends the session of a leader that it has heard nothing from
RETRY_S: Final = 10.0  # until a failed run is repeated; twice as long after each further failure, and at most the interval
_TICK_S = 0.25
_ASK_S = 2.0  # how often a follower tries to lead, and the leader renews its lease; well within LEASE_S
_JITTER = 0.1


async def run_jobs(
    app: App, jobs: Sequence[Job] = JOBS, clock: Callable[[], float] = monotonic, *, shares: bool = False
) -> None:
    """Run the jobs whenever this process leads, until cancelled. While the database is down, it waits.

    A process that begins to lead runs each of them at once: it has no values of what only the leader measures. One that
    `shares` runs those that are shared whoever leads. `clock` gives seconds.
    """
    lock, ledger = _Lock(app.settings), Ledger(app, clock)
    tasks = [
        asyncio.create_task(lock.keep()),
        asyncio.create_task(ledger.keep(lambda: lock.leads or (shares and lock.answers))),
    ]
    tasks += [
        asyncio.create_task(_Repeated(app, job, lock, ledger, clock, shares=shares and job.is_shared).run()) for job in jobs
    ]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()  # none of them ends but by a bug, which ends them all
    finally:
        try:
            await end_tasks(tasks)
        finally:
            lock.release()


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
    running = asyncio.create_task(run_jobs(app, shares=True))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
    for task in (running, stopped):
        task.cancel()
    await asyncio.gather(running, stopped, return_exceptions=True)  # what uses the app must end before the app does
    if not stop.is_set():
        await running  # it ended unexpectedly: raise its exception


class _Repeated:
    """A job, run again and again while this process leads or shares it, and nobody has paused it."""

    def __init__(
        self, app: App, job: Job, lock: "_Lock", ledger: Ledger, clock: Callable[[], float], *, shares: bool
    ) -> None:
        self._app = app
        self._job = job
        self._lock = lock
        self._ledger = ledger
        self._clock = clock
        self._shares = shares
        self._term = 0
        self._ended: float | None = None  # the last run, None if it is due whatever its interval
        self._share = 1.0  # of the interval, so that jobs drift apart
        self._failures = 0  # since the last success

    async def run(self) -> None:
        """Run the job whenever it is due, until cancelled."""
        name = self._job.name
        while True:
            if self._lock.term != self._term:
                self._term, self._ended, self._failures = self._lock.term, None, 0
            asked = self._ledger.asked.get(name) if self._lock.leads else None
            is_due = asked is not None or (self._may_run() and self._is_due() and name not in self._ledger.paused)
            if is_due and (await self._lock.held() or self._may_run()):
                began = self._clock()
                error = await self._run_once()
                self._failures = 0 if error is None else self._failures + 1
                self._share = random.uniform(1 - _JITTER, 1)  # noqa: S311 - no secret
                self._ended = self._clock()
                self._ledger.add(Run(name, self._ended, self._ended - began, error, self._wait_s(), asked))
            await asyncio.sleep(min(_TICK_S, self._app.settings.settle_interval_s))

    def _may_run(self) -> bool:
        return self._lock.leads or (self._shares and self._lock.answers)

    def _is_due(self) -> bool:
        wait_s = self._wait_s()  # read each time: it may have been configured anew
        return self._ended is None or self._clock() >= self._ended + wait_s

    def _wait_s(self) -> float:
        """Seconds from the last run to the next, as configured now: less than the interval after a failure."""
        every_s = self._app.policies.job_interval_s(self._job.name, self._job.every_s(self._app.settings))
        metrics.JOB_INTERVAL.set(every_s, self._job.name)
        if self._failures:
            every_s = min(every_s, RETRY_S * 2 ** min(self._failures - 1, 20))
        return every_s * self._share

    async def _run_once(self) -> str | None:
        """Run the job, and record how that went; return the error, None if it succeeded."""
        name, began = self._job.name, monotonic()
        outcome, error = "error", None
        limit = asyncio.timeout(self._job.limit_s)
        try:
            async with limit:
                await self._job.run(self._app)
            outcome = "ok"
            metrics.JOB_LAST_SUCCESS.set(time(), name)
        except HandoffError as raised:
            error = f"{raised.code}: {type(raised.__cause__).__name__}" if raised.__cause__ is not None else raised.code
            log.warning("job.failed", job=name, code=raised.code, cause=repr(raised.__cause__))
        except Exception as raised:
            code = "timeout" if limit.expired() else "internal"
            error = f"{code}: {type(raised).__name__}"
            log.exception("job.failed", job=name, code=code)
        finally:
            metrics.JOB_DURATION.record(monotonic() - began, name, outcome)
        return error


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

    @property
    def answers(self) -> bool:
        """Whether the database answered when it was asked last."""
        return self._conn is not None

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
