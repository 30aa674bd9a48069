"""The health checks: one function per component. Add a component here.

A check returns a Reading. It must not block the event loop, and must answer within CHECK_TIMEOUT_S (see health.py).
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Final, Literal, NamedTuple

import psutil

from handoff.cache import Cache
from handoff.encoding import counted
from handoff.operations.event_loop import WINDOW_S, EventLoopLag
from handoff.operations.heartbeat import Heartbeat
from handoff.operations.presence import Presence
from handoff.operations.recent import LONG_WAIT_S, Recent, cpu_limit
from handoff.policies import Policies
from handoff.server.auth import Tokens
from handoff.settings import Settings
from handoff.store import instances
from handoff.store.connect import LOST, StandbyConnection
from handoff.telemetry import metrics
from handoff.telemetry.shipper import Shipment

Status = Literal["healthy", "degraded", "unhealthy"]


class Limits(NamedTuple):
    """The names of the thresholds from which a component is degraded and unhealthy, and the unit of its figures.

    Without `unhealthy`, no figure makes it unhealthy. A threshold times `per_unit` is in the unit of the figures.
    """

    degraded: str
    unhealthy: str | None = None
    per_unit: float = 1


LIMITS: Final[dict[str, Limits]] = {
    "calls": Limits("error_ratio", "error_critical_ratio", 100),  # % of the last minute's that failed because of the service
    "latency": Limits("tool_slow_seconds", "tool_very_slow_seconds", 1_000),  # ms, p95 of the tool calls of the last minute
    "concurrency": Limits(
        "concurrent_calls"
    ),  # in progress, on average over the last minute; many that succeed are just load
    "pool": Limits("pool_wait_ratio", "pool_wait_critical_ratio", 100),  # % of the last minute's that waited long or in vain
    "database": Limits("database_slow_seconds", per_unit=1_000),  # ms
    "cache": Limits("cache_slow_seconds", per_unit=1_000),  # ms
    "worker": Limits("jobs_late_seconds", "jobs_age_seconds"),  # s since any process last ran the jobs
    "telemetry": Limits("telemetry_away_seconds"),  # s since a receiver last answered, once it has stopped answering
    "tokens": Limits("tokens_refused_seconds"),  # s for which the tokens file could not be used
    "configuration": Limits("configuration_refused_seconds"),  # s for which the configuration could not be used
    "alerting": Limits("heartbeat_ratio", per_unit=100),  # % of watchdog_timeout_s since the last heartbeat
    "memory": Limits("memory_ratio", "memory_critical_ratio", 100),  # % of the memory limit
    "machine": Limits("machine_memory_ratio", per_unit=100),  # % of the memory of the machine, or of the container
    "cpu": Limits("cpu_critical_ratio", per_unit=100),  # % of the CPU time that the process may use, over the last minute
    "disk": Limits("disk_ratio", "disk_critical_ratio", 100),  # % of the file system
    "event_loop": Limits("event_loop_lag_seconds", "event_loop_lag_critical_seconds", 1_000),  # ms by which a timer was late
}


def limits_of(component: str, threshold: Callable[[str], float]) -> tuple[float, float | None]:
    """The figures from which a component is degraded and unhealthy; `threshold` tells each threshold by its name."""
    degraded, unhealthy, per_unit = LIMITS[component]
    return (
        round(threshold(degraded) * per_unit, 6),
        round(threshold(unhealthy) * per_unit, 6) if unhealthy is not None else None,
    )


# With fewer events than these, a share or a percentile says little.
FAILURES_MIN: Final = 3
TIMED_CALLS_MIN: Final = 20
CPU_S_MIN: Final = 10.0

REMEDIES: Final = {
    "calls": "Find out in the log which code they fail with (outcome of tool.call), and look for locks in Postgres.",
    "latency": "Find out which tool is slow in the Tools dashboard, and whether statements wait for a lock in Postgres.",
    "concurrency": "Find out which agent calls so much, or what calls wait for. If it is just load, add a replica.",
    "pool": "Find out what holds the connections: locks and long statements in pg_stat_activity. If it is just load, raise "
    "HANDOFF_POOL_SIZE or add a replica.",
    "database": "Check that Postgres is running and has free connections. `handoff doctor` tells more.",
    "cache": "Check that Redis is running. The service works without it, but more slowly.",
    "worker": "Check that the worker (`handoff work`) is running, and look for job.failed in its log.",
    "telemetry": "Check that the collector is running at OTEL_EXPORTER_OTLP_ENDPOINT. The service works without it.",
    "tokens": "Correct the tokens file (HANDOFF_TOKENS_FILE). Until then, tokens removed from it are still valid.",
    "configuration": "Correct the configuration that the detail names. Until then, the one before is in force.",
    "alerting": "Check that Prometheus and Alertmanager are running. Without them, nobody is notified of any alert.",
    "machine": "Find out what uses the memory of the machine or container, and give it more.",
    "cpu": "Add a replica, or allow this process more CPU.",
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
    policies: Policies
    database: StandbyConnection
    cache: Cache
    presence: Presence
    heartbeat: Heartbeat
    event_loop: EventLoopLag
    recent: Recent
    shipments: Callable[[], dict[str, Shipment]] | None  # None where telemetry is off
    tokens: Tokens | None = None
    dropped: int = 0  # records that had been dropped at the last check
    process: psutil.Process = field(default_factory=psutil.Process)


def judge(policies: Policies, component: str, figure: float, unit: str, detail: str) -> Reading:
    """The reading for a figure, with the status that follows from the component's thresholds."""
    degraded, unhealthy = limits_of(component, policies.threshold)
    status: Status = "healthy"
    if figure >= degraded:
        status = "unhealthy" if unhealthy is not None and figure >= unhealthy else "degraded"
    return Reading(status, round(figure, 3), unit, detail, "" if status == "healthy" else REMEDIES[component])


async def calls(watched: Watched) -> Reading:
    """Check how many calls failed because of the service."""
    figures = watched.recent.figures()
    detail = f"{figures.failed} of {figures.calls} calls failed in the last minute"
    return judge(watched.policies, "calls", _percent(figures.failed, figures.calls, FAILURES_MIN), "%", detail)


async def latency(watched: Watched) -> Reading:
    """Check how long calls take."""
    figures = watched.recent.figures()
    if figures.timed < TIMED_CALLS_MIN:
        return Reading("healthy", None, "ms", f"too few calls to say: {figures.timed} in the last minute")
    return judge(
        watched.policies, "latency", 1_000 * figures.p95_s, "ms", "95% of the calls of the last minute took no longer"
    )


async def concurrency(watched: Watched) -> Reading:
    """Check how many calls are in progress at the same time."""
    return judge(
        watched.policies, "concurrency", watched.recent.figures().active_mean, "calls", "on average in the last minute"
    )


async def pool(watched: Watched) -> Reading:
    """Check whether calls wait for a connection to Postgres."""
    figures = watched.recent.figures()
    detail = f"{figures.waited} of {figures.acquired} waits for a connection took more than {LONG_WAIT_S} s"
    return judge(watched.policies, "pool", _percent(figures.waited, figures.acquired, FAILURES_MIN), "%", detail)


def _percent(part: int, whole: int, part_min: int) -> float:
    return 100 * part / whole if part >= part_min else 0.0


async def database(watched: Watched) -> Reading:
    """Check whether Postgres answers, and how fast."""
    began = perf_counter()
    try:
        async with watched.database.use() as conn:
            waited = perf_counter() - began
            await conn.fetchval("SELECT 1")
    except LOST as error:
        return Reading("unhealthy", None, "ms", f"does not answer: {type(error).__name__}", REMEDIES["database"])
    return judge(watched.policies, "database", (perf_counter() - began - waited) * 1_000, "ms", "answers")


async def cache(watched: Watched) -> Reading:
    """Check whether Redis answers, and how fast."""
    if watched.cache.name == "in-process":
        return Reading("healthy", None, "", "in this process")
    began = perf_counter()
    problem = await watched.cache.ping()
    if problem is not None:
        return Reading("degraded", None, "ms", f"does not answer: {problem.split(':')[0]}", REMEDIES["cache"])
    return judge(watched.policies, "cache", (perf_counter() - began) * 1_000, "ms", "answers")


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
    late = age_s >= limits_of("worker", watched.policies.threshold)[0]
    return judge(watched.policies, "worker", age_s, "s", f"since the jobs last ran{alone if late else ''}")


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
        detail = f"{detail}; {counted(fresh, 'record')} dropped since the last check, {dropped} since the start"
        return Reading("degraded", away_s, "s", detail, REMEDIES["telemetry"])
    return judge(watched.policies, "telemetry", away_s, "s", detail)


async def tokens(watched: Watched) -> Reading:
    """Check whether the tokens file can be used."""
    found = watched.tokens
    if found is None:
        return Reading("healthy", None, "", "off: there is no tokens file")
    known = counted(found.count, "token")
    detail = f"{found.problem}; in use: {known}, read before" if found.problem else known
    return judge(watched.policies, "tokens", found.refused_s, "s", detail)


async def configuration(watched: Watched) -> Reading:
    """Check whether the configuration in the database and in the file can be used."""
    found = watched.policies
    if not found.problem:
        return Reading("healthy", None, "s", f"version {found.version}" if found.version else "the defaults")
    return judge(found, "configuration", found.refused_s, "s", f"refused: {found.problem}; the one before is in force")


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
    return judge(watched.policies, "alerting", 100 * age_s / heartbeat.timeout_s, "%", detail)


async def memory(watched: Watched) -> Reading:
    """Check how much of its memory limit the process uses."""
    limit = memory_limit()
    return judge(watched.policies, "memory", 100 * watched.process.memory_info().rss / limit, "%", f"of {limit >> 20} MiB")


async def machine(watched: Watched) -> Reading:
    """Check how much memory of the machine, or of the container where it has a limit, is in use."""
    limit, total = memory_limit(), psutil.virtual_memory().total
    used = _container_memory() if limit < total else None
    if used is None:
        return judge(
            watched.policies, "machine", psutil.virtual_memory().percent, "%", f"of {total >> 20} MiB in the machine"
        )
    return judge(watched.policies, "machine", 100 * used / limit, "%", f"of {limit >> 20} MiB in the container")


async def cpu(watched: Watched) -> Reading:
    """Check how much of the CPU time that it may use the process uses."""
    figures = watched.recent.figures()
    if figures.seconds < CPU_S_MIN:
        return Reading("healthy", None, "%", "the process has just started")
    allowed = cpu_limit()
    return judge(
        watched.policies,
        "cpu",
        100 * figures.cpu_s / figures.seconds / allowed,
        "%",
        f"of {allowed:g} CPU in the last minute",
    )


async def disk(watched: Watched) -> Reading:
    """Check how full the file system of the data folder is, or that of / where there is no such folder."""
    folder = watched.settings.data_dir if watched.settings.data_dir.exists() else Path("/")
    used = await asyncio.to_thread(psutil.disk_usage, str(folder))
    return judge(watched.policies, "disk", used.percent, "%", f"of {used.total >> 30} GiB at {folder.resolve()}")


async def event_loop(watched: Watched) -> Reading:
    """Check how late the event loop ran its timers."""
    return judge_event_loop(watched.policies, watched.event_loop.worst_ms)


def judge_event_loop(policies: Policies, lag_ms: float) -> Reading:
    """The reading of the component `event_loop` for a lag."""
    return judge(policies, "event_loop", lag_ms, "ms", f"longest delay of a timer in the last {WINDOW_S:.0f} s")


def _database_away(unit: str) -> Reading:
    return Reading("degraded", None, unit, "unknown: the database does not answer", REMEDIES["database"])


CHECKS: Final[dict[str, Callable[[Watched], Awaitable[Reading]]]] = {
    check.__name__: check
    for check in (
        calls,
        latency,
        concurrency,
        pool,
        database,
        cache,
        worker,
        telemetry,
        tokens,
        configuration,
        alerting,
        memory,
        machine,
        cpu,
        disk,
        event_loop,
    )
}
metrics.COMPONENT.admit(*CHECKS)


def memory_limit() -> int:
    """The memory that this process may use, in bytes: its control group's limit, or else the machine's memory."""
    total = psutil.virtual_memory().total
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with suppress(OSError, ValueError):
            return min(total, int(file.read_text()))
    return total


def _container_memory() -> int | None:
    """The memory in use in this control group, without files that can be dropped, in bytes; None if that is unknown."""
    with suppress(OSError, ValueError, KeyError):
        group = Path("/sys/fs/cgroup")
        kinds = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int((group / "memory.current").read_text()) - int(kinds["inactive_file"])
    return None
