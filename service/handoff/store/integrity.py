"""Checks that entries are what was written, and sets sessions aside in which something does not fit.

Reasons: `content`, an entry's hash is not that of its content; `sequence`, entries are missing; `receipt`, the entries are
not those of which the newest handoff's digest was made. In the archive the first two are looked for: its entries were
compared with the originals when they moved there.
"""

from typing import Any, Final, Literal, NamedTuple, get_args

from asyncpg import Record

from handoff.store.connect import Connection

Reason = Literal["content", "sequence", "receipt"]
ENTRIES_MAX: Final = 1_000  # per statement
BYTES_MAX: Final = 16 << 20  # of content per statement, beyond its last entry: 0.1 s
BLOCKS_MAX: Final = 4  # of the archive per statement
_LISTED_MAX: Final = 100
_END: Final = 2**63 - 1

PROGRESS = "SELECT session_id, sequence FROM integrity_check FOR NO KEY UPDATE"
ADVANCE = "UPDATE integrity_check SET session_id = $1, sequence = $2"
PROGRESS_IN_ARCHIVE = "SELECT archived_session_id, archived_sequence FROM integrity_check FOR NO KEY UPDATE"
ADVANCE_IN_ARCHIVE = "UPDATE integrity_check SET archived_session_id = $1, archived_sequence = $2"
# Sets aside what is in `found`, and says what of it is new, and where the page ended.
_OUTCOME = """
    set_aside AS (
        INSERT INTO quarantine (session_id, reason, sequence)
        SELECT DISTINCT ON (session_id) session_id, reason, sequence FROM found ORDER BY session_id, reason
        ON CONFLICT (session_id) DO UPDATE -- one that was released, in which something else does not fit now
              SET (reason, sequence, found_at, released_at, released_by)
                  = (excluded.reason, excluded.sequence, now(), NULL, NULL)
            WHERE quarantine.released_at IS NOT NULL
              AND (quarantine.reason, quarantine.sequence) IS DISTINCT FROM (excluded.reason, excluded.sequence)
     RETURNING session_id, reason, sequence
    )
    SELECT ended.session_id, coalesce(ended.sequence, 0) AS sequence, ended.entries,
           (SELECT json_agg(set_aside)::text FROM set_aside) AS set_aside
      FROM ended
"""
# The entries after ($1, $2), and where they end. A session's missing end is looked for up to there.
CHECK = f"""
    WITH page AS MATERIALIZED (
        SELECT session_id, sequence, sha256(convert_to(content, 'UTF8')) <> content_hash AS is_altered,
               sequence - lag(sequence, 1, CASE WHEN session_id = $1 THEN $2 ELSE 0 END)
                   OVER (PARTITION BY session_id ORDER BY sequence) > 1 AS is_after_gap
          FROM (SELECT *, sum(size_bytes) OVER (ORDER BY session_id, sequence) - size_bytes AS before_bytes
                  FROM (SELECT session_id, sequence, size_bytes, content, content_hash FROM context_entry
                         WHERE (session_id, sequence) > ($1, $2)
                         ORDER BY session_id, sequence LIMIT $3) next) sized
         WHERE before_bytes < $4
    ), ended AS MATERIALIZED (
        SELECT coalesce(max(session_id), {_END}) AS session_id,
               (array_agg(sequence ORDER BY session_id DESC, sequence DESC))[1] AS sequence, count(*) AS entries
          FROM page
    ), found AS (
        SELECT session_id, 'content' AS reason, min(sequence) AS sequence FROM page WHERE is_altered GROUP BY session_id
        UNION ALL
        SELECT session_id, 'sequence', min(sequence) FROM page WHERE is_after_gap GROUP BY session_id
        UNION ALL
        SELECT s.id, 'sequence', last.sequence
          FROM session s,
               LATERAL (SELECT coalesce(max(e.sequence), 0) AS sequence FROM context_entry e WHERE e.session_id = s.id) last
         WHERE s.id >= $1 AND s.id <= (SELECT session_id FROM ended) AND s.status <> 'archived'
           AND s.last_sequence <> last.sequence
        UNION ALL
        SELECT h.session_id, 'receipt', NULL
          FROM page first,
               LATERAL (SELECT * FROM handoff WHERE session_id = first.session_id ORDER BY id DESC LIMIT 1) h
         WHERE first.sequence = 1
           AND (SELECT count(*) = h.as_of_sequence -- otherwise it is their sequence
                       AND h.context_digest
                           <> sha256(coalesce(string_agg(e.content_hash, ''::bytea ORDER BY e.sequence), ''))
                  FROM context_entry e WHERE e.session_id = h.session_id AND e.sequence <= h.as_of_sequence)
    ), {_OUTCOME}"""
# The same of the blocks of the archive after ($1, $2). Those of deleted sessions wait for their bucket to be dropped.
CHECK_ARCHIVE = f"""
    WITH page AS MATERIALIZED (
        SELECT session_id, first_sequence, last_sequence, contents, content_hashes
          FROM archive
         WHERE (session_id, first_sequence) > ($1, $2)
         ORDER BY session_id, first_sequence LIMIT $3
    ), ended AS MATERIALIZED (
        SELECT coalesce(max(session_id), {_END}) AS session_id,
               (array_agg(first_sequence ORDER BY session_id DESC, first_sequence DESC))[1] AS sequence,
               coalesce(sum(cardinality(contents)), 0)::bigint AS entries
          FROM page
    ), broken AS (
        SELECT session_id, 'content' AS reason, min(first_sequence + place - 1) AS sequence
          FROM page, unnest(contents, content_hashes) WITH ORDINALITY AS e (content, content_hash, place)
         WHERE content IS NULL OR sha256(convert_to(content, 'UTF8')) IS DISTINCT FROM content_hash
         GROUP BY session_id
        UNION ALL
        SELECT session_id, 'sequence', min(first_sequence)
          FROM page
         WHERE cardinality(contents) <> last_sequence - first_sequence + 1
            OR (first_sequence > 1
                AND NOT EXISTS (SELECT FROM archive before
                                 WHERE before.session_id = page.session_id
                                   AND before.last_sequence = page.first_sequence - 1))
         GROUP BY session_id
        UNION ALL
        SELECT s.id, 'sequence', last.sequence
          FROM session s,
               LATERAL (SELECT coalesce(max(a.last_sequence), 0) AS sequence FROM archive a WHERE a.session_id = s.id) last
         WHERE s.id >= $1 AND s.id <= (SELECT session_id FROM ended) AND s.status = 'archived'
           AND s.last_sequence <> last.sequence
    ), found AS (
        SELECT b.* FROM broken b JOIN session s ON s.id = b.session_id AND s.status = 'archived'
    ), {_OUTCOME}"""
COUNTS = "SELECT reason, count(*) AS sessions FROM quarantine WHERE released_at IS NULL GROUP BY reason"
LIST = """
    SELECT s.key AS session_key, q.reason, q.sequence, q.found_at, count(*) OVER () AS total
      FROM quarantine q JOIN session s ON s.id = q.session_id
     WHERE q.released_at IS NULL
     ORDER BY q.found_at, q.session_id
     LIMIT $1
"""
# Whether session `s` is set aside.
SET_ASIDE: Final = "EXISTS (SELECT FROM quarantine q WHERE q.session_id = s.id AND q.released_at IS NULL)"
READMIT = """
    UPDATE quarantine q SET released_at = now(), released_by = $2
      FROM session s
     WHERE s.key = $1 AND q.session_id = s.id AND q.released_at IS NULL
 RETURNING q.reason, q.sequence, q.found_at, q.released_at
"""


class Checked(NamedTuple):
    """How many entries were checked, and the sessions newly set aside, as JSON; None if there were none."""

    entries: int
    set_aside: str | None


async def check_next(conn: Connection) -> Checked:
    """Check the next entries, in the caller's transaction. After the last one, the next check begins again."""
    progress = await conn.fetchrow(PROGRESS)
    assert progress is not None  # noqa: S101 - the migration inserts it
    found = await conn.fetchrow(CHECK, progress["session_id"], progress["sequence"], ENTRIES_MAX, BYTES_MAX)
    assert found is not None  # noqa: S101 - an aggregate
    await conn.execute(ADVANCE, *((found["session_id"], found["sequence"]) if found["entries"] else (0, 0)))
    return Checked(found["entries"], found["set_aside"])


async def check_next_in_archive(conn: Connection) -> Checked:
    """Do the same for the next blocks of the archive."""
    progress = await conn.fetchrow(PROGRESS_IN_ARCHIVE)
    assert progress is not None  # noqa: S101 - the migration inserts it
    found = await conn.fetchrow(CHECK_ARCHIVE, progress["archived_session_id"], progress["archived_sequence"], BLOCKS_MAX)
    assert found is not None  # noqa: S101 - an aggregate
    await conn.execute(ADVANCE_IN_ARCHIVE, *((found["session_id"], found["sequence"]) if found["entries"] else (0, 0)))
    return Checked(found["entries"], found["set_aside"])


async def counts(conn: Connection) -> dict[Reason, int]:
    """Return how many sessions are set aside, by reason."""
    rows = {row["reason"]: row["sessions"] for row in await conn.fetch(COUNTS)}
    return {reason: rows.get(reason, 0) for reason in get_args(Reason)}


async def readmit(conn: Connection, key: str, by: str) -> Record | None:
    """Release the session with this key from quarantine and return what had been found; None if it is not in quarantine.

    The same damage does not put it back; damage of another kind, or at another entry, does.
    """
    return await conn.fetchrow(READMIT, key, by)


async def listed(conn: Connection) -> list[dict[str, Any]]:
    """Return the sessions that are set aside, those found first before others: at most 100, of a `total`."""
    return [dict(row) for row in await conn.fetch(LIST, _LISTED_MAX)]
