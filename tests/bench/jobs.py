"""Measures the jobs on a large database: their time and memory, and how they delay `update_context` meanwhile.

The database is filled by COPY: by default 10,000 sessions with 1,000,000 entries. Then the service takes calls at half of
the rate that saturates it, by turns alone and while the jobs retention and archive run. Each turn with jobs is compared with
the turns right before and right after it, so that a machine that gets slower or faster meanwhile does not count; of these
ratios of p99 latencies the median counts. At last every job runs until it finds nothing more to do. Service, jobs and
Postgres share all cores, since on one core a job's statement can only run instead of the calls; the load generator, which
needs a tenth of a core, keeps to one of them.
"""

import argparse
import asyncio
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, Self

import asyncpg
import psutil
from pydantic import SecretStr

from handoff.app import open_app
from handoff.cli.embedded import ensure_database, postgres
from handoff.context import App
from handoff.jobs import archive, delete, dormant, expire, integrity, measure, retention, storage
from handoff.settings import Settings
from handoff.simulation.text import TOPICS, text
from handoff.store.migrate import migrate
from tests.bench.__main__ import CONTENT, TOKEN, register_sessions, server
from tests.processes import HANDOFF, passable_folder

ENTRIES_PER_SESSION: Final = 100
TEXTS: Final = 5_000
RUNS_MAX: Final = 2_000
RATIO_TARGET: Final = 1.5  # of the p99 with and without jobs
MEMORY_TARGET: Final = 64 << 20  # bytes that a job may add
SESSION = (
    "key", "created_by", "owner", "writers", "status", "retention_policy", "metadata", "created_at", "expires_at",
    "last_activity_at", "last_sequence", "content_bytes", "version", "status_since", "idle_check_at", "expiry_check_at",
    "entry_counts",
)  # fmt: skip
ENTRY = ("session_id", "sequence", "type", "content", "size_bytes", "content_hash", "author", "created_at")
OTHERS = """
    INSERT INTO participant (agent, session_id, created_at) SELECT owner, id, created_at FROM session;
    INSERT INTO event (session_id, kind, agent, at) SELECT id, 'session.created', owner, created_at FROM session;
    INSERT INTO idempotency (agent, key, tool, fingerprint, sequence, created_at, session_id)
    SELECT s.owner, s.key || '-' || n, 'update_context', sha256('x'), n, now() - interval '9 days', s.id
      FROM session s, generate_series(1, 20) n;
"""
LEFT = """
    SELECT (SELECT count(*) FROM session WHERE status IN ('completed', 'cancelled', 'expired')) AS closed,
           (SELECT count(*) FROM session WHERE status = 'archived') AS archived, (SELECT count(*) FROM session) AS sessions,
           (SELECT count(*) FROM idempotency) AS results, (SELECT session_id FROM integrity_check) AS checked
"""


def main() -> int:
    """Measure and print; with --check, return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="make bench-jobs", description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a target is missed")
    options = parser.parse_args()
    os.environ["BENCH_LOAD_CORE"] = str(max(os.sched_getaffinity(0)))
    with ExitStack() as stack:
        folder = stack.enter_context(passable_folder())
        url = asyncio.run(ensure_database(stack.enter_context(postgres(folder))))
        tokens = folder / "tokens"
        tokens.write_text(f"{hashlib.sha256(TOKEN.encode()).hexdigest()} ada read,write\n")
        settings = Settings(database_url=SecretStr(url), log_level="error")
        asyncio.run(migrate(settings))
        asyncio.run(_fill(url, options.sessions))
        environment = {
            "HANDOFF_DATABASE_URL": url,
            "HANDOFF_TOKENS_FILE": str(tokens),
            "HANDOFF_LOG_LEVEL": "warning",
            "HANDOFF_JOBS": "false",  # they run here
            "HANDOFF_SESSION_ENTRIES_MAX": "10000000",
        }
        _, port = stack.enter_context(server([str(HANDOFF), "serve", "--port"], environment))
        keys = asyncio.run(register_sessions(port, 32))
        return asyncio.run(_measure(settings, url, port, keys, options))


async def _fill(url: str, count: int) -> None:
    random = Random(17)  # noqa: S311 - the same in each run
    now = datetime.now(UTC)
    texts = [text(random, random.choice(TOPICS), random.randint(80, 600)) for _ in range(TEXTS)]
    written = [(one, len(one.encode()), hashlib.sha256(one.encode()).digest()) for one in texts]

    def sessions() -> Iterator[tuple[Any, ...]]:
        for number in range(count):
            age = now - timedelta(days=3, seconds=number)
            is_open = number % 10 < 3
            is_over = number % 10 == 0
            yield (
                f"s{number}", agent := f"a{number % 50}", agent, [agent], "active" if is_open else "completed",
                "standard", "{}", age, now + timedelta(hours=-1 if is_over else 20), age, ENTRIES_PER_SESSION, 0, 1, age,
                age, age, [ENTRIES_PER_SESSION, 0, 0, 0, 0, 0],
            )  # fmt: skip

    def entries(first: int) -> Iterator[tuple[Any, ...]]:
        for number in range(count):
            age = now - timedelta(days=3, seconds=number)
            for sequence in range(1, ENTRIES_PER_SESSION + 1):
                content, size, digest = written[random.randrange(TEXTS)]
                yield (first + number, sequence, "message", content, size, digest, f"a{number % 50}", age)

    began = time.perf_counter()
    conn = await asyncpg.connect(url)
    await conn.copy_records_to_table("session", columns=SESSION, records=sessions())
    first: int = await conn.fetchval("SELECT min(id) FROM session")
    await conn.copy_records_to_table("context_entry", columns=ENTRY, records=entries(first), timeout=3_600)
    await conn.execute(OTHERS, timeout=600)
    await conn.execute("VACUUM ANALYZE", timeout=600)
    size = await conn.fetchval("SELECT pg_size_pretty(pg_database_size(current_database()))")
    await conn.close()
    total = count * ENTRIES_PER_SESSION
    print(f"{count:,} sessions with {total:,} entries, {size}, by COPY in {time.perf_counter() - began:.0f} s", flush=True)


async def _measure(settings: Settings, url: str, port: int, keys: list[str], options: argparse.Namespace) -> int:
    arguments = [{"session_key": key, "entries": [{"type": "message", "content": CONTENT}]} for key in keys]
    plan = {"port": port, "in_flight": 32, "token": TOKEN, "tool": "update_context", "arguments": arguments}
    worst = 0.0
    missed = False
    async with open_app(settings, "worker") as app:
        conn = await asyncpg.connect(url)
        await _load(plan | {"seconds": 2.0})
        most = (await _load(plan | {"seconds": 5.0}))["calls_per_s"]
        paced = plan | {"seconds": options.seconds, "rate": most / 2}
        print(f"saturated at {most:,.0f} calls per second; {most / 2:,.0f} per second from here on", flush=True)
        ratios: list[float] = []
        drift: list[float] = []
        quiet = await _load(paced)
        for _ in range(options.rounds):
            before = dict(await conn.fetchrow(LEFT) or {})
            with Memory() as memory:
                done = asyncio.Event()
                working = [asyncio.create_task(_again(run, app, done)) for run in (retention.run, archive.run)]
                busy = await _load(paced)
                done.set()
                await asyncio.gather(*working)
            after = dict(await conn.fetchrow(LEFT) or {})
            if before["archived"] == after["archived"] and before["results"] == after["results"]:
                print("the jobs found nothing more to do: with more --sessions there can be more rounds")
                break
            earlier, quiet = quiet, await _load(paced)
            ratios.append(busy["p99_ms"] / math.sqrt(earlier["p99_ms"] * quiet["p99_ms"]))
            drift.append(max(earlier["p99_ms"], quiet["p99_ms"]) / min(earlier["p99_ms"], quiet["p99_ms"]))
            print(
                f"update_context p99 {earlier['p99_ms']:.1f} ms before and {quiet['p99_ms']:.1f} ms after; while "
                f"{after['archived'] - before['archived']:,} sessions were archived and "
                f"{before['results'] - after['results']:,} results deleted p50 {busy['p50_ms']:.1f} ms, "
                f"p99 {busy['p99_ms']:.1f} ms: {ratios[-1]:.2f} times; memory +{memory.added >> 20} MiB",
                flush=True,
            )
            worst = max(worst, memory.added)
        missed |= statistics.median(ratios or [math.inf]) > RATIO_TARGET
        print(
            f"p99 with jobs: {statistics.median(ratios or [math.inf]):.2f} times the quiet one (target: {RATIO_TARGET}); "
            f"two quiet ones beside each other differ by {statistics.median(drift or [math.inf]):.2f} times"
        )
        for name, run in (
            ("retention", retention.run), ("expire", expire.run), ("dormant", dormant.run), ("archive", archive.run),
            ("integrity", integrity.run), ("storage", storage.run), ("measure", measure.run), ("delete", delete.run),
        ):  # fmt: skip
            if name == "delete":
                await conn.execute("UPDATE session SET status_since = status_since - interval '90 days'", timeout=600)
            worst = max(worst, await _to_the_end(name, run, app, conn))
        await conn.close()
    missed |= worst > MEMORY_TARGET
    print(f"the most memory that a job added: {worst / (1 << 20):.0f} MiB (target: {MEMORY_TARGET >> 20})")
    return 1 if missed and options.check else 0


async def _again(run: Callable[[App], Awaitable[None]], app: App, done: asyncio.Event) -> None:
    while not done.is_set():
        await run(app)
        await asyncio.sleep(0.05)


async def _to_the_end(name: str, run: Callable[[App], Awaitable[None]], app: App, conn: asyncpg.Connection) -> float:
    """Run a job until it changes nothing more; print how long that took. Return the bytes of memory that it added."""
    began, runs, longest = time.perf_counter(), 0, 0.0
    with Memory() as memory:
        before: Any = None
        left: dict[str, Any] = {}
        while runs < RUNS_MAX:
            at = time.perf_counter()
            await run(app)
            longest = max(longest, time.perf_counter() - at)
            runs += 1
            left = dict(await conn.fetchrow(LEFT) or {})
            if left == before or (name == "integrity" and left["checked"] == 0):
                break
            before = left
    print(
        f"{name}: {runs} runs in {time.perf_counter() - began:.1f} s, the longest {longest:.1f} s; memory "
        f"{memory.began >> 20} MiB +{memory.added >> 20} MiB; then {left}",
        flush=True,
    )
    return memory.added


class Memory:
    """The memory of this process while a block runs: at its begin, and how much more at most."""

    def __enter__(self) -> Self:
        """Begin to look."""
        self._process, self._done = psutil.Process(), threading.Event()
        self.began = self._most = self._process.memory_info().rss
        self._looking = threading.Thread(target=self._look)
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._done.set()
        self._looking.join()

    @property
    def added(self) -> int:
        """Bytes beyond those at the begin."""
        return self._most - self.began

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, self._process.memory_info().rss)


async def _load(plan: dict[str, Any]) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.load", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate(json.dumps(plan).encode())
    if process.returncode:
        raise SystemExit("the load failed")
    return json.loads(out)


if __name__ == "__main__":
    raise SystemExit(main())
