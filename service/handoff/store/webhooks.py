"""Webhooks: the outbox, which events of handoffs enter with their transaction, and what each endpoint is to be told."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Final

from asyncpg import Record

from handoff.store.connect import Connection
from handoff.store.retention import BATCH_MAX

KEPT: Final = timedelta(days=30)
_OUTBOX_MAX: Final = 500  # per transaction

# Locks what it reads, so that two processes distribute the events of a handoff in their order.
OUTBOX = "SELECT event_id, handoff_id, agents, kind, at, data FROM webhook_outbox ORDER BY event_id LIMIT $1 FOR UPDATE"
DISTRIBUTE = """
    INSERT INTO webhook_delivery (endpoint, handoff_id, event_id, kind, at, data)
    SELECT t.endpoint, o.handoff_id, o.event_id, o.kind, o.at, o.data
      FROM unnest($1::text[], $2::bigint[]) AS t (endpoint, event_id) JOIN webhook_outbox o USING (event_id)
        ON CONFLICT DO NOTHING
"""
DISTRIBUTED = "DELETE FROM webhook_outbox WHERE event_id = ANY($1::bigint[])"
# The first of each handoff per endpoint, if it is due: the later ones wait for it.
DUE = """
    SELECT endpoint, handoff_id, event_id, kind, at, data, attempts
      FROM (SELECT DISTINCT ON (endpoint, handoff_id) *
              FROM webhook_delivery
             WHERE NOT is_dead AND endpoint = ANY($1::text[])
               AND EXISTS (SELECT FROM webhook_delivery WHERE NOT is_dead AND next_at <= now())
             ORDER BY endpoint, handoff_id, event_id) head
     WHERE next_at <= now()
     ORDER BY event_id
     LIMIT $2
"""
DELIVERED = "DELETE FROM webhook_delivery WHERE endpoint = $1 AND handoff_id = $2 AND event_id = $3"
FAILED = """
    UPDATE webhook_delivery
       SET attempts = attempts + 1, problem = $4, is_dead = $5::float8 IS NULL,
           next_at = now() + make_interval(secs => coalesce($5, 0))
     WHERE endpoint = $1 AND handoff_id = $2 AND event_id = $3
"""
PAUSE = """
    UPDATE webhook_delivery SET next_at = greatest(next_at, now() + make_interval(secs => $2))
     WHERE endpoint = $1 AND NOT is_dead
"""
# What is as old as this was given up, or is for an endpoint that is no longer configured. What was given up is also deleted
# when its handoff is.
FORGET = """
    WITH gone AS (
        DELETE FROM webhook_delivery
         WHERE (endpoint, handoff_id, event_id) IN (SELECT endpoint, handoff_id, event_id FROM webhook_delivery
                                                     WHERE at < now() - $1::interval
                                                        OR (is_dead AND NOT EXISTS (SELECT FROM handoff h
                                                                                     WHERE h.id = handoff_id))
                                                     LIMIT $2)
        RETURNING 1
    ) SELECT count(*) FROM gone
"""
# The oldest of what was given up, as if it had never been tried.
RETRY = """
    WITH again AS (
        UPDATE webhook_delivery SET is_dead = false, attempts = 0, next_at = now()
         WHERE (endpoint, handoff_id, event_id) IN (SELECT endpoint, handoff_id, event_id FROM webhook_delivery
                                                     WHERE is_dead AND endpoint = $1
                                                     ORDER BY event_id LIMIT $2 FOR UPDATE)
        RETURNING 1
    ) SELECT count(*) FROM again
"""
TOTALS = """
    SELECT count(*) FILTER (WHERE NOT is_dead) AS pending, count(*) FILTER (WHERE is_dead) AS dead,
           coalesce(extract(epoch FROM now() - min(at) FILTER (WHERE NOT is_dead)), 0)::float8 AS oldest_s
      FROM webhook_delivery WHERE endpoint = ANY($1::text[])
"""
STATE = """
    SELECT e.name, count(d.endpoint) FILTER (WHERE NOT d.is_dead) AS pending,
           count(d.endpoint) FILTER (WHERE d.is_dead) AS dead,
           extract(epoch FROM now() - min(d.at) FILTER (WHERE NOT d.is_dead))::float8 AS oldest_s,
           max(d.attempts) FILTER (WHERE NOT d.is_dead) AS attempts,
           (array_agg(d.problem ORDER BY d.attempts DESC, d.event_id DESC)
              FILTER (WHERE d.problem IS NOT NULL))[1] AS problem
      FROM unnest($1::text[]) AS e (name) LEFT JOIN webhook_delivery d ON d.endpoint = e.name
     GROUP BY e.name
     ORDER BY e.name
     LIMIT 100
"""


async def distribute(conn: Connection, wanting: Callable[[Record], Iterable[str]]) -> int:
    """Move a part of the outbox to the endpoints that `wanting` names for each event; return how many events there were."""
    rows = await conn.fetch(OUTBOX, _OUTBOX_MAX)
    if rows:
        wanted = [(name, row["event_id"]) for row in rows for name in wanting(row)]
        await conn.execute(DISTRIBUTE, [name for name, _ in wanted], [event for _, event in wanted])
        await conn.execute(DISTRIBUTED, [row["event_id"] for row in rows])
    return len(rows)


async def due(conn: Connection, endpoints: list[str], limit: int) -> list[Record]:
    """Return what is due at these endpoints, oldest first: at most one event of each handoff."""
    return await conn.fetch(DUE, endpoints, limit)


async def delivered(conn: Connection, row: Record) -> None:
    """Forget what was delivered."""
    await conn.execute(DELIVERED, row["endpoint"], row["handoff_id"], row["event_id"])


async def failed(conn: Connection, row: Record, problem: str, again_s: float | None, *, pause: bool) -> None:
    """Note a failed attempt; None gives the delivery up. `pause` makes everything for the endpoint wait as long."""
    await conn.execute(FAILED, row["endpoint"], row["handoff_id"], row["event_id"], problem, again_s)
    if pause and again_s is not None:
        await conn.execute(PAUSE, row["endpoint"], again_s)


async def forget(conn: Connection) -> int:
    """Delete a batch of what is older than KEPT, or was given up and its handoff deleted; return how many rows that were."""
    return await conn.fetchval(FORGET, KEPT, BATCH_MAX)


async def retry(conn: Connection, endpoint: str, limit: int) -> int:
    """Make what was given up at an endpoint pending again, the oldest first; return how many rows that were."""
    return await conn.fetchval(RETRY, endpoint, limit)


async def totals(conn: Connection, endpoints: list[str]) -> Record | None:
    """Return what is pending and what was given up at these endpoints, and the age of the oldest that is pending."""
    return await conn.fetchrow(TOTALS, endpoints)


async def state(conn: Connection, endpoints: list[str]) -> list[dict[str, Any]]:
    """Return, for each endpoint, what is pending, what was given up, the age of the oldest, and the last problem."""
    return [dict(row) for row in await conn.fetch(STATE, endpoints)]
