"""An agent's inbox: the offers that it can accept and the handoffs that it holds, and what is new since a mark.

A mark is the snapshot of the database in which an inbox was read. What a later transaction has put on offer is new, whenever
that transaction began, and whichever process ran it. So nothing is missed and nothing is told twice.
"""

import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from asyncpg import Record

from handoff.encoding import from_cursor, to_cursor
from handoff.errors import Invalid
from handoff.store.connect import Connection
from handoff.store.handoffs import COLUMNS, OUTLINE

MARK_CHARS_MAX: Final = 1_000
_RUNNING_MAX: Final = 32  # transactions that a mark lists; their number is bounded only by Postgres's connections
# How long before its commit a transaction of ours can have begun at most: `updated_at` is the time at which it began. The
# timeouts of connect.py allow each statement 60 seconds, and no transaction that puts a handoff on offer has more than ten.
_TRANSACTION_MAX: Final = timedelta(minutes=10)
_XID_MAX: Final = 2**63 - 1

# The inbox beside the snapshot in which it is read; without handoffs, one row in which `id` is null.
_INBOX = """
    SELECT pg_current_snapshot()::text AS snapshot, now() AS now,
           coalesce((SELECT capabilities FROM agent WHERE name = $1), ARRAY[]::text[]) AS capabilities, page.*
      FROM (SELECT) one LEFT JOIN LATERAL (
        SELECT {columns}
          FROM (
            {mine}
            UNION ALL
            (SELECT c.* FROM (SELECT DISTINCT unnest(capabilities) AS capability FROM agent WHERE name = $1) a, LATERAL (
            {of_capability}) c)
            {held}
          ) h JOIN session s ON s.id = h.session_id
         ORDER BY h.priority DESC, h.id
         LIMIT $4) page ON true
     ORDER BY page.priority DESC, page.id
"""
# One list after a position (priority, id): the rest of that priority, then the lower priorities. Comparing the pair would
# read every row before the position, because the index descends in priority and ascends in id.
_AFTER = """
        (SELECT *, xmin AS written_by FROM handoff WHERE {list} AND priority = $2 AND id > $3 ORDER BY id LIMIT $4)
        UNION ALL
        (SELECT *, xmin AS written_by FROM handoff WHERE {list} AND priority < $2 ORDER BY priority DESC, id LIMIT $4)
"""
_MINE = "target_agent = $1 AND state = 'offered'"
_OF_CAPABILITY = "target_capability = a.capability AND state = 'offered' AND sender <> $1"
# All of it, most urgent first: three lists, each read by its index and no further than two pages.
_SOURCES: Final = {
    "mine": _AFTER.format(list=_MINE),
    "of_capability": _AFTER.format(list=_OF_CAPABILITY),
    "held": "UNION ALL" + _AFTER.format(list="holder = $1 AND state IN ('accepted', 'blocked')"),
}
_COLUMNS: Final = f"{COLUMNS}, s.key AS session_key"
WHOLE = _INBOX.format(columns=f"{_COLUMNS}, {OUTLINE}", **_SOURCES)
WHOLE_OUTLINE = _INBOX.format(columns=f"h.id, h.priority, {OUTLINE}", **_SOURCES)

# What has come on offer since a mark: $5 is its snapshot, and $6 a time before which nothing is new. A row's xmin is the
# lower half of the number of the transaction that wrote it; the upper half is that of the newest transaction, or one less.
_SINCE = """
        (SELECT * FROM (
            SELECT * FROM handoff
             WHERE {list} AND (priority < $2 OR (priority = $2 AND id > $3)) AND updated_at >= $6
               AND NOT pg_visible_in_snapshot((now_at - ((now_at - xmin::text::bigint) & 4294967295))::text::xid8,
                                              $5::text::pg_snapshot)
            OFFSET 0) new -- or Postgres reads all offers in the order of the list
          ORDER BY priority DESC, id LIMIT $4)
""".replace("now_at", "pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
SINCE = _INBOX.format(
    columns=_COLUMNS,
    mine=_SINCE.format(list=_MINE),
    of_capability=_SINCE.format(list=_OF_CAPABILITY),
    held="",
)


@dataclass(frozen=True, slots=True)
class Mark:
    """When an inbox was read: the snapshot as Postgres writes it, the time, and a checksum of the agent's capabilities."""

    snapshot: str
    at: datetime
    capabilities: int

    def __str__(self) -> str:
        """Return the mark as callers receive it."""
        return to_cursor(self.snapshot, self.at, self.capabilities)


@dataclass(frozen=True, slots=True)
class Inbox:
    """A part of an inbox, the mark of what it contains, and the capabilities that the agent has declared."""

    rows: list[Record]
    mark: Mark
    capabilities: list[str]


async def read(conn: Connection, agent: str, *, after: tuple[int, int], limit: int, since: Mark | None = None) -> Inbox:
    """Return the offers the agent can accept and the handoffs it holds, after the position (priority, id).

    With `since`, only what has come on offer since that mark: for the first time, or again. If the mark can't tell, because
    the agent has declared other capabilities or the database has been restored in between, everything.
    """
    if since is not None:
        found = _inbox(await conn.fetch(SINCE, agent, *after, limit, since.snapshot, since.at - _TRANSACTION_MAX))
        if found.mark.capabilities == since.capabilities and _last(since) <= _last(found.mark):
            return found
    return _inbox(await conn.fetch(WHOLE, agent, *after, limit))


async def outline(conn: Connection, agent: str, *, after: tuple[int, int], limit: int) -> list[Record]:
    """Return the outline of what `read` returns without a mark: of each handoff, its part of the page's outline."""
    return _inbox(await conn.fetch(WHOLE_OUTLINE, agent, *after, limit)).rows


def mark_from(text: str) -> Mark:
    """Return the mark that `str` has written. Raises Invalid if it can't be one."""
    try:
        snapshot, at, capabilities = from_cursor(text, str, datetime, int)
        low, high, running = snapshot.split(":")
        numbers = [int(low), *(int(each) for each in running.split(",") if running), int(high)]
        if (
            not 0 < numbers[0] <= numbers[-1] <= _XID_MAX
            or not all(number & 0xFFFFFFFF for number in numbers)  # no transaction has such a number
            or len(numbers) > _RUNNING_MAX + 2
            or any(one > other for one, other in pairwise(numbers))
            or not at.year > 1
        ):
            raise ValueError("no snapshot")
        return Mark(f"{numbers[0]}:{numbers[-1]}:{','.join(map(str, numbers[1:-1]))}", at, capabilities)
    except (Invalid, ValueError) as error:
        raise Invalid(
            "invalid_arguments",
            "This mark is not one that get_inbox has returned.",
            "Pass mark exactly as the last answer returned it, or omit it to get everything in your inbox.",
        ) from error


def _inbox(rows: list[Record]) -> Inbox:
    first = rows[0]
    capabilities: list[str] = first["capabilities"]
    snapshot: str = first["snapshot"]
    low, _, running = snapshot.split(":")
    if running.count(",") >= _RUNNING_MAX:  # then what was committed since the oldest of them began may be told twice
        snapshot = f"{low}:{low}:"
    mark = Mark(snapshot, first["now"], zlib.crc32("\n".join(sorted(capabilities)).encode()))
    return Inbox([row for row in rows if row["id"] is not None], mark, capabilities)


def _last(mark: Mark) -> int:
    """Return the first transaction that had not begun yet, and so the age of the mark."""
    return int(mark.snapshot.split(":")[1])
