"""Searches the entries of sessions. Migration 0010 says what is indexed of an entry, and what a term looks for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from asyncpg import Record

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

# Looks into 8 blocks of entries at a time, newest first, until it has enough matches: LIMIT ends the loop. Without words to
# search for, `&&` would leave only the blocks. A snippet is Postgres's headline of the first 20,000 characters, if it
# shows a match. It never does for parts of words or in Chinese text: then it is what surrounds the first of the literals $5
# that is in the text.
SEARCH = f"""
    WITH asked AS MATERIALIZED (
        SELECT $1::text::tsquery AS query
    ), scope AS MATERIALIZED (
        SELECT id, last_sequence, created_at FROM session WHERE id = $2
        UNION ALL
        (SELECT s.id, s.last_sequence, s.created_at
           FROM (SELECT session_id FROM participant WHERE agent = $3 ORDER BY created_at DESC, session_id DESC
                  LIMIT {_SESSIONS_MAX}) p
           JOIN session s ON s.id = p.session_id)
        UNION ALL
        (SELECT id, last_sequence, created_at FROM session WHERE $2::bigint IS NULL AND $3::text IS NULL
          ORDER BY created_at DESC, id DESC LIMIT {_SESSIONS_MAX})
    ), block AS MATERIALIZED (
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
    SELECT s.key AS session_key, e.sequence, e.type, e.author, e.created_at, {REPLACED.format(entry="e")},
           left(h.headline, {SNIPPET_CHARS_MAX}) AS headline, l.at,
           substr(e.content, greatest(1, l.at - {_AROUND_CHARS}), 3 * {_AROUND_CHARS}) AS around,
           (SELECT count(*) FROM ranked) AS ranked,
           (SELECT count(*) FROM found) = {RANKED_MAX} OR (SELECT count(*) FROM ranked) < (SELECT count(*) FROM found)
           OR (SELECT count(*) FROM block) = {_BLOCKS_MAX} OR (SELECT count(*) FROM scope) = {_SESSIONS_MAX} AS is_bounded
      FROM best b
      JOIN context_entry e USING (session_id, sequence)
      JOIN session s ON s.id = b.session_id
      JOIN asked ON true
      JOIN LATERAL (
        SELECT ts_headline('handoff', left(e.content, 20000), asked.query, 'MaxFragments=2, MaxWords=24, MinWords=8, '
                           'FragmentDelimiter=" … ", StartSel={_START}, StopSel={_STOP}') AS headline) h ON true
      LEFT JOIN LATERAL (
        SELECT strpos(lower(left(e.content, {_SEEN_CHARS})), lower(literal)) AS at
          FROM unnest($5::text[]) WITH ORDINALITY AS l (literal, place)
         WHERE strpos(h.headline, '{_START}') = 0 AND strpos(lower(left(e.content, {_SEEN_CHARS})), lower(literal)) > 0
         ORDER BY place LIMIT 1) l ON true
     ORDER BY b.rank DESC, b.session_id DESC, b.sequence DESC
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


async def search(
    conn: Connection,
    query: str,
    *,
    session_id: int | None,
    viewer: str | None,
    limit: int,
) -> list[Record] | None:
    """Return the entries that match a web-search query, best match first; None if it has no term that an index could hold.

    `session_id` limits the search to one session, `viewer` to the sessions that this agent participates in.
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
    return await conn.fetch(SEARCH, wanted, session_id, viewer, limit, _literals(terms))


def snippet(row: Record, query: str) -> str:
    """What a match shows of its entry, with what was looked for between asterisks; at most SNIPPET_CHARS_MAX characters."""
    if row["at"] is None:
        shown: str = row["headline"].replace(_START, "**").replace(_STOP, "**")
        return shown[:SNIPPET_CHARS_MAX]
    literals = sorted(_literals(_parsed(query)), key=len, reverse=True)
    marked = re.sub("|".join(map(re.escape, literals)), r"**\g<0>**", row["around"], flags=re.IGNORECASE)
    return f"{'… ' if row['at'] > _AROUND_CHARS + 1 else ''}{marked}"[:SNIPPET_CHARS_MAX]
