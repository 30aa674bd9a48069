"""Lists that reach over many sessions: sessions with how they stand, and the handoffs that an agent has offered.

A list is read along an index. What no index knows is filtered while reading, ROWS_READ_MAX rows per page at most; the next
page goes on after the last row read. So a page can be short, or empty, although more follow.

The outline of a page is what it is made of: per item, its id and the transactions (xmin) that last wrote the rows from which
it is shown. Whoever writes any of them changes the outline, so a page with the same outline is the same page, but for
`idle_s`, which grows by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from asyncpg import Record

from handoff.errors import session_not_found
from handoff.model import HandoffState, SessionStatus
from handoff.store import handoffs, holds, sessions
from handoff.store.connect import Connection

Reading = Literal["outline", "whole"]
ROWS_READ_MAX: Final = 400  # per page, for a list with a filter: 3 ms
EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
NEWEST: Final = (datetime(9999, 1, 1, tzinfo=UTC), 0)  # the position before the newest session

# How session `s` stands: when its policy changes its status if nobody writes, whether it is held, and its open handoffs.
# {after} is how long a closed session waits to be archived.
_STANDING: Final = f"""
    LATERAL (SELECT extract(epoch FROM now() - s.last_activity_at)::float8 AS idle_s,
                    CASE WHEN {sessions.STATUS} = 'active' AND s.last_activity_at + p.dormant_after < s.expires_at
                         THEN s.last_activity_at + p.dormant_after END AS dormant_at,
                    CASE WHEN s.status = 'archived' THEN s.status_since
                         WHEN s.status IN ('active', 'dormant') THEN s.expires_at + {{after}}::interval
                         ELSE s.status_since + {{after}}::interval END AS archived_at,
                    p.archived_for, {holds.HELD} AS is_held, p.xmin AS policy_written_by
               FROM retention_policy p WHERE p.name = s.retention_policy) standing,
    LATERAL (SELECT count(*) AS open, coalesce(sum(lapses), 0) AS lapses,
                    (array_agg(h.holder ORDER BY h.lease_expires_at) FILTER (WHERE h.state <> 'offered'))[1] AS holder,
                    min(h.lease_expires_at) AS lease_expires_at,
                    string_agg(h.id || ':' || h.xmin, ' ' ORDER BY h.id) AS handoffs_written_by
               FROM handoff h
              WHERE h.session_id = s.id AND h.state IN ('offered', 'accepted', 'blocked')) of_handoffs
"""
ONE = f"""
    SELECT {sessions.COLUMNS}, standing.*, of_handoffs.*
      FROM session s, {_STANDING.format(after="$3")}
     WHERE s.key = $1 AND {sessions.SEES.format(session="s.id", viewer="$2")}
"""

_OUTLINE: Final = f"""concat_ws(' ', s.id, s.written_by, s.version, s.created_at, s.last_activity_at, {sessions.STATUS},
                                  policy_written_by, is_held, handoffs_written_by) AS outline"""
_OUTLINE_ONLY: Final = f"s.id, s.created_at, idle_s, {_OUTLINE}"
_WHOLE: Final = f"{sessions.COLUMNS}, standing.*, of_handoffs.*, {_OUTLINE}"

# Of the rows read, those after the position ($1, $2) that were created at $3 or later: at most $5 of $4.
_PAGE = f"""
    WITH read AS MATERIALIZED ({{along}} LIMIT $4)
    SELECT ended.*, page.*
      FROM (SELECT count(*) AS rows_read, min(created_at) AS ended_at,
                   (array_agg(id ORDER BY created_at, id))[1] AS ended_id FROM read) ended
      LEFT JOIN LATERAL (
        SELECT {{columns}}
          FROM (SELECT s.*
                  FROM read, -- LIMIT 1, or Postgres may read all sessions
                       LATERAL (SELECT *, xmin AS written_by FROM session WHERE id = read.id LIMIT 1) s
                 WHERE ($6::text IS NULL OR {sessions.STATUS} = $6)
                   AND ($7::text IS NULL
                        OR (SELECT true FROM participant v WHERE v.session_id = s.id AND v.agent = $7) IS TRUE)
                   AND ($8::text IS NULL OR s.owner = $8)
                   AND ($9::text IS NULL OR s.created_by = $9)
                   AND ($10::text IS NULL OR s.retention_policy = $10)
                   AND ($11::timestamptz IS NULL OR s.last_activity_at >= $11)
                 ORDER BY s.created_at DESC, s.id DESC
                 LIMIT $5) s, {_STANDING.format(after="$12")}
        ) page ON true
     ORDER BY page.created_at DESC, page.id DESC
"""
_ALONG_SESSIONS = """SELECT id, created_at FROM session WHERE {of} (created_at, id) < ($1, $2) AND created_at >= $3
                      ORDER BY created_at DESC, id DESC"""
# Owner and creator of a session take part in it.
_ALONG_PARTICIPANTS = """SELECT session_id AS id, created_at FROM participant
                          WHERE agent = $13 AND (created_at, session_id) < ($1, $2) AND created_at >= $3
                          ORDER BY created_at DESC, session_id DESC"""
SESSIONS = _PAGE.format(columns=_WHOLE, along=_ALONG_SESSIONS.format(of=""))
SESSIONS_BY_STATUS = _PAGE.format(columns=_WHOLE, along=_ALONG_SESSIONS.format(of="status = $13 AND"))
SESSIONS_BY_POLICY = _PAGE.format(columns=_WHOLE, along=_ALONG_SESSIONS.format(of="retention_policy = $13 AND"))
SESSIONS_BY_AGENT = _PAGE.format(columns=_WHOLE, along=_ALONG_PARTICIPANTS)
SESSIONS_OUTLINE = _PAGE.format(columns=_OUTLINE_ONLY, along=_ALONG_SESSIONS.format(of=""))
SESSIONS_BY_STATUS_OUTLINE = _PAGE.format(columns=_OUTLINE_ONLY, along=_ALONG_SESSIONS.format(of="status = $13 AND"))
SESSIONS_BY_POLICY_OUTLINE = _PAGE.format(
    columns=_OUTLINE_ONLY, along=_ALONG_SESSIONS.format(of="retention_policy = $13 AND")
)
SESSIONS_BY_AGENT_OUTLINE = _PAGE.format(columns=_OUTLINE_ONLY, along=_ALONG_PARTICIPANTS)

# `sender = $1` would let Postgres walk through all handoffs by their ids instead.
_SENT = """
    WITH read AS MATERIALIZED (
        SELECT *, xmin AS written_by
          FROM handoff
         WHERE (sender, id) < ($1, $2) AND sender >= $1
         ORDER BY sender DESC, id DESC
         LIMIT $3
    )
    SELECT ended.*, page.*
      FROM (SELECT count(*) AS rows_read, min(id) AS ended_id FROM read) ended
      LEFT JOIN LATERAL (
        SELECT {columns}
          FROM read h JOIN session s ON s.id = h.session_id
         WHERE ($5::text IS NULL OR h.state = $5)
         ORDER BY h.id DESC
         LIMIT $4) page ON true
     ORDER BY page.id DESC
"""
SENT = _SENT.format(columns=f"{handoffs.COLUMNS}, s.key AS session_key, {handoffs.OUTLINE}")
SENT_OUTLINE = _SENT.format(columns=f"h.id, {handoffs.OUTLINE}")

_OUTLINE_OF: Final = {
    SESSIONS: SESSIONS_OUTLINE,
    SESSIONS_BY_STATUS: SESSIONS_BY_STATUS_OUTLINE,
    SESSIONS_BY_POLICY: SESSIONS_BY_POLICY_OUTLINE,
    SESSIONS_BY_AGENT: SESSIONS_BY_AGENT_OUTLINE,
}


@dataclass(frozen=True, slots=True)
class Filters:
    """Which sessions a list has. `agent` takes part in them; `since` and `until` are about their creation."""

    status: SessionStatus | None = None
    agent: str | None = None
    owner: str | None = None
    created_by: str | None = None
    retention_policy: str | None = None
    since: datetime = EVER
    until: datetime = NEWEST[0]
    active_since: datetime | None = None


async def one(conn: Connection, key: str, viewer: str | None, archive_after: timedelta) -> Record:
    """Return the session with this key and how it stands. Raises NotFound unless `viewer` is None or may read it."""
    row = await conn.fetchrow(ONE, key, viewer, archive_after)
    if row is None:
        raise session_not_found(key)
    return row


async def page(
    conn: Connection,
    of: Filters,
    *,
    before: tuple[datetime, int],
    limit: int,
    viewer: str | None,
    archive_after: timedelta,
    reading: Reading = "whole",
) -> tuple[list[Record], tuple[datetime, int] | None]:
    """Return at most `limit` sessions, newest first, and the position (created_at, id) after which the next page begins.

    The position is None if there are no more. Sessions come after the position `before`. With a `viewer`, only sessions in
    which it takes part are read, so a position is always of one that it may see. When `reading` the outline, these rows have
    nothing but theirs and `idle_s`.
    """
    along: tuple[str, ...]
    rest = {
        name: getattr(of, name) for name in ("status", "agent", "owner", "created_by", "retention_policy", "active_since")
    }
    if (agent := viewer or of.agent or of.owner or of.created_by) is not None:
        along = (SESSIONS_BY_AGENT, agent)
        if rest["agent"] == agent:
            rest["agent"] = None
    elif of.status is not None:
        along = (SESSIONS_BY_STATUS, of.status)
        if of.status not in ("active", "dormant"):  # one of these may have expired
            rest["status"] = None
    elif of.retention_policy is not None:
        along = (SESSIONS_BY_POLICY, of.retention_policy)
        rest["retention_policy"] = None
    else:
        along = (SESSIONS,)
    read = ROWS_READ_MAX if any(value is not None for value in rest.values()) else limit + 1
    rows = await conn.fetch(
        _OUTLINE_OF[along[0]] if reading == "outline" else along[0],
        *min(before, (of.until, 0)),
        of.since,
        read,
        limit + 1,
        *rest.values(),
        archive_after,
        *along[1:],
    )
    found = [row for row in rows if row["id"] is not None]
    if len(found) > limit:
        return found[:limit], (found[limit - 1]["created_at"], found[limit - 1]["id"])
    return found, (rows[0]["ended_at"], rows[0]["ended_id"]) if rows[0]["rows_read"] == read else None


async def sent(
    conn: Connection, agent: str, *, before: int, limit: int, state: HandoffState | None, reading: Reading = "whole"
) -> tuple[Sequence[Record], int | None]:
    """Return at most `limit` handoffs that the agent has offered, newest first, and the id after which the next page begins.

    It is None if there are no more. When `reading` the outline, these rows have nothing but theirs.
    """
    read = limit + 1 if state is None else ROWS_READ_MAX
    rows = await conn.fetch(SENT_OUTLINE if reading == "outline" else SENT, agent, before, read, limit + 1, state)
    found = [row for row in rows if row["id"] is not None]
    if len(found) > limit:
        return found[:limit], found[limit - 1]["id"]
    return found, rows[0]["ended_id"] if rows[0]["rows_read"] == read else None


def idle_s(row: Record) -> float:
    """Return for how many seconds nobody has done anything with a session of a list."""
    return round(max(0.0, row["idle_s"]), 3)


def view(row: Record, entries_max: int) -> dict[str, Any]:
    """Return a session and how it stands in the form that callers receive. Times that will not come are left out."""
    due = {
        "dormant_at": row["dormant_at"] if not row["open"] else None,
        "archived_at": row["archived_at"] if row["status"] != "archived" else None,
        "deleted_at": row["archived_at"] + row["archived_for"] if not row["is_held"] else None,
    }
    open_handoffs = {name: row[name] for name in ("open", "lapses", "holder", "lease_expires_at") if row[name] is not None}
    return {
        **sessions.view(row),
        "idle_s": idle_s(row),
        "due": {name: at for name, at in due.items() if at is not None},
        "held": row["is_held"],
        "handoffs": open_handoffs,
        "entries_max": entries_max,
    }
