"""What the tables take, how fast that grows and when it is too much is measured and can be read."""

import asyncpg
import pytest

from handoff.context import App
from handoff.jobs import archive, storage
from handoff.settings import Settings
from handoff.telemetry import metrics
from tests.agents import Agent

LIMIT = 10 << 30


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"storage_bytes_max": LIMIT})


async def test_growth_is_measured_per_table_and_forecasts_when_the_limit_is_reached(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    await storage.run(app)
    assert (await agent.read("handoff://storage"))["full_in_days"] is None
    grown = """INSERT INTO storage_size
               SELECT name, now() - n * interval '6 hours', greatest(bytes - n * $1::bigint, 0)
                 FROM storage_size, generate_series(1, 8) n WHERE name = 'context_entry'"""
    await db.execute("UPDATE storage_size SET bytes = 5::bigint << 30 WHERE name = 'context_entry'")
    await db.execute(grown, 256 << 20)
    found = await agent.read("handoff://storage")
    tables = {table["name"]: table for table in found["tables"]}
    assert tables["context_entry"]["bytes_per_day"] == pytest.approx(1 << 30, rel=0.01)
    assert tables["session"]["bytes"] == await db.fetchval("SELECT pg_total_relation_size('session')")
    assert (found["bytes_max"], found["full_in_days"]) == (LIMIT, pytest.approx(5, abs=0.1))
    await storage.run(app)
    assert metrics.STORAGE_SIZE.value("session") == tables["session"]["bytes"]
    assert metrics.STORAGE_LIMIT.value() == LIMIT


async def test_measurements_are_kept_as_long_as_a_policy_keeps_metrics_and_the_archive_is_one_table(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    keys = [await agent.session(retention_policy=policy) for policy in ("standard", "extended")]
    for key in keys:
        await agent.says(key, "word " * 2_000)
        await agent.ok("close_session", agent="alice", session_key=key)
    await db.execute("UPDATE session SET status_since = status_since - interval '2 days'")
    await archive.run(app)
    await db.execute(
        "INSERT INTO storage_size SELECT 'event', now() - interval '1 day' * n, 1 FROM unnest('{89,91}'::int[]) n"
    )
    await storage.run(app)
    assert await db.fetchval("SELECT count(DISTINCT measured_at) FROM storage_size") == 2
    await db.execute("UPDATE retention_policy SET metrics_for = '1 day'")
    await db.execute("UPDATE storage_size SET measured_at = now() - interval '6 days' WHERE bytes = 1")
    await storage.run(app)
    assert await db.fetchval("SELECT count(*) FROM storage_size WHERE bytes = 1") == 1  # growth needs a week
    await db.execute("DELETE FROM storage_size")
    await storage.run(app)
    assert await db.fetchval("SELECT count(DISTINCT measured_at) FROM storage_size") == 1
    names = {table["name"] for table in (await agent.read("handoff://storage"))["tables"]}
    assert "archive" in names
    assert not any(name.startswith("archive_2") for name in names)
    assert (await agent.read("handoff://storage"))["advice"] is None

    await db.execute("UPDATE session SET status_since = now() - interval '20 days' WHERE retention_policy = 'standard'")
    advice = (await agent.read("handoff://storage"))["advice"]
    assert (advice["retention_policy"], advice["archived_days"], advice["archived_days_instead"]) == ("standard", 30, 15)
    archived = await db.fetchval("SELECT bytes FROM storage_size WHERE name = 'archive'")
    assert advice["saves_bytes"] == pytest.approx(archived / 2, rel=0.1)
