"""Everything that lives as long as the process, opened and closed in one place."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Literal
from uuid import uuid4

import asyncpg
import structlog

from handoff.cache import Cache, open_cache
from handoff.errors import Unavailable
from handoff.model import Caller
from handoff.operations.alerts import Alerts
from handoff.operations.health import Health, Identity
from handoff.server.auth import Tokens
from handoff.settings import Settings
from handoff.store import handoffs
from handoff.store.append import AppendLane
from handoff.store.connect import AWAY, Connection, Pool, connection, open_pool, transact
from handoff.store.migrate import MigrationError, migrate, pending
from handoff.telemetry import metrics, spans
from handoff.telemetry.logs import Filters, follow_filters
from handoff.telemetry.otlp import Signals, start_signals
from handoff.wakeups import Wakeups

log = structlog.get_logger(__name__)

_OVERDUE_AT_ONCE = 100
_READY_TIMEOUT_S = 1.0
_CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class App:
    """What a call works with."""

    settings: Settings
    pool: Pool
    lane: AppendLane
    cache: Cache
    wakeups: Wakeups
    tokens: Tokens | None
    alerts: Alerts
    health: Health
    signals: Signals | None

    async def unready(self) -> str | None:
        """None if the database answers and has our schema, within a second; otherwise what is wrong."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                async with connection(self.pool) as conn:
                    lacking = await pending(conn)
        except (Unavailable, TimeoutError, asyncpg.InternalClientError):  # the last: cut off while we were asking
            return "the database does not answer"
        except MigrationError as error:
            return str(error)
        except asyncpg.PostgresError as error:
            return f"the database refuses: {type(error).__name__}"
        return f"the database lacks migrations: {', '.join(lacking)}" if lacking else None


@dataclass(frozen=True, slots=True)
class Call:
    """One call: what it works with, who makes it and when it arrived (monotonic seconds)."""

    app: App
    caller: Caller
    received: float


@asynccontextmanager
async def open_app(
    settings: Settings, kind: Literal["service", "worker"] = "service", *, operations: str | None = None
) -> AsyncGenerator[App]:
    """Migrate the database, open the pool and the cache, listen for wakeups, look after health, and start the signals.

    Waits up to `startup_timeout_s` for a database that is still coming up. `operations` is the host:port at which others
    reach this process's operations port.
    """
    tokens = Tokens(settings.tokens_file) if settings.tokens_file is not None else None
    filters = follow_filters(settings.logging_file)
    async with _signals(settings, kind) as signals:
        await migrate_when_up(settings)
        pool = await open_pool(settings)
        _measure_pool(pool)
        wakeups = Wakeups(pool, settings)
        cache = open_cache(settings)
        id_ = str(signals.resource.attributes["service.instance.id"]) if signals is not None else uuid4().hex
        identity = Identity(id_, kind, operations, does_jobs=settings.jobs or kind == "worker")
        health = Health(settings, identity, cache, signals.shipments if signals is not None else None)
        app = App(settings, pool, AppendLane(pool, settings), cache, wakeups, tokens, Alerts(pool), health, signals)
        wakeups.start()
        running = (health.run(), app.alerts.run(), _keep_current(settings, tokens, filters))
        background = [asyncio.create_task(it) for it in running]
        try:
            yield app
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await wakeups.close()
            await _close(app)


@asynccontextmanager
async def _signals(settings: Settings, kind: str) -> AsyncGenerator[Signals | None]:
    """The process's way out for signals, first up and last down; None where telemetry is off."""
    if not settings.telemetry:
        yield None
        return
    signals = start_signals(settings, "handoff" if kind == "service" else "handoff-worker")
    spans.use(signals.tracer)
    try:
        yield signals
    finally:
        spans.use(None)
        await asyncio.to_thread(signals.stop)


def _measure_pool(pool: Pool) -> None:
    metrics.POOL_MAX.source = lambda: [(pool.get_max_size(), ())]
    metrics.POOL_CONNECTIONS.source = lambda: [
        (pool.get_idle_size(), ("idle",)),
        (pool.get_size() - pool.get_idle_size(), ("used",)),
    ]


async def _close(app: App) -> None:
    await app.health.close()
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await app.lane.drain()
            await app.pool.close()
    except TimeoutError:
        app.pool.terminate()
    await app.cache.close()


async def _keep_current(settings: Settings, tokens: Tokens | None, filters: Filters) -> None:
    """Read again the files that may change while the process runs."""
    while True:
        await asyncio.sleep(min(settings.settle_interval_s, 5.0))
        if tokens is not None:
            tokens.refresh()
        filters.refresh()


async def migrate_when_up(settings: Settings) -> list[str]:
    """Apply the migrations; wait for a database that is still coming up. Raises OSError or what Postgres said last."""
    give_up = monotonic() + settings.startup_timeout_s
    pause_s = 0.1
    while True:
        try:
            applied = await migrate(settings)
        except AWAY as error:
            if monotonic() + pause_s > give_up:
                raise
            log.info("database.awaited", error=type(error).__name__, retry_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 2.0)
            continue
        for name in applied:
            log.info("migration.applied", name=name)
        return applied


async def settle_overdue(app: App) -> int:
    """Settle what is overdue, one handoff a transaction; return how many.

    Processes may do it side by side: each locks what it settles, and looks again.
    """
    async with connection(app.pool) as conn:
        overdue = await handoffs.overdue(conn, _OVERDUE_AT_ONCE)
    settled = 0
    for handoff_id in overdue:

        async def work(conn: Connection, handoff_id: int = handoff_id) -> None:
            row = await handoffs.lock(conn, handoff_id)
            if row is not None:
                await handoffs.settle(conn, row, app.settings.lapses_max)

        try:
            await transact(app.pool, work)
            settled += 1
        except Unavailable:
            raise
        except Exception:  # one that can't be settled must not keep the others waiting
            log.exception("settle.failed", handoff_id=handoff_id)
    return settled
