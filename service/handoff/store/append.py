"""The append: one statement over arrays, for the entries of many calls.

An item that cannot be applied (unknown session, not a writer, wrong expected_sequence) comes back as a row that says why; it
does not fail the rest.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from asyncpg import Record

from handoff.errors import Conflict, Forbidden, HandoffError, Invalid, session_closed, session_not_found
from handoff.model import ENTRY_TYPES, OPEN_STATUSES, EntryType
from handoff.settings import Settings
from handoff.store.connect import Connection, after_commit
from handoff.store.idempotency import reused
from handoff.store.lease_clock import LEASE_TIME
from handoff.telemetry import calls, metrics

log = structlog.get_logger(__name__)

_COUNTS = ", ".join(f"count(*) FILTER (WHERE type = '{name}')" for name in ENTRY_TYPES)

# Sessions are locked in key order, so that two processes cannot deadlock on them. At READ COMMITTED the locked rows are the
# newest versions, whatever this statement's snapshot contains. The idempotency lookup (`m`) sees only the snapshot, so a key
# that another process has just used violates the primary key; the batch is then run again item by item. A process of a
# release before migration 0005 appends without counting; the next append here counts the session's entries anew.
_APPEND = """
WITH clock AS MATERIALIZED (
    SELECT {lease_time} AS at
), item AS MATERIALIZED (
    SELECT * FROM unnest($1::int[], $2::text[], $3::text[], $4::bigint[], $5::int[], $6::bigint[], $7::text[], $8::bytea[],
                         $9::bigint[], $20::bigint[])
           AS t (i, key, agent, expected, n, supersedes_max, idempotency_key, fingerprint, size_bytes, token)
), locked AS MATERIALIZED (
    SELECT s.id, s.key, s.owner, s.writers, s.last_sequence, p.active_for,
           CASE WHEN s.expires_at <= now() AND s.status IN ('active', 'dormant') THEN 'expired' ELSE s.status END AS status
      FROM session s JOIN retention_policy p ON p.name = s.retention_policy
     WHERE s.key = ANY ($2::text[])
     ORDER BY s.key
       FOR NO KEY UPDATE OF s {wait}
), checked AS MATERIALIZED (
    SELECT item.*, l.id, l.status, l.last_sequence,
           lease.lapsed,
           m.tool AS prior_tool, m.fingerprint AS prior_fingerprint, m.sequence AS prior_sequence, m.created_at AS prior_at,
           CASE WHEN m.key IS NOT NULL THEN 'prior'
                WHEN l.id IS NULL AND EXISTS (SELECT FROM session s WHERE s.key = item.key) THEN 'locked'
                WHEN l.id IS NULL THEN 'unknown'
                WHEN NOT item.agent = ANY (l.writers) THEN 'not_writer'
                WHEN NOT l.status = ANY ($18::text[]) THEN 'closed'
                WHEN item.token IS NOT NULL AND lease.by_token IS NOT TRUE THEN 'stale_token'
                WHEN lease.lapsed IS NOT NULL AND NOT lease.held AND (l.owner <> item.agent OR lease.full_lapsed)
                     AND NOT EXISTS (SELECT FROM handoff h
                                      WHERE h.session_id = l.id AND h.holder = item.agent AND h.state = 'completed'
                                        AND h.request_type <> 'context_transfer') THEN 'lapsed'
                WHEN item.expected <> l.last_sequence THEN 'expected'
                WHEN item.supersedes_max > l.last_sequence THEN 'supersedes'
                WHEN l.last_sequence + sum(item.n) OVER (PARTITION BY l.id ORDER BY item.i) > $19 THEN 'full'
                ELSE 'ok' END AS verdict
      FROM item
      LEFT JOIN locked l USING (key)
      LEFT JOIN idempotency m ON m.agent = item.agent AND m.key = item.idempotency_key
      LEFT JOIN LATERAL (
        SELECT bool_or(h.lease_expires_at > (SELECT at FROM clock)) AS held,
               bool_or(h.lease_expires_at > (SELECT at FROM clock) AND h.token = item.token) AS by_token,
               max(h.id) FILTER (WHERE h.lease_expires_at <= (SELECT at FROM clock)) AS lapsed,
               bool_or(h.lease_expires_at <= (SELECT at FROM clock) AND h.request_type = 'full_handoff') AS full_lapsed
          FROM handoff h
         WHERE h.session_id = l.id AND h.holder = item.agent AND h.state IN ('accepted', 'blocked')
      ) lease ON true
), fresh AS MATERIALIZED (
    SELECT i, id, agent, n, idempotency_key, fingerprint, size_bytes,
           last_sequence + sum(n) OVER (PARTITION BY id ORDER BY i) - n AS base
      FROM checked
     WHERE verdict = 'ok'
), bumped AS (
    UPDATE session s
       SET last_sequence = f.top, content_bytes = content_bytes + f.size_bytes, version = version + 1, status = 'active',
           last_activity_at = now(), expires_at = greatest(expires_at, now() + l.active_for),
           status_since = CASE WHEN s.status = 'dormant' THEN now() ELSE s.status_since END,
           idle_check_at = CASE WHEN s.status = 'dormant' THEN now() ELSE s.idle_check_at END,
           entry_counts = (SELECT array_agg(before + more ORDER BY place)
                             FROM unnest(CASE WHEN s.entry_counts[1] + s.entry_counts[2] + s.entry_counts[3]
                                                   + s.entry_counts[4] + s.entry_counts[5] + s.entry_counts[6]
                                                   = s.last_sequence THEN s.entry_counts
                                              ELSE (SELECT {counts} FROM context_entry e WHERE e.session_id = s.id) END,
                                         c.counts) WITH ORDINALITY AS t (before, more, place))
      FROM (SELECT id, max(base + n) AS top, sum(size_bytes) AS size_bytes FROM fresh GROUP BY id) f
      JOIN locked l USING (id)
      JOIN (SELECT id, {counts} AS counts
              FROM unnest($10::int[], $12::text[]) AS e (i, type) JOIN fresh USING (i)
             GROUP BY id) c USING (id)
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
           string_to_array(e.supersedes, ',')::bigint[],
           e.size_bytes, e.content_hash, f.agent, now()
      FROM unnest($10::int[], $11::int[], $12::text[], $13::text[], $14::text[], $15::text[], $16::int[], $17::bytea[])
           AS e (i, ordinal, type, content, metadata, supersedes, size_bytes, content_hash)
      JOIN fresh f USING (i)
), remembered AS (
    INSERT INTO idempotency (agent, key, tool, fingerprint, sequence, created_at, session_id)
    SELECT agent, idempotency_key, 'update_context', fingerprint, base + 1, now(), id
      FROM fresh
     WHERE idempotency_key IS NOT NULL
)
SELECT c.i, c.verdict, c.status, c.last_sequence, c.lapsed, f.base, now() AS at,
       c.prior_tool, c.prior_fingerprint, c.prior_sequence, c.prior_at
  FROM checked c LEFT JOIN fresh f USING (i)
""".replace("{counts}", f"ARRAY[{_COUNTS}]").replace("{lease_time}", LEASE_TIME)
APPEND = _APPEND.replace("{wait}", "")
APPEND_UNLOCKED = _APPEND.replace("{wait}", "SKIP LOCKED")  # the verdict on a session that is locked is `locked`


@dataclass(slots=True)  # not frozen: one is built for every call
class NewEntry:
    """One validated entry.

    `metadata` is JSON text, `supersedes` a comma-separated list of sequence numbers, `size_bytes` the length of the content
    as UTF-8 and `content_hash` its SHA-256.
    """

    type: EntryType
    content: str
    metadata: str | None
    supersedes: str | None
    size_bytes: int
    content_hash: bytes


@dataclass(slots=True)  # not frozen: one is built for every call
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
    token: int | None = None
    release: Callable[[], None] | None = None  # called once, when the append leaves the lane
    record: calls.CallRecord | None = field(default_factory=calls.current)
    answer: asyncio.Future[Appended] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


async def append_within(conn: Connection, item: Append, settings: Settings) -> Appended:
    """Append within the caller's transaction. Raises the HandoffError that says why the append was not made."""
    row = await conn.fetchrow(APPEND, *columns([item], settings.session_entries_max))
    if row is None:
        raise LookupError("the append statement returned no row")
    done = outcome(item, row, settings)
    after_commit(partial(count, item, done))
    return done


def count(item: Append, done: Appended) -> None:
    """Update the metrics for a committed append."""
    if done.replayed:
        metrics.REPLAYS.add(1, "update_context")
    else:
        metrics.entries_appended([(entry.type, entry.size_bytes) for entry in item.entries])


def columns(batch: list[Append], entries_max: int) -> list[Any]:
    """Return the arguments of APPEND.

    A column without any value is None, which `unnest` fills up. That saves asyncpg two microseconds per append, most of
    which have neither key nor metadata.
    """
    entries = [(i, n, entry) for i, item in enumerate(batch) for n, entry in enumerate(item.entries, 1)]
    return [
        list(range(len(batch))),
        [item.session_key for item in batch],
        [item.agent for item in batch],
        _unless_empty([item.expected_sequence for item in batch]),
        [len(item.entries) for item in batch],
        [item.supersedes_max for item in batch],
        _unless_empty([item.idempotency_key for item in batch]),
        _unless_empty([item.fingerprint for item in batch]),
        [item.size_bytes for item in batch],
        [i for i, _, _ in entries],
        [n for _, n, _ in entries],
        [entry.type for _, _, entry in entries],
        [entry.content for _, _, entry in entries],
        _unless_empty([entry.metadata for _, _, entry in entries]),
        _unless_empty([entry.supersedes for _, _, entry in entries]),
        [entry.size_bytes for _, _, entry in entries],
        [entry.content_hash for _, _, entry in entries],
        list(OPEN_STATUSES),
        entries_max,
        _unless_empty([item.token for item in batch]),
    ]


def _unless_empty(column: list[Any]) -> list[Any] | None:
    return column if any(value is not None for value in column) else None


def outcome(item: Append, row: Record, settings: Settings) -> Appended:
    """Return what became of an append, from its row of APPEND's result. Raises the HandoffError of one that was not made."""
    match row["verdict"]:
        case "ok":
            return Appended(int(row["base"]) + 1, row["at"], replayed=False)
        case "prior":
            same = row["prior_fingerprint"] in (item.fingerprint, item.former_fingerprint)
            if row["prior_tool"] != "update_context" or not same:
                raise reused(item.idempotency_key or "")
            return Appended(row["prior_sequence"], row["prior_at"], replayed=True)
        case _:
            raise _refusal(item, row, settings)


def _refusal(item: Append, row: Record, settings: Settings) -> HandoffError:
    """Return the error of an append that was not made."""
    match row["verdict"]:
        case "not_writer":
            return not_a_writer(item.agent, item.session_key)
        case "closed":
            return session_closed(item.session_key, row["status"])
        case "stale_token":
            return Conflict(
                "stale_token",
                f"{item.agent!r} does not hold a handoff of session {item.session_key!r} by token {item.token}.",
                "get_inbox shows the handoffs that you hold, with their tokens. If it is none of them, stop working on it.",
            )
        case "lapsed":
            return Conflict(
                "stale_token",
                f"The lease of {item.agent!r} on handoff {row['lapsed']} has lapsed, and with it the right to write to"
                f" session {item.session_key!r}. Nothing was appended.",
                f"To continue, call accept_handoff handoff_id={row['lapsed']} again and then repeat this call. If another "
                "agent has accepted it, stop working on it.",
            )
        case "expected":
            return Conflict(
                "sequence_mismatch",
                f"expected_sequence was {item.expected_sequence}, but the last sequence is {row['last_sequence']}.",
                f"Read the new entries with get_context view=entries after_sequence={item.expected_sequence}. "
                f"Then call again with expected_sequence={row['last_sequence']}.",
                current_sequence=row["last_sequence"],
            )
        case "supersedes":
            return Invalid(
                "invalid_arguments",
                f"supersedes names sequence {item.supersedes_max}, but the last sequence is {row['last_sequence']}.",
                "In supersedes, use only sequence numbers of entries that existed before this call.",
                current_sequence=row["last_sequence"],
            )
        case "full":
            return Conflict(
                "limit_reached",
                f"Session {item.session_key!r} would exceed the limit of {settings.session_entries_max} entries.",
                "Close this session, register a new one, and begin it with a summary of this one.",
                current_sequence=row["last_sequence"],
            )
        case _:
            return session_not_found(item.session_key)


def not_a_writer(agent: str, session_key: str) -> Forbidden:
    """Return the error for an agent that may not write to the session; it does not reveal whether the session exists."""
    return Forbidden(
        "not_a_writer",
        f"{agent!r} may not write to session {session_key!r}: it neither owns the session nor holds a handoff of it.",
        "If you handed this session over, add a note for the holder by request_handoff with the handoff_id. To work on it, "
        "find a handoff of it with get_inbox and accept it, or register a session of your own.",
    )
