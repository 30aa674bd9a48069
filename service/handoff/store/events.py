"""The event log: one row per change of a session or a handoff, written in the same transaction as the change."""

from typing import Any

from asyncpg import Record

from handoff.store.connect import Connection

RECORD = """
    INSERT INTO event (session_id, handoff_id, kind, agent, at, data) VALUES ($1, $2, $3, $4, now(), $5)
"""
# Compares pairs, because for `session_id = $1 ORDER BY id` Postgres may scan the primary key and so every session's events.
OF_SESSION = """
    SELECT id, handoff_id, kind, agent, at, data
      FROM event
     WHERE (session_id, id) > ($1, $2) AND (session_id, id) < ($1 + 1, 0)
     ORDER BY session_id, id
     LIMIT $3
"""


async def record(
    conn: Connection,
    kind: str,
    *,
    session_id: int,
    handoff_id: int | None = None,
    agent: str | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Add an event. `agent` is None for a change that the service made because a time had passed."""
    await conn.execute(RECORD, session_id, handoff_id, kind, agent, data)


async def of_session(conn: Connection, session_id: int, *, after: int, limit: int) -> list[Record]:
    """Return the events of a session whose id is greater than `after`, oldest first."""
    return await conn.fetch(OF_SESSION, session_id, after, limit)
