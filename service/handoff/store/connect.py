"""Connections to Postgres, and the one place where an unreachable database becomes an error for the caller."""

import asyncio
import math
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from time import perf_counter, time_ns
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

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

# Errors of a server that is unreachable, starting, stopping or overloaded. Any other Postgres error is a bug of ours.
AWAY: tuple[type[BaseException], ...] = (
    OSError,  # includes TimeoutError
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.PostgresSystemError,  # its own files: they are gone, can't be read, or the disk fails
)

# Every error of a dedicated connection for which the only remedy is to try again later.
LOST: Final = (*AWAY, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_ANSWER_S: Final = 0.3  # in which a standby connection must answer before it is used again; a good one takes under 1 ms
ACQUIRE_TIMEOUT_S = 5.0  # includes the time to open a new connection
UNTRACED: Final = frozenset({"BEGIN", "COMMIT", "ROLLBACK"})  # timed, but not traced: spans of a call are limited


# What ends a statement without its having failed: a lost race, after which it is run again, or a caller that has gone.
_EXPECTED: Final = (asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError, asyncio.CancelledError)


class MeasuredConnection(asyncpg.Connection):
    """A connection that times each statement under its name and adds it to the record of the current call."""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run asyncpg's `execute` and time it."""
        return await _timed(query, super().execute(query, *args, timeout=timeout))

    async def fetch(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> list[Any]:
        """Run asyncpg's `fetch` and time it."""
        return await _timed(query, super().fetch(query, *args, timeout=timeout, record_class=record_class))

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None, record_class: Any = None) -> Any:
        """Run asyncpg's `fetchrow` and time it."""
        return await _timed(query, super().fetchrow(query, *args, timeout=timeout, record_class=record_class))

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        """Run asyncpg's `fetchval` and time it."""
        return await _timed(query, super().fetchval(query, *args, column=column, timeout=timeout))


SQLSTATE: Final = metrics.SQLSTATE.name
_NO_STATUS: Final[dict[str, str]] = {}


async def _timed(query: str, running: Awaitable[T]) -> T:
    name = name_of(query)
    start_ns, began = time_ns(), perf_counter()
    error, status = "", _NO_STATUS
    try:
        return await running
    except _EXPECTED:
        raise
    except BaseException as raised:
        error, status = type(raised).__name__, status_of(raised)
        raise
    finally:
        metrics.statement_ended(name, perf_counter() - began, error, status.get(SQLSTATE, ""))
        record = calls.current()
        if record is not None and name not in UNTRACED:
            attributes = {"db.system.name": "postgresql", "db.query.summary": name, **status}
            record.add(calls.finished(name, start_ns, error, **attributes))


def status_of(raised: BaseException) -> dict[str, str]:
    """The attribute of a span for what Postgres answered, if it was Postgres that made a statement fail."""
    sqlstate = getattr(raised, "sqlstate", None)
    return {SQLSTATE: sqlstate} if sqlstate else _NO_STATUS


async def open_pool(settings: Settings) -> Pool:
    """Return a pool for `settings.database_url`.

    It connects on first use, so that the service can start while the database is unreachable.
    """
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
    """Open a connection outside the pool. `server` adds to our server settings or overrides them.

    Every statement has the same time limit as in the pool, because a connection can be cut without either end being told:
    then nothing ever arrives, and only a limit ends the wait.
    """
    if settings.database_url is None:
        raise ValueError("HANDOFF_DATABASE_URL is not set")
    return await asyncpg.connect(
        settings.database_url.get_secret_value(),
        password=settings.database_password(),
        timeout=settings.connect_timeout_s,
        command_timeout=settings.statement_timeout_s,
        server_settings={**server_settings(settings), **server},
    )


def address(settings: Settings) -> str:
    """Return where the database is: host:port, or the path of its socket. It contains no user and no password."""
    if settings.database_url is None:
        return "HANDOFF_DATABASE_URL, which is not set"
    parts = urlsplit(settings.database_url.get_secret_value())
    query = dict(parse_qsl(parts.query))
    host = query.get("host") or unquote(parts.netloc.rpartition("@")[2])
    name, _, port = host.rpartition(":") if host[-1:].isdigit() and ":" in host else (host, "", "")
    port = query.get("port") or port or os.environ.get("PGPORT", "5432")
    name = name or os.environ.get("PGHOST", "localhost")
    return f"{name}/.s.PGSQL.{port}" if name.startswith("/") else f"{name}:{port}"


class StandbyConnection:
    """A connection outside the pool, opened on demand and used by one task at a time.

    After any error during use, including a timeout, the next use opens a new connection. So does a use that finds that the
    connection no longer answers: that a connection was cut does not mean that the database is away.
    """

    def __init__(self, settings: Settings, **server: str) -> None:
        self._settings = settings
        self._server = server
        self._conn: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def use(self) -> AsyncGenerator[Connection]:
        """Hold the connection exclusively until the end of the block. Raises one of LOST."""
        async with self._lock:
            try:
                if self._conn is not None and not await _answers(self._conn):
                    self.terminate()
                if self._conn is None:
                    self._conn = await connect_alone(self._settings, **self._server)
                yield self._conn
            except BaseException:
                self.terminate()
                raise

    def terminate(self) -> None:
        """Close the connection at once, without the protocol's termination message."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.terminate()


async def _answers(conn: asyncpg.Connection) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_S):
            await conn.fetchval("SELECT 1")
    except LOST:
        return False
    return True


def server_settings(settings: Settings) -> dict[str, str]:
    """Return the server settings of every connection.

    The timeouts are enforced by Postgres as well, so that a client that disappears leaves no lock behind. The keepalives end
    the sessions of a machine that is gone, within 90 s instead of the two hours that are usual.
    """
    limit_ms = str(math.ceil(settings.statement_timeout_s * 1_000))
    return {
        "application_name": "handoff",
        "timezone": "UTC",
        "jit": "off",  # our statements are short: compiling one would take longer than running it
        "statement_timeout": limit_ms,
        "idle_in_transaction_session_timeout": limit_ms,
        "tcp_keepalives_idle": "60",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        **(
            {"handoff.webhooks": "on"} if settings.webhooks_file is not None else {}
        ),  # read by a trigger (0029_webhooks.sql)
    }


async def prepare_connection(conn: Connection) -> None:
    """Convert jsonb to and from Python values with orjson."""
    await conn.set_type_codec("jsonb", schema="pg_catalog", encoder=_encode_jsonb, decoder=orjson.loads, format="text")


def _encode_jsonb(value: Any) -> str:
    return to_json(value).decode()


async def _no_reset(_: Connection) -> None:
    """Skip the reset query: we set no session state, and this saves a round trip on each release."""


@asynccontextmanager
async def connection(pool: Pool) -> AsyncGenerator[Connection]:
    """Take a connection from the pool. Raises Unavailable, and discards the connection, if the database is unreachable."""
    began = perf_counter()
    metrics.POOL_PENDING.add(1)
    try:
        conn = await pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
        metrics.POOL_WAIT.record(perf_counter() - began)
    except (*AWAY, asyncpg.InterfaceError, asyncpg.PostgresError) as error:  # includes a server that rejects the login
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
        if isinstance(error, asyncpg.InterfaceError) and not _is_lost(conn):
            raise  # a misuse of the driver, not a lost connection
        # A timeout is an OSError: a server that does not answer will not answer a cancel request either. The driver raises
        # InternalClientError when the server has closed the connection and the driver has not noticed yet.
        if isinstance(error, OSError | asyncpg.InternalClientError):
            with suppress(Exception):
                conn.terminate()
        raise database_unavailable() from error
    finally:
        with suppress(*AWAY, asyncpg.InterfaceError, asyncpg.InternalClientError):
            await pool.release(conn, timeout=1)


def _is_lost(conn: Connection) -> bool:
    try:
        return conn.is_closed()
    except asyncpg.InterfaceError:  # the pool has taken the connection away, as it does as soon as the server closes one
        return True


async def transact(pool: Pool, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Run `work` in a transaction and return its result after the commit. A deadlock is retried once."""
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
    """Run `effect` after the transaction that `transact` is running commits; never if it is rolled back.

    Metrics and spans of a change belong here, so that a change that is rolled back or retried is not counted.
    """
    effects = _effects.get()
    if effects is None:
        raise LookupError("after_commit was called outside transact")
    effects.append(effect)


@asynccontextmanager
async def snapshot(pool: Pool) -> AsyncGenerator[Connection]:
    """Take a connection in a read-only transaction whose statements all see the same snapshot."""
    async with connection(pool) as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        yield conn
