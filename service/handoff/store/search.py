"""Searches the entries of sessions. Migration 0010 says what is indexed of an entry, and what a term looks for."""

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from asyncpg import Record

from handoff.store.archive import archived
from handoff.store.connect import Connection
from handoff.store.entries import REPLACED

RANKED_MAX: Final = 500  # matches
_RANKED_BYTES_MAX: Final = 4 << 20  # of their indexed content: ranking reads all of it
SNIPPET_CHARS_MAX: Final = 500
_AROUND_CHARS: Final = 100  # of the content on each side of what a snippet shows
_SESSIONS_MAX: Final = 1_000  # the newest ones that a search over sessions looks into
_BLOCKS_MAX: Final = 1_024  # of 1,024 entries each, as migration 0008 numbers them
_LITERALS_MAX: Final = 10  # that are looked for to make a snippet
_SEEN_CHARS: Final = 100_000  # of an entry, as migration 0010 indexes it
_START, _STOP = "\ue000", "\ue001"  # around what was found, in the headline: characters for private use
_TERM: Final = re.compile(r"""(?P<not>-(?=[^\s-]))?(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s"]+))""")
_INSIDE: Final = re.compile(r"[^\W_]+")

TERMS = """
    SELECT nullif(search_term(text, is_word)::text, '') AS looks_for
      FROM unnest($1::text[], $2::boolean[]) WITH ORDINALITY AS term (text, is_word, place)
     ORDER BY place
"""

# What a match shows of its entry `e`.
_SHOWN: Final = f"""           left(h.headline, {SNIPPET_CHARS_MAX}) AS headline, l.at,
           substr(e.content, greatest(1, l.at - {_AROUND_CHARS}), 3 * {_AROUND_CHARS}) AS around,
"""
_MARKING: Final = f"""      JOIN LATERAL (
        SELECT ts_headline('handoff', left(e.content, 20000), asked.query, 'MaxFragments=2, MaxWords=24, MinWords=8, '
                           'FragmentDelimiter=" … ", StartSel={_START}, StopSel={_STOP}') AS headline) h ON true
      LEFT JOIN LATERAL (
        SELECT strpos(lower(left(e.content, {_SEEN_CHARS})), lower(literal)) AS at
          FROM unnest($5::text[]) WITH ORDINALITY AS l (literal, place)
         WHERE strpos(h.headline, '{_START}') = 0 AND strpos(lower(left(e.content, {_SEEN_CHARS})), lower(literal)) > 0
         ORDER BY place LIMIT 1) l ON true
"""
_SCOPE: Final = f"""    ), scope AS MATERIALIZED (
        SELECT id, last_sequence, created_at FROM session WHERE id = $2
        UNION ALL
        (SELECT s.id, s.last_sequence, s.created_at
           FROM (SELECT session_id FROM participant WHERE agent = $3 ORDER BY created_at DESC, session_id DESC
                  LIMIT {_SESSIONS_MAX}) p
           JOIN session s ON s.id = p.session_id)
        UNION ALL
        (SELECT id, last_sequence, created_at FROM session WHERE $2::bigint IS NULL AND $3::text IS NULL
          ORDER BY created_at DESC, id DESC LIMIT {_SESSIONS_MAX})
"""

# Looks into 8 blocks of entries at a time, newest first, until it has enough matches: LIMIT ends the loop. Without words to
# search for, `&&` would leave only the blocks. A snippet is Postgres's headline of the first 20,000 characters, if it
# shows a match. It never does for parts of words or in Chinese text: then it is what surrounds the first of the literals $5
# that is in the text.
SEARCH = f"""
    WITH asked AS MATERIALIZED (
        SELECT $1::text::tsquery AS query
{_SCOPE}    ), block AS MATERIALIZED (
        SELECT id, number, row_number() OVER (ORDER BY created_at DESC, id DESC, number DESC) - 1 AS place
          FROM scope, generate_series(0, last_sequence / 1024) AS number
         ORDER BY place
         LIMIT {_BLOCKS_MAX}
    ), step AS MATERIALIZED (
        SELECT place / 8 AS step, array_agg(id) AS sessions,
               string_agg('''' || chr(1) || id || ':' || number || '''', ' | ')::tsquery AS blocks
          FROM block GROUP BY 1 ORDER BY 1
    ), found AS MATERIALIZED (
        SELECT m.*, row_number() OVER () AS place
          FROM (SELECT m.* FROM step, asked, LATERAL (
                    SELECT e.session_id, e.sequence, least(e.size_bytes, 100000) AS size_bytes
                      FROM context_entry e
                     WHERE e.search @@ (step.blocks && asked.query) AND e.session_id + 0 = ANY (step.sessions)
                     ORDER BY e.session_id DESC, e.sequence DESC
                     LIMIT {RANKED_MAX}) m
                 WHERE numnode(asked.query) > 0
                 LIMIT {RANKED_MAX}) m
    ), sized AS MATERIALIZED (
        SELECT session_id, sequence, sum(size_bytes) OVER (ORDER BY place) - size_bytes AS before_bytes FROM found
    ), ranked AS MATERIALIZED (
        SELECT session_id, sequence, ts_rank_cd(e.search, asked.query) AS rank
          FROM sized JOIN context_entry e USING (session_id, sequence), asked
         WHERE before_bytes < {_RANKED_BYTES_MAX}
    ), best AS MATERIALIZED (
        SELECT * FROM ranked ORDER BY rank DESC, session_id DESC, sequence DESC LIMIT $4
    )
    SELECT b.rank, b.session_id, s.key AS session_key, e.sequence, e.type, e.author, e.created_at,
           {REPLACED.format(entry="e")},
{_SHOWN}           (SELECT count(*) FROM ranked) AS ranked,
           (SELECT count(*) FROM found) = {RANKED_MAX} OR (SELECT count(*) FROM ranked) < (SELECT count(*) FROM found)
           OR (SELECT count(*) FROM block) = {_BLOCKS_MAX} OR (SELECT count(*) FROM scope) = {_SESSIONS_MAX} AS is_bounded
      FROM best b
      JOIN context_entry e USING (session_id, sequence)
      JOIN session s ON s.id = b.session_id
      JOIN asked ON true
{_MARKING}     ORDER BY b.rank DESC, b.session_id DESC, b.sequence DESC
"""

# The same for archived sessions, whose entries no index holds. A block is unpacked if the words of its entries match
# `candidate`: what the query requires wherever it is and in whichever entry, so without its negations and distances.
SEARCH_ARCHIVED = f"""
    WITH asked AS MATERIALIZED (
        SELECT $1::text::tsquery AS query,
               CASE WHEN querytree($1::text::tsquery) NOT IN ('', 'T')
                    THEN regexp_replace(querytree($1::text::tsquery), '<[-0-9]+>', '&', 'g')::tsquery END AS candidate
{_SCOPE}    ), block AS MATERIALIZED (
        SELECT a.session_id, a.first_sequence
          FROM scope JOIN archive a ON a.session_id = scope.id, asked
         WHERE asked.candidate IS NULL OR a.words IS NULL OR a.words @@ asked.candidate
         ORDER BY scope.created_at DESC, scope.id DESC, a.first_sequence DESC
         LIMIT {_BLOCKS_MAX}
    ), found AS MATERIALIZED (
        SELECT m.*, row_number() OVER () AS place
          FROM (SELECT m.* FROM block, asked, LATERAL (
                    SELECT e.session_id, e.sequence, least(e.size_bytes, {_SEEN_CHARS}) AS size_bytes, e.search
                      FROM (SELECT *, search_vector('handoff', search_texts(content)) AS search FROM archived_entry
                             WHERE session_id = block.session_id AND block_first = block.first_sequence
                            OFFSET 0) e
                     WHERE e.search @@ asked.query
                     ORDER BY e.sequence DESC) m
                 WHERE numnode(asked.query) > 0
                 LIMIT {RANKED_MAX}) m
    ), sized AS MATERIALIZED (
        SELECT *, sum(size_bytes) OVER (ORDER BY place) - size_bytes AS before_bytes FROM found
    ), ranked AS MATERIALIZED (
        SELECT session_id, sequence, ts_rank_cd(search, asked.query) AS rank
          FROM sized, asked
         WHERE before_bytes < {_RANKED_BYTES_MAX}
    ), best AS MATERIALIZED (
        SELECT * FROM ranked ORDER BY rank DESC, session_id DESC, sequence DESC LIMIT $4
    )
    SELECT b.rank, b.session_id, s.key AS session_key, e.sequence, e.type, e.author, e.created_at,
           {archived(REPLACED.format(entry="e"))},
{_SHOWN}           (SELECT count(*) FROM ranked) AS ranked,
           (SELECT count(*) FROM found) = {RANKED_MAX} OR (SELECT count(*) FROM ranked) < (SELECT count(*) FROM found)
           OR (SELECT count(*) FROM block) = {_BLOCKS_MAX} AS is_bounded
      FROM best b
      JOIN LATERAL (SELECT * FROM archived_entry e
                     WHERE e.session_id = b.session_id AND e.sequence = b.sequence
                       AND e.block_first <= b.sequence AND e.block_last >= b.sequence) e ON true
      JOIN session s ON s.id = b.session_id
      JOIN asked ON true
{_MARKING}     ORDER BY b.rank DESC, b.session_id DESC, b.sequence DESC
"""


@dataclass(frozen=True, slots=True)
class _Term:
    """A word or a phrase of a query, and whether entries must not have it. `group` counts the `or` before it."""

    text: str
    is_word: bool
    is_excluded: bool
    group: int


def _parsed(query: str) -> list[_Term]:
    """The terms of a web-search query: words, "phrases", -excluded ones, alternatives joined by `or`."""
    terms: list[_Term] = []
    group = 0
    for found in _TERM.finditer(query):
        word: str | None = found["word"]
        if word is not None and word.lower() == "or" and not found["not"] and terms:
            group += terms[-1].group == group
            continue
        terms.append(_Term(word if word is not None else found["phrase"], word is not None, bool(found["not"]), group))
    return terms


def _literals(terms: Sequence[_Term]) -> list[str]:
    """What to look for literally to show where a query's terms are: the terms themselves, then the words in them."""
    wanted = [term.text for term in terms if not term.is_excluded]
    words = sorted((word for text in wanted for word in _INSIDE.findall(text)), key=len, reverse=True)
    return [text for text in dict.fromkeys([*wanted, *words]) if text.strip()][:_LITERALS_MAX]


@dataclass(frozen=True, slots=True)
class Found:
    """The best matches, best first, of how many that were ranked; `is_bounded` says that not every match was."""

    rows: list[Record]
    ranked: int
    is_bounded: bool


async def search(
    conn: Connection,
    query: str,
    *,
    session: Record | None,
    viewer: str | None,
    limit: int,
) -> Found | None:
    """Return the entries that match a web-search query; None if it has no term that an index could hold.

    `session` limits the search to one session, `viewer` to the sessions that this agent participates in.
    """
    terms = _parsed(query)
    looked_for = await conn.fetch(TERMS, [term.text for term in terms], [term.is_word for term in terms])
    groups: dict[int, list[str]] = {}
    for term, row in zip(terms, looked_for, strict=True):
        if row["looks_for"] is not None:
            groups.setdefault(term.group, []).append(f"{'!' if term.is_excluded else ''}({row['looks_for']})")
    if not groups:
        return None
    wanted = " | ".join(f"({' & '.join(group)})" for group in groups.values())
    literals = _literals(terms)
    arguments = (wanted, session["id"] if session is not None else None, viewer, limit, literals)
    is_archived = session is not None and session["status"] == "archived"
    rows = await conn.fetch(SEARCH, *arguments) if not is_archived else []
    packed = await conn.fetch(SEARCH_ARCHIVED, *arguments) if is_archived or session is None else []
    best = heapq.merge(rows, packed, key=lambda row: (-row["rank"], -row["session_id"], -row["sequence"]))
    heads = [part[0] for part in (rows, packed) if part]
    return Found(list(islice(best, limit)), sum(row["ranked"] for row in heads), any(row["is_bounded"] for row in heads))


def snippet(row: Record, query: str) -> str:
    """What a match shows of its entry, with what was looked for between asterisks; at most SNIPPET_CHARS_MAX characters."""
    if row["at"] is None:
        shown: str = row["headline"].replace(_START, "**").replace(_STOP, "**")
        return shown[:SNIPPET_CHARS_MAX]
    literals = sorted(_literals(_parsed(query)), key=len, reverse=True)
    marked = re.sub("|".join(map(re.escape, literals)), r"**\g<0>**", row["around"], flags=re.IGNORECASE)
    return f"{'… ' if row['at'] > _AROUND_CHARS + 1 else ''}{marked}"[:SNIPPET_CHARS_MAX]
