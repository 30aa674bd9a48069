"""Sessions: creating, reading, listing and closing them."""

from datetime import UTC, datetime
from typing import Any, Final

from asyncpg import Record

from handoff.errors import Invalid, session_not_found
from handoff.model import SessionStatus
from handoff.store import configuration
from handoff.store.connect import Connection

# Between a session's expiry and the job that notices it, everyone reads that it is expired.
_STATUS = "CASE WHEN s.status IN ('active', 'dormant') AND s.expires_at <= now() THEN 'expired' ELSE s.status END"
COLUMNS = f"""s.id, s.key, s.created_by, s.owner, s.writers, {_STATUS} AS status, s.retention_policy,
    s.metadata, s.created_at, s.expires_at, s.status_since, s.last_activity_at, s.last_sequence, s.content_bytes, s.version,
    s.entry_counts, s.superseded_counts"""

_OFFERS_LOCK = 20_261_129  # of advisory locks, the class that belongs to offers

# With its participant and its first two events.
CREATE = f"""
    WITH s AS (
        INSERT INTO session (key, created_by, owner, writers, status, retention_policy, metadata, created_at, expires_at,
                             last_activity_at, last_sequence, content_bytes, version, status_since, idle_check_at,
                             expiry_check_at)
        SELECT $1, $2, $2, ARRAY[$2], 'active', p.name, $4, now(), now() + p.active_for, now(), 0, 0, 1, now(),
               now() + least(p.dormant_after, interval '1 hour'), now() + p.active_for
          FROM retention_policy p
         WHERE p.name = $3
        ON CONFLICT (key) DO NOTHING
        RETURNING *
    ), joined AS (
        INSERT INTO participant (agent, session_id, created_at) SELECT owner, id, created_at FROM s
    ), recorded AS (
        INSERT INTO event (session_id, kind, agent, at, data)
        SELECT s.id, e.kind, e.agent, now(), e.data
          FROM s, LATERAL (VALUES (1, 'session.created', s.owner, NULL),
                                  (2, 'session.expiration_scheduled', NULL,
                                   jsonb_build_object('at', s.expires_at, 'retention_policy', s.retention_policy)))
                       AS e (place, kind, agent, data)
         ORDER BY e.place
    )
    SELECT {COLUMNS} FROM s
"""

FIND = f"SELECT {COLUMNS} FROM session s WHERE s.key = $1"

LOCK = f"SELECT {COLUMNS} FROM session s WHERE s.id = $1 FOR NO KEY UPDATE"

# $2 names a sender and a target. Offers from one to the other are made one at a time, so that they can be counted.
LOCK_FOR_OFFER = f"""
    SELECT {COLUMNS}, pg_advisory_xact_lock({_OFFERS_LOCK}, hashtext($2))
      FROM session s
     WHERE s.id = $1
       FOR NO KEY UPDATE
"""

# A session is visible to its participants and to agents to whom it is offered; to everyone if the viewer is null.
SEES = """({viewer}::text IS NULL
            OR EXISTS (SELECT FROM participant WHERE session_id = {session} AND agent = {viewer})
            OR EXISTS (SELECT FROM handoff
                        WHERE session_id = {session} AND state = 'offered'
                          AND (target_agent = {viewer}
                               OR target_capability = ANY (SELECT unnest(capabilities) FROM agent
                                                            WHERE name = {viewer}))))"""
SEE = f"SELECT {COLUMNS} FROM session s WHERE s.key = $1 AND {SEES.format(session='s.id', viewer='$2')}"

PAGE = f"""
    SELECT {COLUMNS}
      FROM session s
     WHERE (s.created_at, s.id) < ($1, $2) AND s.created_at >= $3
     ORDER BY s.created_at DESC, s.id DESC
     LIMIT $4
"""
PAGE_BY_STATUS = f"""
    SELECT {COLUMNS}
      FROM session s
     WHERE s.status = $5 AND (s.expires_at > now() OR s.status NOT IN ('active', 'dormant'))
       AND (s.created_at, s.id) < ($1, $2) AND s.created_at >= $3
     ORDER BY s.created_at DESC, s.id DESC
     LIMIT $4
"""
# $4 limits the rows read. Rows that are not `wanted` are skipped, and the next page continues after the last row read. The
# inner SELECT is not an EXISTS, because Postgres may run that by reading all sessions of $7 at once.
PAGE_BY_AGENT = f"""
    SELECT {COLUMNS},
           ($6::text IS NULL OR {_STATUS} = $6)
           AND ($7::text IS NULL OR (SELECT true FROM participant v WHERE v.session_id = s.id AND v.agent = $7) IS TRUE)
           AS wanted
      FROM (SELECT session_id, created_at
              FROM participant
             WHERE agent = $5 AND (created_at, session_id) < ($1, $2) AND created_at >= $3
             ORDER BY created_at DESC, session_id DESC
             LIMIT $4) p
      JOIN session s ON s.id = p.session_id
     ORDER BY s.created_at DESC, s.id DESC
"""

# Of the policy of a new session, or else that of a session or of a handoff's session; null if there is none.
KEEPS_SECRETS = """
    SELECT p.keeps_secrets
      FROM retention_policy p
     WHERE p.name = coalesce($1, (SELECT s.retention_policy FROM session s WHERE s.key = $2),
                             (SELECT s.retention_policy FROM handoff h JOIN session s ON s.id = h.session_id
                               WHERE h.id = $3))
"""

EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)  # before all sessions
NEWEST: Final = (datetime(9999, 1, 1, tzinfo=UTC), 0)  # the position before the newest
_READ_AHEAD = 4  # rows read per row requested when a filter has no index


async def create(conn: Connection, key: str, agent: str, policy: str, metadata: dict[str, Any]) -> Record | None:
    """Create a session owned by `agent`. Returns None if its key is taken. Raises Invalid if there is no such policy."""
    row = await conn.fetchrow(CREATE, key, agent, policy, metadata)
    if row is None and policy not in (names := await configuration.policy_names(conn)):
        raise Invalid(
            "unknown_retention_policy",
            f"There is no retention policy of this name. The policies are {', '.join(names)}.",
            "Repeat the call with one of them as retention_policy, or without retention_policy for the usual one.",
        )
    return row


async def find(conn: Connection, key: str) -> Record | None:
    """Return the session with this key, without checking who may read it."""
    return await conn.fetchrow(FIND, key)


async def see(conn: Connection, key: str, viewer: str | None) -> Record:
    """Return the session with this key. Raises NotFound unless it exists and `viewer` is None or may read it."""
    row = await conn.fetchrow(SEE, key, viewer)
    if row is None:
        raise session_not_found(key)
    return row


async def keeps_secrets(conn: Connection, *, policy: str | None, session_key: str | None, handoff_id: int | None) -> bool:
    """Whether secrets in what an agent writes are kept: by a policy, or else by that of a session or a handoff."""
    return bool(await conn.fetchval(KEEPS_SECRETS, policy, session_key, handoff_id))


async def lock(conn: Connection, session_id: int) -> Record:
    """Return the session's row, locked until the transaction ends. Raises LookupError if it does not exist."""
    row = await conn.fetchrow(LOCK, session_id)
    if row is None:
        raise LookupError(f"session {session_id} does not exist")
    return row


async def lock_for_offer(conn: Connection, session_id: int, sender: str, target: str) -> Record:
    """Do the same as `lock`, and wait for other offers from this sender to this target that are being made."""
    row = await conn.fetchrow(LOCK_FOR_OFFER, session_id, f"{sender} {target}")
    if row is None:
        raise LookupError(f"session {session_id} does not exist")
    return row


async def page(
    conn: Connection,
    *,
    before: tuple[datetime, int],
    since: datetime,
    limit: int,
    status: SessionStatus | None = None,
    agent: str | None = None,
    viewer: str | None = None,
) -> tuple[list[Record], Record | None]:
    """Return a page of sessions, newest first, and the last row read if there may be more after it (otherwise None).

    The sessions were created at or after `since` and come after the position `before` (created_at, id). At most `limit` are
    returned; with a filter, a page may be shorter although more follow. `agent` limits the list to the sessions in which it
    participates, and so does `viewer`, whose sessions are the ones that are read: the last row is one that it may see.
    """
    of_agent = viewer or agent
    if of_agent is None:
        query = (PAGE_BY_STATUS, status) if status else (PAGE,)
        rows = await conn.fetch(query[0], *before, since, limit + 1, *query[1:])
        return rows[:limit], rows[limit - 1] if len(rows) > limit else None
    second = agent if agent != of_agent else None
    read = limit + 1 if status is None and second is None else limit * _READ_AHEAD + 1
    rows = await conn.fetch(PAGE_BY_AGENT, *before, since, read, of_agent, status, second)
    wanted: list[Record] = []
    last: Record | None = None
    for row in rows:
        if len(wanted) == limit:
            return wanted, last
        if row["wanted"]:
            wanted.append(row)
        last = row
    return wanted, last if len(rows) == read else None


def view(row: Record) -> dict[str, Any]:
    """Return a session in the form that callers receive."""
    return {
        "session_key": row["key"],
        "status": row["status"],
        "owner": row["owner"],
        "writers": row["writers"],
        "created_by": row["created_by"],
        "retention_policy": row["retention_policy"],
        "metadata": row["metadata"],
        "created_at": row["created_at"],
        "status_since": row["status_since"],
        "expires_at": row["expires_at"],
        "last_activity_at": row["last_activity_at"],
        "last_sequence": row["last_sequence"],
        "content_bytes": row["content_bytes"],
        "version": row["version"],
    }
