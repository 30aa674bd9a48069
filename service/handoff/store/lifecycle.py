"""The lifecycle of sessions: every change of a session's status that SESSION_TRANSITIONS allows, with its event.

No change of status counts as activity. The append and the offer wake a dormant session themselves (append.py, offers.py).
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, get_args

from asyncpg import Record

from handoff.model import SESSION_TRANSITIONS, SessionAction, SessionStatus
from handoff.store import holds
from handoff.store.connect import Connection
from handoff.store.sessions import COLUMNS

BATCH_MAX: Final = 500  # sessions per statement, so that appends to them wait a few milliseconds at most

CHANGE = f"""
    WITH recorded AS (
        INSERT INTO event (session_id, kind, agent, at, data) VALUES ($1, $3, $4, now(), $5)
    )
    UPDATE session AS s SET status = $2, status_since = now(), version = version + 1
     WHERE s.id = $1
 RETURNING {COLUMNS}
"""

# A policy that is changed to a shorter time takes effect within an hour: so far ahead does a session say when to look again.
SLEEP = """
    WITH due AS MATERIALIZED (
        SELECT s.id, s.expires_at, s.last_activity_at + p.dormant_after AS idle_at, p.dormant_after
          FROM session s JOIN retention_policy p ON p.name = s.retention_policy
         WHERE s.status = 'active' AND s.idle_check_at <= now()
         ORDER BY s.idle_check_at
         LIMIT $1
           FOR NO KEY UPDATE OF s SKIP LOCKED
    ), judged AS MATERIALIZED (
        SELECT id, idle_at <= now() AND expires_at > now()
                   AND NOT EXISTS (SELECT FROM handoff h
                                    WHERE h.session_id = due.id AND h.state IN ('offered', 'accepted', 'blocked')) AS sleeps,
               least(CASE WHEN idle_at > now() THEN idle_at ELSE now() + dormant_after END,
                     now() + interval '1 hour') AS next
          FROM due
    ), changed AS (
        UPDATE session s
           SET status = CASE WHEN j.sleeps THEN 'dormant' ELSE s.status END,
               status_since = CASE WHEN j.sleeps THEN now() ELSE s.status_since END,
               version = s.version + j.sleeps::int, idle_check_at = j.next
          FROM judged j
         WHERE s.id = j.id
    ), recorded AS (
        INSERT INTO event (session_id, kind, at) SELECT id, 'session.dormant', now() FROM judged WHERE sleeps
    )
    SELECT count(*) AS looked_at, count(*) FILTER (WHERE sleeps) AS changed FROM judged
"""

# Sessions with open handoffs are returned instead: these have to end first. Should that fail, others are not delayed by it.
EXPIRE = """
    WITH due AS MATERIALIZED (
        SELECT s.id, s.expires_at
          FROM session s
         WHERE s.status IN ('active', 'dormant') AND s.expiry_check_at <= now()
         ORDER BY s.expiry_check_at
         LIMIT $1
           FOR NO KEY UPDATE SKIP LOCKED
    ), judged AS MATERIALIZED (
        SELECT id, expires_at, expires_at <= now() AS is_over,
               ARRAY(SELECT h.id FROM handoff h
                      WHERE h.session_id = due.id AND h.state IN ('offered', 'accepted', 'blocked')
                      ORDER BY h.id LIMIT $1) AS open
          FROM due
    ), changed AS (
        UPDATE session s
           SET status = CASE WHEN j.is_over AND j.open = '{}' THEN 'expired' ELSE s.status END,
               status_since = CASE WHEN j.is_over AND j.open = '{}' THEN now() ELSE s.status_since END,
               version = s.version + (j.is_over AND j.open = '{}')::int,
               expiry_check_at = CASE WHEN j.is_over THEN now() + interval '1 minute' ELSE j.expires_at END
          FROM judged j
         WHERE s.id = j.id
    ), recorded AS (
        INSERT INTO event (session_id, kind, at)
        SELECT id, 'session.expired', now() FROM judged WHERE is_over AND open = '{}'
    )
    SELECT id, is_over, open FROM judged
"""
# After their handoffs have ended.
EXPIRE_AFTER_HANDOFFS = """
    WITH due AS MATERIALIZED (
        SELECT s.id
          FROM session s
         WHERE s.id = ANY ($1::bigint[]) AND s.status IN ('active', 'dormant') AND s.expires_at <= now()
           AND NOT EXISTS (SELECT FROM handoff h
                            WHERE h.session_id = s.id AND h.state IN ('offered', 'accepted', 'blocked'))
         ORDER BY s.id
           FOR NO KEY UPDATE
    ), changed AS (
        UPDATE session s SET status = 'expired', status_since = now(), version = version + 1 FROM due WHERE s.id = due.id
    ), recorded AS (
        INSERT INTO event (session_id, kind, at) SELECT id, 'session.expired', now() FROM due
    )
    SELECT count(*) FROM due
"""

# Per status at most $2 sessions are read, by an index. `$1` is how long a closed session waits to be archived.
OVERVIEW = f"""
    WITH known AS MATERIALIZED (
        SELECT s.* FROM unnest($3::text[]) AS of (status), LATERAL (
            SELECT s.status, s.content_bytes, s.expires_at, s.status_since + $1::interval AS archive_at,
                   s.last_activity_at + p.dormant_after AS idle_at, s.status_since + p.archived_for AS delete_at,
                   s.status = 'archived' AND {holds.HELD} AS is_held
              FROM session s JOIN retention_policy p ON p.name = s.retention_policy
             WHERE s.status = of.status
             LIMIT $2) s
    ), due AS (
        SELECT 'sleep' AS change, idle_at AS at FROM known WHERE status = 'active' AND idle_at < expires_at
        UNION ALL
        SELECT 'expire', expires_at FROM known WHERE status IN ('active', 'dormant')
        UNION ALL
        SELECT 'archive', archive_at FROM known WHERE status IN ('completed', 'cancelled', 'expired')
        UNION ALL
        SELECT 'delete', delete_at FROM known WHERE status = 'archived' AND NOT is_held
    )
    SELECT 'status' AS figure, status AS name, count(*) AS sessions, sum(content_bytes)::bigint AS content_bytes,
           count(*) FILTER (WHERE is_held) AS held, NULL::timestamptz AS next_at, NULL::bigint AS hour, NULL::bigint AS day
      FROM known GROUP BY status
    UNION ALL
    SELECT 'due', change, count(*), NULL, NULL, min(at), count(*) FILTER (WHERE at <= now() + interval '1 hour'),
           count(*) FILTER (WHERE at <= now() + interval '1 day')
      FROM due GROUP BY change
"""
SESSIONS_MAX: Final = 100_000  # read per status
STORAGE = """
    SELECT NULL AS bucket, pg_total_relation_size('context_entry') AS bytes, NULL::timestamptz AS dropped_after
    UNION ALL
    (SELECT b.name, pg_total_relation_size(format('%I', b.partition)::regclass),
            (b.week + 7)::timestamp AT TIME ZONE 'UTC' + p.archived_for
       FROM archive_bucket b LEFT JOIN retention_policy p ON p.name = b.retention_policy
      ORDER BY b.week DESC, b.name
      LIMIT 1000)
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one batch of a job did: how many sessions it looked at, and how many it changed."""

    looked_at: int
    changed: int


@dataclass(frozen=True, slots=True)
class Expired(Batch):
    """A batch of sessions that expired; `sessions` are those that can't yet, because of the open `handoffs`."""

    sessions: list[int]
    handoffs: list[int]


async def change(conn: Connection, row: Record, action: SessionAction, agent: str | None) -> Record:
    """Change the status of a session that the caller has locked, record the event, and return the changed row.

    `agent` is the agent that acts. Raises LookupError if SESSION_TRANSITIONS does not allow the action.
    """
    then = SESSION_TRANSITIONS[row["status"], action]
    if then.status is None:
        raise LookupError("a session is deleted by erasure.erase")
    data = {"from": row["status"], "to": then.status} if then.event == "session.status_changed" else None
    changed = await conn.fetchrow(CHANGE, row["id"], then.status, then.event, agent, data)
    if changed is None:
        raise LookupError(f"session {row['id']} no longer exists")
    return changed


async def overview(conn: Connection, archive_after: timedelta) -> dict[str, Any]:
    """Return the number and size of sessions by status, which changes are due and when, and what the entries take on disk.

    Of a status with more than SESSIONS_MAX sessions, so many are counted.
    """
    rows = await conn.fetch(OVERVIEW, archive_after, SESSIONS_MAX, list(get_args(SessionStatus)))
    storage = await conn.fetch(STORAGE)
    return {
        "by_status": {
            row["name"]: {name: row[name] for name in ("sessions", "content_bytes", "held") if row[name]}
            for row in rows
            if row["figure"] == "status"
        },
        "due": {
            row["name"]: {"next_at": row["next_at"], "within_an_hour": row["hour"], "within_a_day": row["day"]}
            for row in rows
            if row["figure"] == "due"
        },
        "entries_bytes": sum(row["bytes"] for row in storage if row["bucket"] is None),
        "archive_bytes": sum(row["bytes"] for row in storage if row["bucket"] is not None),
        "archive": [dict(row) for row in storage if row["bucket"] is not None],
    }


async def put_to_sleep(conn: Connection) -> Batch:
    """Make idle sessions of which nothing is on offer or held dormant, as their policies say."""
    done = await conn.fetchrow(SLEEP, BATCH_MAX)
    return Batch(done["looked_at"], done["changed"]) if done is not None else Batch(0, 0)


async def expire(conn: Connection) -> Expired:
    """Expire the sessions whose time is over, except those with open handoffs, which are returned."""
    rows = await conn.fetch(EXPIRE, BATCH_MAX)
    over = [row for row in rows if row["is_over"]]
    waiting = [row for row in over if row["open"]]
    return Expired(
        len(rows),
        len(over) - len(waiting),
        [row["id"] for row in waiting],
        [handoff_id for row in waiting for handoff_id in row["open"]],
    )


async def expire_after_handoffs(conn: Connection, session_ids: list[int]) -> int:
    """Expire those of these sessions whose time is over and whose handoffs have all ended; return how many."""
    return await conn.fetchval(EXPIRE_AFTER_HANDOFFS, session_ids)
