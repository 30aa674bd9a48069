"""Agents and the capabilities they have declared."""

from handoff.store.connect import Connection

DECLARE = """
    INSERT INTO agent AS a (name, capabilities, declared_at) VALUES ($1, $2, now())
    ON CONFLICT (name) DO UPDATE SET capabilities = $2, declared_at = now()
     WHERE a.capabilities IS DISTINCT FROM $2
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
