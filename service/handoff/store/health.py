"""The history of component health changes, limited to the newest 10,000."""

from collections.abc import Sequence
from datetime import datetime

from asyncpg import Record

from handoff.store.connect import Connection

KEPT = 10_000

RECORD = """
    INSERT INTO health_event (at, instance, component, was, status, figure, threshold, unit, detail)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
TRIM = "DELETE FROM health_event WHERE id <= (SELECT max(id) FROM health_event) - $1"
HISTORY = """
    SELECT at, instance, component, was, status, figure, threshold, unit, detail
      FROM health_event
     ORDER BY id DESC
     LIMIT $1
"""

Change = tuple[datetime, str, str, str, str, float | None, float | None, str, str]  # the columns of RECORD, in order


async def record(conn: Connection, changes: Sequence[Change]) -> None:
    """Insert changes, given oldest first, and delete the oldest rows beyond the limit."""
    for change in changes:
        await conn.execute(RECORD, *change)
    await conn.execute(TRIM, KEPT)


async def history(conn: Connection, limit: int) -> list[Record]:
    """Return the most recent changes of all processes, newest first."""
    return await conn.fetch(HISTORY, limit)
