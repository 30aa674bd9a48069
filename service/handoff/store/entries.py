"""Reads context entries: pages, the input of a brief, counts and full-text search."""

from typing import Any

from asyncpg import Record

from handoff.model import ENTRY_TYPES, EntryType
from handoff.store.connect import Connection

# The page ends after about $4 bytes of content, but always holds at least one entry.
PAGE = """
    SELECT sequence, type, content, metadata, supersedes, size_bytes, content_hash, author, created_at
      FROM (SELECT *, sum(size_bytes) OVER (ORDER BY sequence) - size_bytes AS before_bytes
              FROM (SELECT * FROM context_entry
                     WHERE session_id = $1 AND sequence > $2
                     ORDER BY sequence LIMIT $3) t) p
     WHERE before_bytes < $4
     ORDER BY sequence
"""
PAGE_BY_TYPE = """
    SELECT sequence, type, content, metadata, supersedes, size_bytes, content_hash, author, created_at
      FROM (SELECT *, sum(size_bytes) OVER (ORDER BY sequence) - size_bytes AS before_bytes
              FROM (SELECT * FROM context_entry
                     WHERE session_id = $1 AND type = $5 AND sequence > $2
                     ORDER BY sequence LIMIT $3) t) p
     WHERE before_bytes < $4
     ORDER BY sequence
"""

# The newest entries of each type and the newest questions, without superseded ones. $2 and $3 are the types and the number
# of entries wanted of each; $4 is the number of characters to return of each entry's content.
BRIEF = """
    WITH superseded AS MATERIALIZED (
        SELECT DISTINCT unnest(supersedes) AS sequence
          FROM (SELECT supersedes FROM context_entry
                 WHERE session_id = $1 AND supersedes IS NOT NULL
                 ORDER BY sequence DESC LIMIT 1000) s
    )
    SELECT e.sequence, e.type, left(e.content, $4) AS content, e.metadata, e.author, e.size_bytes, e.created_at,
           e.question
      FROM (
        SELECT n.*, false AS question
          FROM unnest($2::text[], $3::int[]) AS wanted (type, newest),
               LATERAL (SELECT * FROM context_entry
                         WHERE session_id = $1 AND type = wanted.type
                           AND sequence NOT IN (SELECT sequence FROM superseded)
                           AND (metadata IS NULL OR NOT metadata @> '{"question": true}')
                         ORDER BY sequence DESC LIMIT wanted.newest) n
        UNION ALL
        (SELECT q.*, true
           FROM context_entry q
          WHERE session_id = $1 AND metadata @> '{"question": true}'
            AND sequence NOT IN (SELECT sequence FROM superseded)
          ORDER BY sequence DESC LIMIT 40)
      ) e
     ORDER BY e.sequence DESC
"""
COUNTS = """
    SELECT type, count(*) AS entries FROM context_entry WHERE session_id = $1 GROUP BY type
"""
COUNT_SUPERSEDED = """
    SELECT count(DISTINCT gone) FROM (SELECT unnest(supersedes) AS gone FROM context_entry
                                       WHERE session_id = $1 AND supersedes IS NOT NULL) s
"""
PEOPLE = """
    SELECT author, count(*) AS entries FROM context_entry WHERE session_id = $1
     GROUP BY author ORDER BY count(*) DESC, author LIMIT 50
"""
# Entries never change, so the index finds the first and the last message without reading the rest.
EDGES = """
    (SELECT sequence, author, left(content, $2) AS content, created_at FROM context_entry
      WHERE session_id = $1 AND type = 'message' ORDER BY sequence LIMIT 1)
    UNION ALL
    (SELECT sequence, author, left(content, $2), created_at FROM context_entry
      WHERE session_id = $1 AND type = 'message' ORDER BY sequence DESC LIMIT 1)
"""

# Bounds the work: only the newest 500 matches are ranked, and a snippet comes from the first 20,000 characters.
SEARCH = """
    WITH asked AS MATERIALIZED (SELECT websearch_to_tsquery('english', $1) AS query),
    found AS MATERIALIZED (
        SELECT e.session_id, e.sequence, ts_rank_cd(e.search, asked.query) AS rank
          FROM context_entry e, asked
         WHERE e.search @@ asked.query
           AND ($2::bigint IS NULL OR e.session_id = $2)
           AND ($3::text IS NULL OR EXISTS (SELECT FROM participant p WHERE p.session_id = e.session_id AND p.agent = $3))
         ORDER BY e.created_at DESC
         LIMIT 500
    ), best AS MATERIALIZED (
        SELECT * FROM found ORDER BY rank DESC, session_id DESC, sequence DESC LIMIT $4
    )
    SELECT s.key AS session_key, e.sequence, e.type, e.author, e.created_at,
           ts_headline('english', left(e.content, 20000), asked.query,
                       'MaxFragments=2, MaxWords=24, MinWords=8, FragmentDelimiter=" … ", StartSel=**, StopSel=**')
           AS snippet
      FROM best b
      JOIN context_entry e USING (session_id, sequence)
      JOIN session s ON s.id = b.session_id, asked
     ORDER BY b.rank DESC, b.session_id DESC, b.sequence DESC
"""


async def page(
    conn: Connection,
    session_id: int,
    *,
    after: int,
    limit: int,
    bytes_max: int,
    type_: EntryType | None = None,
) -> list[Record]:
    """Return the entries after sequence number `after`, in order: at most `limit` and about `bytes_max` bytes of content."""
    if type_ is not None:
        return await conn.fetch(PAGE_BY_TYPE, session_id, after, limit, bytes_max, type_)
    return await conn.fetch(PAGE, session_id, after, limit, bytes_max)


async def for_brief(conn: Connection, session_id: int, newest: dict[EntryType, int], chars: int) -> list[Record]:
    """Return the newest entries of each type and up to 40 questions, newest first, without superseded ones.

    `newest` is the number of entries wanted of each type. Content is cut at `chars` characters.
    """
    return await conn.fetch(BRIEF, session_id, list(newest), list(newest.values()), chars)


async def counts(conn: Connection, session_id: int) -> dict[str, int]:
    """Return the number of entries per type, in the order of ENTRY_TYPES, without types that have none."""
    found = {row["type"]: row["entries"] for row in await conn.fetch(COUNTS, session_id)}
    return {name: found[name] for name in ENTRY_TYPES if name in found}


async def superseded(conn: Connection, session_id: int) -> int:
    """Return the number of entries that later entries supersede."""
    return await conn.fetchval(COUNT_SUPERSEDED, session_id)


async def authors(conn: Connection, session_id: int) -> dict[str, int]:
    """Return the number of entries per author, largest first, at most 50 authors."""
    return {row["author"]: row["entries"] for row in await conn.fetch(PEOPLE, session_id)}


async def first_and_last_message(conn: Connection, session_id: int, chars: int) -> list[Record]:
    """Return the first and the last message, cut at `chars` characters, or an empty list if there are no messages."""
    return await conn.fetch(EDGES, session_id, chars)


async def search(
    conn: Connection,
    query: str,
    *,
    session_id: int | None,
    viewer: str | None,
    limit: int,
) -> list[Record]:
    """Return the entries that match a web-search query, best match first.

    `session_id` limits the search to one session, `viewer` to the sessions that this agent participates in.
    """
    return await conn.fetch(SEARCH, query, session_id, viewer, limit)


def view(row: Record) -> dict[str, Any]:
    """Return an entry in the form that callers receive. Fields that are not set are left out."""
    seen: dict[str, Any] = {
        "sequence": row["sequence"],
        "type": row["type"],
        "author": row["author"],
        "content": row["content"],
        "created_at": row["created_at"],
        "size_bytes": row["size_bytes"],
        "content_hash": row["content_hash"].hex(),
    }
    if row["metadata"] is not None:
        seen["metadata"] = row["metadata"]
    if row["supersedes"] is not None:
        seen["supersedes"] = row["supersedes"]
    return seen
