"""What processes did is added up per hour, day, week and month exactly as the raw observations say, whenever it arrives."""

from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, get_args
from uuid import uuid4

import asyncpg
import orjson
import pytest

from handoff.store import performance
from handoff.store.performance import Bucket, Calls, Outcome
from handoff.telemetry.buckets import CALL_S, LAG_S, STATEMENT_S, WAIT_S
from handoff.telemetry.instruments import quantile

BEGAN = datetime(2026, 3, 28, 22, 58, tzinfo=UTC)  # a Saturday: the next day is another week's last, then a month ends
MINUTES = (0, 1, 2, 61, 62, 1_500, 2_900, 2_901, 5_000)
Seen = tuple[datetime, str, Outcome, float]  # a call: when, what, how it ended, seconds


def histogram(bounds: tuple[float, ...], values: list[float]) -> list[int]:
    """The counts by bucket, by the definition: a value belongs to the first bucket whose bound it does not exceed."""
    return [
        sum(low < value <= high for value in values)
        for low, high in zip((-1.0, *bounds), (*bounds, float("inf")), strict=True)
    ]


def bucket(at: datetime, kind: Any, seen: list[Seen], waits: list[float], number: int) -> Bucket:
    """A bucket as a process would make it of these calls and waits."""
    durations: dict[tuple[str, Outcome], list[float]] = defaultdict(list)
    for _, operation, outcome, seconds in seen:
        durations[operation, outcome].append(seconds)
    return Bucket(
        at=at,
        id=uuid4(),
        instance=f"i{number % 2}",
        kind=kind,
        seconds=60,
        cpu_s=number,
        memory_bytes=(100 + number) << 20,
        disk_ratio=number / 100,
        pool_timeouts=number,
        cache_hits=3 * number,
        cache_misses=number,
        cache_errors=1,
        pool_waits=histogram(WAIT_S, waits),
        loop_lags=histogram(LAG_S, waits),
        statements=histogram(STATEMENT_S, waits),
        calls=[Calls(*key, histogram(CALL_S, values)) for key, values in durations.items()],
    )


@pytest.fixture
def raw() -> list[tuple[Bucket, list[Seen], list[float]]]:
    """Buckets of a service and a worker over five days, with the observations of which they are made."""
    random, found = Random(7), []  # noqa: S311 - repeats the same past
    for number, minute in enumerate(MINUTES):
        for kind in ("service", "worker"):
            at = BEGAN + timedelta(minutes=minute, seconds=random.uniform(0, 59))
            seen: list[Seen] = [
                (
                    at,
                    random.choice(("update_context", "get_inbox")),
                    random.choice(get_args(Outcome)),
                    random.lognormvariate(-6, 1),
                )
                for _ in range(random.randrange(40) if kind == "service" else 0)
            ]
            waits = [random.lognormvariate(-8, 2) for _ in range(random.randrange(10))]
            found.append((bucket(at, kind, seen, waits, number), seen, waits))
    random.shuffle(found)
    return found


def start(at: datetime, per: str) -> datetime:
    """The beginning of the period, by the calendar."""
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    match per:
        case "hour":
            return day.replace(hour=at.hour)
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case _:
            return day


@pytest.mark.parametrize("per", ["hour", "day", "week", "month"])
async def test_calls_and_resources_per_period_are_those_of_the_raw_observations(
    per: str, raw: list[tuple[Bucket, list[Seen], list[float]]], db: asyncpg.Connection
) -> None:
    for each, _, _ in raw:
        await performance.write(db, each)
    for each, _, _ in raw[::2]:  # an answer that was lost: the process writes it again
        await performance.write(db, each)
    every = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))

    expected: dict[tuple[datetime, str, str], list[float]] = defaultdict(list)
    for _, seen, _ in raw:
        for at, operation, outcome, seconds in seen:
            expected[start(at, per), operation, outcome].append(seconds)
    found = {
        (row["start"], row["operation"], row["outcome"]): row["durations"]
        for row in await performance.calls(db, *every, per)
    }
    assert found == {key: histogram(CALL_S, values) for key, values in expected.items()}
    one = await performance.calls(db, *every, per, "get_inbox")
    assert {row["operation"] for row in one} == {"get_inbox"}
    assert len(one) == sum(operation == "get_inbox" for _, operation, _ in found)

    sums: dict[tuple[datetime, str], Counter[str]] = defaultdict(Counter)
    waited: dict[tuple[datetime, str], list[float]] = defaultdict(list)
    largest: dict[tuple[datetime, str], tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for each, _, waits in raw:
        key = start(each.at, per), each.kind
        for name in ("seconds", "cpu_s", "pool_timeouts", "cache_hits", "cache_misses", "cache_errors"):
            sums[key][name] += getattr(each, name)
        sums[key]["memory_byte_s"] += each.memory_bytes * 60
        waited[key] += waits
        largest[key] = max(largest[key][0], each.memory_bytes), max(largest[key][1], each.disk_ratio)
    used = await performance.processes(db, *every, per)
    assert {(row["start"], row["kind"]) for row in used} == set(sums)
    for row in used:
        key = row["start"], row["kind"]
        assert {name: row[name] for name in sums[key]} == sums[key]
        assert row["pool_waits"] == histogram(WAIT_S, waited[key])
        assert row["loop_lags"] == histogram(LAG_S, waited[key])
        assert (row["memory_max"], row["disk_max"]) == (largest[key][0], pytest.approx(largest[key][1]))


async def test_points_of_series_add_up_all_processes_and_come_again_for_minutes_written_late(db: asyncpg.Connection) -> None:
    await db.set_type_codec("jsonb", schema="pg_catalog", encoder=lambda it: orjson.dumps(it).decode(), decoder=orjson.loads)
    now = (await db.fetchval("SELECT now()")).replace(second=0, microsecond=0)
    early, late = now - timedelta(hours=1), now - timedelta(minutes=2)
    ends: tuple[tuple[Outcome, float], ...] = (("ok", 0.002), ("failed", 0.3), ("refused", 0.001))
    seen: list[Seen] = [(late, "t", outcome, seconds) for outcome, seconds in ends]
    for at, number in ((late, 1), (late, 2), (early, 3)):
        await performance.write(db, bucket(at, "service", seen, [0.002], number))
    await db.execute("UPDATE process_minute SET written_at = minute + interval '1 minute'")

    async def found() -> dict[tuple[str, datetime], tuple[float, float | None]]:
        points = await performance.points(db, now - timedelta(minutes=5), now)
        assert len({(it.spec.key, it.bucket) for it in points}) == len(points)
        return {(it.spec.name, it.bucket): (it.value, it.of) for it in points}

    of_late = {name: value for (name, at), value in (await found()).items() if at == late}
    assert of_late == {
        "calls": (6, None),
        "calls.failed_ratio": (2, 6),
        "calls.refused_ratio": (2, 6),
        "calls.duration_p95": (pytest.approx(0.0015 + 0.95 * 0.0005), None),
        "process.memory_bytes": (102 << 20, None),
        "process.disk_ratio": (pytest.approx(0.02), None),
        "process.cpus": (3 / 120, None),
        "event_loop.lag_p99": (pytest.approx(0.001 + 0.99 * 0.004), None),
        "pool.timeouts": (3, None),
        "cache.errors": (2, None),
        "database.statement_p95": (pytest.approx(0.001 + 0.95 * 0.001), None),
        "pool.wait_p95": (pytest.approx(0.001 + 0.95 * 0.004), None),
        "cache.hit_ratio": (9, 12),
    }
    assert {at for _, at in await found()} == {late}
    await performance.write(db, bucket(early, "service", seen, [], 4))  # another process, whose database was away
    assert (await found())["calls", early] == (6, None)
    await performance.write(db, bucket(late, "service", [(late, "get_inbox", "ok", 30.0)], [], 5))
    points = await performance.points(db, late, now)
    assert {it.spec.labels.get("operation") for it in points if it.spec.name == "calls"} == {"t", "get_inbox", None}
    assert {it.spec.labels["operation"] for it in points if it.spec.name == "calls.duration_p95"} == {"t"}


def test_a_quantile_of_a_histogram_lies_in_the_bucket_of_the_quantile_of_its_values() -> None:
    random = Random(3)  # noqa: S311 - repeats the same values
    for _ in range(50):
        values = [random.lognormvariate(-5, 1.5) for _ in range(random.randrange(2, 500))]
        for percent in (50, 95, 99):
            rank = -(-percent * len(values) // 100)  # the smallest value that at least so many percent do not exceed
            true = sorted(values)[rank - 1]
            guess = quantile(percent / 100, CALL_S, histogram(CALL_S, values))
            assert bisect_left(CALL_S, true) == bisect_left(CALL_S, guess), (percent, true, guess)


async def test_a_bucket_of_other_bounds_is_refused_whole(db: asyncpg.Connection) -> None:
    seen: list[Seen] = [(BEGAN, "get_inbox", "ok", 0.01)]
    await performance.write(db, bucket(BEGAN, "service", seen, [0.01], 1))
    before = await db.fetch(EVERYTHING)
    for wrong in ({"loop_lags": [1]}, {"calls": [Calls("get_inbox", "ok", [1, 2])]}):
        with pytest.raises(asyncpg.CheckViolationError):
            await performance.write(db, replace(bucket(BEGAN, "service", seen, [0.01], 1), **wrong))
    assert await db.fetch(EVERYTHING) == before


EVERYTHING = """
    SELECT to_jsonb(p) AS it FROM process_minute p UNION ALL SELECT to_jsonb(c) FROM call_minute c
    UNION ALL SELECT to_jsonb(p) FROM process_period p UNION ALL SELECT to_jsonb(c) FROM call_period c ORDER BY it
"""
