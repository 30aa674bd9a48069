"""Processes of `handoff work` share a database. One that is killed in the middle of a step leaves nothing out or twice."""

import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest

from handoff.context import App
from handoff.jobs import detect, history, incidents, rollup
from handoff.settings import Settings
from handoff.store import shards
from tests.agents import Agent
from tests.jobs.test_detect import past
from tests.processes import HANDOFF, PATIENCE_S, environment

MINUTES, SHARDS, WARM_UP_S = 1_500, 3, 3_600.0
# Far from each other, so that each is in a shard of its own.
SERIES = """
    INSERT INTO series (id, name, labels, kind, absence, begins_at, last_at) OVERRIDING SYSTEM VALUE
    SELECT id, 'handoffs.offered', labels, 'count', 'zero', begins_at, begins_at
      FROM (VALUES (1, '{}'::jsonb), (1001, '{"agent": "ada"}'), (2001, '{"from": "alice", "to": "bob"}')) w (id, labels),
           (SELECT min(date_trunc('minute', at)) AS begins_at FROM event) e
"""
# Everything before a minute, as text: NaN equals nothing. Minutes that pass during the test come on top of it.
WRITTEN = {
    "series_point": "SELECT * FROM series_point WHERE bucket < $1 ORDER BY bucket, series_id",
    "series_period": """
        SELECT * FROM series_period WHERE grain = 'hour' AND start < $1::timestamptz - interval '2 hours'
         ORDER BY start, series_id""",
    "anomaly": """
        SELECT series_id, bucket, version, severity, shadow, value, expected, lower, upper, strength, confidence, sentence
          FROM anomaly WHERE bucket < $1 ORDER BY bucket, series_id""",
    "incident": """
        SELECT opened_at, component, count(*) AS of_these,
               anomalies = (SELECT count(*) FROM anomaly WHERE incident_id = i.id) AS counts_all
          FROM incident i JOIN anomaly a ON a.incident_id = i.id
         WHERE bucket < $1 GROUP BY i.id ORDER BY opened_at, component""",
}
FORGET = """
    TRUNCATE series_point, series_day, series_period, series_due, detector_state, detector_shard, anomaly, incident,
             analytics_progress
"""
# Retention waits for the same tables.
WAITS = """
    SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND wait_event_type = 'Lock' AND query ~ ('INSERT INTO ' || $1)
"""
CLAIMED = "SELECT shard, holder, held_until - now() AS left FROM detector_shard WHERE holder IS NOT NULL ORDER BY shard"
SHARED = f"SELECT count(*) = 2 AND count(DISTINCT holder) = 2 FROM ({CLAIMED}) it"
DONE = """
    SELECT (SELECT count(*) FROM detector_shard WHERE at >= $1) = $2 AND EXISTS (SELECT FROM incident)
       AND NOT EXISTS (SELECT FROM series_due WHERE grain = 'hour' AND start < $1::timestamptz - interval '2 hours')
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"series_warm_up_s": WARM_UP_S})


@pytest.fixture
def given(database_url: str, tmp_path: Path) -> dict[str, str]:
    """The environment of the workers: their jobs run every second, and wait for locks for a minute."""
    file = tmp_path / "config.toml"
    file.write_text("[monitoring.job_intervals_s]\nrollup = 1\ndetect = 1\nincidents = 1\nhistory = 1\n")
    patient = {"settle_interval_s": 3_600, "statement_timeout_s": 60, "series_warm_up_s": WARM_UP_S}
    return environment(database_url=database_url, config_file=file, **patient)


@contextmanager
def worker(given: dict[str, str]) -> Generator[subprocess.Popen[bytes]]:
    """A worker, which is killed at the end of the block."""
    with subprocess.Popen([HANDOFF, "work"], env=given, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def locked(database_url: str, table: str) -> AsyncGenerator[None]:
    """Nobody can write to a table: who tries waits in the middle of a transaction."""
    conn = await asyncpg.connect(database_url)
    try:
        async with conn.transaction():
            await conn.execute(f"LOCK TABLE {table} IN SHARE MODE")
            yield
    finally:
        await conn.close()


async def until(what: Callable[[], Awaitable[Any]]) -> Any:
    """Wait until something is true."""
    with anyio.fail_after(PATIENCE_S):
        while not (found := await what()):
            await anyio.sleep(0.1)
    return found


async def test_of_two_workers_one_killed_in_the_middle_of_a_step_leaves_nothing_out_and_nothing_twice(
    app: App, agent: Agent, db: asyncpg.Connection, database_url: str, given: dict[str, str]
) -> None:
    await past(agent, db, MINUTES)
    await db.execute(SERIES)
    for run in (rollup.run, detect.run, incidents.run, history.run):
        await run(app)
    end: datetime = await db.fetchval("SELECT at FROM analytics_progress WHERE stage = 'judged'")

    async def written() -> dict[str, list[str]]:
        return {name: [str(row) for row in await db.fetch(query, end)] for name, query in WRITTEN.items()}

    undisturbed = await written()
    assert all(undisturbed.values())
    assert len({row["series_id"] // shards.SERIES for row in await db.fetch("SELECT series_id FROM anomaly")}) == SHARDS
    await db.execute(FORGET)

    with worker(given) as first, worker(given):
        async with locked(database_url, "anomaly"):
            await until(lambda: db.fetchval(WAITS, "anomaly"))
            await until(lambda: db.fetchval(SHARED))
            first.kill()  # it has claimed a shard, and has not committed what it found there
            first.wait()
            assert all(row["left"] <= shards.LEASE for row in await db.fetch(CLAIMED))  # nobody waits for longer
        await until(lambda: db.fetchval(DONE, end, SHARDS))
    assert await written() == undisturbed
