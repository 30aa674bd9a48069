"""The pool, and the one place where a database that is away becomes an error that a caller can act on."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from time import perf_counter, time_ns
from typing import Any, Final, TypeVar

import asyncpg
import orjson
from asyncpg.pool import PoolConnectionProxy

from handoff.encoding import to_json
from handoff.errors import database_unavailable
from handoff.settings import Settings
from handoff.store.statements import name_of
from handoff.telemetry import calls, metrics

T = TypeVar("T")
Connection = asyncpg.Connection | PoolConnectionProxy
Pool = asyncpg.Pool

# What a lost, starting, stopping or overloaded server raises. Everything else that Postgres says is our bug.
AWAY: tuple[type[BaseException], ...] = (
    OSError,  # TimeoutError is one
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)


# Whatever can go wrong with a connection of one's own, on which there is nothing to do but to try again later.
LOST: Final = (*AWAY, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

ACQUIRE_TIMEOUT_S = 5.0  # in the queue for a connection, connecting included
UNTRACED: Final = frozenset({"BEGIN", "COMMIT", "ROLLBACK"})  # measured, but no spans: they would crowd out what was done


class MeasuredConnection(asyncpg.Connection):
    """A connection whose statements are measured under their names, and noted down in the call that runs them."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As asyncpg's."""
        return await _timed(query, super().execute(query, *args, timeout=timeout))

    async def fetch(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> list[Any]:
        """As asyncpg's."""
        return await _timed(query, super().fetch(query, *args, timeout=timeout, record_class=record_class))

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> Any:
        """As asyncpg's."""
        return await _timed(query, super().fetchrow(query, *args, timeout=timeout, record_class=record_class))

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        """As asyncpg's."""
        return await _timed(query, super().fetchval(query, *args, column=column, timeout=timeout))


async def _timed(query: str, running: Awaitable[T]) -> T:
    name = name_of(query)
    start_ns, began = time_ns(), perf_counter()
    error = ""
    try:
        return await running
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        metrics.statement_ended(name, perf_counter() - began, error)
        record = calls.current()
        if record is not None and name not in UNTRACED:
            attributes: dict[str, calls.AttributeValue] = {"db.system.name": "postgresql", "db.query.summary": name}
            record.add(calls.finished(name, start_ns, error, **attributes))


async def open_pool(settings: Settings) -> Pool:
    """A pool on `settings.database_url`. It connects on first use, so a database that is away is no reason not to start."""
    if settings.database_url is None:
        raise ValueError("HANDOFF_DATABASE_URL is not set")
    return await asyncpg.create_pool(
        settings.database_url.get_secret_value(),
        password=settings.database_password(),
        connection_class=MeasuredConnection,
        min_size=0,
        max_size=settings.pool_size,
        max_inactive_connection_lifetime=300,
        timeout=settings.connect_timeout_s,
        command_timeout=settings.statement_timeout_s,
        init=prepare_connection,
        reset=_no_reset,
        server_settings=server_settings(settings),
    )


async def connect_alone(settings: Settings, **server: str) -> asyncpg.Connection:
    """A connection outside of the pool, with our time limits unless `server` says otherwise."""
    if settings.database_url is None:
        raise ValueError("HANDOFF_DATABASE_URL is not set")
    return await asyncpg.connect(
        settings.database_url.get_secret_value(),
        password=settings.database_password(),
        timeout=settings.connect_timeout_s,
        server_settings={**server_settings(settings), **server},
    )


class StandbyConnection:
    """A connection outside the pool, opened when it is needed and used by one task at a time.

    Whatever goes wrong while it is used, a time limit included, the next use begins with a new connection.
    """

    def __init__(self, settings: Settings, **server: str) -> None:
        self._settings = settings
        self._server = server
        self._conn: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def use(self) -> AsyncGenerator[Connection]:
        """The connection, for this task alone until the end of the block. Raises one of LOST."""
        async with self._lock:
            try:
                if self._conn is None:
                    self._conn = await connect_alone(self._settings, **self._server)
                yield self._conn
            except BaseException:
                self.terminate()
                raise

    def terminate(self) -> None:
        """Close it without a goodbye."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.terminate()


def server_settings(settings: Settings) -> dict[str, str]:
    """What each of our connections asks of Postgres: its own time limits, so that a lost client leaves no lock behind."""
    limit_ms = str(math.ceil(settings.statement_timeout_s * 1_000))
    return {
        "application_name": "handoff",
        "timezone": "UTC",
        "jit": "off",  # our statements are short; compiling one costs more than running it
        "statement_timeout": limit_ms,
        "idle_in_transaction_session_timeout": limit_ms,
    }


async def prepare_connection(conn: Connection) -> None:
    """Jsonb in and out as Python values, through orjson."""
    await conn.set_type_codec("jsonb", schema="pg_catalog", encoder=_encode_jsonb, decoder=orjson.loads, format="text")


def _encode_jsonb(value: Any) -> str:
    return to_json(value).decode()


async def _no_reset(_: Connection) -> None:
    """We set no session state, so there is nothing to reset: a round trip saved at each release."""


@asynccontextmanager
async def connection(pool: Pool) -> AsyncGenerator[Connection]:
    """A connection from the pool. A database that is away raises `Unavailable`; its connection is thrown away."""
    began = perf_counter()
    metrics.POOL_PENDING.add(1)
    try:
        conn = await pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
        metrics.POOL_WAIT.record(perf_counter() - began)
    except (*AWAY, asyncpg.InterfaceError, asyncpg.PostgresError) as error:  # one that refuses us is no use either
        if isinstance(error, asyncpg.InterfaceError) and not pool.is_closing():
            raise
        if isinstance(error, TimeoutError):
            metrics.POOL_TIMEOUTS.add(1)
        raise database_unavailable() from error
    finally:
        metrics.POOL_PENDING.add(-1)
    try:
        yield conn
    except (*AWAY, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        if isinstance(error, asyncpg.InterfaceError) and not conn.is_closed():
            raise  # misuse, not loss
        # A time limit is an OSError: a server that does not answer won't answer a cancellation. An InternalClientError is
        # what the driver raises when the server has just closed the connection and that was not yet noticed.
        if isinstance(error, OSError | asyncpg.InternalClientError):
            with suppress(Exception):
                conn.terminate()
        raise database_unavailable() from error
    finally:
        with suppress(*AWAY, asyncpg.InterfaceError):
            await pool.release(conn, timeout=1)


async def transact(pool: Pool, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Run `work` in a transaction and return what it returned, after the commit. A deadlock is tried once more."""
    try:
        return await _transact_once(pool, work)
    except asyncpg.DeadlockDetectedError:
        pass
    try:
        return await _transact_once(pool, work)
    except asyncpg.DeadlockDetectedError as error:
        raise database_unavailable() from error


async def _transact_once(pool: Pool, work: Callable[[Connection], Awaitable[T]]) -> T:
    effects: list[Callable[[], None]] = []
    outer = _effects.set(effects)
    try:
        async with connection(pool) as conn, conn.transaction():
            result = await work(conn)
    finally:
        _effects.reset(outer)
    for effect in effects:
        effect()
    return result


_effects: ContextVar[list[Callable[[], None]] | None] = ContextVar("effects", default=None)


def after_commit(effect: Callable[[], None]) -> None:
    """Do this once the transaction that `transact` is running has been committed; never, if it is not.

    Counts and spans of what changed belong here, so that nothing is counted that was rolled back or is tried again.
    """
    effects = _effects.get()
    if effects is None:
        raise LookupError("after_commit belongs into work that transact runs")
    effects.append(effect)


@asynccontextmanager
async def snapshot(pool: Pool) -> AsyncGenerator[Connection]:
    """A read-only connection on which all statements see the database as of one moment."""
    async with connection(pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        yield conn
