"""The health report: what the checks found, since when, and what changed.

A report never waits for a component that hangs: it contains the latest readings and their age. A change of status is
recorded as a row in the database, a log line and a metric.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final

import structlog

from handoff import __version__
from handoff.cache import Cache
from handoff.operations import checks
from handoff.operations.checks import CHECKS, REMEDIES, Reading, Status, Watched
from handoff.operations.event_loop import EventLoopLag
from handoff.operations.heartbeat import Heartbeat
from handoff.operations.presence import Identity, Presence
from handoff.operations.recent import Recent, cpu_limit
from handoff.policies import Policies
from handoff.server.auth import Tokens
from handoff.settings import Settings
from handoff.store import health as store
from handoff.store.connect import LOST, StandbyConnection
from handoff.telemetry import metrics
from handoff.telemetry.shipper import Shipment

log = structlog.get_logger(__name__)

# A report never shows an older reading as if it were current: it says that the check has not answered.
_OVERDUE_S: Final = 5.0  # beyond the interval between checks
RANK: Final[dict[Status, int]] = {"healthy": 0, "degraded": 1, "unhealthy": 2}
HISTORY_MAX: Final = 100
CHECK_TIMEOUT_S: Final = 0.8  # for all checks, which run concurrently
ANSWER_S: Final = 0.9  # for a report: longer than a check, so that it contains what the check found out by its timeout
FRESH_S: Final = 1.0  # within this time after a check, no further one is made
_RESTART_S: Final = 1.0
_CHANGES_MAX: Final = 1_000


@dataclass(slots=True)
class _Component:
    reading: Reading
    since: datetime
    checked_at: float


class Health:
    """The health of one process and of what it needs."""

    def __init__(
        self,
        settings: Settings,
        policies: Policies,
        registry: StandbyConnection,
        presence: Presence,
        cache: Cache,
        heartbeat: Heartbeat,
        shipments: Callable[[], dict[str, Shipment]] | None,
        tokens: Tokens | None = None,
    ) -> None:
        self.presence = presence
        self._policies = policies
        self._interval_s = settings.health_interval_s
        self._heartbeat_interval_s = settings.heartbeat_interval_s
        # Connections of their own, because the pool may be exhausted while the database is healthy: one that only asks
        # whether the database answers, for health and readiness, and `registry` for what must not delay that.
        self.probe = StandbyConnection(settings, application_name="handoff-health")
        self._registry = registry
        self._event_loop = EventLoopLag()
        self._recent = Recent()
        self._watched = Watched(
            settings, policies, self.probe, cache, presence, heartbeat, self._event_loop, self._recent, shipments, tokens
        )
        self._components: dict[str, _Component] = {}
        self._changes: deque[store.Change] = deque(maxlen=_CHANGES_MAX)
        self._history: list[dict[str, Any]] = []
        self._checked_at = 0.0
        self._checking: asyncio.Task[None] | None = None
        self._began_at: float | None = None  # of the check in progress
        self._storing: asyncio.Task[None] | None = None
        metrics.MEMORY_LIMIT.source = lambda: [(checks.memory_limit(), ())]
        metrics.CPU_LIMIT.source = lambda: [(cpu_limit(), ())]

    @property
    def identity(self) -> Identity:
        """Who this process is."""
        return self.presence.identity

    async def run(self) -> None:
        """Run the loops that keep the report current, until cancelled. One that fails is logged and started again."""
        loops = (self._event_loop.run, self._recent.run, self._check_regularly, self._show_presence, self._read_heartbeat)
        await asyncio.gather(*map(_keep_running, loops))

    async def check(self) -> None:
        """Run all checks, unless they ran within FRESH_S. Returns after ANSWER_S, even if they have not ended."""
        if monotonic() - self._checked_at < FRESH_S:
            return
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check())
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await asyncio.shield(self._checking)

    def report(self, history: int = 20) -> dict[str, Any]:
        """The overall status, each component's, and the latest changes. Never waits; may be called from any thread."""
        components = {
            name: self._view(name, self._current(name, known), known.since) for name, known in list(self._components.items())
        }
        stuck_ms = self._event_loop.overdue_ms
        if stuck_ms > self._limits("event_loop")[0]:  # a stuck loop can't report itself
            since = components["event_loop"]["since"] if "event_loop" in components else datetime.now(UTC)
            components["event_loop"] = self._view("event_loop", checks.judge_event_loop(self._policies, stuck_ms), since)
        worst = max((view["status"] for view in components.values()), key=lambda status: RANK[status], default="unhealthy")
        return {
            "status": worst,
            "version": __version__,
            "instance": self.identity.id,
            "kind": self.identity.kind,
            "checked_s_ago": round(monotonic() - self._checked_at, 3) if self._checked_at else None,
            "components": components,
            "history": self._history[:history],
        }

    async def leave(self) -> None:
        """Remove this process from the registry, if the database answers."""
        await self.presence.leave(self._registry)

    async def close(self) -> None:
        """Cancel a check in progress, and close the connections."""
        for task in (self._checking, self._storing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._registry.terminate()
        self.probe.terminate()

    async def _check_regularly(self) -> None:
        while True:
            await self.check()
            await asyncio.sleep(self._interval_s)

    async def _show_presence(self) -> None:
        await self.presence.run(self._registry)

    async def _read_heartbeat(self) -> None:
        """Read the heartbeat every `heartbeat_interval_s`, as `Heartbeat` expects."""
        heartbeat = self._watched.heartbeat
        while heartbeat.is_expected:
            with suppress(*LOST):
                async with self._registry.use() as conn:
                    await heartbeat.read(conn)
            await asyncio.sleep(self._heartbeat_interval_s)

    async def _check(self) -> None:
        self._began_at = monotonic()
        await asyncio.gather(*(self._note(component) for component in CHECKS))
        self._began_at, self._checked_at = None, monotonic()
        if self._storing is None or self._storing.done():  # beside the next check, which need not wait for it
            self._storing = asyncio.create_task(self._store_changes())

    def _current(self, component: str, known: _Component) -> Reading:
        """The latest reading, or, if a check should have replaced it by now, that there is no newer one."""
        now, began_at = monotonic(), self._began_at
        is_late = began_at is not None and known.checked_at < began_at and now - began_at >= CHECK_TIMEOUT_S
        age_s = now - known.checked_at
        if is_late:
            return _unanswered(component, f"no answer within {CHECK_TIMEOUT_S} s")
        if age_s > self._interval_s + _OVERDUE_S:
            return _unanswered(component, f"not checked for {age_s:.0f} s")
        return known.reading

    async def _note(self, component: str) -> None:
        """Run one check, and note a change of status."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                reading = await CHECKS[component](self._watched)
        except TimeoutError:
            reading = _unanswered(component, f"no answer within {CHECK_TIMEOUT_S} s")
        except Exception as error:
            log.exception("health.check_failed", component=component)
            reading = Reading("degraded", None, "", f"the check failed: {type(error).__name__}", "Report this as a bug.")
        known = self._components.get(component)
        now = datetime.now(UTC)
        was: Status = known.reading.status if known is not None else "healthy"
        self._components[component] = _Component(
            reading, known.since if known and was == reading.status else now, monotonic()
        )
        metrics.COMPONENT_STATUS.set(RANK[reading.status], component)
        if was != reading.status:
            self._note_change(now, component, was, reading)

    def _note_change(self, at: datetime, component: str, was: Status, reading: Reading) -> None:
        metrics.HEALTH_CHANGES.add(1, component)
        write = log.warning if RANK[reading.status] > RANK[was] else log.info
        write(
            "health.changed",
            component=component,
            was=was,
            status=reading.status,
            figure=reading.figure,
            unit=reading.unit,
            detail=reading.detail,
        )
        degraded, unhealthy = self._limits(component)
        threshold = unhealthy if reading.status == "unhealthy" else degraded
        figures = (reading.figure, threshold, reading.unit, reading.detail)
        self._changes.append((at, self.identity.id, component, was, reading.status, *figures))

    async def _store_changes(self) -> None:
        """Store the changes, including those that could not be stored earlier, and read those of all processes."""
        with suppress(*LOST):
            async with self._registry.use() as conn:
                if self._changes:
                    waiting = list(self._changes)
                    async with conn.transaction():
                        await store.record(conn, waiting)
                    for _ in waiting:
                        self._changes.popleft()
                self._history = [dict(row) for row in await store.history(conn, HISTORY_MAX)]

    def _limits(self, component: str) -> tuple[float, float | None]:
        return checks.limits_of(component, self._policies.threshold)

    def _view(self, component: str, reading: Reading, since: datetime) -> dict[str, Any]:
        degraded, unhealthy = self._limits(component)
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


async def _keep_running(loop: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await loop()
        except Exception:
            log.exception("health.failed", loop=getattr(loop, "__name__", ""))
        else:
            return
        await asyncio.sleep(_RESTART_S)


def _unanswered(component: str, detail: str) -> Reading:
    return Reading("unhealthy" if component == "database" else "degraded", None, "", detail, REMEDIES[component])
