"""Measures what recommendations rest on: processes, cache, slow statements, storage, large entries, routes, leases."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import asyncpg

from handoff.recommendations import KINDS, Measured
from handoff.store import saturation, storage
from handoff.store.connect import Connection

WINDOW: Final = timedelta(days=3)  # long enough for a weekend, short enough to show soon what a change has done
HANDOFFS_MAX: Final = 20_000  # looked at, the newest
ENTRIES_MAX: Final = 20_000
SUBJECTS_MAX: Final = 200  # of each kind, those with most
_ANSWERED_MIN: Final = 10  # offers of a route, or acceptances of an agent
_READS_MIN: Final = 1_000  # of the cache
_CALLS_MIN: Final = 20  # of a statement
_STATEMENTS_MAX: Final = 20
_PLANS_MAX: Final = 5  # explained per run
_PLAN_LINES_MAX: Final = 40
_QUERY_CHARS_MAX: Final = 1_000
_FORECAST_DAYS: Final = 30

LARGE = """
    SELECT author, count(*) AS entries, sum(size_bytes)::bigint AS bytes, max(size_bytes) AS largest
      FROM (SELECT author, size_bytes FROM context_entry
             WHERE size_bytes > 100000 AND created_at > now() - $1::interval ORDER BY created_at DESC LIMIT $2) large
     GROUP BY author
     ORDER BY entries DESC, author
     LIMIT $3
"""
ROUTES = """
    SELECT sender, target_agent, coalesce(target_agent, 'any agent with ' || target_capability) AS target,
           count(*) AS offers, count(*) FILTER (WHERE state = 'rejected') AS rejected,
           count(*) FILTER (WHERE state = 'rejected' OR accepted_at IS NOT NULL) AS answered, count(loop) AS looping
      FROM (SELECT * FROM handoff WHERE created_at > now() - $1::interval ORDER BY created_at DESC LIMIT $2) recent
     GROUP BY sender, target_agent, target_capability
     ORDER BY greatest(count(loop), count(*) FILTER (WHERE state = 'rejected')) DESC, sender, target
     LIMIT $3
"""
LAPSES = """
    SELECT coalesce(e.data ->> 'holder', e.agent) AS agent, count(*) FILTER (WHERE e.kind = 'handoff.accepted') AS accepted,
           count(*) FILTER (WHERE e.kind = 'handoff.lapsed') AS lapsed
      FROM (SELECT id FROM handoff WHERE created_at > now() - $1::interval ORDER BY created_at DESC LIMIT $2) h
      JOIN event e ON e.handoff_id = h.id AND e.kind IN ('handoff.accepted', 'handoff.lapsed')
     GROUP BY 1
     ORDER BY lapsed DESC, agent
     LIMIT $3
"""
CACHE = """
    SELECT coalesce(sum(cache_hits), 0)::bigint AS hits, coalesce(sum(cache_misses), 0)::bigint AS misses
      FROM process_period
     WHERE grain = 'hour' AND start > now() - interval '24 hours' AND kind = 'service'
"""
HAS_STATEMENTS = "SELECT to_regclass('pg_stat_statements') IS NOT NULL"
# The extension may be missing, so this is no constant that is prepared on every database. Statements of ours only.
_STATEMENTS: Final = """
    SELECT queryid::text AS id, calls, total_exec_time::float8 AS total_ms, left(query, 20000) AS query
      FROM pg_stat_statements
     WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND userid = current_user::regrole
       AND query ~* '^\\s*(select|with|insert|update|delete)\\M'
     ORDER BY total_exec_time DESC
     LIMIT $1
"""


async def measure(conn: Connection, storage_bytes_max: int, known: Mapping[str, Mapping[str, Any]]) -> list[Measured]:
    """Measure every kind. `known` is the last evidence about each statement that was ever slow."""
    return [
        *await saturation.measure(conn),
        *await _cache(conn),
        *await _storage(conn, storage_bytes_max),
        *[
            Measured(
                "oversized_context",
                row["author"],
                row["entries"],
                is_enough=True,
                evidence={"large_entries": row["entries"], "large_bytes": row["bytes"], "largest_bytes": row["largest"]},
                agents=(row["author"],),
            )
            for row in await conn.fetch(LARGE, WINDOW, ENTRIES_MAX, SUBJECTS_MAX)
        ],
        *await _routes(conn),
        *[
            Measured(
                "lapsing_agent",
                row["agent"],
                row["lapsed"] / max(row["accepted"], 1),
                is_enough=row["accepted"] >= _ANSWERED_MIN,
                evidence={"lapsed": row["lapsed"], "accepted": row["accepted"]},
                agents=(row["agent"],),
            )
            for row in await conn.fetch(LAPSES, WINDOW, HANDOFFS_MAX, SUBJECTS_MAX)
        ],
        *await _statements(conn, known),
    ]


async def _cache(conn: Connection) -> list[Measured]:
    row = await conn.fetchrow(CACHE)
    if row is None or not (reads := row["hits"] + row["misses"]):
        return []
    enough = reads >= _READS_MIN
    return [Measured("cache_lifetime", "service", row["misses"] / reads, is_enough=enough, evidence=dict(row))]


async def _routes(conn: Connection) -> list[Measured]:
    found: list[Measured] = []
    for row in await conn.fetch(ROUTES, WINDOW, HANDOFFS_MAX, SUBJECTS_MAX):
        subject, agents = f"{row['sender']} to {row['target']}", (row["sender"], row["target_agent"] or row["sender"])
        if row["answered"]:
            share, enough = row["rejected"] / row["answered"], row["answered"] >= _ANSWERED_MIN
            evidence = {"rejected": row["rejected"], "answered": row["answered"]}
            found.append(Measured("rejecting_route", subject, share, enough, evidence, agents))
        evidence = {"looping": row["looping"], "offers": row["offers"]}
        found.append(Measured("looping_route", subject, row["looping"], is_enough=True, evidence=evidence, agents=agents))
    return found


async def _storage(conn: Connection, bytes_max: int) -> list[Measured]:
    found = await storage.read(conn, bytes_max)
    if found.advice is None or found.full_in_s is None:
        return []
    advice = dict(found.advice)
    expected = found.bytes + _FORECAST_DAYS * found.bytes_per_day
    evidence = {"bytes": found.bytes, "bytes_per_day": round(found.bytes_per_day), "bytes_max": bytes_max, **advice}
    return [Measured("retention", advice["retention_policy"], expected / bytes_max, is_enough=True, evidence=evidence)]


async def _statements(conn: Connection, known: Mapping[str, Mapping[str, Any]]) -> list[Measured]:
    """The mean duration of the statements that took most, of each since it was last measured; none without the extension."""
    if not await conn.fetchval(HAS_STATEMENTS):
        return []
    found: list[Measured] = []
    plans = 0
    for row in await conn.fetch(_STATEMENTS, _STATEMENTS_MAX):
        before = known.get(row["id"], {"calls": 0, "total_ms": 0.0})
        if row["calls"] < before["calls"]:  # the statistics were reset
            before = {"calls": 0, "total_ms": 0.0}
        calls = row["calls"] - before["calls"]
        if calls < _CALLS_MIN:
            continue
        mean_ms = (row["total_ms"] - before["total_ms"]) / calls
        counted = {"calls": row["calls"], "total_ms": round(row["total_ms"], 3), "mean_ms": round(mean_ms, 3)}
        evidence = {"query": row["query"][:_QUERY_CHARS_MAX], **counted}
        if mean_ms >= KINDS["slow_query"].opens_at and plans < _PLANS_MAX:
            plans += 1
            evidence["plan"] = await _plan(conn, row["query"])
        found.append(Measured("slow_query", row["id"], mean_ms, is_enough=True, evidence=evidence))
    return found


async def _plan(conn: Connection, query: str) -> list[str]:
    """The lines of a statement's generic plan, which is not run; or why there is none."""
    try:
        async with conn.transaction():
            statement = await conn.prepare(query)  # refuses more than one statement
            nulls = ", ".join("NULL" for _ in statement.get_parameters())
            await conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            await conn.execute(f"PREPARE explained AS {query}")
            rows = await conn.fetch(f"EXPLAIN EXECUTE explained{f'({nulls})' if nulls else ''}")
            await conn.execute("DEALLOCATE explained")
            return [row[0] for row in rows[:_PLAN_LINES_MAX]]
    except asyncpg.PostgresError as error:
        return [f"no plan: {type(error).__name__}"]
