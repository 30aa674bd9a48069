"""All open handoffs: those on offer by how long they have waited, those that are held by the end of their lease."""

from datetime import UTC, datetime
from typing import Final, Literal

from asyncpg import Record

from handoff.store import sessions
from handoff.store.connect import Connection
from handoff.store.handoffs import COLUMNS

Which = Literal["offered", "held"]
START: Final = (datetime(1970, 1, 1, tzinfo=UTC), 0)
_READ_MAX: Final = 500  # rows per page, of which $3 sees some; the next page continues after the last one read
_ORDER: Final[dict[Which, str]] = {"offered": "updated_at", "held": "lease_expires_at"}

_OPEN = f"""
    SELECT {COLUMNS}, s.key AS session_key, {sessions.SEES.format(session="h.session_id", viewer="$3")} AS wanted
      FROM (SELECT * FROM handoff WHERE {{states}} AND ({{order}}, id) > ($1, $2) ORDER BY {{order}}, id LIMIT $4) h
      JOIN session s ON s.id = h.session_id
     ORDER BY h.{{order}}, h.id
"""
OFFERED = _OPEN.format(states="state = 'offered'", order=_ORDER["offered"])
HELD = _OPEN.format(states="state IN ('accepted', 'blocked')", order=_ORDER["held"])


async def page(
    conn: Connection, which: Which, *, after: tuple[datetime, int], viewer: str | None, limit: int
) -> tuple[list[Record], tuple[datetime, int] | None]:
    """Return at most `limit` open handoffs after a position, of those that `viewer` sees, and the next position, if any.

    Without a viewer, all are seen. A page may be shorter although more follow.
    """
    read = limit + 1 if viewer is None else _READ_MAX
    rows = await conn.fetch(HELD if which == "held" else OFFERED, *after, viewer, read)
    wanted: list[Record] = []
    last: Record | None = None
    for row in rows:
        if len(wanted) == limit:
            return wanted, position(which, last or row)
        if row["wanted"]:
            wanted.append(row)
        last = row
    return wanted, position(which, rows[-1]) if len(rows) == read else None


def position(which: Which, row: Record) -> tuple[datetime, int]:
    """Return where a handoff is in its list."""
    return row[_ORDER[which]], row["id"]
