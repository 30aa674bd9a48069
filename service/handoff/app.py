"""Opens and closes everything that lives as long as the process."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

import structlog

from handoff import __version__
from handoff.cache import open_cache
from handoff.context import App
from handoff.errors import HandoffError
from handoff.figures import Figures
from handoff.jobs.table import JOBS
from handoff.operations.alerts import Alerts
from handoff.operations.health import Health
from handoff.operations.heartbeat import Heartbeat
from handoff.operations.minutes import Minutes
from handoff.operations.presence import Identity, Presence
from handoff.policies import Policies
from handoff.server.admission import Admission
from handoff.server.auth import Tokens
from handoff.settings import Settings
from handoff.store import agents
from handoff.store.connect import Pool, StandbyConnection, connection, open_pool
from handoff.store.lane import AppendLane
from handoff.tasks import end_tasks
from handoff.telemetry import calls, metrics, spans
from handoff.telemetry.environment import is_disabled, reads_parents, unheeded
from handoff.telemetry.filters import Filters
from handoff.telemetry.logs import follow_filters, identify_logs
from handoff.wakeups import Wakeups

if TYPE_CHECKING:
    from handoff.telemetry.otlp import Signals

log = structlog.get_logger(__name__)

_CLOSE_TIMEOUT_S = 5.0
_LEAVE_S = 1.0
_LOOK_AT_FILES_S = 1.0  # a changed tokens file takes effect at the second look

Kind = Literal["service", "worker"]


@asynccontextmanager
async def open_app(
    settings: Settings, kind: Kind = "service", *, signals: "Signals | None" = None, operations: str | None = None
) -> AsyncGenerator[App]:
    """Open everything that an App holds, start its background tasks, and close it all at the end of the block.

    The database must have the schema already. `signals` are those of `open_telemetry`. `operations` is the host:port at
    which Prometheus reaches this process's operations port, None without one.
    """
    id_ = str(signals.resource.attributes["service.instance.id"]) if signals is not None else uuid4().hex
    identify_logs("handoff" if kind == "service" else "handoff-worker", id_, __version__)
    tokens = Tokens(settings.tokens_file) if settings.tokens_file is not None else None
    filters = follow_filters(settings.logging_file)
    log.info(
        "process.started",
        kind=kind,
        settings=settings.changed(),
        tokens="from a file" if tokens is not None else "none: anyone may call",
        telemetry="exported" if signals is not None else "off",
    )
    pool = await open_pool(settings)
    _observe_pool(pool)
    registry = StandbyConnection(settings, application_name="handoff-presence")
    policies = Policies(settings, registry, [job.name for job in JOBS])
    policies.on_change.append(partial(_configure_logs, policies, filters))
    _configure_logs(policies, filters)
    identity = Identity(id_, kind, operations, runs_jobs=settings.jobs or kind == "worker")
    cache = open_cache(settings)
    heartbeat = Heartbeat(settings)
    shipments = signals.shipments if signals is not None else None
    health = Health(settings, policies, registry, Presence(settings, identity), cache, heartbeat, shipments, tokens)
    app = App(
        settings=settings,
        policies=policies,
        pool=pool,
        lane=AppendLane(pool, settings),
        cache=cache,
        figures=Figures(cache),
        wakeups=Wakeups(pool, settings),
        admission=Admission(settings),
        tokens=tokens,
        alerts=Alerts(pool),
        heartbeat=heartbeat,
        health=health,
        signals=signals,
    )
    app.wakeups.on_configuration.append(policies.wake)
    app.wakeups.start()
    minutes = Minutes(settings, identity, registry)
    running = (
        health.run(),
        policies.run(),
        minutes.run(),
        app.alerts.run(),
        _follow_files(settings, pool, tokens, filters, policies),
    )
    background = [asyncio.create_task(task) for task in running]
    try:
        yield app
    finally:
        await end_tasks(background)
        await app.wakeups.close()
        is_drained = await _close(app, minutes)
        dropped = {name: it.dropped for name, it in signals.shipments().items()} if signals is not None else None
        log.info("process.stopped", kind=kind, appends_drained=is_drained, telemetry_dropped=dropped)


@asynccontextmanager
async def open_telemetry(settings: Settings, kind: Kind = "service") -> "AsyncGenerator[Signals | None]":
    """Start the process's exporters, and stop them at the end of the block. Yields None if telemetry is off."""
    if not settings.telemetry or is_disabled(os.environ):
        yield None
        return
    for name, why in unheeded(os.environ).items():
        log.warning("telemetry.setting_unheeded", name=name, why=why)
    from handoff.telemetry.otlp import start_signals  # an eighth of the time that loading the service takes

    signals = start_signals(settings, "handoff" if kind == "service" else "handoff-worker")
    spans.use(signals.tracer)
    calls.read_parents(flag=reads_parents(os.environ))
    try:
        yield signals
    finally:
        spans.use(None)
        calls.read_parents(flag=True)
        await asyncio.to_thread(signals.stop)


def _observe_pool(pool: Pool) -> None:
    metrics.POOL_MAX.source = lambda: [(pool.get_max_size(), ())]
    metrics.POOL_CONNECTIONS.source = lambda: [
        (pool.get_idle_size(), ("idle",)),
        (pool.get_size() - pool.get_idle_size(), ("used",)),
    ]


async def _close(app: App, minutes: Minutes) -> bool:
    """Say the last things, and close what the App holds; return whether every append was answered in time."""
    await app.figures.close()
    is_drained, _ = await asyncio.gather(_drain(app), _leave(app, minutes))  # there is no time for one after the other
    await app.health.close()
    await app.cache.close()
    return is_drained


async def _leave(app: App, minutes: Minutes) -> None:
    """Write the last minute and leave the registry, if the database takes both within a second."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LEAVE_S):
            await minutes.leave()
            await app.health.leave()


async def _drain(app: App) -> bool:
    """Let appends in progress end, and close the pool; return whether they did in time."""
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await app.lane.drain()
            await app.pool.close()
    except TimeoutError:
        app.pool.terminate()
        return False
    return True


def _configure_logs(policies: Policies, filters: Filters) -> None:
    monitoring = policies.monitoring
    filters.configure(monitoring.log_level, [it.model_dump(exclude_none=True) for it in monitoring.log_filters])


async def _follow_files(settings: Settings, pool: Pool, tokens: Tokens | None, filters: Filters, policies: Policies) -> None:
    """Read the files again that can change while the process runs: tokens, log filters, and the configuration file.

    Agents also lose the capabilities that they declared before the tokens file forbade them.
    """
    restricted = 0  # the version of the tokens by which agents were restricted last
    while True:
        if tokens is not None and restricted != tokens.version:
            version = tokens.version
            with suppress(HandoffError):  # the database is away
                async with connection(pool) as conn:
                    if names := await agents.restrict(conn, tokens.capabilities()):
                        log.info("auth.capabilities_withdrawn", agents=len(names))
                restricted = version
        await asyncio.sleep(min(settings.settle_interval_s, _LOOK_AT_FILES_S))
        if tokens is not None:
            tokens.refresh()
        filters.refresh()
        policies.refresh_file()
