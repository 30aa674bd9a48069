"""Writes what this process does to the database, minute by minute: calls, CPU, memory, waits for the pool, the cache, disk.

It reads the counters that the metrics have once per minute, so a call costs nothing more. Minutes that the database did not
take are kept in memory, MINUTES_MAX of them, and written later.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, process_time
from typing import Final
from uuid import uuid4

import psutil
import structlog

from handoff.operations.presence import Identity
from handoff.operations.recent import FAILURES, cpu_limit
from handoff.settings import Settings
from handoff.store import performance
from handoff.store.connect import LOST, StandbyConnection
from handoff.store.performance import AgentCalls, Bucket, Calls, Outcome
from handoff.telemetry import agents, metrics
from handoff.telemetry.agents import Called
from handoff.telemetry.instruments import Histogram, Labels

log = structlog.get_logger(__name__)

MINUTES_MAX: Final = 180  # kept while the database is away: 1 MB where 40 operations are called every minute
_MINUTE_S: Final = 60.0
_OVERLOADED: Final = "overloaded"  # the code of a call that is refused because too many wait already
_CANCELLED: Final = "cancelled"  # the code of a call whose caller has gone


@dataclass(frozen=True, slots=True)
class _Counts:
    """Counts since the process started."""

    at: float
    cpu_s: float
    calls: Mapping[tuple[str, Outcome], Sequence[int]]
    pool_waits: Sequence[int]
    loop_lags: Sequence[int]
    statements: Sequence[int]
    pool_timeouts: int
    overloaded: int
    cache: Mapping[str, int]  # by result
    agents: Mapping[str, Called]


class Minutes:
    """The minutes of this process: the one in progress, and those that are not written yet."""

    def __init__(self, settings: Settings, identity: Identity, database: StandbyConnection) -> None:
        self._identity = identity
        self._database = database
        self._folder = settings.data_dir
        self._process = psutil.Process()
        self._unwritten: deque[Bucket] = deque()
        self._is_away = False
        self._began_at = datetime.now(UTC)
        self._before = _counts()

    async def run(self) -> None:
        """End a minute whenever the clock does, and write what is not written yet, until cancelled."""
        while True:
            await asyncio.sleep(_MINUTE_S - datetime.now(UTC).timestamp() % _MINUTE_S)
            await self.end_minute()
            await self.write()

    async def leave(self) -> None:
        """End the minute in progress and write it, as the last thing that this process counts."""
        try:
            await self.end_minute()
            await self.write()
        finally:
            if self._unwritten:
                log.warning("minutes.lost", minutes=len(self._unwritten))

    async def end_minute(self) -> None:
        """Make a bucket of what was counted since the last one ended. Beyond MINUTES_MAX, the oldest one is dropped."""
        disk_ratio = await asyncio.to_thread(_disk_ratio, self._folder)
        was, now = self._before, _counts()
        began_at, self._began_at, self._before = self._began_at, datetime.now(UTC), now
        identity = self._identity
        bucket = Bucket(
            at=began_at,
            id=uuid4(),
            instance=identity.id[:255],
            kind=identity.kind,
            seconds=now.at - was.at,
            cpu_s=now.cpu_s - was.cpu_s,
            cpus=cpu_limit(),
            memory_bytes=self._process.memory_info().rss,
            disk_ratio=disk_ratio,
            pool_timeouts=now.pool_timeouts - was.pool_timeouts,
            overloaded=now.overloaded - was.overloaded,
            cache_hits=now.cache["hit"] - was.cache["hit"],
            cache_misses=now.cache["miss"] - was.cache["miss"],
            cache_errors=now.cache["error"] - was.cache["error"],
            pool_waits=_less(now.pool_waits, was.pool_waits),
            loop_lags=_less(now.loop_lags, was.loop_lags),
            statements=_less(now.statements, was.statements),
            calls=[
                Calls(*key, new)
                for key, counts in sorted(now.calls.items())
                if any(new := _less(counts, was.calls.get(key, (0,) * len(counts))))
            ],
            agents=[
                AgentCalls(agent, *new)
                for agent, called in sorted(now.agents.items())
                if any(new := _less(called, was.agents.get(agent, (0,) * len(called))))
            ],
        )
        self._unwritten.append(bucket)
        if len(self._unwritten) > MINUTES_MAX:
            self._unwritten.popleft()
            metrics.MINUTES_DROPPED.add(1)

    async def write(self) -> None:
        """Write what is not written yet, oldest first. What the database does not take is kept."""
        while self._unwritten:
            try:
                async with self._database.use() as conn:
                    await performance.write(conn, self._unwritten[0])
            except LOST as error:
                if not self._is_away:
                    log.warning("minutes.unwritten", error=type(error).__name__, kept_max=MINUTES_MAX)
                self._is_away = True
                return
            self._unwritten.popleft()
        if self._is_away:
            log.info("minutes.written")
        self._is_away = False


def _counts() -> _Counts:
    calls: dict[tuple[str, Outcome], list[int]] = {}
    overloaded = 0
    for labels, counts in metrics.OPERATION_DURATION.buckets().items():
        key = _operation(labels), _outcome(labels)
        calls[key] = [a + b for a, b in zip(calls[key], counts, strict=True)] if key in calls else counts
        if labels[3] == _OVERLOADED:
            overloaded += sum(counts)
    cache: dict[str, int] = {"hit": 0, "miss": 0, "error": 0}
    for (_, _, result), counts in metrics.CACHE_DURATION.buckets().items():
        if result in cache:
            cache[result] += sum(counts)
    return _Counts(
        at=monotonic(),
        cpu_s=process_time(),
        calls=calls,
        pool_waits=_only(metrics.POOL_WAIT),
        loop_lags=_only(metrics.EVENT_LOOP_LAG),
        statements=_all(metrics.STATEMENT_DURATION),
        pool_timeouts=int(metrics.POOL_TIMEOUTS.value()),
        overloaded=overloaded,
        cache=cache,
        agents=agents.read(),
    )


def _operation(labels: Labels) -> str:
    """What was called: a tool or a resource by its name, anything else by its method."""
    method, tool, resource = labels[0], labels[1], labels[5]
    return tool or (f"resource:{resource}" if resource else method)


def _outcome(labels: Labels) -> Outcome:
    code = labels[3]
    if not code or code == _CANCELLED:
        return code or "ok"
    return "failed" if code in FAILURES else "refused"


def _only(histogram: Histogram) -> list[int]:
    return histogram.buckets().get((), [0] * (len(histogram.bounds) + 1))


def _all(histogram: Histogram) -> list[int]:
    none = [0] * (len(histogram.bounds) + 1)
    return [sum(counts) for counts in zip(none, *histogram.buckets().values(), strict=True)]


def _less(now: Sequence[int], before: Sequence[int]) -> list[int]:
    return [a - b for a, b in zip(now, before, strict=True)]


def _disk_ratio(folder: Path) -> float:
    return psutil.disk_usage(str(folder if folder.exists() else Path("/"))).percent / 100
