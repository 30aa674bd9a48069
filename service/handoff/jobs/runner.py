"""The jobs that belong to the database and not to a call. Any number of processes may run this; the one that has the
leader's lock does the jobs, and another takes over when it goes.
"""

import asyncio
import random
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from time import monotonic, time
from typing import Final, get_args

import structlog

from handoff.app import App, open_app, settle_overdue
from handoff.errors import HandoffError
from handoff.jobs import certificates
from handoff.jobs.watchdog import Watch
from handoff.model import HandoffState, RequestType, SessionStatus
from handoff.operations.health import LOST
from handoff.operations.port import Operations
from handoff.settings import Settings
from handoff.store import instances, state
from handoff.store.connect import Connection, connect_alone, connection
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

LEADER_KEY: Final = 0x6A6F6273  # "jobs"; advisory locks share one space of numbers a database
TRY_LOCK = "SELECT pg_try_advisory_lock($1)"
STILL_THERE = "SELECT 1"
_TICK_S = 0.25
_LOOK_S = 2.0  # how often who does not lead tries to, and who leads looks whether the lock is still held
_JITTER = 0.1
_MEASURED: Final = (
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


@dataclass(frozen=True, slots=True)
class Job:
    """Something to be done every so often, by one process at a time."""

    name: str
    every_s: Callable[[Settings], float]
    run: Callable[[App], Awaitable[None]]


async def settle(app: App) -> None:
    """Lapse leases and expire offers whose time is over."""
    count = await settle_overdue(app)
    if count:
        log.info("settle.done", handoffs=count)


async def measure(app: App) -> None:
    """Set the gauges of what the database holds."""
    async with connection(app.pool) as conn:
        rows = await state.measure(conn, get_args(SessionStatus))
    found = {(row["figure"], row["a"], row["b"]): row["value"] for row in rows}
    for status in get_args(SessionStatus):
        metrics.SESSIONS.set(found.get(("sessions", status, ""), 0), status)
    for held in (it for it in get_args(HandoffState) if it in ("offered", "accepted", "blocked")):
        for kind in get_args(RequestType):
            metrics.HANDOFFS_OPEN.set(found.get(("open", held, kind), 0), held, kind)
    for target in ("agent", "capability"):
        metrics.INBOX_DEPTH.set(found.get(("depth", target, ""), 0), target)
        metrics.OLDEST_OFFER.set(found.get(("oldest", target, ""), 0), target)
        metrics.DEEPEST_INBOX.set(found.get(("deepest", target, ""), 0), target)
    metrics.PING_PONG.set(found.get(("ping_pong", "", ""), 0))
    metrics.MEASURED_AT.set(time())


async def heartbeat(app: App) -> None:
    """Leave word that the jobs are done: what a worker that hangs no longer does."""
    async with connection(app.pool) as conn:
        await instances.jobs_done(conn, app.health.identity.id)


async def look_at_certificates(app: App) -> None:
    """See when the first of the certificates expires."""
    if app.settings.certificates:
        await certificates.look(app.settings.certificates)


JOBS: Final = (
    Job("settle", lambda it: it.settle_interval_s, settle),
    Job("measure", lambda it: it.measure_interval_s, measure),
    Job("heartbeat", lambda it: it.heartbeat_interval_s, heartbeat),
    Job("watchdog", lambda it: it.heartbeat_interval_s, Watch()),
    Job("certificates", lambda it: it.certificates_interval_s, look_at_certificates),
)


async def do_jobs(app: App, jobs: Sequence[Job] = JOBS) -> None:
    """Do the jobs whenever this process leads, until cancelled. A database that is away is waited for."""
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
    """Do the jobs beside the service until the end of the block, where the settings say that this process may."""
    if not app.settings.jobs:
        yield
        return
    doing = asyncio.create_task(do_jobs(app))
    try:
        yield
    finally:
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)


async def work(settings: Settings, operations: Operations | None) -> None:
    """Do the jobs until SIGINT, SIGTERM or SIGHUP."""
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) != signal.SIG_IGN:  # nohup
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with open_app(settings, "worker", operations=operations.address if operations is not None else None) as app:
        with operations.serving(app) if operations is not None else nullcontext():
            doing = asyncio.create_task(do_jobs(app))
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait((doing, stopped), return_when=asyncio.FIRST_COMPLETED)
            for task in (doing, stopped):
                task.cancel()
            await asyncio.gather(stopped, return_exceptions=True)
            if not stop.is_set():
                await doing  # it ended by itself, which is a defect: say why


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
    """Whether this process leads; what nobody foresaw is logged, and does not end the worker."""
    try:
        return await lock.held()
    except Exception:
        log.exception("worker.lock_failed")
        return False


class _Lock:
    """The leader's lock, held by a connection of its own: it goes with the process, however that ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._conn: Connection | None = None
        self._leads = False
        self._look_at = 0.0

    async def held(self) -> bool:
        """Whether this process leads. Looks at the database every `_LOOK_S`."""
        if monotonic() < self._look_at:
            return self._leads
        self._look_at = monotonic() + _LOOK_S
        leads = await self._look()
        if leads != self._leads:
            log.info("worker.leads" if leads else "worker.follows")
            if not leads:  # figures that are not kept up are not shown
                for it in _MEASURED:
                    it.reset()
        self._leads = leads
        metrics.LEADER.set(leads)
        return leads

    async def _look(self) -> bool:
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
        """Let another lead."""
        conn, self._conn = self._conn, None
        if conn is not None:
            with suppress(Exception):
                await conn.close(timeout=1)
