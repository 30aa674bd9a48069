"""Builds appends for the lane, and reads what they wrote."""

from time import monotonic

import asyncpg

from handoff.store.append import Append, NewEntry

SEQUENCES = "SELECT sequence FROM context_entry e JOIN session s ON s.id = e.session_id WHERE s.key = $1 ORDER BY sequence"


def item(key: str, expected: int | None = None, name: str | None = None, size_bytes: int = 1, entries: int = 1) -> Append:
    """Return an append by alice, as a tool would pass it to the lane."""
    new = [NewEntry("message", "x", None, None, 1, bytes(32))] * entries
    return Append(key, "alice", new, monotonic(), 0, expected, name, key.encode() if name else None, size_bytes)


async def sequences(db: asyncpg.Connection, key: str) -> list[int]:
    """Return the sequence numbers of a session's entries, in order."""
    return [row["sequence"] for row in await db.fetch(SEQUENCES, key)]
