"""Appends with group commit: waiting appends go to Postgres as one statement over arrays.

Each caller is answered after the commit. No timer is involved: a batch is whatever arrived while the previous one was being
committed. A lone append therefore pays nothing for batching, and under load one round trip, one row lock per session and one
flush to disk serve up to `append_batch_max` appends. An item that cannot be applied (unknown session, not a writer, wrong
expected_sequence) comes back as a row that says why; it does not fail the rest of the batch.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from time import monotonic, time_ns
from typing import Any, Final

import asyncpg
import structlog
from asyncpg import Record

from handoff.errors import Conflict, Forbidden, HandoffError, Invalid, Unavailable, session_closed, session_not_found
from handoff.model import OPEN_STATUSES, EntryType
from handoff.settings import Settings
from handoff.store.connect import Connection, Pool, after_commit, connection
from handoff.store.idempotency import reused
from handoff.telemetry import calls, metrics

log = structlog.get_logger(__name__)

# Sessions are locked in key order, so that two processes cannot deadlock on them. At READ COMMITTED the locked rows are the
# newest versions, whatever this statement's snapshot contains. The idempotency lookup (`m`) sees only the snapshot, so a key
# that another process has just used violates the primary key; the batch is then run again item by item.
APPEND = """
WITH item AS MATERIALIZED (
    SELECT * FROM unnest($1::int[], $2::text[], $3::text[], $4::bigint[], $5::int[], $6::bigint[], $7::text[], $8::bytea[],
                         $9::bigint[])
           AS t (i, key, agent, expected, n, supersedes_max, idempotency_key, fingerprint, size_bytes)
), locked AS MATERIALIZED (
    SELECT s.id, s.key, s.status, s.writers, s.last_sequence, p.active_for
      FROM session s JOIN retention_policy p ON p.name = s.retention_policy
     WHERE s.key = ANY ($2::text[])
     ORDER BY s.key
       FOR NO KEY UPDATE OF s
), checked AS MATERIALIZED (
    SELECT item.*, l.id, l.status, l.last_sequence,
           m.tool AS prior_tool, m.fingerprint AS prior_fingerprint, m.sequence AS prior_sequence, m.created_at AS prior_at,
           CASE WHEN m.key IS NOT NULL THEN 'prior'
                WHEN l.id IS NULL THEN 'unknown'
                WHEN NOT item.agent = ANY (l.writers) THEN 'not_writer'
                WHEN NOT l.status = ANY ($18::text[]) THEN 'closed'
                WHEN item.expected <> l.last_sequence THEN 'expected'
                WHEN item.supersedes_max > l.last_sequence THEN 'supersedes'
                WHEN l.last_sequence + sum(item.n) OVER (PARTITION BY l.id ORDER BY item.i) > $19 THEN 'full'
                ELSE 'ok' END AS verdict
      FROM item
      LEFT JOIN locked l USING (key)
      LEFT JOIN idempotency m ON m.agent = item.agent AND m.key = item.idempotency_key
), fresh AS MATERIALIZED (
    SELECT i, id, agent, n, idempotency_key, fingerprint, size_bytes,
           last_sequence + sum(n) OVER (PARTITION BY id ORDER BY i) - n AS base
      FROM checked
     WHERE verdict = 'ok'
), bumped AS (
    UPDATE session s
       SET last_sequence = f.top, content_bytes = content_bytes + f.size_bytes, version = version + 1, status = 'active',
           last_activity_at = now(), expires_at = now() + l.active_for
      FROM (SELECT id, max(base + n) AS top, sum(size_bytes) AS size_bytes FROM fresh GROUP BY id) f
      JOIN locked l USING (id)
     WHERE s.id = f.id
), woken AS (
    INSERT INTO event (session_id, kind, agent, at)
    SELECT DISTINCT ON (id) id, 'session.reactivated', agent, now() FROM checked
     WHERE verdict = 'ok' AND status = 'dormant'
     ORDER BY id, i
), written AS (
    INSERT INTO context_entry (session_id, sequence, type, content, metadata, supersedes, size_bytes, content_hash, author,
                               created_at)
    SELECT f.id, f.base + e.ordinal, e.type, e.content, e.metadata::jsonb,
           CASE WHEN e.supersedes <> '' THEN string_to_array(e.supersedes, ',')::bigint[] END,
           e.size_bytes, e.content_hash, f.agent, now()
      FROM unnest($10::int[], $11::int[], $12::text[], $13::text[], $14::text[], $15::text[], $16::int[], $17::bytea[])
           AS e (i, ordinal, type, content, metadata, supersedes, size_bytes, content_hash)
      JOIN fresh f USING (i)
), remembered AS (
    INSERT INTO idempotency (agent, key, tool, fingerprint, sequence, created_at)
    SELECT agent, idempotency_key, 'update_context', fingerprint, base + 1, now()
      FROM fresh
     WHERE idempotency_key IS NOT NULL
)
SELECT c.i, c.verdict, c.status, c.last_sequence, f.base, now() AS at,
       c.prior_tool, c.prior_fingerprint, c.prior_sequence, c.prior_at
  FROM checked c LEFT JOIN fresh f USING (i)
"""

# Errors of a statement that raced another process for a lock or a key. Run again, it sees what the other process committed.
# A single append can lose more than one race: first a deadlock, then its key to a process that ran in the meantime.
_RACES = (asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError)
_RACES_LOST_MAX = 3
_SPAN: Final[dict[str, calls.AttributeValue]] = {"db.system.name": "postgresql", "db.query.summary": "append.APPEND"}


@dataclass(frozen=True, slots=True)
class NewEntry:
    """One validated entry.

    `metadata` is JSON text, `supersedes` a comma-separated list of sequence numbers or empty, `size_bytes` the length of the
    content as UTF-8 and `content_hash` its SHA-256.
    """

    type: EntryType
    content: str
    metadata: str | None
    supersedes: str
    size_bytes: int
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class Appended:
    """A committed append. `replayed` says that an earlier call with the same idempotency key wrote it."""

    first_sequence: int
    at: datetime
    replayed: bool


@dataclass(slots=True)
class Append:
    """The entries of one call and the future that receives the result. `received` is a monotonic time in seconds."""

    session_key: str
    agent: str
    entries: Sequence[NewEntry]
    received: float
    supersedes_max: int = 0
    expected_sequence: int | None = None
    idempotency_key: str | None = None
    fingerprint: bytes | None = None
    size_bytes: int = 0
    former_fingerprint: bytes | None = None  # as version 0.1.0 stored it; see idempotency.py
    record: calls.CallRecord | None = field(default_factory=calls.current)
    answer: asyncio.Future[Appended] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class AppendLane:
    """The queue of appends, one per process: while one batch is being committed, the next one collects."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._pool = pool
        self._settings = settings
        self._waiting: deque[Append] = deque()
        self._running: asyncio.Task[None] | None = None
        metrics.APPENDS_WAITING.source = lambda: [(len(self._waiting), ())]

    async def append(self, item: Append) -> Appended:
        """Append and wait for the commit. A caller that is cancelled does not undo its append.

        Raises:
            HandoffError: why the append was not made, or, if it is `unavailable`, that its outcome is unknown.
        """
        if len(self._waiting) >= self._settings.append_queue_max:
            raise _overloaded()
        self._waiting.append(item)
        if self._running is None:
            self._running = asyncio.create_task(self._run(), context=Context())  # not the caller's: it serves all calls
        return await asyncio.shield(item.answer)

    async def drain(self) -> None:
        """Wait until every queued append has been answered."""
        while self._running is not None:
            await asyncio.shield(self._running)

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._take()
                if batch:
                    await self._commit(batch)
        finally:
            self._running = None

    def _take(self) -> list[Append]:
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
        while self._waiting and len(batch) < self._settings.append_batch_max:
            item = self._waiting[0]
            if item.answer.done():
                self._waiting.popleft()
                continue
            if item.received < oldest:
                self._waiting.popleft()
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
            self._waiting.popleft()
            batch.append(item)
            size_bytes += item.size_bytes
            sessions.add(item.session_key)
            if item.expected_sequence is not None:
                alone.add(item.session_key)
            if owned_key is not None:
                keys.add(owned_key)
        return batch

    async def _commit(self, batch: list[Append]) -> None:
        try:
            await self._execute(batch)
        except HandoffError as error:
            _fail(batch, error)
        except Exception as error:
            if len(batch) == 1 and not isinstance(error, _RACES):
                log.exception("append.failed", error=type(error).__name__)
                _fail(batch, error)
            else:
                await self._commit_one_by_one(batch)

    async def _commit_one_by_one(self, batch: list[Append]) -> None:
        for item in batch:
            try:
                await self._execute_alone(item)
            except HandoffError as error:
                _fail([item], error)
            except Exception as error:
                log.exception("append.failed", error=type(error).__name__)
                _fail([item], error)

    async def _execute_alone(self, item: Append) -> None:
        for _ in range(_RACES_LOST_MAX):
            with suppress(*_RACES):
                return await self._execute([item])
        return await self._execute([item])

    async def _execute(self, batch: list[Append]) -> None:
        start_ns, error = time_ns(), ""
        try:
            async with connection(self._pool) as conn:
                rows = await conn.fetch(APPEND, *_columns(batch, self._settings.session_entries_max))
        except Exception as raised:
            error = type(raised).__name__
            raise
        finally:
            attributes = {**_SPAN, "db.operation.batch.size": len(batch)}
            operation = calls.finished("append.APPEND", start_ns, error, **attributes)
            for item in batch:
                if item.record is not None:
                    item.record.add(operation)
        metrics.APPEND_BATCH.record(len(batch))
        retried: list[Append] = []
        for row in rows:
            item = batch[row["i"]]
            if item.answer.done():
                continue
            if row["verdict"] == "full" and len(batch) > 1:
                retried.append(item)  # the count included items ahead of it in the batch that wrote nothing
                continue
            try:
                done = _outcome(item, row, self._settings)
                item.answer.set_result(done)
                _count(item, done)
            except HandoffError as error:
                _fail([item], error)
        await self._commit_one_by_one(retried)


async def append_within(conn: Connection, item: Append, settings: Settings) -> Appended:
    """Append within the caller's transaction. Raises the HandoffError that says why the append was not made."""
    row = await conn.fetchrow(APPEND, *_columns([item], settings.session_entries_max))
    if row is None:
        raise LookupError("the append statement returned no row")
    done = _outcome(item, row, settings)
    after_commit(partial(_count, item, done))
    return done


def _count(item: Append, done: Appended) -> None:
    """Update the metrics for a committed append."""
    if done.replayed:
        metrics.REPLAYS.add(1, "update_context")
    else:
        metrics.entries_appended([(entry.type, entry.size_bytes) for entry in item.entries])


def _columns(batch: list[Append], entries_max: int) -> list[Any]:
    entries = [(i, n, entry) for i, item in enumerate(batch) for n, entry in enumerate(item.entries, 1)]
    return [
        list(range(len(batch))),
        [item.session_key for item in batch],
        [item.agent for item in batch],
        [item.expected_sequence for item in batch],
        [len(item.entries) for item in batch],
        [item.supersedes_max for item in batch],
        [item.idempotency_key for item in batch],
        [item.fingerprint for item in batch],
        [item.size_bytes for item in batch],
        [i for i, _, _ in entries],
        [n for _, n, _ in entries],
        [entry.type for _, _, entry in entries],
        [entry.content for _, _, entry in entries],
        [entry.metadata for _, _, entry in entries],
        [entry.supersedes for _, _, entry in entries],
        [entry.size_bytes for _, _, entry in entries],
        [entry.content_hash for _, _, entry in entries],
        list(OPEN_STATUSES),
        entries_max,
    ]


def _outcome(item: Append, row: Record, settings: Settings) -> Appended:
    match row["verdict"]:
        case "ok":
            return Appended(int(row["base"]) + 1, row["at"], replayed=False)
        case "prior":
            same = row["prior_fingerprint"] in (item.fingerprint, item.former_fingerprint)
            if row["prior_tool"] != "update_context" or not same:
                raise reused(item.idempotency_key or "")
            return Appended(row["prior_sequence"], row["prior_at"], replayed=True)
        case "not_writer":
            raise not_a_writer(item.agent, item.session_key)
        case "closed":
            raise session_closed(item.session_key, row["status"])
        case "expected":
            raise Conflict(
                "sequence_mismatch",
                f"expected_sequence was {item.expected_sequence}, but the last sequence is {row['last_sequence']}.",
                f"Read the new entries with get_context view=entries after_sequence={item.expected_sequence}. "
                f"Then call again with expected_sequence={row['last_sequence']}.",
                current_sequence=row["last_sequence"],
            )
        case "supersedes":
            raise Invalid(
                "invalid_arguments",
                f"supersedes names sequence {item.supersedes_max}, but the last sequence is {row['last_sequence']}.",
                "In supersedes, use only sequence numbers of entries that existed before this call.",
                current_sequence=row["last_sequence"],
            )
        case "full":
            raise Conflict(
                "limit_reached",
                f"Session {item.session_key!r} would exceed the limit of {settings.session_entries_max} entries.",
                "Close this session, register a new one, and begin it with a summary of this one.",
                current_sequence=row["last_sequence"],
            )
        case _:
            raise session_not_found(item.session_key)


def not_a_writer(agent: str, session_key: str) -> Forbidden:
    """Return the error for an agent that may not write to the session; it does not reveal whether the session exists."""
    return Forbidden(
        "not_a_writer",
        f"{agent!r} may not write to session {session_key!r}: it neither owns the session nor holds a handoff of it.",
        "Find a handoff of this session with get_inbox and accept it, or register a session of your own.",
    )


def _overloaded() -> Unavailable:
    return Unavailable(
        "overloaded",
        "Too many appends are waiting to be written. This one was not written.",
        "Call again in one second.",
    )


def _fail(batch: list[Append], error: Exception) -> None:
    for item in batch:
        if not item.answer.done():
            item.answer.set_exception(error)
            item.answer.exception()  # marks it as retrieved: a cancelled caller never reads it
