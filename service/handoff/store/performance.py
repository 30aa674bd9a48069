"""What the processes did, as each counted it: calls and their durations, CPU, memory, waits for the pool, cache, disk.

A process writes one bucket per minute. The statement that stores it also adds it to its hour and its day, so these are
complete whenever the minute is, late ones included, and no job has to add them up. Durations are histograms: counts by
bucket, which can be added. A quantile of them lies in the same bucket as the quantile of the durations themselves, and is
interpolated within it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID

from asyncpg import Record

from handoff.encoding import to_json
from handoff.store.connect import Connection
from handoff.store.series import Point, Spec
from handoff.telemetry.buckets import CALL_S, LAG_S, STATEMENT_S, WAIT_S
from handoff.telemetry.instruments import quantile

Outcome = Literal["ok", "refused", "failed", "cancelled"]  # cancelled: the caller has gone, which is no error
Grain = Literal["hour", "day"]
MINUTES_KEPT: Final = timedelta(days=31)  # at most; hours and days are kept for as long as the longest policy keeps metrics
WAITS: Final = frozenset({"get_inbox"})  # how long they take is how long nothing happened
ROWS_MAX: Final = 100_000  # read at a time: a year of days, with 250 combinations of operation and outcome

# A bucket that is there already changes nothing. The rows of hours and days are locked in one order by all processes.
WRITE = """
    WITH process AS (
        INSERT INTO process_minute (minute, id, instance, kind, seconds, cpu_s, memory_bytes, disk_ratio, pool_timeouts,
                                    cache_hits, cache_misses, cache_errors, pool_waits, loop_lags, statements, cpus,
                                    overloaded)
        VALUES (date_trunc('minute', $1::timestamptz), $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $18,
                $19)
        ON CONFLICT DO NOTHING
        RETURNING *
    ), calls AS (
        INSERT INTO call_minute (minute, id, operation, outcome, durations)
        SELECT p.minute, p.id, c.operation, c.outcome, c.durations
          FROM process p, jsonb_to_recordset($16::text::jsonb) AS c(operation text, outcome text, durations integer[])
        RETURNING *
    ), agents AS (
        INSERT INTO agent_minute (minute, id, agent, calls, refused, succeeded, request_bytes)
        SELECT p.minute, p.id, a.agent, a.calls, a.refused, a.succeeded, a.request_bytes
          FROM process p, jsonb_to_recordset($17::text::jsonb)
                            AS a(agent text, calls integer, refused integer, succeeded integer, request_bytes bigint)
    ), processes AS (
        INSERT INTO process_period AS o (grain, start, kind, seconds, cpu_s, memory_byte_s, memory_max, disk_max,
                                         pool_timeouts, cache_hits, cache_misses, cache_errors, pool_waits, loop_lags)
        SELECT grain, date_trunc(grain, p.minute, 'UTC'), p.kind, p.seconds, p.cpu_s,
               p.memory_bytes * p.seconds::double precision, p.memory_bytes, p.disk_ratio, p.pool_timeouts, p.cache_hits,
               p.cache_misses, p.cache_errors, p.pool_waits, p.loop_lags
          FROM process p, unnest('{day,hour}'::text[]) grain
            ON CONFLICT (grain, start, kind) DO UPDATE
           SET seconds = o.seconds + excluded.seconds,
               cpu_s = o.cpu_s + excluded.cpu_s,
               memory_byte_s = o.memory_byte_s + excluded.memory_byte_s,
               memory_max = greatest(o.memory_max, excluded.memory_max),
               disk_max = greatest(o.disk_max, excluded.disk_max),
               pool_timeouts = o.pool_timeouts + excluded.pool_timeouts,
               cache_hits = o.cache_hits + excluded.cache_hits,
               cache_misses = o.cache_misses + excluded.cache_misses,
               cache_errors = o.cache_errors + excluded.cache_errors,
               pool_waits = (SELECT array_agg(a + b ORDER BY place)
                               FROM unnest(o.pool_waits, excluded.pool_waits) WITH ORDINALITY u(a, b, place)),
               loop_lags = (SELECT array_agg(a + b ORDER BY place)
                              FROM unnest(o.loop_lags, excluded.loop_lags) WITH ORDINALITY u(a, b, place))
    )
    INSERT INTO call_period AS o (grain, start, operation, outcome, durations)
    SELECT grain, date_trunc(grain, c.minute, 'UTC'), c.operation, c.outcome, c.durations
      FROM calls c, unnest('{day,hour}'::text[]) grain
     ORDER BY grain, c.operation, c.outcome
        ON CONFLICT (grain, start, operation, outcome) DO UPDATE
       SET durations = (SELECT array_agg(a + b ORDER BY place)
                          FROM unnest(o.durations, excluded.durations) WITH ORDINALITY u(a, b, place))
"""
# Histograms are added up place by place, and put together again in the order of their places.
CALLS = """
    SELECT start, operation, outcome, array_agg(n ORDER BY place) AS durations
      FROM (SELECT date_trunc($4, p.start, 'UTC') AS start, p.operation, p.outcome, u.place, sum(u.n)::bigint AS n
              FROM call_period p, unnest(p.durations) WITH ORDINALITY u(n, place)
             WHERE p.grain = $1 AND p.start >= $2 AND p.start < $3 AND ($5::text IS NULL OR p.operation = $5)
             GROUP BY 1, 2, 3, 4) added
     GROUP BY start, operation, outcome
     ORDER BY start, operation, outcome
     LIMIT $6
"""
PROCESSES = """
    SELECT date_trunc($4, start, 'UTC') AS start, kind, sum(seconds) AS seconds, sum(cpu_s) AS cpu_s,
           sum(memory_byte_s) AS memory_byte_s, max(memory_max) AS memory_max, max(disk_max) AS disk_max,
           sum(pool_timeouts)::bigint AS pool_timeouts, sum(cache_hits)::bigint AS cache_hits,
           sum(cache_misses)::bigint AS cache_misses, sum(cache_errors)::bigint AS cache_errors,
           (SELECT array_agg(n ORDER BY place)
              FROM (SELECT place, sum(n)::bigint AS n FROM unnest(array_agg(pool_waits)) WITH ORDINALITY f(n, i),
                           LATERAL (SELECT (i - 1) % 10 AS place) l GROUP BY place) w) AS pool_waits,
           (SELECT array_agg(n ORDER BY place)
              FROM (SELECT place, sum(n)::bigint AS n FROM unnest(array_agg(loop_lags)) WITH ORDINALITY f(n, i),
                           LATERAL (SELECT (i - 1) % 10 AS place) l GROUP BY place) w) AS loop_lags
      FROM process_period
     WHERE grain = $1 AND start >= $2 AND start < $3
     GROUP BY 1, kind
     ORDER BY 1, kind
     LIMIT $5
"""
# Minutes from $1 to before $2, and earlier ones of which a part was written since $1: all of each, over all processes.
MINUTES = """
    SELECT minute, kind, sum(seconds)::float8 AS seconds, sum(cpu_s)::float8 AS cpu_s,
           max(memory_bytes)::float8 AS memory_max, max(disk_ratio)::float8 AS disk_max,
           sum(cache_hits)::float8 AS cache_hits, sum(cache_hits + cache_misses)::float8 AS cache_gets,
           sum(cache_errors)::float8 AS cache_errors, sum(pool_timeouts)::float8 AS pool_timeouts,
           array_agg(pool_waits) AS pool_waits, array_agg(loop_lags) AS loop_lags,
           array_agg(statements) FILTER (WHERE statements IS NOT NULL) AS statements
      FROM process_minute
     WHERE minute < $2
       AND (minute >= $1 OR minute IN (SELECT minute FROM process_minute WHERE written_at >= $1 AND minute < $1))
     GROUP BY minute, kind
     ORDER BY minute, kind
"""
CALL_MINUTES = """
    SELECT minute, operation, outcome, array_agg(durations) AS durations
      FROM call_minute
     WHERE minute < $2
       AND (minute >= $1 OR minute IN (SELECT minute FROM process_minute WHERE written_at >= $1 AND minute < $1))
     GROUP BY minute, operation, outcome
     ORDER BY minute, operation, outcome
"""
AGENT_MINUTES = """
    SELECT minute, agent, sum(calls)::float8 AS calls, sum(refused)::float8 AS refused,
           (sum(request_bytes) / nullif(sum(succeeded), 0))::float8 AS request_bytes
      FROM agent_minute
     WHERE minute < $2
       AND (minute >= $1 OR minute IN (SELECT minute FROM process_minute WHERE written_at >= $1 AND minute < $1))
     GROUP BY minute, agent
     ORDER BY sum(sum(calls)) OVER (PARTITION BY agent) DESC, agent, minute
"""


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one operation with one outcome: `durations` counts them by bucket of CALL_S."""

    operation: str
    outcome: Outcome
    durations: Sequence[int]


@dataclass(frozen=True, slots=True)
class AgentCalls:
    """Tool calls of an agent, and the bytes of the requests of those that succeeded."""

    agent: str
    calls: int
    refused: int
    succeeded: int
    request_bytes: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a process did within `seconds`, beginning at `at`. Waits and lags are counts by bucket of WAIT_S and LAG_S."""

    at: datetime
    id: UUID
    instance: str
    kind: Literal["service", "worker"]
    seconds: float
    cpu_s: float
    memory_bytes: int
    disk_ratio: float
    pool_timeouts: int
    cache_hits: int
    cache_misses: int
    cache_errors: int
    pool_waits: Sequence[int]
    loop_lags: Sequence[int]
    statements: Sequence[int]
    calls: Sequence[Calls]
    agents: Sequence[AgentCalls] = ()
    cpus: float = 1.0  # that the process may use
    overloaded: int = 0  # calls that were refused because too many waited already


async def write(conn: Connection, it: Bucket) -> None:
    """Store a bucket, and add it to its hour and its day. One that is stored already changes nothing."""
    await conn.execute(
        WRITE,
        it.at,
        it.id,
        it.instance,
        it.kind,
        it.seconds,
        it.cpu_s,
        it.memory_bytes,
        it.disk_ratio,
        it.pool_timeouts,
        it.cache_hits,
        it.cache_misses,
        it.cache_errors,
        it.pool_waits,
        it.loop_lags,
        it.statements,
        to_json([asdict(calls) for calls in it.calls]).decode(),
        to_json([asdict(agent) for agent in it.agents]).decode(),
        it.cpus,
        it.overloaded,
    )


async def calls(conn: Connection, since: datetime, until: datetime, per: str, operation: str | None = None) -> list[Record]:
    """Return calls by `per` (hour, day, week or month, UTC), operation and outcome, oldest first, at most ROWS_MAX."""
    return await conn.fetch(CALLS, _grain(per), since, until, per, operation, ROWS_MAX)


async def processes(conn: Connection, since: datetime, until: datetime, per: str) -> list[Record]:
    """Return what the processes used by `per` (hour, day, week or month, UTC) and kind, oldest first, at most ROWS_MAX."""
    return await conn.fetch(PROCESSES, _grain(per), since, until, per, ROWS_MAX)


async def points(conn: Connection, since: datetime, until: datetime) -> list[Point]:
    """The points of the minutes from `since` to before `until`, and again of earlier ones that were written since then.

    Of all operations and of each: calls, and the ratios of those that failed and that were refused. Of each also the 95th
    percentile of the duration of those that succeeded, except where a call waits for something to happen. Of each kind of
    process: CPUs, memory, disk, the event loop's lag, the pool, SQL statements, and the cache's hits and errors. Of each
    agent, the busiest first: tool calls, the ratio of those that were refused, and how large requests are.
    """
    found: list[Point] = []
    by_operation: dict[tuple[datetime, str], dict[str, list[int]]] = {}
    of_all: dict[datetime, Counter[str]] = {}
    for row in await conn.fetch(CALL_MINUTES, since, until):
        by_operation.setdefault((row["minute"], row["operation"]), {})[row["outcome"]] = _added(row["durations"])
        of_all.setdefault(row["minute"], Counter())[row["outcome"]] += sum(map(sum, row["durations"]))
    for minute, counts in of_all.items():
        found += _calls(minute, counts, {})
    for (minute, operation), durations in by_operation.items():
        labels = {"operation": operation}
        found += _calls(minute, {outcome: sum(counts) for outcome, counts in durations.items()}, labels)
        if "ok" in durations and operation not in WAITS:
            p95_s = quantile(0.95, CALL_S, durations["ok"])
            found.append(Point(Spec("calls.duration_p95", "duration", "gap", labels), minute, p95_s))
    for row in await conn.fetch(MINUTES, since, until):
        minute, labels = row["minute"], {"kind": row["kind"]}
        waits = _added(row["pool_waits"])
        found += [
            Point(Spec("process.memory_bytes", "level", "gap", labels), minute, row["memory_max"]),
            Point(Spec("process.disk_ratio", "level", "gap", labels), minute, row["disk_max"]),
            Point(
                Spec("event_loop.lag_p99", "duration", "gap", labels),
                minute,
                quantile(0.99, LAG_S, _added(row["loop_lags"])),
            ),
            Point(Spec("pool.timeouts", "count", "zero", labels), minute, row["pool_timeouts"]),
            Point(Spec("cache.errors", "count", "zero", labels), minute, row["cache_errors"]),
        ]
        if row["seconds"] > 0:
            found.append(Point(Spec("process.cpus", "level", "gap", labels), minute, row["cpu_s"] / row["seconds"]))
        if any(waits):
            found.append(Point(Spec("pool.wait_p95", "duration", "gap", labels), minute, quantile(0.95, WAIT_S, waits)))
        if row["statements"]:
            p95_s = quantile(0.95, STATEMENT_S, _added(row["statements"]))
            found.append(Point(Spec("database.statement_p95", "duration", "gap", labels), minute, p95_s))
        if row["cache_gets"]:
            spec = Spec("cache.hit_ratio", "ratio", "gap", labels)
            found.append(Point(spec, minute, row["cache_hits"], row["cache_gets"]))
    return [*found, *await _of_agents(conn, since, until)]


async def _of_agents(conn: Connection, since: datetime, until: datetime) -> list[Point]:
    found: list[Point] = []
    for row in await conn.fetch(AGENT_MINUTES, since, until):
        minute, labels = row["minute"], {"agent": row["agent"]}
        found += [
            Point(Spec("calls", "count", "zero", labels), minute, row["calls"]),
            Point(Spec("calls.refused_ratio", "ratio", "gap", labels), minute, row["refused"], row["calls"]),
        ]
        if row["request_bytes"] is not None:
            found.append(Point(Spec("calls.request_bytes", "duration", "gap", labels), minute, row["request_bytes"]))
    return found


def _calls(minute: datetime, counts: Mapping[str, int], labels: Mapping[str, str]) -> list[Point]:
    total = float(sum(counts.values()))
    ratios = [
        Point(Spec(f"calls.{outcome}_ratio", "ratio", "gap", labels), minute, float(counts.get(outcome, 0)), total)
        for outcome in ("failed", "refused")
    ]
    return [Point(Spec("calls", "count", "zero", labels), minute, total), *ratios]


def _added(histograms: Sequence[Sequence[int]]) -> list[int]:
    return [sum(counts) for counts in zip(*histograms, strict=True)]


def _grain(per: str) -> Grain:
    return "hour" if per == "hour" else "day"
