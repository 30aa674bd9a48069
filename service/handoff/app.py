"""Everything that lives as long as the process, opened and closed in one place."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

import asyncpg
import structlog

from handoff.auth import Tokens
from handoff.cache import Cache, open_cache
from handoff.errors import HandoffError, Unavailable
from handoff.model import Caller
from handoff.settings import Settings
from handoff.store import handoffs
from handoff.store.append import AppendLane
from handoff.store.connect import AWAY, Connection, Pool, connection, open_pool, transact
from handoff.store.migrate import MigrationError, migrate, pending
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
async def open_app(settings: Settings) -> AsyncGenerator[App]:
    """Migrate the database, open the pool and the cache, listen for wakeups, and settle what the clock decides.

    Waits up to `startup_timeout_s` for a database that is still coming up.
    """
    tokens = Tokens(settings.tokens_file) if settings.tokens_file is not None else None
    await migrate_when_up(settings)
    pool = await open_pool(settings)
    wakeups = Wakeups(pool, settings)
    app = App(settings, pool, AppendLane(pool, settings), open_cache(settings), wakeups, tokens)
    wakeups.start()
    settling = asyncio.create_task(_keep_settling(app))
    try:
        yield app
    finally:
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
        await wakeups.close()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await app.lane.drain()
                await pool.close()
        except TimeoutError:
            pool.terminate()
        await app.cache.close()


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


async def _keep_settling(app: App) -> None:
    while True:
        await asyncio.sleep(app.settings.settle_interval_s)
        if app.tokens is not None:
            app.tokens.refresh()
        try:
            count = await settle_overdue(app)
        except HandoffError as error:
            log.warning("settle.failed", code=error.code, cause=repr(error.__cause__))
        except Exception:
            log.exception("settle.failed", code="internal")
        else:
            if count:
                log.info("settle.done", handoffs=count)
