"""Briefs as accept_handoff returned them."""

from typing import Any

from asyncpg import Record

from handoff.encoding import to_json
from handoff.store.connect import Connection

# A call that is repeated returns a brief of its own, so the last one counts. The handoff may be gone by now.
KEEP = """
    INSERT INTO accepted_brief AS kept (handoff_id, token, agent, at, brief)
    SELECT id, $2, $3, now(), $4 FROM handoff WHERE id = $1
        ON CONFLICT (handoff_id, token) DO UPDATE SET at = excluded.at, brief = excluded.brief
"""
LAST = "SELECT token, agent, at, brief FROM accepted_brief WHERE handoff_id = $1 ORDER BY token DESC LIMIT 1"


async def keep(conn: Connection, handoff_id: int, token: int, agent: str, brief: dict[str, Any]) -> None:
    """Keep what the holder by this token has received."""
    await conn.execute(KEEP, handoff_id, token, agent, to_json(brief).decode())


async def last(conn: Connection, handoff_id: int) -> Record | None:
    """Return what whoever accepted the handoff last has received, None if nobody has or it was before briefs were kept."""
    return await conn.fetchrow(LAST, handoff_id)
