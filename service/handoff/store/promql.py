"""What was read of each PromQL expression that operators named: since when, up to when, and whether it ever had a value."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from asyncpg import Record

from handoff.store.connect import Connection

# What is known of an expression ends with its wording. A reading that does not begin where the last one ended leaves a gap.
NOTE = """
    INSERT INTO promql_reading AS p (name, expression, answered_at, read_from, read_to)
    SELECT name, expression, CASE WHEN has_values THEN now() END, $4, $5
      FROM unnest($1::text[], $2::text[], $3::bool[]) AS t (name, expression, has_values)
     ORDER BY name
        ON CONFLICT (name) DO UPDATE
       SET expression = excluded.expression,
           named_at = CASE WHEN p.expression = excluded.expression THEN p.named_at ELSE now() END,
           answered_at = CASE WHEN excluded.answered_at IS NOT NULL THEN excluded.answered_at
                              WHEN p.expression = excluded.expression THEN p.answered_at END,
           read_from = CASE WHEN p.expression = excluded.expression AND excluded.read_from <= p.read_to
                            THEN least(p.read_from, excluded.read_from) ELSE excluded.read_from END,
           read_to = excluded.read_to
"""
FORGET = "DELETE FROM promql_reading WHERE name <> ALL ($1::text[])"
EMPTY = "SELECT name, named_at FROM promql_reading WHERE answered_at IS NULL ORDER BY name LIMIT 100"


async def note(conn: Connection, read: Mapping[str, tuple[str, bool]], since: datetime, until: datetime) -> None:
    """Note that the minutes from `since` to before `until` were read: by name the expression, and whether it had values."""
    expressions, has_values = [it for it, _ in read.values()], [it for _, it in read.values()]
    await conn.execute(NOTE, list(read), expressions, has_values, since, until)


async def forget(conn: Connection, but: Sequence[str]) -> None:
    """Forget all expressions but these: nobody names them any more."""
    await conn.execute(FORGET, but)


async def empty(conn: Connection) -> list[Record]:
    """The expressions that have never had a value, by name, and since when that is so."""
    return await conn.fetch(EMPTY)
