"""Performance per operation, and what the processes use, per hour, day, week or month, and for the whole range.

They come from what each process counted (store/performance.py). Calls are not counted by agent, so only `admin` sees these.
Percentiles are those of histograms: the true one lies between the same two bounds of CALL_S, WAIT_S or LAG_S, of which each
is at most 3 times (for waits and lags 10 times) the one before, and they are interpolated in between.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

from asyncpg import Record

from handoff.resources.analytics_contract import Type
from handoff.resources.analytics_statistics import read_statistics
from handoff.store import days, performance
from handoff.store.connect import Connection
from handoff.store.statistics import PLACES_MAX, Asked, Statistics
from handoff.telemetry.buckets import CALL_S, LAG_S, WAIT_S
from handoff.telemetry.instruments import quantile
from handoff.telemetry.metrics import Row

_SUMS: Final = ("seconds", "cpu_s", "memory_byte_s", "pool_timeouts", "cache_hits", "cache_misses", "cache_errors")
Histogram = Sequence[int]


async def _performance(conn: Connection, asked: Asked, _limit_s: float) -> Statistics:
    rows = await performance.calls(conn, asked.since, asked.until, asked.granularity, asked.operation)
    by_start: dict[datetime, list[Record]] = defaultdict(list)
    by_operation: dict[str, list[Record]] = defaultdict(list)
    for row in rows:
        by_start[row["start"]].append(row)
        by_operation[row["operation"]].append(row)
    operations: list[dict[str, Any]] = [{"operation": name, **_calls(of_it)} for name, of_it in by_operation.items()]
    operations.sort(key=lambda it: (-it["calls"], it["operation"]))
    await _with_trends(conn, operations[:PLACES_MAX])
    buckets = {start: _calls(of_it) for start, of_it in by_start.items()}
    left_out = max(0, len(operations) - PLACES_MAX)
    return Statistics(_calls(rows), _calls(()), buckets, {"operation": operations[:PLACES_MAX]}, {"operation": left_out})


async def _with_trends(conn: Connection, operations: Sequence[dict[str, Any]]) -> None:
    """Add to each operation how its daily figures change, as the job `trends` concluded last; none before it has."""
    found = await days.concluded(conn, "trends")
    trends: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for it in found["document"].get("operations", ()) if found is not None else ():
        trends[it["operation"]].append({name: value for name, value in it.items() if name != "operation"})
    for operation in operations:
        operation["trends"] = trends[operation["operation"]]


async def _resources(conn: Connection, asked: Asked, _limit_s: float) -> Statistics:
    rows = await performance.processes(conn, asked.since, asked.until, asked.granularity)
    by_start: dict[datetime, list[Record]] = defaultdict(list)
    for row in rows:
        by_start[row["start"]].append(row)
    return Statistics(_kinds(rows), {}, {start: _kinds(of_it) for start, of_it in by_start.items()}, {}, {})


def _calls(rows: Iterable[Row]) -> dict[str, Any]:
    """Calls by how they ended, and the durations of those that succeeded."""
    counts: Counter[str] = Counter()
    durations: list[Histogram] = []
    for row in rows:
        counts[row["outcome"]] += sum(row["durations"])
        if row["outcome"] == "ok":
            durations.append(row["durations"])
    total = counts.total()
    return {
        "calls": total,
        **{outcome: counts[outcome] for outcome in ("failed", "refused", "cancelled")},
        "failed_ratio": round(counts["failed"] / total, 6) if total else None,
        "duration_s": _percentiles(CALL_S, durations),
    }


def _kinds(rows: Iterable[Row]) -> dict[str, Any]:
    by_kind: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append(row)
    return {kind: _used(of_it) for kind, of_it in sorted(by_kind.items())}


def _used(rows: Sequence[Row]) -> dict[str, Any]:
    """What processes of one kind used: means per process, and the most that any of them used."""
    sums = {name: sum(row[name] for row in rows) for name in _SUMS}
    gets = sums["cache_hits"] + sums["cache_misses"]
    seconds = sums["seconds"]
    return {
        "process_hours": round(seconds / 3_600, 3),
        "cpus": round(sums["cpu_s"] / seconds, 4) if seconds else None,
        "memory_bytes": round(sums["memory_byte_s"] / seconds) if seconds else None,
        "memory_bytes_max": max(row["memory_max"] for row in rows),
        "disk_ratio_max": round(max(row["disk_max"] for row in rows), 4),
        "pool_wait_s": _percentiles(WAIT_S, [row["pool_waits"] for row in rows]),
        "pool_timeouts": sums["pool_timeouts"],
        "cache_hits": sums["cache_hits"],
        "cache_misses": sums["cache_misses"],
        "cache_errors": sums["cache_errors"],
        "cache_hit_ratio": round(sums["cache_hits"] / gets, 4) if gets else None,
        "event_loop_lag_s": _percentiles(LAG_S, [row["loop_lags"] for row in rows]),
    }


def _percentiles(bounds: Sequence[float], histograms: Sequence[Histogram]) -> dict[str, float] | None:
    counts = [sum(places) for places in zip(*histograms, strict=True)]
    if not any(counts):
        return None
    return {name: round(quantile(q, bounds, counts), 6) for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}


_PARAMETERS: Final = frozenset({"since", "until", "granularity", "cursor", "limit"})
PERFORMANCE: Final = Type(partial(read_statistics, _performance, "performance"), _PARAMETERS | {"operation"}, scope="admin")
RESOURCES: Final = Type(partial(read_statistics, _resources, "resources"), _PARAMETERS, scope="admin")
