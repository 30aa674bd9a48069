"""Migrations are applied in order and once, by whichever process comes first."""

import anyio
import asyncpg
import pytest
from pydantic import SecretStr

from handoff.settings import Settings
from handoff.store import migrate as module
from handoff.store.migrate import Migration, MigrationError, migrate, migrations, pending
from tests.agents import Agent

LEDGER = "SELECT version, name, sha256 FROM schema_migration ORDER BY version"
COLUMNS = "session_id, sequence, type, content, size_bytes, content_hash, author, created_at, processing_ms"
PREVIOUS_RELEASE = "session_id, 3, type, content, size_bytes, content_hash, author, now(), 1.5"
ONE_MORE = Migration(9_999, "9999_one_more.sql", "CREATE TABLE one_more (n int)", "0" * 64)


@pytest.fixture
def empty(empty_database_url: str) -> Settings:
    return Settings(database_url=SecretStr(empty_database_url))


async def connect(settings: Settings) -> asyncpg.Connection:
    assert settings.database_url is not None
    return await asyncpg.connect(settings.database_url.get_secret_value())


async def test_an_empty_database_is_migrated_once(empty: Settings) -> None:
    conn = await connect(empty)
    names = [migration.name for migration in migrations()]

    assert await pending(conn) == names
    assert await migrate(empty) == names
    assert await migrate(empty) == []
    assert await pending(conn) == []
    assert await conn.fetchval("SELECT count(*) FROM retention_policy") == 3
    await conn.close()


async def test_six_processes_that_start_together_apply_each_migration_once(empty: Settings) -> None:
    applied: list[str] = []

    async def one() -> None:
        applied.extend(await migrate(empty))

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(one)

    assert applied == [migration.name for migration in migrations()]


async def test_a_migration_that_was_changed_after_it_was_applied_is_refused(settings: Settings) -> None:
    conn = await connect(settings)
    await conn.execute("UPDATE schema_migration SET sha256 = 'another' WHERE version = 1")
    await conn.close()

    with pytest.raises(MigrationError, match="was changed after it had been applied"):
        await migrate(settings)


async def test_only_a_new_migration_is_applied_and_a_failing_one_is_rolled_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = await connect(settings)
    before = await conn.fetch(LEDGER)
    broken = Migration(9_998, "9998_broken.sql", "CREATE TABLE half (n int); SELECT 1/0", "1" * 64)
    known = migrations()

    monkeypatch.setattr(module, "migrations", lambda: (*known, broken))
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(settings)
    assert await conn.fetch(LEDGER) == before
    assert await conn.fetchval("SELECT to_regclass('half')") is None

    monkeypatch.setattr(module, "migrations", lambda: (*known, ONE_MORE))
    assert await migrate(settings) == [ONE_MORE.name]
    await conn.close()


async def test_a_process_of_the_previous_release_can_still_write_processing_ms(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()
    await agent.says(key, "written by this release")

    await db.execute(
        f"INSERT INTO context_entry ({COLUMNS}) SELECT {PREVIOUS_RELEASE} FROM context_entry WHERE sequence = 2"
    )

    written = await db.fetch("SELECT processing_ms FROM context_entry WHERE sequence > 1 ORDER BY sequence")
    assert [row["processing_ms"] for row in written] == [None, 1.5]


async def test_a_database_newer_than_this_release_is_left_unchanged(settings: Settings) -> None:
    conn = await connect(settings)
    await conn.execute("INSERT INTO schema_migration (version, name, sha256) VALUES (9999, '9999_later.sql', 'x')")

    assert await migrate(settings) == []
    assert await pending(conn) == []
    await conn.close()


async def test_an_index_is_built_while_the_service_writes_and_again_after_a_run_that_was_cut_off(
    agent: Agent, db: asyncpg.Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = "CREATE INDEX CONCURRENTLY one_more ON context_entry (session_id)"
    sql = f"-- concurrently: a comment; with a semicolon\nDROP INDEX CONCURRENTLY IF EXISTS one_more;\n{index};\n"
    known = migrations()
    key = await agent.session()
    builders = "pg_stat_activity WHERE query LIKE '%INDEX CONCURRENTLY%one_more%' AND pid <> pg_backend_pid()"
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('one_more')"
    writer, watcher = await connect(settings), await connect(settings)
    writing = writer.transaction()
    await writing.start()
    await writer.execute("UPDATE context_entry SET type = type")  # the build has to wait for it, and calls must not

    async def building_waits() -> None:
        found = f"SELECT count(*) FROM {builders} AND wait_event_type = 'Lock'"
        while not await watcher.fetchval(found):
            await anyio.sleep(0.01)

    monkeypatch.setattr(module, "migrations", lambda: (*known, Migration(9_998, "9998_index.sql", sql, "1" * 64)))
    async with anyio.create_task_group() as group:
        group.start_soon(cut_off, settings)
        await building_waits()
        await agent.says(key, "while the index is built")
        await watcher.execute(f"SELECT pg_terminate_backend(pid) FROM {builders}")
    assert await db.fetchval(valid) is False
    async with anyio.create_task_group() as group:
        group.start_soon(migrate, settings)
        await building_waits()
        await agent.says(key, "while the index is built again")
        await writing.commit()
    assert await db.fetchval(valid) is True
    assert await migrate(settings) == []
    await writer.close()
    await watcher.close()


async def cut_off(settings: Settings) -> None:
    with pytest.raises((asyncpg.PostgresError, OSError, asyncpg.InterfaceError)):
        await migrate(settings)
