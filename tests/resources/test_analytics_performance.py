"""Performance and resources are read as what the raw observations say, by `admin` only."""

from bisect import bisect_left
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from random import Random
from time import monotonic
from urllib.parse import quote

import asyncpg
import pytest

from handoff.context import App
from handoff.errors import Forbidden
from handoff.model import Caller
from handoff.server.calls import read
from handoff.store import performance
from handoff.telemetry.buckets import CALL_S, LAG_S, WAIT_S
from tests.agents import Agent
from tests.store.test_performance import Seen, bucket, start

COUNTED = (
    *("process_hours", "memory_bytes_max", "disk_ratio_max", "pool_timeouts"),
    *("cache_hits", "cache_misses", "cache_errors", "cache_hit_ratio"),
)
ENDS = ("ok", "ok", "ok", "failed", "refused", "cancelled")


async def test_performance_and_resources_are_those_of_the_raw_observations(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    random = Random(11)  # noqa: S311 - repeats the same past
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    seen: list[Seen] = []
    cpus: dict[datetime, list[int]] = defaultdict(list)
    for number in range(12):
        at = today - timedelta(hours=7 * number + 1)
        cpus[start(at, "day")].append(number)
        names = ("update_context", "resource:storage")
        calls: list[Seen] = [
            (at, random.choice(names), random.choice(ENDS), random.lognormvariate(-5, 1)) for _ in range(50)
        ]
        seen += calls
        await performance.write(db, bucket(at, "service", calls, [0.002], number))

    past = f"until={quote(today.isoformat())}"  # this process writes what it does itself into the minutes of today
    found = await agent.read(f"handoff://analytics/performance?granularity=day&{past}")
    by_start = {datetime.fromisoformat(it["start"]): it for it in found["buckets"]}
    of_all = {"": seen} | {name: [it for it in seen if it[1] == name] for name in {it[1] for it in seen}}
    shown = {"": found["total"]} | {it["operation"]: it for it in found["operations"]}
    assert shown.keys() == of_all.keys()
    of_all |= {day.isoformat(): [it for it in seen if start(it[0], "day") == day] for day in by_start}
    shown |= {day.isoformat(): it for day, it in by_start.items()}
    for key, calls in of_all.items():
        it = shown[key]
        assert it["calls"] == len(calls)
        for outcome in ("failed", "refused", "cancelled"):
            assert it[outcome] == sum(end == outcome for _, _, end, _ in calls)
        durations = sorted(seconds for _, _, end, seconds in calls if end == "ok")
        assert (it["duration_s"] is None) == (not durations)
        for name, percent in (("p50", 50), ("p95", 95), ("p99", 99)) if durations else ():
            true = durations[-(-percent * len(durations) // 100) - 1]
            assert bisect_left(CALL_S, true) == bisect_left(CALL_S, it["duration_s"][name])

    one = await agent.read(f"handoff://analytics/performance?granularity=hour&operation=resource:storage&limit=1&{past}")
    assert [it["operation"] for it in one["operations"]] == ["resource:storage"]
    assert "next_cursor" in one

    used = await agent.read(f"handoff://analytics/resources?{past}")
    assert used["total"]["service"]["memory_bytes_max"] == 111 << 20
    assert used["total"]["service"]["cache_hit_ratio"] == 0.75
    for it in used["buckets"]:
        numbers = cpus.get(datetime.fromisoformat(it["start"]))
        if numbers:
            assert it["service"]["cpus"] == pytest.approx(sum(numbers) / (60 * len(numbers)), abs=1e-4)
            memory = sum(100 + number for number in numbers) / len(numbers) * (1 << 20)
            assert it["service"]["memory_bytes"] == pytest.approx(memory, abs=1)
            assert {name: it["service"][name] for name in COUNTED} == {
                "process_hours": round(len(numbers) / 60, 3),
                "memory_bytes_max": (100 + max(numbers)) << 20,
                "disk_ratio_max": max(numbers) / 100,
                "pool_timeouts": sum(numbers),
                "cache_hits": 3 * sum(numbers),
                "cache_misses": sum(numbers),
                "cache_errors": len(numbers),
                "cache_hit_ratio": 0.75 if any(numbers) else None,
            }
            for figure, bounds in (("pool_wait_s", WAIT_S), ("event_loop_lag_s", LAG_S)):
                shown_s = it["service"][figure]
                assert {bisect_left(bounds, shown_s[name]) for name in ("p50", "p95", "p99")} == {bisect_left(bounds, 0.002)}
        else:
            assert set(it) <= {"start", "partial"}

    with pytest.raises(Forbidden):
        await read(app, Caller("ada", frozenset({"read", "write"})), "handoff://analytics/performance", monotonic())
