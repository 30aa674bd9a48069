"""Each process writes what it did, minute by minute, without a database in between, and when it ends."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from handoff.app import open_app
from handoff.context import App
from handoff.operations import minutes
from handoff.operations.minutes import Minutes
from handoff.operations.presence import Identity
from handoff.operations.recent import cpu_limit
from handoff.settings import Settings
from handoff.store.connect import StandbyConnection, connection
from handoff.telemetry import metrics
from handoff.telemetry.buckets import CALL_S
from tests.agents import Agent
from tests.conftest import _execute

NOBODY = Identity("i1", "service", None, runs_jobs=False)
CALLS = "SELECT operation, outcome, (SELECT sum(n) FROM unnest(durations) n)::int AS calls FROM call_minute"
UP_TO_5_MS = CALL_S.index(0.005)


@pytest.fixture
async def watched(settings: Settings) -> AsyncGenerator[Minutes]:
    """The minutes of this process from here on."""
    database = StandbyConnection(settings)
    yield Minutes(settings, NOBODY, database)
    database.terminate()


async def test_a_minute_holds_what_happened_since_the_one_before(
    watched: Minutes, app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    began = datetime.now(UTC)
    key = await agent.session()
    await agent.refused("register_session", agent="alice", session_key=key)
    await agent.read("handoff://storage")
    labels = ("tools/call", "get_inbox", "tool_error", "unavailable", "tcp", "", "", "")
    metrics.call_ended(0.004, None, *labels)
    metrics.call_ended(0.004, None, "tools/call", "get_inbox", "cancelled", "cancelled", "tcp", "", "", "")
    metrics.call_ended(0.004, None, "tools/call", "search_context", "tool_error", "overloaded", "tcp", "", "", "")
    metrics.CACHE_DURATION.record(0.001, "redis", "get", "hit")
    metrics.CACHE_DURATION.record(0.001, "redis", "get", "error")
    metrics.EVENT_LOOP_LAG.record(9)
    async with connection(app.pool):
        pass
    await watched.end_minute()
    metrics.call_ended(0.004, None, *labels)
    await watched.end_minute()
    await watched.write()

    first, second = await db.fetch("SELECT * FROM process_minute WHERE instance = 'i1' ORDER BY minute, seconds DESC")
    counted = {
        (row["operation"], row["outcome"]): row["calls"] for row in await db.fetch(f"{CALLS} WHERE id = $1", first["id"])
    }
    of_the_client = {key for key in counted if key[0].startswith(("initialize", "notifications/", "tools/list", "server/"))}
    assert {key: calls for key, calls in counted.items() if key not in of_the_client} == {
        ("register_session", "ok"): 1,
        ("register_session", "refused"): 1,
        ("resource:storage", "ok"): 1,
        ("get_inbox", "failed"): 1,
        ("get_inbox", "cancelled"): 1,
        ("search_context", "failed"): 1,
    }
    later = await db.fetch("SELECT operation, outcome, durations FROM call_minute WHERE id = $1", second["id"])
    assert [tuple(row) for row in later] == [
        ("get_inbox", "failed", [int(place == UP_TO_5_MS) for place in range(len(CALL_S) + 1)])
    ]
    of_alice, *others = await db.fetch("SELECT * FROM agent_minute WHERE id IN ($1, $2)", first["id"], second["id"])
    assert others == []
    assert tuple(of_alice)[2:6] == ("alice", 2, 1, 1)
    assert first["minute"] <= began < first["minute"] + timedelta(minutes=2)
    assert (first["instance"], first["kind"], first["cache_hits"], first["cache_errors"]) == ("i1", "service", 1, 1)
    assert sum(first["pool_waits"]) >= 1
    assert first["loop_lags"][-1] == 1
    assert first["cpu_s"] > second["cpu_s"] > 0
    assert first["memory_bytes"] > 10 << 20
    assert 0 < first["disk_ratio"] <= 1
    assert (first["overloaded"], second["overloaded"], first["cpus"]) == (1, 0, pytest.approx(cpu_limit()))


async def test_minutes_that_the_database_does_not_take_are_written_later_and_the_oldest_dropped(
    watched: Minutes,
    settings: Settings,
    postgres_url: str,
    logged: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(minutes, "MINUTES_MAX", 3)
    name = urlsplit(address_of(settings)).path[1:]
    await _execute(postgres_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    dropped = metrics.MINUTES_DROPPED.value()
    for cpu in range(5):
        metrics.CACHE_DURATION.record(0.001, "redis", "get", "miss")
        for _ in range(cpu):
            metrics.CACHE_DURATION.record(0.001, "redis", "get", "miss")
        await watched.end_minute()
        await watched.write()
    assert metrics.MINUTES_DROPPED.value() == dropped + 2
    await _execute(postgres_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await watched.write()
    await watched.write()

    db = await asyncpg.connect(address_of(settings))
    assert [row["cache_misses"] for row in await db.fetch("SELECT * FROM process_minute ORDER BY cache_misses")] == [3, 4, 5]
    assert await db.fetchval("SELECT cache_misses FROM process_period WHERE grain = 'day'") == 12
    await db.close()
    said = [line["event"] for line in logged if line["event"].startswith("minutes.")]
    assert said == ["minutes.unwritten", "minutes.written"]


def address_of(settings: Settings) -> str:
    """The address of the test's database."""
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()


async def test_a_process_that_ends_writes_its_last_minute(settings: Settings, db: asyncpg.Connection) -> None:
    async with open_app(settings, "worker"):
        metrics.call_ended(0.004, None, "tools/call", "get_inbox", "", "", "tcp", "", "", "")
    assert await db.fetchval("SELECT kind FROM process_minute") == "worker"
    assert [tuple(row) for row in await db.fetch(CALLS)] == [("get_inbox", "ok", 1)]
