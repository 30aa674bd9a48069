"""Waiting for what is new in an inbox since a mark: nothing is missed, and nothing is told twice."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

import anyio
import asyncpg
import pytest
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.encoding import to_cursor
from handoff.jobs.settle import settle_overdue
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.tools.offers import INBOX_PAGE
from tests.agents import LONG_WAIT_S, PAST, Agent, until
from tests.processes import PATIENCE_S

TIME: Final = datetime(2026, 11, 29, tzinfo=UTC)


async def waits(agent: Agent, name: str = "bob", seconds: int = LONG_WAIT_S, **arguments: Any) -> dict[str, Any]:
    return await agent.ok("get_inbox", agent=name, wait_seconds=seconds, **arguments)


def ids(page: dict[str, Any]) -> list[int]:
    return [row["handoff_id"] for row in page["handoffs"]]


async def test_a_wait_with_a_mark_ends_only_when_something_comes_on_offer_whatever_the_agent_holds(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    blocked, held = await agent.offer(key), await agent.offer(key)
    token = await agent.accept(blocked)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=blocked, action="block", token=token, note="Waits.")
    await agent.accept(held)
    untaken = (await agent.ok("request_handoff", agent="alice", session_key=key, target_capability="sql", instructions="x"))[
        "handoff_id"
    ]
    first = await waits(agent, capabilities=["sql"])
    assert sorted(ids(first)) == [blocked, held, untaken]
    nothing = await agent.ok("get_inbox", agent="bob", mark=first["mark"])
    assert ids(nothing) == []

    async def next_after(mark: str, change: Callable[[], Awaitable[Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                found.append(await waits(agent, mark=mark))

            group.start_soon(wait)
            await until(lambda: app.wakeups._waiters > 0)
            await db.execute("SELECT pg_notify('handoff', 'agent:bob')")  # rings, but nothing is new
            with anyio.fail_after(PATIENCE_S):
                await change()
        return found

    offered: list[int] = []

    async def offer() -> None:
        offered.append(await agent.offer(key))

    (page,) = await next_after(nothing["mark"], offer)
    assert ids(page) == offered

    async def lapse() -> None:
        await db.execute(f"{PAST} AND id = {held}")
        assert await settle_overdue(app) == 1

    (page,) = await next_after(page["mark"], lapse)
    assert ids(page) == [held]  # it is on offer again

    async def declare() -> None:
        await agent.ok("get_inbox", agent="bob", capabilities=["sql", "python"])

    (page,) = await next_after(page["mark"], declare)
    assert sorted(ids(page)) == sorted([blocked, held, untaken, *offered])  # another inbox, so all of it


async def test_an_offer_whose_transaction_began_before_a_mark_and_commits_after_it_is_not_missed(
    agent: Agent, db: asyncpg.Connection, database_url: str
) -> None:
    key = await agent.session()
    await agent.offer(key)
    copy = """
        INSERT INTO handoff (session_id, request_type, sender, target_agent, instructions, priority, state, token, lapses,
                             as_of_sequence, context_digest, created_at, updated_at)
        SELECT session_id, request_type, sender, target_agent, instructions, priority, state, token, lapses, as_of_sequence,
               context_digest, now(), now() FROM handoff LIMIT 1 RETURNING id
    """
    other = await asyncpg.connect(database_url)
    late = db.transaction()
    await late.start()
    slow = await db.fetchval(copy)
    fast = await other.fetchval(copy)
    page = await agent.ok("get_inbox", agent="bob")
    assert slow not in ids(page)
    assert fast in ids(page)

    await late.commit()
    page = await agent.ok("get_inbox", agent="bob", mark=page["mark"])
    assert ids(page) == [slow]
    assert ids(await agent.ok("get_inbox", agent="bob", mark=page["mark"])) == []
    await other.close()


async def test_a_mark_is_valid_in_every_process_and_lists_what_is_new_page_by_page(settings: Settings, agent: Agent) -> None:
    mark = (await agent.ok("get_inbox", agent="bob"))["mark"]
    many = settings.model_copy(update={"offers_per_target_max": 100})
    async with open_app(many) as second, Client(build_server(second)) as client:
        other = Agent(client)
        key = await other.session()
        offered = [await other.offer(key) for _ in range(2 * INBOX_PAGE + 3)]
        page = await other.ok("get_inbox", agent="bob", mark=mark)
        following = page["mark"]
        seen = ids(page)
        await other.offer(key, priority=9)  # before the position of the cursor
        while "next_cursor" in page:
            page = await other.ok("get_inbox", agent="bob", cursor=page["next_cursor"])
            assert "mark" not in page
            seen += ids(page)
        assert seen == offered
        assert len(ids(await agent.ok("get_inbox", agent="bob", mark=following))) == 1


@pytest.mark.parametrize(
    "mark",
    [
        "x",
        "a" * 1_000,
        to_cursor("1:2:", 3),
        *(
            to_cursor(text, TIME, 3)
            for text in ("", "1:2", "0:0:", "5:1:", "1:9:7,3", "1:9:12", f"1:{2**63}:", f"1:{2**40}:", "a:b:c")
        ),
        to_cursor("1:2:", datetime(1, 1, 1, tzinfo=UTC), 3),
        to_cursor("1:99:" + ",".join(map(str, range(2, 80))), TIME, 3),
    ],
)
async def test_a_mark_that_get_inbox_has_not_returned_is_refused(agent: Agent, mark: str) -> None:
    error = await agent.refused("get_inbox", agent="bob", mark=mark)
    assert (error["code"], "omit it" in error["try"]) == ("invalid_arguments", True)


async def test_a_mark_from_a_database_that_was_restored_to_an_earlier_state_lists_everything(agent: Agent) -> None:
    handoff_id = await agent.offer(await agent.session())
    mark = to_cursor(f"{2**40 + 1}:{2**40 + 1}:", datetime.now(UTC), 0)

    assert ids(await agent.ok("get_inbox", agent="bob", mark=mark)) == [handoff_id]


async def test_a_cursor_takes_no_mark_and_no_wait(agent: Agent) -> None:
    mark = (await agent.ok("get_inbox", agent="bob"))["mark"]
    cursor = to_cursor(5, 1, "")
    for more in ({"mark": mark}, {"wait_seconds": 1}):
        error = await agent.refused("get_inbox", agent="bob", cursor=cursor, **more)
        assert "cursor alone" in error["try"]
