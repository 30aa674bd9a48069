"""Migrations are applied in order and once, by whichever process comes first."""

import re

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
BEFORE = 22  # the newest migration of the release before
LONGEST_S = "30s"  # a writer that waits for longer fails; what blocks it waits for 2 s at most
WRITES = """
    WITH s AS (
        INSERT INTO session (key, created_by, owner, writers, status, retention_policy, metadata, created_at, expires_at,
                             last_activity_at, last_sequence, content_bytes, version)
        VALUES ($1, 'ada', 'ada', '{ada}', 'active', 'standard', '{}', now(), now() + interval '1 day', now(), 1, 3, 1)
        RETURNING id
    ), entry AS (
        INSERT INTO context_entry (session_id, sequence, type, content, size_bytes, content_hash, author, created_at)
        SELECT id, 1, 'message', 'One', 3, sha256('One'), 'ada', now() FROM s
    ), offered AS (
        INSERT INTO handoff (session_id, request_type, sender, target_agent, instructions, priority, state, token, lapses,
                             as_of_sequence, context_digest, created_at, updated_at)
        SELECT id, 'context_transfer', 'ada', 'bob', 'Go on.', 5, 'offered', 0, 0, 1, sha256('x'), now(), now() FROM s
    )
    INSERT INTO event (session_id, kind, agent, at) SELECT id, 'session.created', 'ada', now() FROM s
"""
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


async def test_migrations_run_on_data_of_the_release_before_while_it_writes_and_give_up_on_a_lock_that_is_held(
    empty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrations()

    def up_to(version: int) -> None:
        monkeypatch.setattr(module, "migrations", lambda: tuple(it for it in known if it.version <= version))

    up_to(BEFORE)
    await migrate(empty)
    writer, holder = await connect(empty), await connect(empty)
    await writer.execute(f"SET lock_timeout = '{LONGEST_S}'")
    written = 0

    async def write() -> None:
        nonlocal written
        await writer.execute(WRITES, f"s{written}")
        written += 1

    async def keep_writing() -> None:
        while True:
            await write()

    for _ in range(100):
        await write()
    up_to(BEFORE + 1)  # builds indexes, which wait for transactions that are open, and nobody waits for them
    await migrate(empty)
    up_to(known[-1].version)
    holding = holder.transaction()
    await holding.start()
    await holder.execute("UPDATE handoff SET priority = 6 WHERE id = 1")
    before = written
    async with anyio.create_task_group() as group:
        group.start_soon(keep_writing)
        with pytest.raises(asyncpg.LockNotAvailableError):
            await migrate(empty)
        await holding.commit()
        await migrate(empty)
        group.cancel_scope.cancel()
    assert written > before
    assert await pending(holder) == []
    await writer.close()
    assert await holder.fetchval("SELECT count(*) FROM context_entry") >= written
    await holder.close()


def test_no_migration_since_the_rules_builds_an_index_or_waits_without_a_limit_on_a_table_that_agents_write_to() -> None:
    of_before = {table for it in migrations() if it.version <= BEFORE for table in re.findall(r"CREATE TABLE (\w+)", it.sql)}
    assert {"session", "context_entry", "handoff", "event"} <= of_before
    for it in migrations():
        if it.version > BEFORE and not it.sql.startswith("-- concurrently"):
            sql = re.sub(r"--.*", "", it.sql)
            locked = set(re.findall(r"(?:ALTER TABLE|REFERENCES|TRIGGER \w+ \w+ \w+ ON) (\w+)", sql)) & of_before
            assert set(re.findall(r"CREATE (?:UNIQUE )?INDEX \w+ ON (\w+)", sql)) & of_before == set(), it.name
            assert not re.findall(r"^UPDATE", sql, re.MULTILINE), it.name
            assert not locked or "SET LOCAL lock_timeout = '2s'" in sql, (it.name, locked)
