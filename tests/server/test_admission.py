"""No caller takes from the others what they divide among them: each has its share, and expensive reads have their own."""

import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import asyncpg
import pytest
from anyio.abc import TaskGroup
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.errors import Busy, Unavailable
from handoff.server.admission import READS_WAITING_MAX, Share, Turns
from handoff.server.protocol import build_server
from handoff.settings import Settings
from tests.agents import LONG_WAIT_S, Agent, all_of, until
from tests.processes import PATIENCE_S


def turns(settings: Settings, running_max: int = 1, **limits: Any) -> Turns:
    share = Share("reads", "reads", 16, settings)
    return Turns(share, running_max=running_max, **{"waiting_max": 16, "wait_s_max": PATIENCE_S} | limits)


async def test_a_turn_goes_round_among_the_callers_that_wait_however_many_calls_one_of_them_makes() -> None:
    reads = turns(Settings())
    ran: list[str] = []

    async def call(name: str) -> None:
        async with reads.turn(name):
            ran.append(name)

    async with anyio.create_task_group() as group, reads.turn("mallory"):
        for name in ("mallory", "mallory", "mallory", "bob", "carol"):
            group.start_soon(call, name)
            await anyio.lowlevel.checkpoint()
        await until(lambda: sum(map(len, reads._waiting.values())) == 5)

    assert ran == ["mallory", "bob", "carol", "mallory", "mallory"]
    async with reads.turn("bob"):  # all turns came back
        assert (reads._free, reads._share._held) == (0, {"bob": 1})


async def test_a_turn_that_does_not_come_in_time_or_whose_caller_gives_up_is_not_lost() -> None:
    reads = turns(Settings(), waiting_max=2, wait_s_max=0.01)
    async with reads.turn("alice"):
        with pytest.raises(Unavailable, match="waiting for their turn"):
            async with reads.turn("bob"):
                pass
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with reads.turn("bob"):
                pass
    assert (reads._free, reads._share._held, dict(reads._waiting)) == (1, {}, {})

    patient = turns(Settings(), waiting_max=2)
    async with anyio.create_task_group() as group, patient.turn("alice"):
        for _ in range(2):
            group.start_soon(lambda: patient.turn("bob").__aenter__())
        await until(lambda: sum(map(len, patient._waiting.values())) == 2)
        with pytest.raises(Unavailable, match="waiting for their turn"):
            await patient.turn("carol").__aenter__()
        group.cancel_scope.cancel()


async def test_a_caller_that_uses_its_whole_share_is_refused_and_others_are_not() -> None:
    share = Share("waits", "calls that wait", 8, Settings())
    share.take("mallory")
    share.take("mallory")
    with pytest.raises(Busy, match="share of calls that wait is 2"):
        share.take("mallory")
    share.take("bob")
    share.give_back("mallory")
    share.take("mallory")


@asynccontextmanager
async def service(settings: Settings, **changed: Any) -> AsyncGenerator[tuple[App, Client]]:
    async with open_app(settings.model_copy(update=changed)) as app, Client(build_server(app)) as client:
        yield app, client


async def test_many_searches_of_one_agent_leave_the_pool_to_the_others(settings: Settings, db: asyncpg.Connection) -> None:
    async with service(settings, statement_timeout_s=60.0, read_wait_s_max=60.0) as (app, client):
        agent = Agent(client)
        key = await agent.session("mallory")
        await agent.says(key, "alpha beta gamma", "mallory")
        answers: list[Any] = []
        share = app.admission.reads._share.per_caller_max

        async def search() -> None:
            asked = {"agent": "mallory", "query": "alpha OR beta OR gamma"}
            answers.append(await client.call_tool("search_context", asked))

        locked = db.transaction()
        await locked.start()
        await db.execute("LOCK TABLE context_entry IN ACCESS EXCLUSIVE MODE")  # so that no search ends
        async with anyio.create_task_group() as group:
            for _ in range(12):
                group.start_soon(search)
            assert share == (settings.pool_size // 4 + READS_WAITING_MAX) // 4
            await until(lambda: len(answers) == 12 - share)
            refused = [json.loads(getattr(answer.content[0], "text", ""))["error"] for answer in answers]
            assert {(it["code"], it["retryable"], it["share"]) for it in refused} == {("share_used_up", True, "reads")}

            await agent.ok("get_inbox", agent="bob")
            assert app.pool.get_size() - app.pool.get_idle_size() == settings.pool_size // 4
            await locked.rollback()
        assert sum(not answer.is_error for answer in answers) == share


async def test_an_agent_that_waits_in_many_calls_is_refused_and_others_can_wait(settings: Settings) -> None:
    async with service(settings, waiters_max=8) as (app, client):
        agent = Agent(client)
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(lambda: agent.ok("get_inbox", agent="mallory", wait_seconds=LONG_WAIT_S))
            await until(lambda: app.wakeups._waiters == 2)
            error = await agent.refused("get_inbox", agent="mallory", wait_seconds=LONG_WAIT_S)
            assert (error["code"], error["retryable"], error["share"]) == ("share_used_up", True, "waits")
            await agent.ok("get_inbox", agent="mallory")

            group.start_soon(lambda: agent.ok("get_inbox", agent="bob", wait_seconds=LONG_WAIT_S))
            await until(lambda: app.wakeups._waiters == 3)
            app.wakeups.release()


@asynccontextmanager
async def waiting_appends(
    settings: Settings, db: asyncpg.Connection
) -> AsyncGenerator[tuple[App, Agent, dict[str, Any], TaskGroup]]:
    """Two appends of mallory's, her whole share, wait for her locked session; the block may release it by ROLLBACK.

    Yields the arguments of such an append, and the group in which the two run.
    """
    async with service(settings, append_queue_max=8, statement_timeout_s=60.0, append_wait_s_max=60.0) as (app, client):
        agent = Agent(client)
        key = await agent.session("mallory")
        asked = {"agent": "mallory", "session_key": key, "entries": [{"type": "message", "content": "x"}]}
        await db.execute("BEGIN")
        await db.execute("SELECT FROM session WHERE key = $1 FOR UPDATE", key)
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(lambda: agent.ok("update_context", **asked))
            await until(lambda: app.admission.appends._held.get("mallory") == 2)
            yield app, agent, asked, group


async def test_appends_of_one_agent_that_wait_to_be_written_are_bounded_and_others_are_written(
    settings: Settings, db: asyncpg.Connection
) -> None:
    async with waiting_appends(settings, db) as (app, agent, asked, _):
        error = await agent.refused("update_context", **asked)
        assert (error["code"], error["share"]) == ("share_used_up", "appends")
        await agent.says(await agent.session("bob"), "x", "bob")
        await db.execute("ROLLBACK")
        await until(lambda: app.admission.appends._held == {})
        await agent.ok("update_context", **asked)


async def test_an_append_whose_caller_is_gone_counts_until_it_is_written(settings: Settings, db: asyncpg.Connection) -> None:
    async with waiting_appends(settings, db) as (app, agent, asked, group):
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
            assert (await agent.refused("update_context", **asked))["code"] == "share_used_up"
            await db.execute("ROLLBACK")
            await app.lane.drain()
            assert app.admission.appends._held == {}
            await agent.ok("update_context", **asked)


async def test_subscriptions_of_one_agent_are_bounded_and_others_can_subscribe(settings: Settings) -> None:
    async with service(settings, agent_share=0.002) as (_, client), AsyncExitStack() as stack:

        async def subscribe(name: str) -> None:
            uri = f"handoff://agents/{name}/inbox"
            await stack.enter_async_context(client.listen(resource_subscriptions=[uri]))

        await subscribe("mallory")
        await subscribe("mallory")
        with pytest.raises(Exception, match="Your share of open subscriptions is 2"):
            await subscribe("mallory")
        await subscribe("bob")


async def test_reads_that_one_agent_makes_at_once_all_succeed_when_they_are_within_its_share(agent: Agent) -> None:
    key = await agent.session()
    budgets = [200 + number for number in range(8)]
    asked = [agent.ok("get_context", agent="alice", session_key=key, token_budget=budget) for budget in budgets]
    briefs = await all_of(*asked)
    assert len(briefs) == 8
