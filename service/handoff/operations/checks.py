"""The health checks: one function per component. Add a component here.

A check returns a Reading. It must not block the event loop, and must answer within CHECK_TIMEOUT_S (see health.py).
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Final, Literal

import psutil

from handoff.cache import Cache
from handoff.operations.event_loop import WINDOW_S, EventLoopLag
from handoff.operations.heartbeat import Heartbeat
from handoff.operations.presence import Presence
from handoff.settings import Settings
from handoff.store import instances
from handoff.store.connect import LOST, StandbyConnection
from handoff.telemetry import metrics
from handoff.telemetry.shipper import Shipment

Status = Literal["healthy", "degraded", "unhealthy"]

# The figures from which a component is degraded and unhealthy. None: no figure makes it unhealthy.
THRESHOLDS: Final[dict[str, tuple[float, float | None]]] = {
    "database": (1_000.0, None),  # ms
    "cache": (500.0, None),  # ms
    "worker": (30.0, 120.0),  # s since any process last ran the jobs
    "telemetry": (60.0, None),  # s since a receiver last answered, once it has stopped answering
    "alerting": (100.0, None),  # % of watchdog_timeout_s since the last heartbeat
    "memory": (80.0, 95.0),  # % of the memory limit
    "disk": (85.0, 95.0),  # % of the file system
    "event_loop": (250.0, 1_000.0),  # ms by which a timer was late
}

REMEDIES: Final = {
    "database": "Check that Postgres is running and has free connections. `handoff doctor` tells more.",
    "cache": "Check that Redis is running. The service works without it, but more slowly.",
    "worker": "Check that the worker (`handoff work`) is running, and look for job.failed in its log.",
    "telemetry": "Check that the collector is running at OTEL_EXPORTER_OTLP_ENDPOINT. The service works without it.",
    "alerting": "Check that Prometheus and Alertmanager are running. Without them, nobody is notified of any alert.",
    "memory": "Raise the memory limit, or find out in the Overview dashboard what is growing.",
    "disk": "Free some space, or enlarge the volume.",
    "event_loop": "Add a replica, or find out from handoff_calls_active what keeps this one busy.",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of a check. `todo` is what the operator should do; it is empty while the component is healthy."""

    status: Status
    figure: float | None
    unit: str
    detail: str
    todo: str = ""


@dataclass(slots=True)
class Watched:
    """What the checks examine."""

    settings: Settings
    database: StandbyConnection
    cache: Cache
    presence: Presence
    heartbeat: Heartbeat
    event_loop: EventLoopLag
    shipments: Callable[[], dict[str, Shipment]] | None  # None where telemetry is off
    dropped: int = 0  # records that had been dropped at the last check
    process: psutil.Process = field(default_factory=psutil.Process)


def judge(component: str, figure: float, unit: str, detail: str) -> Reading:
    """The reading for a figure, with the status that follows from the component's thresholds."""
    degraded, unhealthy = THRESHOLDS[component]
    status: Status = "healthy"
    if figure >= degraded:
        status = "unhealthy" if unhealthy is not None and figure >= unhealthy else "degraded"
    return Reading(status, round(figure, 3), unit, detail, "" if status == "healthy" else REMEDIES[component])


async def database(watched: Watched) -> Reading:
    """Check whether Postgres answers, and how fast."""
    began = perf_counter()
    try:
        async with watched.database.use() as conn:
            waited = perf_counter() - began
            await conn.fetchval("SELECT 1")
    except LOST as error:
        return Reading("unhealthy", None, "ms", f"does not answer: {type(error).__name__}", REMEDIES["database"])
    return judge("database", (perf_counter() - began - waited) * 1_000, "ms", "answers")


async def cache(watched: Watched) -> Reading:
    """Check whether Redis answers, and how fast."""
    if watched.cache.name == "in-process":
        return Reading("healthy", None, "", "in this process")
    began = perf_counter()
    problem = await watched.cache.ping()
    if problem is not None:
        return Reading("degraded", None, "ms", f"does not answer: {problem.split(':')[0]}", REMEDIES["cache"])
    return judge("cache", (perf_counter() - began) * 1_000, "ms", "answers")


async def worker(watched: Watched) -> Reading:
    """Check how long ago any process last ran the jobs."""
    try:
        async with watched.database.use() as conn:
            age_s = await instances.jobs_age(conn)
    except LOST:
        return _database_away("s")
    if age_s is None:
        if watched.presence.identity.runs_jobs:  # this process has just started
            return Reading("healthy", None, "s", "the jobs have not run yet")
        return Reading("unhealthy", None, "s", "no process has ever run the jobs", REMEDIES["worker"])
    alone = (
        "" if any(process["does_jobs"] for process in watched.presence.alive) else "; no running process is set to run them"
    )
    late = age_s >= THRESHOLDS["worker"][0]
    return judge("worker", age_s, "s", f"since the jobs last ran{alone if late else ''}")


async def telemetry(watched: Watched) -> Reading:
    """Check whether traces, metrics and logs are received, and whether any were dropped since the last check."""
    if watched.shipments is None:
        return Reading("healthy", None, "", "off")
    shipments = watched.shipments()
    away_s = max(shipment.away_s for shipment in shipments.values())
    dropped = sum(shipment.dropped for shipment in shipments.values())
    fresh, watched.dropped = dropped - watched.dropped, dropped
    away = [signal for signal, shipment in shipments.items() if shipment.away_s > 0]
    detail = f"not received: {', '.join(away)}" if away else "all signals are received"
    if fresh:
        detail = f"{detail}; {fresh} records dropped since the last check, {dropped} since the start"
        return Reading("degraded", away_s, "s", detail, REMEDIES["telemetry"])
    return judge("telemetry", away_s, "s", detail)


async def alerting(watched: Watched) -> Reading:
    """Check whether the heartbeat of Prometheus's Watchdog arrives."""
    heartbeat = watched.heartbeat
    if not heartbeat.is_expected:
        return Reading("healthy", None, "", "off: no heartbeat is expected")
    try:
        async with watched.database.use() as conn:
            age_s = (await heartbeat.read(conn)).age_s
    except LOST:
        return _database_away("%")
    detail = f"last heartbeat {age_s:.0f} s ago; the limit is {heartbeat.timeout_s:.0f} s"
    return judge("alerting", 100 * age_s / heartbeat.timeout_s, "%", detail)


async def memory(watched: Watched) -> Reading:
    """Check how much of its memory limit the process uses."""
    limit = memory_limit()
    return judge("memory", 100 * watched.process.memory_info().rss / limit, "%", f"of {limit >> 20} MiB")


async def disk(watched: Watched) -> Reading:
    """Check how full the file system of the data folder is, or that of / where there is no such folder."""
    folder = watched.settings.data_dir if watched.settings.data_dir.exists() else Path("/")
    used = await asyncio.to_thread(psutil.disk_usage, str(folder))
    return judge("disk", used.percent, "%", f"of {used.total >> 30} GiB at {folder.resolve()}")


async def event_loop(watched: Watched) -> Reading:
    """Check how late the event loop ran its timers."""
    return judge_event_loop(watched.event_loop.worst_ms)


def judge_event_loop(lag_ms: float) -> Reading:
    """The reading of the component `event_loop` for a lag."""
    return judge("event_loop", lag_ms, "ms", f"longest delay of a timer in the last {WINDOW_S:.0f} s")


def _database_away(unit: str) -> Reading:
    return Reading("degraded", None, unit, "unknown: the database does not answer", REMEDIES["database"])


CHECKS: Final[dict[str, Callable[[Watched], Awaitable[Reading]]]] = {
    check.__name__: check for check in (database, cache, worker, telemetry, alerting, memory, disk, event_loop)
}
metrics.COMPONENT.admit(*CHECKS)


def memory_limit() -> int:
    """The memory that this process may use, in bytes: its control group's limit, or else the machine's memory."""
    machine = psutil.virtual_memory().total
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with suppress(OSError, ValueError):
            return min(machine, int(file.read_text()))
    return machine
