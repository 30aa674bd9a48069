"""The archive: the entries of closed sessions in compressed form, and how statements read them there.

Migration 0015 describes the form. For a session that is archived, each
statement that reads entries has a second form, made by `archived`, which reads the same columns from `archived_entry`.
"""

import re
from datetime import timedelta
from typing import Any, Final

from asyncpg import Record

from handoff.store.connect import Connection
from handoff.store.integrity import SET_ASIDE
from handoff.store.lifecycle import change

BLOCK_ENTRIES: Final = 256
_BLOCK_BYTES: Final = 16 << 20  # of content, plus its last entry: far below Postgres's limit of 1 GiB per value
_WORDS_BYTES_MAX: Final = 1_000_000  # Postgres limits a tsvector to 1 MiB
_OTHER: Final = re.compile(r"r\.sequence = (\w+\.superseded_by)")
MOVE_S_MAX: Final = 30.0  # per statement, for the largest session

DUE = f"""
    SELECT s.id FROM session s
     WHERE s.status IN ('completed', 'cancelled', 'expired') AND s.status_since <= now() - $1::interval
       AND NOT {SET_ASIDE}
       AND NOT EXISTS (SELECT FROM archive_failure f WHERE f.session_id = s.id AND f.next_at > now())
     ORDER BY s.status_since
     LIMIT $2
"""
LOCK_CLOSED = """
    SELECT id, status, retention_policy, last_sequence, content_bytes FROM session
     WHERE id = $1 AND status IN ('completed', 'cancelled', 'expired')
       FOR NO KEY UPDATE SKIP LOCKED
"""
# In this transaction: nobody waits for long while a partition is made.
LIMIT = "SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', '2s', true)"
BUCKET = "SELECT archive_bucket_of($1)"
PACK = f"""
    INSERT INTO archive (bucket, session_id, first_sequence, last_sequence, types, contents, metadata, supersedes,
                         superseded_by, sizes_bytes, content_hashes, authors, created_at, words)
    SELECT $2, $1, b.*,
           (SELECT array_to_tsvector(array_agg(lexeme))
              FROM (SELECT DISTINCT unnest(tsvector_to_array(w.search)) AS lexeme
                      FROM context_entry w
                     WHERE w.session_id = $1 AND w.sequence BETWEEN b.first_sequence AND b.last_sequence) lexemes
            HAVING sum(octet_length(lexeme) + 2) < {_WORDS_BYTES_MAX})
      FROM (SELECT min(sequence) AS first_sequence, max(sequence) AS last_sequence, array_agg(type ORDER BY sequence),
                   array_agg(content ORDER BY sequence), array_agg(metadata ORDER BY sequence),
                   array_agg(supersedes::text ORDER BY sequence), array_agg(superseded_by ORDER BY sequence),
                   array_agg(size_bytes ORDER BY sequence), array_agg(content_hash ORDER BY sequence),
                   array_agg(author ORDER BY sequence), array_agg(created_at ORDER BY sequence)
              FROM (SELECT *, sum(size_bytes) OVER (ORDER BY sequence) / {_BLOCK_BYTES} AS weight
                      FROM context_entry WHERE session_id = $1) e
             GROUP BY (sequence - 1) / {BLOCK_ENTRIES}, weight) b
"""
_COMPARED = """sequence, type, content, metadata, supersedes, superseded_by, size_bytes, content_hash, author, created_at"""
# Of entries that were packed: how many there are, and how many read differently in the archive.
COMPARE = f"""
    SELECT (SELECT count(*) FROM archived_entry WHERE session_id = $1) AS archived,
           (SELECT count(*) FROM (SELECT {_COMPARED} FROM context_entry WHERE session_id = $1
                                  EXCEPT ALL
                                  SELECT {_COMPARED} FROM archived_entry WHERE session_id = $1) missing) AS different
"""
# Tried again after a minute, then after twice as long each time, up to a day.
FAILED = """
    INSERT INTO archive_failure AS f (session_id, attempts, error, failed_at, next_at)
    SELECT id, 1, $2, now(), now() + interval '1 minute' FROM session WHERE id = $1
        ON CONFLICT (session_id) DO UPDATE
       SET attempts = f.attempts + 1, error = excluded.error, failed_at = now(),
           next_at = now() + least(interval '1 minute' * 2 ^ least(f.attempts, 11), interval '1 day')
 RETURNING attempts, next_at
"""
SUCCEEDED = "DELETE FROM archive_failure WHERE session_id = $1"
FAILURES = """
    SELECT s.key AS session_key, f.attempts, f.error, f.failed_at, f.next_at, count(*) OVER () AS total
      FROM archive_failure f JOIN session s ON s.id = f.session_id
     ORDER BY f.failed_at DESC, f.session_id
     LIMIT $1
"""
_FAILURES_LISTED_MAX: Final = 100
CLEAR = "DELETE FROM context_entry WHERE session_id = $1"


class NotArchivable(Exception):
    """The entries of a session would read differently from the archive; the session stays as it is."""


def archived(statement: str) -> str:
    """Return a statement that reads entries so that it reads those of archived sessions."""
    statement = statement.replace("context_entry", "archived_entry").replace(
        "sequence > $2", "block_last > $2 AND sequence > $2"
    )
    return _OTHER.sub(r"\g<0> AND r.block_first <= \1 AND r.block_last >= \1", statement)


async def due(conn: Connection, closed_for: timedelta, limit: int) -> list[int]:
    """Return the ids of sessions that have been closed for that long, at most `limit`, those closed first before others."""
    return [row["id"] for row in await conn.fetch(DUE, closed_for, limit)]


async def move(conn: Connection, session_id: int) -> Record | None:
    """Move a session's entries to the archive in the caller's transaction; return the session, None if it is not closed.

    Raises NotArchivable unless every entry reads there as before.
    """
    session = await conn.fetchrow(LOCK_CLOSED, session_id)
    if session is None:
        return None
    await conn.execute(LIMIT, f"{MOVE_S_MAX:.0f}s")
    bucket: str = await conn.fetchval(BUCKET, session["retention_policy"])
    await conn.execute(PACK, session_id, bucket, timeout=MOVE_S_MAX)
    compared = await conn.fetchrow(COMPARE, session_id, timeout=MOVE_S_MAX)
    if compared is None or compared["archived"] != session["last_sequence"] or compared["different"]:
        raise NotArchivable(f"session {session_id}: {session['last_sequence']} entries, {dict(compared or {})}")
    await conn.execute(CLEAR, session_id, timeout=MOVE_S_MAX)
    await conn.execute(SUCCEEDED, session_id)
    return await change(conn, session, "archive", None)


async def failed(conn: Connection, session_id: int, error: str) -> Record | None:
    """Record that a session could not be archived; return how often so far and the time of the next attempt.

    None if the session no longer exists.
    """
    return await conn.fetchrow(FAILED, session_id, error[:200])


async def failures(conn: Connection) -> list[dict[str, Any]]:
    """Return the sessions that could not be archived, why, and when that is tried again: at most 100, the latest first.

    The `total` of each is how many there are.
    """
    return [dict(row) for row in await conn.fetch(FAILURES, _FAILURES_LISTED_MAX)]
