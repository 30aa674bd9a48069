"""The append lane: which appends share a statement, which must wait, and what happens when a caller disconnects."""

from collections.abc import Sequence
from time import monotonic

import anyio
import asyncpg
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.errors import HandoffError
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store.append import Append, NewEntry
from handoff.store.lane import AppendLane
from tests.agents import Agent, all_of
from tests.store.appends import item, sequences


def batches_of(app: App, *items: Append) -> list[list[Append]]:
    """Return the batches that a lane would make of these appends."""
    lane = AppendLane(app.pool, app.settings)
    lane._waiting.extend(items)
    batches: list[list[Append]] = []
    while lane._waiting:
        batches.append(lane._take(lane._waiting))
    return batches


async def test_a_batch_is_bounded_and_excludes_appends_that_must_not_share_a_statement(app: App) -> None:
    def sizes(items: Sequence[Append]) -> list[int]:
        return [len(batch) for batch in batches_of(app, *items)]

    assert sizes([item("s") for _ in range(150)]) == [64, 64, 22]
    assert sizes([item("s", expected=1), item("s"), item("t")]) == [1, 2]
    assert sizes([item("s"), item("s", expected=1)]) == [1, 1]
    assert sizes([item("s", name="k"), item("t", name="k"), item("t")]) == [1, 2]
    assert sizes([item("s", size_bytes=3 << 20), item("t", size_bytes=3 << 20)]) == [1, 1]


async def test_a_full_queue_refuses_an_append_with_a_retryable_error(settings: Settings) -> None:
    async with open_app(settings.model_copy(update={"append_queue_max": 1, "append_batch_max": 1})) as app:
        lane, refusals = app.lane, 0
        first, second = item("s"), item("s")
        async with anyio.create_task_group() as group:

            async def append(one: Append) -> None:
                nonlocal refusals
                try:
                    await lane.append(one)
                except HandoffError as error:
                    refusals += error.code == "overloaded" and error.retryable

            group.start_soon(append, first)
            group.start_soon(append, second)
    assert refusals == 1


async def test_an_append_is_written_even_if_its_caller_disconnects(agent: Agent, app: App, db: asyncpg.Connection) -> None:
    key = await agent.session()
    new = Append(key, "alice", [NewEntry("message", "stays", None, None, 5, bytes(32))], monotonic())
    async with anyio.create_task_group() as group:
        group.start_soon(app.lane.append, new)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    await app.lane.drain()

    assert await sequences(db, key) == [1, 2]


async def test_an_append_still_in_the_queue_is_written_even_if_its_caller_disconnects(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    async with open_app(settings.model_copy(update={"append_batch_max": 1})) as app:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(app.lane.append, item(key))
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        await app.lane.drain()

    assert await sequences(db, key) == [1, 2, 3, 4]


async def test_an_append_that_has_waited_too_long_is_refused_and_not_written(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    async with open_app(settings.model_copy(update={"append_wait_s_max": 0.5})) as app:
        late, young = item(key), item(key)
        late.received -= 1
        answers = await all_of(refusal(app, late), refusal(app, young))

    assert answers == [("overloaded", True), None]
    assert await sequences(db, key) == [1, 2]


async def refusal(app: App, one: Append) -> tuple[str, bool] | None:
    try:
        await app.lane.append(one)
    except HandoffError as error:
        return error.code, error.retryable
    return None


async def test_a_database_that_refuses_connections_is_a_retryable_error(
    settings: Settings, postgres_url: str, database_url: str
) -> None:
    name = database_url.split("?", maxsplit=1)[0].rpartition("/")[2]
    admin = await asyncpg.connect(postgres_url)
    async with open_app(settings) as app, Client(build_server(app)) as client:
        await client.list_tools()
        await app.pool.expire_connections()
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            error = await Agent(client).refused("register_session", agent="alice", idempotency_key="k")
        finally:
            await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            await admin.close()

    assert (error["code"], error["retryable"]) == ("unavailable", True)


async def test_a_locked_session_delays_no_append_to_another_one(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    locked, free = await agent.session(), await agent.session()
    async with open_app(settings.model_copy(update={"pool_size": 4})) as app:
        held = db.transaction()
        await held.start()
        await db.execute("SELECT FROM session WHERE key = $1 FOR UPDATE", locked)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(app.lane.append, item(locked))
            for _ in range(20):
                await app.lane.append(item(free))  # would wait for the locked session, and this test for itself
            assert await sequences(db, locked) == [1]
            await held.rollback()
        await app.lane.drain()

    assert await sequences(db, free) == list(range(1, 22))
    assert await sequences(db, locked) == [1, 2, 3, 4, 5, 6]
