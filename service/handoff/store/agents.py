"""Agents and the capabilities they have declared."""

from handoff.store.connect import Connection

DECLARE = """
    INSERT INTO agent AS a (name, capabilities, declared_at) VALUES ($1, $2, now())
    ON CONFLICT (name) DO UPDATE SET capabilities = $2, declared_at = now()
     WHERE a.capabilities IS DISTINCT FROM $2
"""
APPEAR = "INSERT INTO agent (name, capabilities, declared_at) VALUES ($1, '{}', now()) ON CONFLICT DO NOTHING"
SEEN = """
    SELECT EXISTS (SELECT FROM agent WHERE name = $1) OR EXISTS (SELECT FROM participant WHERE agent = $1)
"""
# The agents that take part in the newest 100 sessions of $1.
KNOWN_TO = """
    SELECT DISTINCT other.agent
      FROM (SELECT session_id FROM participant WHERE agent = $1 ORDER BY created_at DESC, session_id DESC LIMIT 100) mine
      JOIN participant other USING (session_id)
     WHERE other.agent <> $1
     LIMIT 500
"""
CAPABILITIES = "SELECT capabilities FROM agent WHERE name = $1"
WITH_CAPABILITY = "SELECT name FROM agent WHERE capabilities @> ARRAY[$1] LIMIT 1000"


async def declare(conn: Connection, name: str, capabilities: list[str]) -> None:
    """Set the capabilities of an agent, replacing those it declared before."""
    await conn.execute(DECLARE, name, capabilities)


async def capabilities(conn: Connection, name: str) -> list[str]:
    """Return the capabilities that the agent has declared; empty if it never declared any."""
    return await conn.fetchval(CAPABILITIES, name) or []


async def with_capability(conn: Connection, capability: str) -> list[str]:
    """Return the names of the agents that have declared this capability, at most 1,000."""
    return [row["name"] for row in await conn.fetch(WITH_CAPABILITY, capability)]


async def appear(conn: Connection, name: str) -> None:
    """Remember that an agent of this name has been here."""
    await conn.execute(APPEAR, name)


async def has_been_seen(conn: Connection, name: str) -> bool:
    """Return whether an agent of this name has read its inbox, declared capabilities or taken part in a session."""
    return await conn.fetchval(SEEN, name)


async def known_to(conn: Connection, name: str) -> list[str]:
    """Return the agents that share one of this agent's newest sessions, at most 500."""
    return [row["agent"] for row in await conn.fetch(KNOWN_TO, name)]
