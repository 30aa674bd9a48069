"""Reads context entries: pages, the input of a brief, and counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from asyncpg import Record

from handoff.model import ENTRY_TYPES, EntryCounts, EntryType, Mark
from handoff.store.archive import archived
from handoff.store.connect import Connection


class Digest(Protocol):
    """One of hashlib's digests in progress."""

    def update(self, data: bytes, /) -> None:
        """Add data."""
        ...


# Valid entries with a mark. For each there is an index with exactly this condition.
_PINNED = """superseded_by IS NULL AND metadata @> '{"pinned": true}'"""
_QUESTION = """superseded_by IS NULL AND metadata @> '{"question": true}'"""
_TODO = """superseded_by IS NULL AND metadata @> '{"todo": true}'"""
_UNMARKED = """(metadata IS NULL OR NOT (metadata @> '{"pinned": true}' OR metadata @> '{"question": true}'
                                        OR metadata @> '{"todo": true}'))"""

# A retraction supersedes itself too, so that it is no valid entry; readers are not told so.
REPLACED = """nullif({entry}.superseded_by, {entry}.sequence) AS superseded_by,
           (SELECT true FROM context_entry r
             WHERE r.session_id = {entry}.session_id AND r.sequence = {entry}.superseded_by
               AND r.sequence <> {entry}.sequence AND r.metadata @> '{{"retraction": true}}') AS retracted"""

# The page ends after about $4 bytes of content, but always holds at least one entry.
_PAGE = f"""
    SELECT sequence, type, content, metadata, supersedes, {REPLACED.format(entry="p")},
           size_bytes, content_hash, author, created_at
      FROM (SELECT *, sum(size_bytes) OVER (ORDER BY sequence) - size_bytes AS before_bytes
              FROM (SELECT * FROM context_entry
                     WHERE session_id = $1 AND sequence > $2 AND {{which}}
                     ORDER BY sequence LIMIT $3) t) p
     WHERE before_bytes < $4
     ORDER BY sequence
"""
PAGE = _PAGE.replace("{which}", "true")
PAGE_BY_TYPE = _PAGE.replace("{which}", "type = $5")
PAGE_OF_PINNED = _PAGE.replace("{which}", _PINNED)
PAGE_OF_QUESTIONS = _PAGE.replace("{which}", _QUESTION)
PAGE_OF_TODOS = _PAGE.replace("{which}", _TODO)
# The same with any filters, oldest or newest first, of the entries between sequence numbers $2 and $3, both exclusive.
_FILTERED = f"""
    SELECT sequence, type, content, metadata, supersedes, {REPLACED.format(entry="p")},
           size_bytes, content_hash, author, created_at
      FROM (SELECT *, sum(size_bytes) OVER (ORDER BY sequence {{order}}) - size_bytes AS before_bytes
              FROM (SELECT * FROM context_entry
                     WHERE session_id = $1 AND sequence > $2 AND sequence < $3
                       AND ($6::text IS NULL OR type = $6)
                       AND ($7::jsonb IS NULL OR (superseded_by IS NULL AND metadata @> $7))
                       AND ($8::text IS NULL OR author = $8)
                       AND ($9::timestamptz IS NULL OR created_at >= $9)
                       AND ($10::timestamptz IS NULL OR created_at < $10)
                     ORDER BY sequence {{order}} LIMIT $4) t) p
     WHERE before_bytes < $5
     ORDER BY sequence {{order}}
"""
PAGE_FILTERED = _FILTERED.replace("{order}", "ASC")
PAGE_NEWEST_FIRST = _FILTERED.replace("{order}", "DESC")
FILTERED_MAX: Final = 2_000  # entries that a page with filters looks at

_PAGE_OF: Final[dict[Mark, str]] = {"pinned": PAGE_OF_PINNED, "question": PAGE_OF_QUESTIONS, "todo": PAGE_OF_TODOS}

# The newest valid entries: of type $2[n] at most $3[n], of each mark at most $6, and of each no more than could fit into $5
# bytes if each were cut at $7 characters. Those that could fit if cut at $4 characters have so many, the others $7. Of the
# entries on one file only the newest counts; `others` has the earlier ones too. The first message, which usually says what
# the task is, is always there, so it may be there twice.
BRIEF = f"""
    WITH newest AS (
        SELECT e.* FROM unnest($2::text[], $3::int[]) AS wanted (type, entries), LATERAL (
            SELECT *, NULL AS mark FROM context_entry
             WHERE session_id = $1 AND type = wanted.type AND superseded_by IS NULL
               AND {_UNMARKED}
             ORDER BY sequence DESC LIMIT wanted.entries) e
        UNION ALL
        (SELECT *, 'pinned' FROM context_entry WHERE session_id = $1 AND {_PINNED} ORDER BY sequence DESC LIMIT $6)
        UNION ALL
        (SELECT *, 'question' FROM context_entry WHERE session_id = $1 AND {_QUESTION} ORDER BY sequence DESC LIMIT $6)
        UNION ALL
        (SELECT *, 'todo' FROM context_entry WHERE session_id = $1 AND {_TODO} ORDER BY sequence DESC LIMIT $6)
    ), numbered AS (
        SELECT *, row_number() OVER of_file AS place, array_agg(sequence) OVER of_file AS others
          FROM newest
        WINDOW of_file AS (PARTITION BY mark, type, CASE type WHEN 'file' THEN coalesce(metadata ->> 'path', sequence::text)
                                                              ELSE sequence::text END
                           ORDER BY sequence DESC ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
    ), sized AS (
        SELECT *, sum(least(size_bytes, $4)) OVER newer - least(size_bytes, $4) AS before_bytes,
               sum(least(size_bytes, $7)) OVER newer - least(size_bytes, $7) AS before_cut_bytes
          FROM numbered WHERE place = 1
        WINDOW newer AS (PARTITION BY mark, type ORDER BY sequence DESC)
    )
    SELECT sequence, type, mark, left(content, CASE WHEN before_bytes < $5 THEN $4 ELSE $7 END) AS content, metadata,
           supersedes, author, size_bytes, others
      FROM sized WHERE before_cut_bytes < $5
    UNION ALL
    (SELECT sequence, type, NULL, left(content, $4), metadata, supersedes, author, size_bytes, NULL
       FROM context_entry
      WHERE session_id = $1 AND type = 'message' AND 'message' = ANY ($2) AND superseded_by IS NULL AND {_UNMARKED}
      ORDER BY sequence LIMIT 1)
     ORDER BY sequence DESC
"""
COUNTS = """
    SELECT type, count(*) AS entries, count(superseded_by) AS superseded
      FROM context_entry WHERE session_id = $1
     GROUP BY type
"""
# Of several marks the most important one counts.
COUNT_MARKED = f"""
    SELECT mark, type, count(*) AS entries
      FROM (SELECT sequence, type, (array_agg(mark ORDER BY place))[1] AS mark
              FROM (SELECT sequence, type, 'pinned' AS mark, 1 AS place FROM context_entry
                     WHERE session_id = $1 AND {_PINNED}
                    UNION ALL
                    SELECT sequence, type, 'question', 2 FROM context_entry WHERE session_id = $1 AND {_QUESTION}
                    UNION ALL
                    SELECT sequence, type, 'todo', 3 FROM context_entry WHERE session_id = $1 AND {_TODO}) marked
             GROUP BY sequence, type) entry
     GROUP BY mark, type
"""
PEOPLE = """
    SELECT author, count(*) AS entries FROM context_entry WHERE session_id = $1
     GROUP BY author ORDER BY count(*) DESC, author LIMIT 50
"""
# Entries never change, so the index finds the first and the last message without reading the rest.
EDGES = f"""
    (SELECT sequence, author, left(content, $2) AS content, created_at, {REPLACED.format(entry="e")} FROM context_entry e
      WHERE session_id = $1 AND type = 'message' ORDER BY sequence LIMIT 1)
    UNION ALL
    (SELECT sequence, author, left(content, $2), created_at, {REPLACED.format(entry="e")} FROM context_entry e
      WHERE session_id = $1 AND type = 'message' ORDER BY sequence DESC LIMIT 1)
"""

# The same of archived sessions. Without a filter, a page reads only the blocks that it is in.
PAGE_ARCHIVED = archived(_PAGE.replace("{which}", "block_first <= $2 + $3"))
PAGE_BY_TYPE_ARCHIVED = archived(PAGE_BY_TYPE)
PAGE_OF_PINNED_ARCHIVED = archived(PAGE_OF_PINNED)
PAGE_OF_QUESTIONS_ARCHIVED = archived(PAGE_OF_QUESTIONS)
PAGE_OF_TODOS_ARCHIVED = archived(PAGE_OF_TODOS)
PAGE_FILTERED_ARCHIVED = archived(PAGE_FILTERED).replace("sequence < $3", "block_first < $3 AND sequence < $3")
PAGE_NEWEST_FIRST_ARCHIVED = archived(PAGE_NEWEST_FIRST).replace("sequence < $3", "block_first < $3 AND sequence < $3")
BRIEF_ARCHIVED = archived(BRIEF)
COUNTS_ARCHIVED = archived(COUNTS)
COUNT_MARKED_ARCHIVED = archived(COUNT_MARKED)
PEOPLE_ARCHIVED = archived(PEOPLE)
EDGES_ARCHIVED = archived(EDGES)
_ARCHIVED: Final = {
    PAGE: PAGE_ARCHIVED,
    PAGE_BY_TYPE: PAGE_BY_TYPE_ARCHIVED,
    PAGE_OF_PINNED: PAGE_OF_PINNED_ARCHIVED,
    PAGE_OF_QUESTIONS: PAGE_OF_QUESTIONS_ARCHIVED,
    PAGE_OF_TODOS: PAGE_OF_TODOS_ARCHIVED,
    PAGE_FILTERED: PAGE_FILTERED_ARCHIVED,
    PAGE_NEWEST_FIRST: PAGE_NEWEST_FIRST_ARCHIVED,
    BRIEF: BRIEF_ARCHIVED,
    COUNTS: COUNTS_ARCHIVED,
    COUNT_MARKED: COUNT_MARKED_ARCHIVED,
    PEOPLE: PEOPLE_ARCHIVED,
    EDGES: EDGES_ARCHIVED,
}

HASHES = """
    SELECT string_agg(content_hash, ''::bytea ORDER BY sequence)
      FROM context_entry WHERE session_id = $1 AND sequence > $2 AND sequence <= $3
"""
_HASHES_MAX = 10_000  # per statement


def _of(session: Record, statement: str) -> str:
    """Return the form of a statement that reads where this session's entries are."""
    return _ARCHIVED[statement] if session["status"] == "archived" else statement


async def page(
    conn: Connection,
    session: Record,
    *,
    after: int,
    limit: int,
    bytes_max: int,
    type_: EntryType | None = None,
    mark: Mark | None = None,
) -> list[Record]:
    """Return the entries after sequence number `after`, in order: at most `limit` and about `bytes_max` bytes of content.

    `type_` limits them to one type, or else `mark` to the valid entries with this mark.
    """
    if type_ is not None:
        return await conn.fetch(_of(session, PAGE_BY_TYPE), session["id"], after, limit, bytes_max, type_)
    statement = PAGE if mark is None else _PAGE_OF[mark]
    return await conn.fetch(_of(session, statement), session["id"], after, limit, bytes_max)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which entries a page holds; with a mark, only valid ones. `since` and `until` limit when they were written."""

    type: EntryType | None = None
    mark: Mark | None = None
    author: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def filtered(
    conn: Connection,
    session: Record,
    of: Filters,
    *,
    after: int,
    before: int,
    newest_first: bool,
    limit: int,
    bytes_max: int,
) -> tuple[list[Record], int | None]:
    """Return entries between two sequence numbers, both exclusive, and the last number looked at if there are more after it.

    At most `limit`, about `bytes_max` bytes of content, and those of the first FILTERED_MAX that the filters let through.
    """
    if not newest_first and of == Filters(type=of.type, mark=of.mark):  # there is an index for each
        rows = await page(conn, session, after=after, limit=limit, bytes_max=bytes_max, type_=of.type, mark=of.mark)
        return rows, rows[-1]["sequence"] if rows and rows[-1]["sequence"] < session["last_sequence"] else None
    before = min(before, session["last_sequence"] + 1)
    low, high = after, before
    if newest_first:
        low = max(after, before - FILTERED_MAX - 1)
    else:
        high = min(before, after + FILTERED_MAX + 1)
    rows = await conn.fetch(
        _of(session, PAGE_NEWEST_FIRST if newest_first else PAGE_FILTERED),
        session["id"],
        low,
        high,
        limit,
        bytes_max,
        of.type,
        {of.mark: True} if of.mark is not None else None,
        of.author,
        of.since,
        of.until,
    )
    looked_at_last: int = low + 1 if newest_first else high - 1
    last = rows[-1]["sequence"] if rows else looked_at_last
    return rows, last if (last > after + 1 if newest_first else last < before - 1) else None


async def for_brief(
    conn: Connection,
    session: Record,
    newest: Mapping[EntryType, int],
    marked: int,
    *,
    chars: int,
    chars_cut: int,
    bytes_max: int,
) -> list[Record]:
    """Return valid entries, newest first: of each type and mark as many as could fit into `bytes_max` bytes.

    At most `newest` of each type and `marked` of each mark. As many as fit have up to `chars` characters of their content,
    and those that would fit if they were cut have `chars_cut`. An entry with several marks is there once for each.
    """
    wanted = (list(newest), list(newest.values()), chars, bytes_max, marked, chars_cut)
    return await conn.fetch(_of(session, BRIEF), session["id"], *wanted)


async def counts(conn: Connection, session: Record) -> EntryCounts:
    """Return the counts of a session's entries, without types that have none.

    They stand in the session's row, unless a process of an older release was the last to append to it.
    """
    of_all: dict[EntryType, int]
    gone: dict[EntryType, int]
    if sum(session["entry_counts"]) == session["last_sequence"]:
        of_all = dict(zip(ENTRY_TYPES, session["entry_counts"], strict=True))
        gone = dict(zip(ENTRY_TYPES, session["superseded_counts"], strict=True))
    else:
        rows = {row["type"]: row for row in await conn.fetch(_of(session, COUNTS), session["id"])}
        of_all = {name: rows[name]["entries"] for name in ENTRY_TYPES if name in rows}
        gone = {name: rows[name]["superseded"] for name in ENTRY_TYPES if name in rows}
    rows_marked = await conn.fetch(_of(session, COUNT_MARKED), session["id"])
    marked = {(row["mark"], row["type"]): row["entries"] for row in rows_marked}
    return EntryCounts(
        {name: count for name, count in of_all.items() if count},
        {name: count for name, count in gone.items() if count},
        marked,
    )


def totals(session: Record) -> dict[str, Any]:
    """Return what a session's row says of its entries: how many per type, superseded ones, bytes, and growth per hour.

    Growth is the average from the session's creation to its last activity, if that is at least a minute.
    """
    found: dict[str, Any] = {"entries": session["last_sequence"], "content_bytes": session["content_bytes"]}
    if sum(session["entry_counts"]) == session["last_sequence"]:  # or an older release has appended since
        by_type = zip(ENTRY_TYPES, session["entry_counts"], strict=True)
        found["by_type"] = {name: count for name, count in by_type if count}
        found["superseded"] = sum(session["superseded_counts"])
    hours = (session["last_activity_at"] - session["created_at"]).total_seconds() / 3_600
    if hours >= 1 / 60:
        found["entries_per_hour"] = round(session["last_sequence"] / hours, 1)
        found["bytes_per_hour"] = round(session["content_bytes"] / hours)
    return found


async def authors(conn: Connection, session: Record) -> dict[str, int]:
    """Return the number of entries per author, largest first, at most 50 authors."""
    return {row["author"]: row["entries"] for row in await conn.fetch(_of(session, PEOPLE), session["id"])}


async def first_and_last_message(conn: Connection, session: Record, chars: int) -> list[Record]:
    """Return the first and the last message, cut at `chars` characters, or an empty list if there are no messages."""
    return await conn.fetch(_of(session, EDGES), session["id"], chars)


async def add_hashes(conn: Connection, digest: Digest, session_id: int, *, after: int, up_to: int) -> None:
    """Add the content hashes of entries to a digest, in order: those after one sequence number, up to another."""
    for start in range(after, up_to, _HASHES_MAX):
        digest.update(await conn.fetchval(HASHES, session_id, start, min(start + _HASHES_MAX, up_to)))


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
    if row["superseded_by"] is not None:
        seen["superseded_by"] = row["superseded_by"]
    if row["retracted"]:
        seen["retracted"] = True
    return seen
