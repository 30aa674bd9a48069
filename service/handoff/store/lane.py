"""Appends with group commit: waiting appends go to Postgres as one statement.

Each caller is answered after the commit. No timer is involved: a batch is whatever arrived while the previous one was being
committed. A lone append therefore pays nothing for batching, and under load one round trip, one row lock per session and one
flush to disk serve up to `append_batch_max` appends.
"""

import asyncio
from collections import deque
from contextlib import suppress
from contextvars import Context
from time import monotonic, time_ns
from typing import Final

import asyncpg
import structlog

from handoff.errors import HandoffError, Unavailable
from handoff.settings import Settings
from handoff.store.append import APPEND, APPEND_UNLOCKED, Append, Appended, columns, count, outcome
from handoff.store.connect import Pool, connection, status_of
from handoff.telemetry import calls, metrics

log = structlog.get_logger(__name__)

_ASIDE_MAX: Final = 2  # connections that wait for locked sessions
# Errors of a statement that raced another process for a lock or a key. Run again, it sees what the other process committed.
# A single append can lose more than one race: first a deadlock, then its key to a process that ran in the meantime.
_RACES = (asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError)
_RACES_LOST_MAX = 3
_SPAN: Final[dict[str, calls.AttributeValue]] = {"db.system.name": "postgresql", "db.query.summary": "append.APPEND"}


class AppendLane:
    """The queue of appends, one per process: while one batch is being committed, the next one collects.

    Appends to a session that is locked at that moment are set aside, and wait for it without delaying the others.
    """

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._pool = pool
        self._settings = settings
        self._waiting: deque[Append] = deque()
        self._running: asyncio.Task[None] | None = None
        self._aside: dict[str, deque[Append]] = {}
        self._running_aside: set[asyncio.Task[None]] = set()
        metrics.APPENDS_WAITING.source = lambda: [(self._queued, ())]

    @property
    def _queued(self) -> int:
        return len(self._waiting) + sum(map(len, self._aside.values()))

    async def append(self, item: Append) -> Appended:
        """Append and wait for the commit. A caller that is cancelled does not undo its append.

        Raises:
            HandoffError: why the append was not made, or, if it is `unavailable`, that its outcome is unknown.
        """
        if self._queued >= self._settings.append_queue_max:
            _release(item)
            raise _overloaded()
        self._waiting.append(item)
        if self._running is None:
            self._running = asyncio.create_task(self._run(), context=Context())  # not the caller's: it serves all calls
        return await item.answer

    async def drain(self) -> None:
        """Wait until every queued append has been answered."""
        while running := [task for task in (self._running, *self._running_aside) if task is not None]:
            await asyncio.wait(running)

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._take(self._waiting)
                if batch:
                    await self._commit(batch, APPEND_UNLOCKED)
        finally:
            self._running = None

    def _set_aside(self, item: Append) -> None:
        self._aside.setdefault(item.session_key, deque()).append(item)
        if len(self._running_aside) < _ASIDE_MAX:
            task = asyncio.create_task(self._run_aside(), context=Context())
            self._running_aside.add(task)
            task.add_done_callback(self._running_aside.discard)

    async def _run_aside(self) -> None:
        while self._aside:
            waiting = self._aside.pop(next(iter(self._aside)))
            while waiting:
                batch = self._take(waiting)
                if batch:
                    await self._commit(batch, APPEND)

    def _take(self, waiting: deque[Append]) -> list[Append]:
        """Remove from the queue the longest prefix whose appends can share a statement, in order.

        An append with an expected_sequence must be the only one for its session, and each idempotency key may occur once.
        An append that would break this starts the next batch, which sees what this one wrote.
        """
        batch: list[Append] = []
        sessions: set[str] = set()
        alone: set[str] = set()
        keys: set[tuple[str, str]] = set()
        size_bytes = 0
        oldest = monotonic() - self._settings.append_wait_s_max
        while waiting and len(batch) < self._settings.append_batch_max:
            item = waiting[0]
            if item.received < oldest:
                waiting.popleft()
                _fail([item], _overloaded())
                continue
            owned_key = (item.agent, item.idempotency_key) if item.idempotency_key is not None else None
            if batch and (
                item.session_key in alone
                or (item.expected_sequence is not None and item.session_key in sessions)
                or (owned_key is not None and owned_key in keys)
                or size_bytes + item.size_bytes > self._settings.append_batch_bytes_max
            ):
                break
            waiting.popleft()
            batch.append(item)
            size_bytes += item.size_bytes
            sessions.add(item.session_key)
            if item.expected_sequence is not None:
                alone.add(item.session_key)
            if owned_key is not None:
                keys.add(owned_key)
        return batch

    async def _commit(self, batch: list[Append], statement: str) -> None:
        try:
            await self._execute(batch, statement)
        except HandoffError as error:
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001 - the call that receives it logs it, see _fail
            if len(batch) == 1 and not isinstance(error, _RACES):
                _fail(batch, error)
            else:
                await self._commit_one_by_one(batch, statement)

    async def _commit_one_by_one(self, batch: list[Append], statement: str) -> None:
        for item in batch:
            try:
                await self._execute_alone(item, statement)
            except HandoffError as error:
                _fail([item], error)
            except Exception as error:  # noqa: BLE001 - the call that receives it logs it, see _fail
                _fail([item], error)

    async def _execute_alone(self, item: Append, statement: str) -> None:
        for _ in range(_RACES_LOST_MAX):
            with suppress(*_RACES):
                return await self._execute([item], statement)
        return await self._execute([item], statement)

    async def _execute(self, batch: list[Append], statement: str) -> None:
        start_ns, error, status = time_ns(), "", dict[str, str]()
        try:
            async with connection(self._pool) as conn:
                rows = await conn.fetch(statement, *columns(batch, self._settings.session_entries_max))
        except Exception as raised:
            error, status = type(raised).__name__, status_of(raised)
            raise
        finally:
            attributes = {**_SPAN, "db.operation.batch.size": len(batch), **status}
            operation = calls.finished("append.APPEND", start_ns, error, **attributes)
            for item in batch:
                if item.record is not None:
                    item.record.add(operation)
        metrics.APPEND_BATCH.record(len(batch))
        retried: list[Append] = []
        for row in rows:
            item = batch[row["i"]]
            if row["verdict"] == "locked" and statement is APPEND_UNLOCKED:
                self._set_aside(item)
                continue
            if row["verdict"] == "full" and len(batch) > 1:
                retried.append(item)  # the count included items ahead of it in the batch that wrote nothing
                continue
            try:
                done = outcome(item, row, self._settings)
            except HandoffError as error:
                _fail([item], error)
            else:
                _release(item)
                if not item.answer.done():  # its caller may have gone, which does not undo the append
                    item.answer.set_result(done)
                count(item, done)
        await self._commit_one_by_one(retried, statement)


def _overloaded() -> Unavailable:
    return Unavailable(
        "overloaded",
        "Too many appends are waiting to be written. This one was not written.",
        "Call again in one second.",
    )


def _release(item: Append) -> None:
    release, item.release = item.release, None
    if release is not None:
        release()


def _fail(batch: list[Append], error: Exception) -> None:
    """Answer appends with an error. A crash is logged by the call that waits for it or, if that has gone, here."""
    for item in batch:
        _release(item)
        if item.answer.done():
            if not isinstance(error, HandoffError):
                log.error("append.failed", session=item.session_key, agent=item.agent, exc_info=error)
        else:
            item.answer.set_exception(error)
            item.answer.exception()  # marks it as retrieved: a cancelled caller never reads it
