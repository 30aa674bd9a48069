"""How the process and what it needs are: eight components, looked at in the background and when asked, within a time limit.

An answer never waits for a sick component: who asks gets what is known, with its age. A change of status is an event row, a
log line and a metric.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, Final, Literal

import asyncpg
import psutil
import structlog

from handoff import __version__
from handoff.cache import Cache
from handoff.operations.alerts import Listening
from handoff.settings import Settings
from handoff.store import alerts, instances
from handoff.store import health as store
from handoff.store.connect import AWAY, Connection, connect_alone
from handoff.telemetry import metrics
from handoff.telemetry.shipper import Shipment

log = structlog.get_logger(__name__)

Status = Literal["healthy", "degraded", "unhealthy"]
RANK: Final[dict[Status, int]] = {"healthy": 0, "degraded": 1, "unhealthy": 2}
HISTORY_MAX: Final = 100

CHECK_TIMEOUT_S: Final = 0.8  # of all checks together; what has not answered by then is unhealthy, or degraded
FRESH_S: Final = 1.0  # who asks within this gets the last answer
LOST: Final = (*AWAY, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
_LAG_EVERY_S = 0.25
_AGAIN_S = 1.0
_LAG_WINDOW_S = 60.0
_CHANGES_MAX = 1_000

# The figure from which on a component is degraded, and unhealthy; None: no figure makes it so. The README has them too.
THRESHOLDS: Final[dict[str, tuple[float, float | None]]] = {
    "database": (1_000.0, None),  # ms
    "cache": (500.0, None),  # ms
    "worker": (30.0, 120.0),  # s since the jobs were done
    "telemetry": (60.0, None),  # s that a receiver has not answered
    "alerting": (100.0, None),  # % of the time that the Watchdog may be silent
    "memory": (80.0, 95.0),  # %
    "disk": (85.0, 95.0),  # %
    "event_loop": (250.0, 1_000.0),  # ms
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a check found. `todo` is what the operator is to do, and empty while all is well."""

    status: Status
    figure: float | None
    unit: str
    detail: str
    todo: str = ""


@dataclass(slots=True)
class _Component:
    reading: Reading
    since: datetime


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process is: `operations` is host:port of its operations port, None without one."""

    id: str
    kind: Literal["service", "worker"]
    operations: str | None
    does_jobs: bool


class Health:
    """The health of one process, and its sign of life in the database."""

    def __init__(
        self, settings: Settings, identity: Identity, cache: Cache, shipments: Callable[[], dict[str, Shipment]] | None
    ) -> None:
        self.identity = identity
        self.alive: list[dict[str, Any]] = []  # processes seen lately, for discovery
        self._settings = settings
        self._cache = cache
        self._shipments = shipments
        self._process = psutil.Process()
        self._conn: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()
        self._components: dict[str, _Component] = {}
        self._changes: deque[store.Change] = deque(maxlen=_CHANGES_MAX)
        self._history: list[dict[str, Any]] = []
        self._lags: deque[tuple[float, float]] = deque()
        self._ticked = monotonic()
        self._checked = 0.0
        self._checking: asyncio.Task[None] | None = None
        self._dropped = 0
        self._listening = Listening(max(settings.health_interval_s, FRESH_S))
        metrics.MEMORY_LIMIT.source = lambda: [(memory_limit(), ())]

    async def run(self) -> None:
        """Look after it until cancelled. What fails in a way that nobody foresaw is logged, and begun again."""
        async with asyncio.TaskGroup() as group:
            for loop in (self._watch_loop, self._keep_checking, self._keep_showing):
                group.create_task(_again_and_again(loop))

    async def check(self) -> None:
        """Look at everything now, unless that was done a moment ago; within CHECK_TIMEOUT_S."""
        if monotonic() - self._checked < FRESH_S:
            return
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check())
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await asyncio.shield(self._checking)

    def report(self, history: int = 20) -> dict[str, Any]:
        """What is known now: overall, by component, and the last changes. May be called from any thread, and never waits."""
        stuck_ms = (monotonic() - self._ticked - _LAG_EVERY_S) * 1_000
        components = {name: _view(name, it.reading, it.since) for name, it in list(self._components.items())}
        if stuck_ms > THRESHOLDS["event_loop"][0]:  # the loop can't say so itself
            since = components["event_loop"]["since"] if "event_loop" in components else datetime.now(UTC)
            components["event_loop"] = _view("event_loop", _loop_reading(stuck_ms), since)
        worst = max((it["status"] for it in components.values()), key=lambda it: RANK[it], default="unhealthy")
        return {
            "status": worst,
            "version": __version__,
            "instance": self.identity.id,
            "kind": self.identity.kind,
            "checked_s_ago": round(monotonic() - self._checked, 3) if self._checked else None,
            "components": components,
            "history": self._history[:history],
        }

    async def close(self) -> None:
        """Say goodbye."""
        with suppress(*LOST):
            async with asyncio.timeout(1), self._connection() as conn:
                await instances.gone(conn, self.identity.id)
        if self._conn is not None:
            self._conn.terminate()

    async def _watch_loop(self) -> None:
        """Measure how late the loop runs a timer."""
        while True:
            due = monotonic() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            now = self._ticked = monotonic()
            lag = max(0.0, now - due)
            metrics.EVENT_LOOP_LAG.record(lag)
            self._lags.append((now, lag))
            while self._lags[0][0] < now - _LAG_WINDOW_S:
                self._lags.popleft()

    async def _keep_checking(self) -> None:
        while True:
            await self.check()
            await asyncio.sleep(self._settings.health_interval_s)

    async def _keep_showing(self) -> None:
        """Leave a sign of life, and see who else does."""
        me = self.identity
        while True:
            with suppress(*LOST):
                async with self._connection() as conn:
                    await instances.seen(conn, me.id, me.kind, __version__, me.operations, does_jobs=me.does_jobs)
                    self.alive = [dict(row) for row in await instances.alive(conn, 6 * self._settings.heartbeat_interval_s)]
            await asyncio.sleep(self._settings.heartbeat_interval_s)

    async def _check(self) -> None:
        checks: dict[str, Callable[[], Awaitable[Reading]]] = {
            "database": self._database,
            "cache": self._cache_reading,
            "worker": self._worker,
            "telemetry": self._telemetry,
            "alerting": self._alerting,
            "memory": self._memory,
            "disk": self._disk,
            "event_loop": self._event_loop,
        }
        await asyncio.gather(*(self._note(name, check) for name, check in checks.items()))
        self._checked = monotonic()
        await self._keep_changes()

    async def _note(self, name: str, check: Callable[[], Awaitable[Reading]]) -> None:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                reading = await check()
        except TimeoutError:
            status: Status = "unhealthy" if name == "database" else "degraded"
            reading = Reading(status, None, "", f"no answer within {CHECK_TIMEOUT_S} s", _REMEDY[name])
        except Exception as error:
            log.exception("health.check_failed", component=name)
            reading = Reading("degraded", None, "", f"the check failed: {type(error).__name__}", "Report it.")
        before = self._components.get(name)
        now = datetime.now(UTC)
        was: Status = before.reading.status if before is not None else "healthy"
        self._components[name] = _Component(reading, before.since if before and was == reading.status else now)
        metrics.COMPONENT_STATUS.set(RANK[reading.status], name)
        if was != reading.status:
            metrics.HEALTH_CHANGES.add(1, name)
            worse = RANK[reading.status] > RANK[was]
            say = log.warning if worse else log.info
            say(
                "health.changed",
                component=name,
                was=was,
                status=reading.status,
                figure=reading.figure,
                unit=reading.unit,
                detail=reading.detail,
            )
            threshold = _threshold(name, reading.status)
            change = (
                now,
                self.identity.id,
                name,
                was,
                reading.status,
                reading.figure,
                threshold,
                reading.unit,
                reading.detail,
            )
            self._changes.append(change)

    async def _keep_changes(self) -> None:
        """Write what has changed, also what could not be written earlier, and read what all processes saw."""
        with suppress(*LOST):
            async with self._connection() as conn:
                if self._changes:
                    waiting = list(self._changes)
                    async with conn.transaction():
                        await store.record(conn, waiting)
                    for _ in waiting:
                        self._changes.popleft()
                self._history = [dict(row) for row in await store.history(conn, HISTORY_MAX)]

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Connection]:
        """The connection that looks after health: not the pool's, which may be busy while the database is well.

        Whatever goes wrong on it, a time limit included, the next look begins with a new one.
        """
        async with self._lock:
            try:
                if self._conn is None:
                    self._conn = await connect_alone(self._settings, application_name="handoff-health")
                yield self._conn
            except BaseException:
                conn, self._conn = self._conn, None
                if conn is not None:
                    conn.terminate()
                raise

    async def _database(self) -> Reading:
        began = perf_counter()
        try:
            async with self._connection() as conn:
                waited = perf_counter() - began
                await conn.fetchval("SELECT 1")
        except LOST as error:
            return Reading("unhealthy", None, "ms", f"does not answer: {type(error).__name__}", _REMEDY["database"])
        return _judged("database", (perf_counter() - began - waited) * 1_000, "ms", "answers")

    async def _cache_reading(self) -> Reading:
        if self._cache.name == "in-process":
            return Reading("healthy", None, "", "in this process")
        began = perf_counter()
        problem = await self._cache.ping()
        if problem is not None:
            return Reading("degraded", None, "ms", f"does not answer: {problem.split(':')[0]}", _REMEDY["cache"])
        return _judged("cache", (perf_counter() - began) * 1_000, "ms", "answers")

    async def _worker(self) -> Reading:
        try:
            async with self._connection() as conn:
                age_s = await instances.jobs_age(conn)
        except LOST:
            return Reading("degraded", None, "s", "unknown: the database does not answer", _REMEDY["database"])
        if age_s is None:
            if self._settings.jobs or self.identity.kind == "worker":  # it has just started
                return Reading("healthy", None, "s", "has not done the jobs yet")
            return Reading("unhealthy", None, "s", "no process has done the jobs", _REMEDY["worker"])
        return _judged("worker", age_s, "s", "since the jobs were done")

    async def _telemetry(self) -> Reading:
        if self._shipments is None:
            return Reading("healthy", None, "", "off")
        state = self._shipments()
        away_s = max(it.away_s for it in state.values())
        dropped = sum(it.dropped for it in state.values())
        fresh, self._dropped = dropped - self._dropped, dropped
        away = [name for name, it in state.items() if it.away_s > 0]
        detail = f"not taken: {', '.join(away)}" if away else "all signals are taken"
        if fresh:
            detail = f"{detail}; {fresh} records dropped, {dropped} since the start"
            return Reading("degraded", away_s, "s", detail, _REMEDY["telemetry"])
        return _judged("telemetry", away_s, "s", detail)

    async def _alerting(self) -> Reading:
        timeout_s = self._settings.watchdog_timeout_s
        if not timeout_s:
            return Reading("healthy", None, "", "no heartbeat is expected")
        try:
            async with self._connection() as conn:
                heard_s = (await alerts.watchdog(conn))["age_s"]
        except LOST:
            return Reading("degraded", None, "%", "unknown: the database does not answer", _REMEDY["database"])
        age_s = self._listening.age_s(heard_s)
        return _judged("alerting", 100 * age_s / timeout_s, "%", f"heartbeat of {age_s:.0f} s ago, {timeout_s:.0f} allowed")

    async def _memory(self) -> Reading:
        limit = memory_limit()
        return _judged("memory", 100 * self._process.memory_info().rss / limit, "%", f"of {limit >> 20} MiB")

    async def _disk(self) -> Reading:
        folder = self._settings.data_dir if self._settings.data_dir.exists() else Path("/")
        used = await asyncio.to_thread(psutil.disk_usage, str(folder))
        return _judged("disk", used.percent, "%", f"of {used.total >> 30} GiB at {folder.resolve()}")

    async def _event_loop(self) -> Reading:
        return _loop_reading(1_000 * max((lag for _, lag in self._lags), default=0.0))


_REMEDY: Final = {
    "database": "See whether Postgres runs and has connections left; `handoff doctor` says more.",
    "cache": "See whether Redis runs. The service goes on without it, only slower.",
    "worker": "See whether the worker runs (`handoff work`), and what it logs as job.failed.",
    "telemetry": "See whether the collector runs, and OTEL_EXPORTER_OTLP_ENDPOINT. The service goes on without it.",
    "alerting": "See whether Prometheus and Alertmanager run: without them nobody is told of anything.",
    "memory": "Raise the memory limit, or look for what grows in the Overview.",
    "disk": "Make room, or give the volume more.",
    "event_loop": "Add a replica, or look at handoff_calls_active for what keeps this one busy.",
}


async def _again_and_again(loop: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await loop()
        except Exception:
            log.exception("health.failed", loop=getattr(loop, "__name__", ""))
            await asyncio.sleep(_AGAIN_S)


def _judged(name: str, figure: float, unit: str, detail: str) -> Reading:
    degraded, unhealthy = THRESHOLDS[name]
    status: Status = "healthy"
    if figure >= degraded:
        status = "unhealthy" if unhealthy is not None and figure >= unhealthy else "degraded"
    return Reading(status, round(figure, 3), unit, detail, "" if status == "healthy" else _REMEDY[name])


def _loop_reading(lag_ms: float) -> Reading:
    return _judged("event_loop", lag_ms, "ms", f"latest timer within {_LAG_WINDOW_S:.0f} s")


def _threshold(name: str, status: Status) -> float | None:
    degraded, unhealthy = THRESHOLDS[name]
    return unhealthy if status == "unhealthy" else degraded


def _view(name: str, reading: Reading, since: datetime) -> dict[str, Any]:
    degraded, unhealthy = THRESHOLDS[name]
    seen = {
        "status": reading.status,
        "since": since,
        "figure": reading.figure,
        "unit": reading.unit or None,
        "degraded_from": degraded,
        "unhealthy_from": unhealthy,
        "detail": reading.detail,
        "todo": reading.todo or None,
    }
    return {name: value for name, value in seen.items() if value is not None}


def memory_limit() -> int:
    """What this process may use, in bytes: its control group's limit, or the machine's memory."""
    machine = psutil.virtual_memory().total
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with suppress(OSError, ValueError):
            return min(machine, int(file.read_text()))
    return machine
