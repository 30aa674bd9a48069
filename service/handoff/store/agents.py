"""Agents and the capabilities they have declared."""

from collections.abc import Collection, Mapping

from handoff.store.connect import Connection

# `declared_at` says, to the day, when an agent was last here. Other capabilities mean another inbox, so its waiting readers
# are notified.
DECLARE = """
    WITH known AS (
        SELECT capabilities FROM agent WHERE name = $1
    ), declared AS (
        INSERT INTO agent AS a (name, capabilities, declared_at) VALUES ($1, $2, now())
        ON CONFLICT (name) DO UPDATE SET capabilities = $2, declared_at = now()
         WHERE a.capabilities IS DISTINCT FROM $2 OR a.declared_at < now() - interval '1 day'
        RETURNING name
    )
    SELECT pg_notify('handoff', 'agent:' || name) FROM declared WHERE NOT EXISTS (SELECT FROM known WHERE capabilities = $2)
"""
# Agents of $1 keep, of the capabilities that they have declared, those of the pairs ($2, $3).
RESTRICT = """
    WITH kept AS (
        SELECT a.name, ARRAY(SELECT c.name
                               FROM unnest(a.capabilities) WITH ORDINALITY AS c (name, place)
                               JOIN unnest($2::text[], $3::text[]) AS allowed (agent, capability)
                                 ON allowed.agent = a.name AND allowed.capability = c.name
                              ORDER BY c.place) AS capabilities
          FROM agent a
         WHERE a.name = ANY ($1::text[]) AND a.capabilities <> '{}'
    ), changed AS (
        UPDATE agent a SET capabilities = k.capabilities, declared_at = now()
          FROM kept k
         WHERE a.name = k.name AND a.capabilities <> k.capabilities
        RETURNING a.name
    )
    SELECT name, pg_notify('handoff', 'agent:' || name) FROM changed LIMIT 10000
"""
APPEAR = """
    INSERT INTO agent AS a (name, capabilities, declared_at) VALUES ($1, '{}', now())
    ON CONFLICT (name) DO UPDATE SET declared_at = now() WHERE a.declared_at < now() - interval '1 day'
"""
# The agents that take part in the newest 100 sessions of $1.
KNOWN_TO = """
    SELECT DISTINCT other.agent
      FROM (SELECT session_id FROM participant WHERE agent = $1 ORDER BY created_at DESC, session_id DESC LIMIT 100) mine
      JOIN participant other USING (session_id)
     WHERE other.agent <> $1
     LIMIT 500
"""
WITH_CAPABILITY = "SELECT name FROM agent WHERE capabilities @> ARRAY[$1] LIMIT 1000"


async def declare(conn: Connection, name: str, capabilities: list[str]) -> None:
    """Set the capabilities of an agent, replacing those it declared before."""
    await conn.execute(DECLARE, name, capabilities)


async def restrict(conn: Connection, allowed: Mapping[str, Collection[str]]) -> list[str]:
    """Take from these agents the capabilities that are not allowed; return the names of those that had others."""
    pairs = [(name, capability) for name, capabilities in allowed.items() for capability in capabilities]
    names, capabilities = [name for name, _ in pairs], [capability for _, capability in pairs]
    return [row["name"] for row in await conn.fetch(RESTRICT, list(allowed), names, capabilities)]


async def with_capability(conn: Connection, capability: str) -> list[str]:
    """Return the names of the agents that have declared this capability, at most 1,000."""
    return [row["name"] for row in await conn.fetch(WITH_CAPABILITY, capability)]


async def appear(conn: Connection, name: str) -> None:
    """Remember that an agent of this name has been here."""
    await conn.execute(APPEAR, name)


async def known_to(conn: Connection, name: str) -> list[str]:
    """Return the agents that share one of this agent's newest sessions, at most 500."""
    return [row["agent"] for row in await conn.fetch(KNOWN_TO, name)]
