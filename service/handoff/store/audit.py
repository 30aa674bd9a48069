"""The audit: what administrators did, in a table that can only be appended to.

Triggers refuse every change and number the rows without gaps. They also chain them: each row's hash covers the row's content
and the hash of the row before, so that a row that was changed, inserted or removed behind the triggers' back is found out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from asyncpg import Record

from handoff.store.connect import Connection

ROWS_MAX: Final = 10_000  # checked per statement; that takes about 30 ms

APPEND = """
    INSERT INTO audit (at, actor, action, target, details) VALUES (clock_timestamp(), $1, $2, $3, $4) RETURNING id
"""
# The rows from $1 on. The row $1 itself was checked before: the chain continues from its hash.
CHECK = """
    SELECT count(*) AS rows, min(id) AS first_id, max(id) AS last_id, (array_agg(hash ORDER BY id DESC))[1] AS last_hash,
           min(id) FILTER (WHERE NOT fits AND id > $1) AS broken_id
      FROM (SELECT id, hash,
                   id = lag(id, 1, 0::bigint) OVER in_order + 1
                   AND hash = audit_hash(lag(hash, 1, decode(repeat('00', 32), 'hex')) OVER in_order,
                                         id, at, actor, action, target, details) AS fits
              FROM audit WHERE id >= $1 WINDOW in_order AS (ORDER BY id) ORDER BY id LIMIT $2) checked
"""
PROGRESS = """
    SELECT checked_id, head_id, accepted_id,
           head_id > 0 AND NOT EXISTS (SELECT FROM audit WHERE id = head_id AND hash = head_hash) AS is_cut
      FROM audit_check
"""
ADVANCE = """
    UPDATE audit_check
       SET checked_id = CASE WHEN $3 THEN accepted_id ELSE $1 END, head_id = greatest(head_id, $1),
           head_hash = CASE WHEN $1 >= head_id THEN $2 ELSE head_hash END
"""


@dataclass(frozen=True, slots=True)
class Check:
    """What a check found: the last row that it read, and the first row that does not fit, None if all of them do."""

    last_id: int
    broken_id: int | None


async def append(
    conn: Connection, *, actor: str | None, action: str, target: str, details: Mapping[str, Any] | None = None
) -> int:
    """Append a row in the caller's transaction, with which it is committed or not; return its number.

    `actor` is the agent that acted, None for the service itself. `action` is a noun and a verb: `configuration.set`.
    `details` are JSON values, without secrets and without content. Call this last in the transaction: until that ends, all
    others that append have to wait.
    """
    return await conn.fetchval(APPEND, actor or "service", action, target, dict(details or {}))


async def check_next(conn: Connection, rows_max: int = ROWS_MAX) -> Check:
    """Check the next `rows_max` rows, at least 2, in the caller's transaction. After the last row, it begins again.

    After a break it does not go on: the next check finds the break again.
    """
    progress = await _progress(conn)
    if progress["is_cut"]:
        return Check(progress["checked_id"], progress["head_id"])
    found, rows, last_hash = await _check(conn, progress["checked_id"], rows_max)
    if found.broken_id is None and rows:
        await conn.execute(ADVANCE, found.last_id, last_hash, rows < rows_max)
    return found


async def check_whole(conn: Connection) -> Check:
    """Check the whole chain, without writing anything."""
    progress = await _progress(conn)
    if progress["is_cut"]:
        return Check(0, progress["head_id"])
    after = progress["accepted_id"]
    while True:
        found, rows, _ = await _check(conn, after, ROWS_MAX)
        if found.broken_id is not None or rows < ROWS_MAX:
            return found
        after = found.last_id


async def _progress(conn: Connection) -> Record:
    row = await conn.fetchrow(PROGRESS)
    assert row is not None  # noqa: S101 - the migration inserts it
    return row


async def _check(conn: Connection, after: int, rows_max: int) -> tuple[Check, int, bytes]:
    """Check rows from `after` on, a row that was checked before; return what was found, how many rows, and the last hash."""
    row = await conn.fetchrow(CHECK, after, rows_max)
    assert row is not None  # noqa: S101 - an aggregate
    if after and row["first_id"] != after:
        return Check(after, after), row["rows"], b""
    return Check(row["last_id"] or 0, row["broken_id"]), row["rows"], row["last_hash"] or b""
