"""Jobs that are killed in the middle: what was committed stays and is counted, and the next run does the rest."""

from collections.abc import Awaitable, Callable

import anyio
import asyncpg
import pytest

from handoff.context import App
from handoff.errors import Unavailable
from handoff.jobs import integrity, retention, storage
from handoff.store import integrity as checks
from handoff.store import retention as deletions
from handoff.telemetry import metrics
from tests.agents import Agent

WAITS = """
    SELECT pid FROM pg_stat_activity
     WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()
"""


async def killed_while_it_waits_for(
    run: Callable[[App], Awaitable[None]], app: App, database_url: str, blocking: str, *arguments: object
) -> None:
    """Run a job until it waits for what another transaction has written, and end its connection to Postgres there."""
    blocker, watcher = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    writing = blocker.transaction()
    await writing.start()
    await blocker.execute(blocking, *arguments)

    async def killed() -> None:
        with pytest.raises(Unavailable):
            await run(app)

    async with anyio.create_task_group() as group:
        group.start_soon(killed)
        while (pid := await watcher.fetchval(WAITS)) is None:
            await anyio.sleep(0.01)
        await watcher.execute("SELECT pg_terminate_backend($1)", pid)
    await writing.rollback()
    await blocker.close()
    await watcher.close()


async def test_deletions_that_were_committed_before_a_kill_are_counted_and_the_next_run_deletes_the_rest(
    app: App, db: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletions, "RESULT_BLOCKS_MAX", 1)

    def from_the_first_block(_: int) -> int:
        return 0

    monkeypatch.setattr("random.randrange", from_the_first_block)
    await db.execute("""INSERT INTO idempotency (agent, key, tool, fingerprint, created_at)
                        SELECT 'a', n::text, 't', sha256('x'), now() - interval '9 days' FROM generate_series(1, 450) n""")
    before = metrics.ROWS_DELETED.value("idempotency")
    left = "SELECT count(*) FROM idempotency"
    in_later_blocks: int = await db.fetchval(f"{left} WHERE ctid >= '(2,0)'")
    assert 0 < in_later_blocks < 450

    await killed_while_it_waits_for(
        retention.run, app, database_url, "SELECT FROM idempotency WHERE ctid = '(2,1)' FOR UPDATE"
    )
    assert await db.fetchval(left) == in_later_blocks
    assert metrics.ROWS_DELETED.value("idempotency") == before + 450 - in_later_blocks
    await retention.run(app)
    assert await db.fetchval(left) == 0
    assert metrics.ROWS_DELETED.value("idempotency") == before + 450


async def test_a_check_that_was_killed_goes_on_where_it_was_and_misses_nothing(
    app: App, agent: Agent, db: asyncpg.Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "ENTRIES_MAX", 3)
    keys = [await agent.session() for _ in range(4)]
    for key in keys:
        await agent.says(key, "one")
    number = await db.fetchval("SELECT id FROM session WHERE key = $1", keys[2])
    await db.execute("UPDATE context_entry SET content = 'forged' WHERE session_id = $1 AND sequence = 2", number)

    await killed_while_it_waits_for(
        integrity.run, app, database_url, "INSERT INTO quarantine (session_id, reason) VALUES ($1, 'receipt')", number
    )
    assert await checks.listed(db) == []
    at = await db.fetchrow("SELECT session_id, sequence FROM integrity_check")
    assert at is not None
    assert (0, 0) < tuple(at) < (number, 2)
    checked = metrics.ENTRIES_CHECKED.value()
    await integrity.run(app)
    assert [(row["session_key"], row["reason"], row["sequence"]) for row in await checks.listed(db)] == [
        (keys[2], "content", 2)
    ]
    rest = "SELECT count(*) FROM context_entry WHERE (session_id, sequence) > ($1, $2)"
    assert metrics.ENTRIES_CHECKED.value() == checked + await db.fetchval(rest, *at)


async def test_a_measurement_that_was_killed_leaves_nothing_of_itself(
    app: App, db: asyncpg.Connection, database_url: str
) -> None:
    await db.execute("INSERT INTO storage_size VALUES ('event', now() - interval '400 days', 1)")

    await killed_while_it_waits_for(storage.run, app, database_url, "SELECT FROM storage_size FOR UPDATE")
    assert await db.fetchval("SELECT count(*) FROM storage_size") == 1
    await storage.run(app)
    assert await db.fetchval("SELECT count(DISTINCT measured_at) FROM storage_size") == 1
    assert await db.fetchval("SELECT min(measured_at) > now() - interval '1 hour' FROM storage_size")
