"""Legal holds: what is held outlives every policy, and nobody can delete it."""

from typing import Any, Final, Literal

from asyncpg import Record

from handoff.store.connect import Connection
from handoff.store.integrity import SET_ASIDE

HoldKind = Literal["session", "agent", "policy"]
HOLDS_MAX: Final = 1_000

# Whether a hold covers session `s`. One that is set aside is held too: it may be needed to find out what happened.
HELD: Final = f"""({SET_ASIDE}
             OR EXISTS (SELECT FROM legal_hold hold
                     WHERE (hold.kind = 'session' AND hold.name = s.key)
                        OR (hold.kind = 'policy' AND hold.name = s.retention_policy)
                        OR (hold.kind = 'agent' AND EXISTS (SELECT FROM participant p
                                                             WHERE p.session_id = s.id AND p.agent = hold.name))))"""
HOLD = """
    INSERT INTO legal_hold (kind, name, reason, held_by)
    SELECT $1, $2, $3, $4 WHERE (SELECT count(*) FROM legal_hold) < $5
    ON CONFLICT (kind, name) DO UPDATE SET reason = excluded.reason, held_by = excluded.held_by
 RETURNING kind, name, reason, held_by, since
"""
RELEASE = "DELETE FROM legal_hold WHERE kind = $1 AND name = $2 RETURNING kind, name, reason, held_by, since"
ALL = "SELECT kind, name, reason, held_by, since FROM legal_hold ORDER BY since, kind, name LIMIT $1"
IS_HELD = f"SELECT {HELD} FROM session s WHERE s.id = $1"
KEEP_HOLDS = "LOCK TABLE legal_hold IN SHARE MODE"
POLICY_EXISTS = "SELECT EXISTS (SELECT FROM retention_policy WHERE name = $1)"


async def hold(conn: Connection, kind: HoldKind, name: str, reason: str, by: str) -> Record | None:
    """Hold it, or change the reason of a hold that there is; None if there are HOLDS_MAX holds already."""
    return await conn.fetchrow(HOLD, kind, name, reason, by, HOLDS_MAX)


async def release(conn: Connection, kind: HoldKind, name: str) -> Record | None:
    """End the hold and return it; None if there is none."""
    return await conn.fetchrow(RELEASE, kind, name)


async def policy_exists(conn: Connection, name: str) -> bool:
    """Return whether there is a policy of this name."""
    return await conn.fetchval(POLICY_EXISTS, name)


async def keep(conn: Connection) -> None:
    """Let no hold be made or ended until the caller's transaction ends."""
    await conn.execute(KEEP_HOLDS)


async def is_held(conn: Connection, session_id: int) -> bool:
    """Return whether a hold covers the session."""
    return bool(await conn.fetchval(IS_HELD, session_id))


async def all_holds(conn: Connection) -> list[dict[str, Any]]:
    """Return the holds, oldest first."""
    return [dict(row) for row in await conn.fetch(ALL, HOLDS_MAX)]
