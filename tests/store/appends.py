"""Appends as the lane takes them, and what came of them."""

from time import monotonic

import asyncpg

from handoff.store.append import Append, NewEntry

SEQUENCES = "SELECT sequence FROM context_entry e JOIN session s ON s.id = e.session_id WHERE s.key = $1 ORDER BY sequence"


def item(key: str, expected: int | None = None, name: str | None = None, size_bytes: int = 1, entries: int = 1) -> Append:
    """An append by alice, as a tool would hand it to the lane."""
    new = [NewEntry("message", "x", None, "", 1, bytes(32))] * entries
    return Append(key, "alice", new, monotonic(), 0, expected, name, key.encode() if name else None, size_bytes)


async def sequences(db: asyncpg.Connection, key: str) -> list[int]:
    """The sequence numbers of a session's entries, in order."""
    return [row["sequence"] for row in await db.fetch(SEQUENCES, key)]
