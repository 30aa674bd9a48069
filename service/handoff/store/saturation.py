"""Whether the running processes of the service are enough, now and by the forecast, and whether the pool is.

A minute is saturated if the processes together used most of the CPU that they may use, their event loops were late, or calls
were refused because too many waited already, while the database was not what they waited for. What is long in such a minute
is so for want of processes, so waits for a connection of the pool count in the other minutes only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Any, Final

from asyncpg import Record

from handoff.recommendations import KINDS, Measured
from handoff.store import days
from handoff.store.connect import Connection
from handoff.telemetry.buckets import LAG_S, STATEMENT_S, WAIT_S
from handoff.telemetry.instruments import quantile

CPU_BUSY: Final = 0.8  # of the CPU that the processes may use
CPU_TARGET: Final = 0.6  # of the same, with as many processes as are recommended
_LAG_LATE_S: Final = 0.25  # of the event loop, at the 95th percentile, as for HandoffEventLoopLag
_STATEMENT_SLOW_S: Final = 0.1  # at the 95th percentile
_LAGS_PER_STATEMENT: Final = 2  # a late event loop makes its statements seem longer: by a lag for each of its ends
_HOUR: Final = 60
_WAIT_LONG_S: Final = 0.05  # the bound of a bucket
_WAITS_MIN: Final = 1_000
_AHEAD_DAYS: Final = 30  # one of those that the job `trends` forecasts
SERVICE_CPUS: Final = "service_cpus"  # its figure: the CPUs that the service used in the busiest hour of a day


def _sums(column: str, bounds: Sequence[float]) -> str:
    places = ", ".join(f"coalesce(sum({column}[{place + 1}]), 0)" for place in range(len(bounds) + 1))
    return f"ARRAY[{places}]::bigint[] AS {column}"


MINUTES: Final = f"""
    SELECT minute, sum(seconds)::float8 AS seconds, sum(cpu_s)::float8 AS cpu_s, sum(seconds * cpus)::float8 AS usable_s,
           sum(overloaded)::bigint AS overloaded, sum(pool_timeouts)::bigint AS pool_timeouts,
           {_sums("pool_waits", WAIT_S)}, {_sums("loop_lags", LAG_S)}, {_sums("statements", STATEMENT_S)}
      FROM process_minute
     WHERE minute >= date_trunc('minute', now()) - interval '24 hours' AND kind = 'service'
     GROUP BY minute
    HAVING sum(seconds) > 0
     ORDER BY minute
     LIMIT 1441
"""  # fmt: skip

# The CPUs that the processes of the last hour could use.
USABLE = """
    SELECT sum(seconds * cpus)::float8 / 60 / nullif(count(DISTINCT minute), 0)
      FROM process_minute WHERE minute >= now() - interval '1 hour' AND kind = 'service'
"""


@dataclass(frozen=True, slots=True)
class Minute:
    """What the service did within a minute, in all its processes."""

    at: datetime
    seconds: float  # of all processes together, as are the CPU seconds that they used and those that they could have used
    cpu_s: float
    usable_s: float
    overloaded: int
    lag_p95_s: float
    statement_p95_s: float
    waits: int
    long_waits: int
    timeouts: int
    is_saturated: bool  # the processes were what calls waited for, and not the database


async def measure(conn: Connection) -> list[Measured]:
    """How far the service is short of processes or connections; nothing where no process has run for a day."""
    minutes = [_minute(row) for row in await conn.fetch(MINUTES)]
    if not minutes:
        return []
    scale = _scale(minutes)
    found = [scale, *_pool_size([it for it in minutes if not it.is_saturated])]
    if scale.figure < KINDS["scale"].closes_at:  # until then, what is missing now is what is recommended
        found += _scale_ahead(await days.concluded(conn, "capacity"), minutes[-1])
    return found


async def limit(conn: Connection) -> float | None:
    """The CPUs of the running processes above which they are short of CPU; None where none has run for an hour."""
    usable: float | None = await conn.fetchval(USABLE)
    return usable and round(CPU_BUSY * usable, 3)


def _minute(row: Record) -> Minute:
    waits: list[int] = row["pool_waits"]
    lag_p95_s = quantile(0.95, LAG_S, row["loop_lags"])
    statement_p95_s = quantile(0.95, STATEMENT_S, row["statements"])
    is_busy = row["cpu_s"] >= CPU_BUSY * row["usable_s"] or lag_p95_s > _LAG_LATE_S or row["overloaded"] > 0
    is_database_slow = statement_p95_s > max(_STATEMENT_SLOW_S, _LAGS_PER_STATEMENT * lag_p95_s)
    return Minute(
        at=row["minute"],
        seconds=row["seconds"],
        cpu_s=row["cpu_s"],
        usable_s=row["usable_s"],
        overloaded=row["overloaded"],
        lag_p95_s=lag_p95_s,
        statement_p95_s=statement_p95_s,
        waits=sum(waits),
        long_waits=sum(waits[WAIT_S.index(_WAIT_LONG_S) + 1 :]),
        timeouts=row["pool_timeouts"],
        is_saturated=is_busy and not is_database_slow,
    )


def _scale(minutes: Sequence[Minute]) -> Measured:
    """The saturated share of the hour that had most saturated minutes or, if none had any, used most CPU."""
    hour = max(
        _hours(minutes), key=lambda it: (sum(minute.is_saturated for minute in it), sum(minute.cpu_s for minute in it))
    )
    saturated = [it for it in hour if it.is_saturated]
    looked_at = saturated or hour
    seconds, cpu_s, usable_s = (sum(getattr(it, name) for it in looked_at) for name in ("seconds", "cpu_s", "usable_s"))
    processes = max(1, round(seconds / 60 / len(looked_at)))
    cpus = cpu_s / 60 / len(looked_at)
    evidence: dict[str, Any] = {
        "saturated_minutes": len(saturated),
        "hour_until": hour[-1].at,
        "processes": processes,
        "cpus_used": round(cpus, 3),
        "cpus_per_process": round(usable_s / seconds, 3),
        "event_loop_lag_p95_s": round(max(it.lag_p95_s for it in looked_at), 4),
        "statement_p95_s": round(max(it.statement_p95_s for it in looked_at), 4),
        "overloaded": sum(it.overloaded for it in looked_at),
    }
    if saturated:
        evidence["processes_needed"] = max(processes + 1, ceil(cpus / (CPU_TARGET * usable_s / seconds)))
    return Measured("scale", "service", len(saturated) / _HOUR, is_enough=True, evidence=evidence)


def _hours(minutes: Sequence[Minute]) -> "list[Sequence[Minute]]":
    """The minutes of each hour that ends with one of them."""
    found: list[Sequence[Minute]] = []
    first = 0
    for last, minute in enumerate(minutes):
        while (minute.at - minutes[first].at).total_seconds() >= 60 * _HOUR:
            first += 1
        found.append(minutes[first : last + 1])
    return found


def _pool_size(minutes: Sequence[Minute]) -> list[Measured]:
    waits, long, timeouts = (sum(getattr(it, name) for it in minutes) for name in ("waits", "long_waits", "timeouts"))
    if not waits:
        return []
    evidence = {"waits": waits, "longer_than_50_ms": long, "timeouts": timeouts}
    share = (long + timeouts) / waits
    return [Measured("pool_size", "service", share, is_enough=waits >= _WAITS_MIN, evidence=evidence)]


def _scale_ahead(capacity: Record | None, newest: Minute) -> list[Measured]:
    """What the forecast says of the CPU that the service will use; nothing while there is none."""
    forecasts = capacity["document"]["forecasts"] if capacity is not None else ()
    for it in forecasts:
        if it["figure"] != SERVICE_CPUS or not it["limit"] or "ahead" not in it:
            continue
        (then,) = (ahead for ahead in it["ahead"] if ahead["in_days"] == _AHEAD_DAYS)
        processes = max(1, round(newest.seconds / 60))
        needed = ceil(then["expected"] / (CPU_TARGET * newest.usable_s / newest.seconds))
        evidence = {
            "cpus_used": it["latest"],
            "cpus_limit": it["limit"],
            "limit_reached": it["limit_reached"],
            "forecast": then,
            "processes": processes,
            "processes_needed": max(processes + 1, needed),
        }
        return [Measured("scale_ahead", "service", then["expected"] / it["limit"], is_enough=True, evidence=evidence)]
    return []
