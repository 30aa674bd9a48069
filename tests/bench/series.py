"""Measures what series cost the worker: a minute's step of `rollup` and `detect` at 200, 1,000 and 10,000 series.

In every minute each of a number of agents registers a session and offers a handoff: two points of two series. After PAST
minutes, steps are measured, one after the other: a minute is rolled up, and the one before it is judged. Meanwhile the
health report is read every 20 ms. How late that is says for how long the event loop was blocked; on a machine that is busy
with other things too, processor time says it better. The database's clock is an argument here, so that minutes take no time.
Worker and Postgres share one core. With --year, also what a year of minutes takes.
"""

import argparse
import asyncio
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Final

import asyncpg
import psutil
from pydantic import SecretStr

from handoff.app import open_app
from handoff.cli.embedded import ensure_database, postgres
from handoff.context import App
from handoff.jobs import detect, history, rollup
from handoff.settings import Settings
from handoff.store import series
from handoff.store.connect import prepare_connection, transact
from handoff.store.history import pack
from handoff.store.migrate import migrate
from tests.bench.jobs import Memory
from tests.processes import passable_folder

STEP_S: Final = 60.0
HEALTH_S: Final = 1.0  # in which health has to answer
YEAR_BYTES: Final = 1_000_000_000  # of 200 series
PAST: Final = 45  # minutes: the detector says nothing of the first 40 points
MINUTE: Final = timedelta(minutes=1)
SESSION = """
    INSERT INTO session (key, created_by, owner, writers, status, retention_policy, metadata, created_at, expires_at,
                         last_activity_at, last_sequence, content_bytes, version)
    VALUES ('bench', 'ada', 'ada', '{ada}', 'active', 'standard', '{}', now(), now() + interval '1 day', now(), 0, 0, 1)
    RETURNING id
"""
EVENTS = """
    INSERT INTO event (session_id, kind, agent, at)
    SELECT $1, kind, 'agent ' || n, $2::timestamptz + random() * interval '59 s'
      FROM generate_series(1, $3::int) n, unnest('{session.created,handoff.offered}'::text[]) kind
"""
# Of 200 series a quarter each: counts, shares, durations and levels.
SERIES = """
    INSERT INTO series (name, labels, kind, absence, begins_at, last_at)
    SELECT 'bench', jsonb_build_object('n', n::text), (ARRAY['count', 'ratio', 'duration', 'level'])[1 + n % 4], 'gap',
           $1, $1
      FROM generate_series(1, 200) n
"""
DAY = """
    INSERT INTO series_point (bucket, series_id, value, of)
    SELECT $1::timestamptz + minute * interval '1 minute', id,
           CASE kind WHEN 'count' THEN floor(random() * 50) WHEN 'ratio' THEN floor(random() * 5)
                     WHEN 'duration' THEN exp(random()) ELSE floor(1e8 + random() * 1e6) END,
           CASE kind WHEN 'ratio' THEN 20 + floor(random() * 50) END
      FROM series, generate_series(0, 1439) minute
"""
SIZES = """
    SELECT sum(pg_total_relation_size(c.oid)) FILTER (WHERE c.relname LIKE 'series_day%')::bigint AS packed,
           sum(pg_total_relation_size(c.oid)) FILTER (WHERE c.relname LIKE 'series_period%')::bigint AS periods,
           sum(pg_total_relation_size(c.oid)) FILTER (WHERE c.relname = 'series_point')::bigint AS loose
      FROM pg_class c WHERE c.relkind = 'r'
"""


@dataclass(frozen=True, slots=True)
class Step:
    """What a step took, in seconds: by the clock and of the processor. Late was the health report."""

    took_s: float
    rollup_s: float
    cpu_s: float
    rollup_cpu_s: float
    postgres_cpu_s: float
    late_s: float
    late_cpu_s: float


def main() -> int:
    """Measure and print; with --check, return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="make bench-series", description=__doc__)
    parser.add_argument("--series", type=int, nargs="*", default=[200, 1_000, 10_000])
    parser.add_argument("--steps", type=int, default=16, help="minutes that are measured; state is written in every 15th")
    parser.add_argument("--year", type=int, nargs="?", const=365, help="also measure so many days of 200 series, scaled up")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a target is missed")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    is_missed = False
    for count in [*options.series, *([None] if options.year else [])]:
        with ExitStack() as stack:
            folder = stack.enter_context(passable_folder())
            url = asyncio.run(ensure_database(stack.enter_context(postgres(folder))))
            settings = Settings(
                database_url=SecretStr(url),
                log_level="error",
                series_max=(count or 200) + 10,
                statement_timeout_s=60,
            )
            asyncio.run(migrate(settings))
            work = _steps(settings, url, count, options.steps) if count else _year(settings, url, options.year)
            is_missed |= asyncio.run(work)
    return 1 if is_missed and options.check else 0


async def _steps(settings: Settings, url: str, count: int, steps: int) -> bool:
    conn = await asyncpg.connect(url)
    session = await conn.fetchval(SESSION)
    first: datetime = await conn.fetchval("SELECT date_trunc('minute', now())") - (PAST + steps) * MINUTE

    async def happens(minute: int) -> None:
        await conn.execute(EVENTS, session, first + minute * MINUTE, count // 2)

    def it_is(minute: int) -> None:
        rollup.NOW = f"SELECT '{first + minute * MINUTE}'::timestamptz + interval '10 s'"

    async with open_app(settings, "worker") as app:
        server = psutil.Process(await conn.fetchval("SELECT pg_backend_pid()")).parent()
        assert server is not None
        for minute in range(PAST):
            await happens(minute)
        it_is(PAST)
        await _step(app, server)
        measured: list[Step] = []
        with Memory() as memory:
            for minute in range(PAST, PAST + steps):
                await happens(minute)
                it_is(minute + 1)
                measured.append(await _step(app, server))
        points = await conn.fetchval("SELECT count(*) FROM series_point")
    await conn.close()
    late_cpu = max(it.late_cpu_s for it in measured)
    took, cpu, late = [it.took_s for it in measured], [it.cpu_s for it in measured], max(it.late_s for it in measured)
    print(
        f"{count:,} series, {points:,} points: a step took {median(took):.2f} s, at most {max(took):.2f} "
        f"(rollup {median(it.rollup_s for it in measured):.2f}); processor time of the worker {median(cpu):.2f} s, at most "
        f"{max(cpu):.2f} (rollup {median(it.rollup_cpu_s for it in measured):.2f}), of Postgres "
        f"{median(it.postgres_cpu_s for it in measured):.2f}; memory {memory.began >> 20} MiB +{memory.added >> 20}; "
        f"health at most {late * 1_000:.0f} ms late, {late_cpu * 1_000:.0f} ms of processor time",
        flush=True,
    )
    return max(took) > STEP_S or late > HEALTH_S


async def _step(app: App, server: psutil.Process) -> Step:
    process, late, late_cpu = psutil.Process(), 0.0, 0.0

    async def ask() -> None:
        nonlocal late, late_cpu
        while True:
            began, cpu = time.perf_counter(), time.process_time()
            await asyncio.sleep(0.02)
            app.health.report()
            late = max(late, time.perf_counter() - began - 0.02)
            late_cpu = max(late_cpu, time.process_time() - cpu)

    asking = asyncio.create_task(ask())
    began, cpu, of_server = time.perf_counter(), _cpu_s(process), _of_postgres(server)
    await rollup.run(app)
    rolled_up, rolled_up_cpu = time.perf_counter() - began, _cpu_s(process) - cpu
    await detect.run(app)
    took, cpu = time.perf_counter() - began, _cpu_s(process) - cpu
    asking.cancel()
    return Step(took, rolled_up, cpu, rolled_up_cpu, _of_postgres(server) - of_server, late, late_cpu)


def _cpu_s(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def _of_postgres(server: psutil.Process) -> float:
    return _cpu_s(server) + sum(_cpu_s(it) for it in server.children())


async def _year(settings: Settings, url: str, days: int) -> bool:
    conn = await asyncpg.connect(url, timeout=600)
    await prepare_connection(conn)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    first = today - timedelta(days=days + 3)
    await conn.execute(SERIES, first)
    took: list[float] = []
    async with open_app(settings, "worker") as app:
        for number in range(days):
            await conn.execute(DAY, first + timedelta(days=number), timeout=600)
            began = time.perf_counter()
            while await transact(app.pool, pack):
                pass
            took.append(time.perf_counter() - began)
        await conn.execute("VACUUM series_point", timeout=600)
        await history.run(app)
    sizes = await conn.fetchrow(SIZES)
    assert sizes is not None
    read: list[float] = []
    for span in (1, days):
        began = time.perf_counter()
        for day in range(span):
            since = first + timedelta(days=day)
            await series.points(conn, [1], since, since + timedelta(days=1))
        read.append(time.perf_counter() - began)
    began = time.perf_counter()
    await series.points(conn, list(range(1, 201)), first, first + timedelta(days=1))
    everything = time.perf_counter() - began
    await conn.close()
    year = sizes["packed"] / days * 365
    print(
        f"{days} days of 200 series, a point per minute: packed {sizes['packed'] / 1e6:.0f} MB, a year {year / 1e6:.0f} MB; "
        f"packing a day takes {median(took):.1f} s; reading a day of one series takes {read[0] * 1e3:.0f} ms, {days} days "
        f"{read[1]:.2f} s, a day of all {everything:.2f} s; minutes not packed take {sizes['loose'] / 1e6:.0f} MB",
        flush=True,
    )
    return year > YEAR_BYTES


if __name__ == "__main__":
    raise SystemExit(main())
