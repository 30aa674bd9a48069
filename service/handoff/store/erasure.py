"""Erases sessions for good, with everything that belongs to them, and leaves a tombstone of each in the audit."""

import hashlib
from dataclasses import dataclass
from typing import Any, Final, Literal

from asyncpg import Record

from handoff.model import SESSION_TRANSITIONS
from handoff.store import audit, handoffs, holds
from handoff.store.connect import Connection

ERASE_S_MAX: Final = 30.0  # per statement, for the largest session

# Of archived sessions, so many per policy that are due and not held.
DUE = f"""
    SELECT due.id
      FROM retention_policy p, LATERAL (
        SELECT s.id, s.status_since FROM session s
         WHERE s.status = 'archived' AND s.retention_policy = p.name AND s.status_since <= now() - p.archived_for
           AND NOT {holds.HELD}
         ORDER BY s.status_since
         LIMIT $1) due
     ORDER BY due.status_since
     LIMIT $1
"""
OF_AGENT = "SELECT id FROM session WHERE owner = $1 OR created_by = $1 ORDER BY id LIMIT $2"
COUNT_OF_AGENT = "SELECT count(*) FROM session WHERE owner = $1 OR created_by = $1"
LOCK = """
    SELECT s.id, s.key, s.status, s.retention_policy, s.owner, s.created_at, s.last_sequence, s.content_bytes,
           (SELECT count(*) FROM handoff WHERE session_id = s.id) AS handoffs,
           (SELECT count(*) FROM event WHERE session_id = s.id) AS events,
           (SELECT count(*) FROM participant WHERE session_id = s.id) AS participants,
           ARRAY(SELECT id FROM handoff WHERE session_id = s.id AND state IN ('offered', 'accepted', 'blocked')) AS open
      FROM session s
     WHERE s.id = $1
       FOR UPDATE
"""
LIMIT = "SELECT set_config('statement_timeout', $1, true)"
FORGET_ARCHIVED = "DELETE FROM archive WHERE session_id = $1"
# What has left its bucket, because it was held when that was dropped: its new bucket stays for a whole period more.
FORGET_MOVED = """
    DELETE FROM archive a USING session s
     WHERE s.id = $1 AND a.session_id = s.id
       AND a.bucket <> s.retention_policy || ' ' || date_trunc('week', s.status_since AT TIME ZONE 'UTC')::date
"""
# Kept results hold instructions and notes, and have no foreign key to the session. That of an append names it by its id.
FORGET_RESULTS = """
    DELETE FROM idempotency
     WHERE session_id = $1 OR result ->> 'session_key' = $2 OR result -> 'handoff' ->> 'session_key' = $2
"""
# What is pending is still delivered, the end of the handoffs too.
FORGET_GIVEN_UP = """
    DELETE FROM webhook_delivery WHERE is_dead AND handoff_id IN (SELECT id FROM handoff WHERE session_id = $1)
"""
ERASE = "DELETE FROM session WHERE id = $1"

# Buckets of the archive whose time has passed and of whose sessions only held ones still exist.
BUCKETS_OVER = f"""
    SELECT b.name
      FROM archive_bucket b LEFT JOIN retention_policy p ON p.name = b.retention_policy
     WHERE (b.week + 7)::timestamp AT TIME ZONE 'UTC' + coalesce(p.archived_for, '0') <= now()
       AND NOT EXISTS (SELECT FROM session s
                        WHERE s.status = 'archived' AND s.retention_policy = b.retention_policy
                          AND s.status_since >= b.week::timestamp AT TIME ZONE 'UTC'
                          AND s.status_since < (b.week + 7)::timestamp AT TIME ZONE 'UTC' AND NOT {holds.HELD})
     ORDER BY b.week, b.name
     LIMIT $1
"""
DROP_LIMIT = "SELECT set_config('lock_timeout', '2s', true)"
DROP = "SELECT archive_bucket_drop($1)"

Outcome = Literal["deleted", "held", "gone"]


@dataclass(frozen=True, slots=True)
class Erased:
    """What became of a session, and the tombstone of one that was deleted."""

    outcome: Outcome
    tombstone: dict[str, Any]


async def due(conn: Connection, limit: int) -> list[int]:
    """Return the ids of archived sessions whose policy's time has passed, except held ones, at most `limit`."""
    return [row["id"] for row in await conn.fetch(DUE, limit)]


async def of_agent(conn: Connection, agent: str, limit: int) -> tuple[list[int], int]:
    """Return the ids of sessions that an agent owns or has created, at most `limit`, and how many there are."""
    rows = await conn.fetch(OF_AGENT, agent, limit)
    return [row["id"] for row in rows], await conn.fetchval(COUNT_OF_AGENT, agent)


async def erase(conn: Connection, session_id: int, *, actor: str | None, reason: str) -> Erased:
    """Delete a session and all that belongs to it in the caller's transaction, unless it is held.

    `actor` is None for the service, which deletes what a policy says: what is in the archive then goes with its bucket.
    Open handoffs end first, so that sender and holder are told.
    """
    await conn.execute(LIMIT, f"{ERASE_S_MAX:.0f}s")
    await holds.keep(conn)
    session = await conn.fetchrow(LOCK, session_id)
    if session is None:
        return Erased("gone", {})
    if await holds.is_held(conn, session_id):
        return Erased("held", {})
    for handoff_id in session["open"]:
        row = await handoffs.lock(conn, handoff_id)
        if row is not None:
            await handoffs.end(conn, row, "its session was deleted")
    if actor is None:
        await conn.execute(FORGET_MOVED, session_id, timeout=ERASE_S_MAX)
    else:
        await conn.execute(FORGET_ARCHIVED, session_id, timeout=ERASE_S_MAX)
        await conn.execute(FORGET_RESULTS, session_id, session["key"], timeout=ERASE_S_MAX)
        await conn.execute(FORGET_GIVEN_UP, session_id, timeout=ERASE_S_MAX)
    await conn.execute(ERASE, session_id, timeout=ERASE_S_MAX)
    tombstone = _tombstone(session, reason)
    action = SESSION_TRANSITIONS[session["status"], "delete"].event
    await audit.append(conn, actor=actor, action=action, target=target_of(session["key"]), details=tombstone)
    return Erased("deleted", tombstone)


async def buckets_over(conn: Connection, limit: int) -> list[str]:
    """Return the names of buckets of the archive that can be dropped."""
    return [row["name"] for row in await conn.fetch(BUCKETS_OVER, limit)]


async def drop_bucket(conn: Connection, name: str) -> None:
    """Drop a bucket of the archive. What belongs to held sessions moves to the bucket of this week."""
    await conn.execute(DROP_LIMIT)
    await conn.execute(DROP, name, timeout=ERASE_S_MAX)


def target_of(key: str) -> str:
    """Return the name of a session in the audit: the hash of its key, because the key itself may have to be erased."""
    return f"session:{hashlib.sha256(key.encode()).hexdigest()}"


def _tombstone(session: Record, reason: str) -> dict[str, Any]:
    return {
        "reason": reason,
        "status": session["status"],
        "retention_policy": session["retention_policy"],
        "created_at": session["created_at"].isoformat(),
        "entries": session["last_sequence"],
        "content_bytes": session["content_bytes"],
        "handoffs": session["handoffs"],
        "events": session["events"],
        "participants": session["participants"],
    }
