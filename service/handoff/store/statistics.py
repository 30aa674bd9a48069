"""Statistics of the sessions, handoffs and entries that are kept, from their rows: counts, sums and percentiles, no content.

Each statement groups the rows of a range by bucket, by what the figures are broken down into, and all together. A row of its
result names its `part` (`bucket`, `all`, or what it is broken down into). Percentiles are interpolated between two values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal, get_args

from asyncpg import QueryCanceledError, Record

from handoff.errors import Invalid
from handoff.model import ENTRY_TYPES, HandoffState, SessionStatus
from handoff.store.connect import Connection
from handoff.store.sessions import STATUS

Granularity = Literal["hour", "day", "week", "month"]

ROWS_MAX: Final = 1_000_000  # of a table, per answer
PLACES_MAX: Final = 50  # agents, policies and routes, those with most first
LARGE_BYTES: Final = 100_000  # of an entry: it crowds out others in a brief
_SHARE_OF_TIMEOUT: Final = 0.8  # so that Postgres ends a statement before the driver gives up

LIMIT = "SELECT set_config('statement_timeout', $1, true)"
_PERCENTILES: Final = "ARRAY[0.5, 0.95, 0.99]"


def _counted(column: str, values: tuple[str, ...]) -> str:
    return ", ".join(f"count(*) FILTER (WHERE {column} = '{value}') AS {value}" for value in values)


def _statement(chosen: str, grouped: str, most: str) -> str:
    """The rows of `chosen`, grouped: all buckets, and of each other part the PLACES_MAX that have most of a figure."""
    return f"""
    WITH chosen AS MATERIALIZED ({chosen} LIMIT {ROWS_MAX + 1}),
         grouped AS ({grouped}),
         ranked AS (
             SELECT *, row_number() OVER (PARTITION BY part ORDER BY {most} DESC, name, target) AS place,
                    count(*) OVER (PARTITION BY part) AS places
               FROM grouped
         )
    SELECT * FROM ranked WHERE part = 'bucket' OR place <= {PLACES_MAX} ORDER BY part, bucket, place
"""


def _sessions(source: str, created_at: str) -> str:
    return _statement(
        f"""
        SELECT date_trunc($3, s.created_at, 'UTC') AS bucket, s.created_by, s.retention_policy, {STATUS} AS status,
               s.last_sequence, s.content_bytes,
               extract(epoch FROM s.last_activity_at - s.created_at)::float8 AS duration_s,
               (SELECT count(*) FROM participant j WHERE j.session_id = s.id) AS participants
          FROM {source}
         WHERE {created_at} >= $1 AND {created_at} < $2 AND ($4::text IS NULL OR s.retention_policy = $4)""",
        f"""
        SELECT CASE grouping(bucket, created_by, retention_policy)
                   WHEN 3 THEN 'bucket' WHEN 5 THEN 'agent' WHEN 6 THEN 'policy' ELSE 'all' END AS part,
               bucket, coalesce(created_by, retention_policy) AS name, NULL AS target,
               count(*) AS sessions, {_counted("status", get_args(SessionStatus))}, sum(last_sequence)::bigint AS entries,
               sum(content_bytes)::bigint AS content_bytes, avg(participants)::float8 AS participants_mean,
               percentile_cont({_PERCENTILES}) WITHIN GROUP (ORDER BY duration_s) AS duration_s
          FROM chosen
         GROUP BY GROUPING SETS ((bucket), (created_by), (retention_policy), ())""",
        "sessions",
    )


SESSIONS = _sessions("session s", "s.created_at")
SESSIONS_OF_AGENT = _sessions("participant p JOIN session s ON s.id = p.session_id AND p.agent = $5", "p.created_at")

# An agent's handoffs are those that it sent, that were offered to it by name, or that it accepted last. When a handoff was
# first accepted is in its events if it was accepted more than once.
HANDOFFS = _statement(
    """
        SELECT date_trunc($3, h.created_at, 'UTC') AS bucket, h.sender,
               coalesce(h.target_agent, h.target_capability) AS target, h.target_agent IS NULL AS is_capability,
               h.state, h.lapses, h.created_at,
               h.state = 'expired' AND h.deadline <= h.updated_at AS missed_deadline,
               CASE WHEN h.token > 1 THEN (SELECT min(e.at) FROM event e
                                            WHERE e.handoff_id = h.id AND e.kind = 'handoff.accepted')
                    ELSE h.accepted_at END AS accepted_at,
               CASE WHEN h.state = 'completed' THEN h.updated_at END AS completed_at
          FROM handoff h
         WHERE h.created_at >= $1 AND h.created_at < $2
           AND ($4::text IS NULL OR (SELECT s.retention_policy FROM session s WHERE s.id = h.session_id) = $4)
           AND ($5::text IS NULL OR $5 IN (h.sender, h.target_agent, h.holder))""",
    f"""
        SELECT CASE grouping(bucket, sender) WHEN 1 THEN 'bucket' WHEN 2 THEN 'route' ELSE 'all' END AS part,
               bucket, sender AS name, target, is_capability, count(*) AS handoffs,
               {_counted("state", get_args(HandoffState))},
               count(*) FILTER (WHERE missed_deadline) AS missed_deadline, count(*) FILTER (WHERE lapses > 0) AS lapsed,
               count(accepted_at) AS taken,
               percentile_cont({_PERCENTILES}) WITHIN GROUP (ORDER BY extract(epoch FROM accepted_at - created_at)::float8)
                   AS to_accept_s,
               percentile_cont({_PERCENTILES}) WITHIN GROUP (ORDER BY extract(epoch FROM completed_at - accepted_at)::float8)
                   AS to_complete_s
          FROM chosen
         GROUP BY GROUPING SETS ((bucket), (sender, target, is_capability), ())""",
    "handoffs",
)

_ACTIVE: Final = """s.created_at < $2 AND s.last_activity_at >= $1 AND ($4::text IS NULL OR s.retention_policy = $4)
             AND ($5::text IS NULL OR EXISTS (SELECT FROM participant j WHERE j.session_id = s.id AND j.agent = $5))"""
# Entries of sessions that were active in the range. Those of archived sessions are read without their content. Without the
# OFFSET, Postgres takes most sessions to be active in any range, and reads all entries.
CONTEXT = _statement(
    f"""
        SELECT date_trunc($3, created_at, 'UTC') AS bucket, type, author, size_bytes, superseded_by
          FROM (SELECT e.created_at, e.type, e.author, e.size_bytes, e.superseded_by
                  FROM session s, LATERAL (
                       SELECT c.created_at, c.type, c.author, c.size_bytes, c.superseded_by
                         FROM context_entry c
                        WHERE c.session_id = s.id
                       OFFSET 0) e
                 WHERE s.status <> 'archived' AND {_ACTIVE}
                 UNION ALL
                SELECT e.created_at, e.type, e.author, e.size_bytes, e.superseded_by
                  FROM session s JOIN archive a ON a.session_id = s.id,
                       unnest(a.types, a.authors, a.sizes_bytes, a.superseded_by, a.created_at)
                       AS e (type, author, size_bytes, superseded_by, created_at)
                 WHERE s.status = 'archived' AND {_ACTIVE}) e
         WHERE created_at >= $1 AND created_at < $2 AND ($5::text IS NULL OR author = $5)""",
    f"""
        SELECT CASE grouping(bucket, type, author)
                   WHEN 3 THEN 'bucket' WHEN 5 THEN 'type' WHEN 6 THEN 'agent' ELSE 'all' END AS part,
               bucket, coalesce(type, author) AS name, NULL AS target, count(*) AS entries,
               {_counted("type", ENTRY_TYPES)}, sum(size_bytes)::bigint AS content_bytes,
               percentile_cont({_PERCENTILES}) WITHIN GROUP (ORDER BY size_bytes) AS size_bytes,
               max(size_bytes) AS size_bytes_max, count(superseded_by) AS superseded,
               count(*) FILTER (WHERE size_bytes > {LARGE_BYTES}) AS large
          FROM chosen
         GROUP BY GROUPING SETS ((bucket), (type), (author), ())""",
    "entries",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """Which rows count: created from `since` to before `until`, of one policy, of one agent; None is all of them."""

    since: datetime
    until: datetime
    granularity: Granularity
    policy: str | None = None
    agent: str | None = None
    operation: str | None = None  # for the calls of processes only


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures of all rows, of no rows, of each bucket that has rows by its beginning, and of the parts that have most.

    `left_out` is how many there are besides of each kind of part.
    """

    all: dict[str, Any]
    none: dict[str, Any]
    buckets: dict[datetime, dict[str, Any]]
    parts: dict[str, list[dict[str, Any]]]
    left_out: dict[str, int]


async def sessions(conn: Connection, asked: Asked, timeout_s: float) -> Statistics:
    """Sessions by when they were created: how many, by status, their entries, participants and duration.

    The duration is from creation to the last activity. An agent's sessions are those in which it takes part. Raises Invalid
    if there are too many.
    """
    by_agent = (asked.agent,) if asked.agent is not None else ()
    rows = await _fetch(conn, SESSIONS_OF_AGENT if by_agent else SESSIONS, asked, timeout_s, *by_agent)
    return _statistics(rows, "sessions", _of_sessions)


async def handoffs(conn: Connection, asked: Asked, timeout_s: float) -> Statistics:
    """Handoffs by when they were offered: how they ended, and how long it took until they were accepted and completed.

    Raises Invalid if there are too many.
    """
    return _statistics(await _fetch(conn, HANDOFFS, asked, timeout_s, asked.agent), "handoffs", _of_handoffs)


async def context(conn: Connection, asked: Asked, timeout_s: float) -> Statistics:
    """Entries by when they were written: how many of each type, their sizes, and how many are superseded by now.

    An agent's entries are those that it wrote. Raises Invalid if there are too many.
    """
    return _statistics(await _fetch(conn, CONTEXT, asked, timeout_s, asked.agent), "entries", _of_entries)


async def _fetch(conn: Connection, statement: str, asked: Asked, timeout_s: float, *agent: str | None) -> list[Record]:
    await conn.execute(LIMIT, str(round(timeout_s * _SHARE_OF_TIMEOUT * 1_000)))
    try:
        return await conn.fetch(statement, asked.since, asked.until, asked.granularity, asked.policy, *agent)
    except QueryCanceledError as error:
        raise _too_much(f"These figures took longer than {timeout_s * _SHARE_OF_TIMEOUT:.1f} s.") from error


def _too_much(what: str) -> Invalid:
    return Invalid("range_too_large", what, "Repeat the call with a shorter range, from since to until.")


def _statistics(rows: list[Record], count: str, figures: Callable[[Record | None], dict[str, Any]]) -> Statistics:
    found = Statistics(figures(None), figures(None), {}, {}, {})
    for row in rows:
        if row["part"] == "bucket":
            found.buckets[row["bucket"]] = figures(row)
        elif row["part"] == "all":
            if row[count] > ROWS_MAX:
                raise _too_much(f"There are more than {ROWS_MAX:,} {count} in this range.")
            found.all.update(figures(row))
        else:
            found.parts.setdefault(row["part"], []).append({**_named(row), **figures(row)})
            found.left_out[row["part"]] = max(0, row["places"] - PLACES_MAX)
    return found


def _named(row: Record) -> dict[str, Any]:
    if row["part"] != "route":
        return {row["part"]: row["name"]}
    return {"sender": row["name"], "target_capability" if row["is_capability"] else "target_agent": row["target"]}


def _of_sessions(row: Record | None) -> dict[str, Any]:
    return {
        "sessions": row["sessions"] if row else 0,
        "by_status": {name: row[name] for name in get_args(SessionStatus) if row[name]} if row else {},
        "entries": (row["entries"] or 0) if row else 0,
        "content_bytes": (row["content_bytes"] or 0) if row else 0,
        "participants_mean": _rounded(row["participants_mean"]) if row else None,
        "duration_s": _percentiles(row["duration_s"]) if row else None,
    }


def _of_handoffs(row: Record | None) -> dict[str, Any]:
    states: dict[str, int] = {name: row[name] if row else 0 for name in get_args(HandoffState)}
    missed = row["missed_deadline"] if row else 0
    ended = sum(states[name] for name in ("completed", "rejected", "cancelled", "expired"))
    reasons = {
        "rejected": states["rejected"],
        "cancelled": states["cancelled"],
        "deadline_passed": missed,
        "session_ended": states["expired"] - missed,
    }
    return {
        "handoffs": row["handoffs"] if row else 0,
        "by_state": {name: count for name, count in states.items() if count},
        "success_ratio": round(states["completed"] / ended, 4) if ended else None,
        "unsuccessful": {name: count for name, count in reasons.items() if count},
        "accepted": row["taken"] if row else 0,
        "lapsed": row["lapsed"] if row else 0,
        "to_accept_s": _percentiles(row["to_accept_s"]) if row else None,
        "to_complete_s": _percentiles(row["to_complete_s"]) if row else None,
    }


def _of_entries(row: Record | None) -> dict[str, Any]:
    return {
        "entries": row["entries"] if row else 0,
        "by_type": {name: row[name] for name in ENTRY_TYPES if row[name]} if row else {},
        "content_bytes": (row["content_bytes"] or 0) if row else 0,
        "size_bytes": _percentiles(row["size_bytes"], row["size_bytes_max"]) if row else None,
        "superseded": row["superseded"] if row else 0,
        "large": row["large"] if row else 0,
    }


def _percentiles(values: list[float] | None, highest: float | None = None) -> dict[str, float | None] | None:
    if values is None:
        return None
    found = {name: _rounded(value) for name, value in zip(("p50", "p95", "p99"), values, strict=True)}
    return found | ({"max": highest} if highest is not None else {})


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def buckets_of(asked: Asked) -> list[datetime]:
    """The beginning of each bucket of the range, the first of which is `since`."""
    starts = [asked.since]
    while (following := after(starts[-1], asked.granularity)) < asked.until:
        starts.append(following)
    return starts


def beginning(at: datetime, granularity: Granularity) -> datetime:
    """The beginning of the bucket that a time in UTC is in; weeks begin on Mondays."""
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    match granularity:
        case "hour":
            return at.replace(minute=0, second=0, microsecond=0)
        case "day":
            return day
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)


def after(start: datetime, granularity: Granularity) -> datetime:
    """The beginning of the bucket that follows the one that begins at `start`."""
    if granularity == "month":
        return (start + timedelta(days=31)).replace(day=1)
    return start + {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}[granularity]
