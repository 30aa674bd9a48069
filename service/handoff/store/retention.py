"""Deletes what nobody needs any more: kept results of calls, the history of alerts, health and processes, idle agents.

Each statement deletes a bounded number of rows, so that no call waits for it.
"""

from datetime import timedelta
from typing import Final, NamedTuple

from handoff.store.connect import Connection
from handoff.store.lifecycle import change
from handoff.store.performance import MINUTES_KEPT

BATCH_MAX: Final = 2_000

# Longer than any session is active after its last write, and for as long as the session of the call takes writes, so that a
# call can be repeated as long as it could have an effect.
#
# The blocks of the table are read in turn, as an index by age would have to be kept up to date by each call. OFFSET 0 has
# sessions looked up one by one, however many rows Postgres expects.
RESULTS = """
    DELETE FROM idempotency i
     WHERE i.ctid >= $2 AND i.ctid < $3
       AND i.created_at < now() - greatest($1::interval, (SELECT max(active_for) FROM retention_policy))
       AND NOT EXISTS (
           SELECT FROM session s
            WHERE s.id = i.session_id AND s.status IN ('active', 'dormant') OFFSET 0)
       AND NOT EXISTS (
           SELECT FROM session s
            WHERE s.key = coalesce(i.result ->> 'session_key', i.result -> 'handoff' ->> 'session_key')
              AND s.status IN ('active', 'dormant') OFFSET 0)
"""
RESULT_BLOCKS = "SELECT pg_relation_size('idempotency') / current_setting('block_size')::int"
RESULT_BLOCKS_MAX: Final = 8  # of 8 KiB: up to 800 results or so, in some milliseconds
ALERTS = """
    DELETE FROM alert
     WHERE ctid = ANY (ARRAY(SELECT ctid FROM alert
                              WHERE (status = 'firing') = false
                                AND began_at < now() - (SELECT max(logs_for) FROM retention_policy)
                                AND ends_at < now() - (SELECT max(logs_for) FROM retention_policy)
                              LIMIT $1))
"""
HEALTH = """
    DELETE FROM health_event
     WHERE id = ANY (ARRAY(SELECT id FROM (SELECT id, at FROM health_event ORDER BY id LIMIT $1) oldest
                            WHERE at < now() - (SELECT max(logs_for) FROM retention_policy)))
"""
# What processes did: minute by minute for MINUTES_KEPT at most, per hour and day for as long as any policy keeps metrics.
PROCESS_MINUTES = """
    DELETE FROM process_minute
     WHERE ctid = ANY (ARRAY(SELECT ctid FROM process_minute
                              WHERE minute < now() - least($1::interval,
                                                           (SELECT max(metrics_for) FROM retention_policy))
                              LIMIT $2))
"""
CALL_MINUTES = PROCESS_MINUTES.replace("process_minute", "call_minute")
AGENT_MINUTES = PROCESS_MINUTES.replace("process_minute", "agent_minute")
PROCESS_PERIODS = """
    DELETE FROM process_period
     WHERE ctid = ANY (ARRAY(SELECT ctid FROM process_period
                              WHERE grain IN ('hour', 'day')
                                AND start < date_trunc(grain, now() - (SELECT max(metrics_for) FROM retention_policy), 'UTC')
                              LIMIT $1))
"""
CALL_PERIODS = PROCESS_PERIODS.replace("process_period", "call_period")
# Of the next agents after $1 by name: those that have no session and no offer, and were last here a week ago, or 90 days ago
# if they have declared what they can do, because agents who offer work look for that.
AGENTS = """
    WITH next AS (
        SELECT name, capabilities, declared_at FROM agent WHERE name > $1 ORDER BY name LIMIT $2
    ), gone AS (
        DELETE FROM agent
         WHERE name IN (SELECT name FROM next n
                         WHERE n.declared_at < now() - CASE WHEN n.capabilities = '{}' THEN interval '7 days'
                                                            ELSE interval '90 days' END
                           AND NOT EXISTS (SELECT FROM participant p WHERE p.agent = n.name)
                           AND NOT EXISTS (SELECT FROM handoff h WHERE h.target_agent = n.name AND h.state = 'offered'))
        RETURNING name
    )
    SELECT (SELECT max(name) FROM next) AS last, (SELECT count(*) FROM next) AS looked_at,
           (SELECT count(*) FROM gone) AS deleted
"""
# Sessions that nobody used: the entry that registers them is their only one, and nothing of them is on offer or held.
UNUSED = """
    SELECT s.id, s.status
      FROM session s
     WHERE s.status IN ('active', 'dormant') AND s.last_activity_at < now() - $1::interval AND s.last_sequence <= 1
       AND NOT EXISTS (SELECT FROM handoff h WHERE h.session_id = s.id AND h.state IN ('offered', 'accepted', 'blocked'))
     ORDER BY s.id
     LIMIT $2
       FOR NO KEY UPDATE OF s SKIP LOCKED
"""
UNUSED_AFTER: Final = timedelta(days=7)


async def expire_unused(conn: Connection) -> int:
    """Expire sessions that nobody has used since they were registered, UNUSED_AFTER ago; return how many."""
    found = await conn.fetch(UNUSED, UNUSED_AFTER, BATCH_MAX)
    for session in found:
        await change(conn, session, "expire", None)
    return len(found)


async def result_blocks(conn: Connection) -> int:
    """Return how many blocks the kept results of calls take."""
    return await conn.fetchval(RESULT_BLOCKS)


async def results(conn: Connection, kept_for: timedelta, block: int) -> int:
    """Delete results in RESULT_BLOCKS_MAX blocks from this one on that nobody can ask for any more; return how many.

    They are older than `kept_for` and than any policy lets a session stay active, and their session takes no more writes.
    """
    return _count(await conn.execute(RESULTS, kept_for, (block, 0), (block + RESULT_BLOCKS_MAX, 0)))


async def alerts(conn: Connection) -> int:
    """Delete alerts that were resolved longer ago than any policy keeps logs; return how many."""
    return _count(await conn.execute(ALERTS, BATCH_MAX))


async def health(conn: Connection) -> int:
    """Delete changes of health that are older than any policy keeps logs; return how many."""
    return _count(await conn.execute(HEALTH, BATCH_MAX))


async def process_minutes(conn: Connection) -> int:
    """Delete minutes of processes that are older than MINUTES_KEPT, or than any policy keeps metrics; return how many."""
    return _count(await conn.execute(PROCESS_MINUTES, MINUTES_KEPT, BATCH_MAX))


async def call_minutes(conn: Connection) -> int:
    """Delete the calls of such minutes; return how many rows."""
    return _count(await conn.execute(CALL_MINUTES, MINUTES_KEPT, BATCH_MAX))


async def agent_minutes(conn: Connection) -> int:
    """Delete what agents called in such minutes; return how many rows."""
    return _count(await conn.execute(AGENT_MINUTES, MINUTES_KEPT, BATCH_MAX))


async def process_periods(conn: Connection) -> int:
    """Delete hours and days of processes that are older than any policy keeps metrics; return how many."""
    return _count(await conn.execute(PROCESS_PERIODS, BATCH_MAX))


async def call_periods(conn: Connection) -> int:
    """Delete the calls of such hours and days; return how many rows."""
    return _count(await conn.execute(CALL_PERIODS, BATCH_MAX))


class Looked(NamedTuple):
    """How many agents were looked at and deleted, and the name of the last one; empty if there was none."""

    looked_at: int
    deleted: int
    last: str


async def agents(conn: Connection, after: str) -> Looked:
    """Delete, of the next agents after this name, those that nothing refers to."""
    row = await conn.fetchrow(AGENTS, after, BATCH_MAX)
    return Looked(row["looked_at"], row["deleted"], row["last"] or "") if row is not None else Looked(0, 0, "")


def _count(tag: str) -> int:
    return int(tag.rsplit(" ", 1)[1])
