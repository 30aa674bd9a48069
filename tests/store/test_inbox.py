"""Inboxes: their contents, their pages, and how waiting calls are woken."""

from time import monotonic
from typing import Any

import anyio
import asyncpg
import pytest
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store import inbox
from handoff.tools.offers import INBOX_PAGE
from handoff.views import INBOX_TEXT_CHARS_MAX
from tests.agents import LONG_WAIT_S, Agent, all_of, until


async def test_the_sender_of_an_offer_to_a_capability_cannot_accept_it(agent: Agent) -> None:
    key = await agent.session()
    await agent.ok("get_inbox", agent="alice", capabilities=["review"])
    offered = await agent.ok(
        "request_handoff", agent="alice", session_key=key, target_capability="review", instructions="Review."
    )

    assert (await agent.ok("get_inbox", agent="alice"))["handoffs"] == []
    error = await agent.refused("accept_handoff", agent="alice", handoff_id=offered["handoff_id"])
    assert error["code"] == "not_addressed"


async def test_an_inbox_lists_urgent_handoffs_first_and_its_pages_have_no_gaps_or_repeats(agent: Agent) -> None:
    keys = {name: await agent.session(name) for name in ("alice", "adam")}
    key = keys["alice"]
    senders = [*keys] * 19
    offered = [
        (await agent.offer(keys[senders[number]], agent=senders[number], priority=number % 10), number % 10)
        for number in range(38)
    ]
    await agent.offer(key, "carol")
    held = offered[7][0]
    await agent.accept(held)

    seen: list[tuple[int, int]] = []
    cursor: str | None = None
    while True:
        page = await agent.ok("get_inbox", agent="bob", cursor=cursor)
        assert len(page["handoffs"]) <= INBOX_PAGE
        seen += [(row["handoff_id"], row["priority"]) for row in page["handoffs"]]
        cursor = page.get("next_cursor")
        if cursor is None:
            break

    assert seen == sorted(offered, key=lambda pair: (-pair[1], pair[0]))


async def test_an_inbox_of_three_kinds_has_no_gaps_or_repeats_while_it_changes(agent: Agent) -> None:
    key = await agent.session()
    await agent.ok("get_inbox", agent="bob", capabilities=["review", "build", "review"])
    lists: list[dict[str, Any]] = [
        {"to": "bob"},
        {"target_agent": None, "target_capability": "review"},
        {"target_agent": None, "target_capability": "build"},
    ]
    offered = [(await agent.offer(key, priority=n * 7 % 10 // 3, **lists[n % 3]), n * 7 % 10 // 3) for n in range(32)]
    for handoff_id, _ in offered[::4]:
        await agent.accept(handoff_id)
    expected = sorted(offered, key=lambda pair: (-pair[1], pair[0]))

    first = await agent.ok("get_inbox", agent="bob")
    seen = [row["handoff_id"] for row in first["handoffs"]]
    passed, coming = seen[0], expected[30][0]
    await agent.offer(key, priority=9)  # its place is before the position of the cursor
    for gone in (passed, coming):
        state = (await agent.read(f"handoff://handoffs/{gone}"))["state"]
        if state == "offered":
            await agent.ok("resolve_handoff", agent="alice", handoff_id=gone, action="cancel")
        else:
            await agent.ok("resolve_handoff", agent="bob", handoff_id=gone, action="complete", token=1)
    cursor = first["next_cursor"]
    while cursor is not None:
        page = await agent.ok("get_inbox", agent="bob", cursor=cursor)
        seen += [row["handoff_id"] for row in page["handoffs"]]
        cursor = page.get("next_cursor")

    assert seen == [handoff_id for handoff_id, _ in expected if handoff_id != coming]
    assert [row["handoff_id"] for row in first["handoffs"]] == [handoff_id for handoff_id, _ in expected[:INBOX_PAGE]]


async def test_the_texts_of_an_inbox_page_are_cut_and_accept_handoff_returns_them_whole(agent: Agent) -> None:
    key, long = await agent.session(), "i" * 20_000
    many = [await agent.offer(key, instructions=long, target_agent=f"bob{n % 2}" if n else "bob") for n in range(40)]
    alone = (await agent.ok("get_inbox", agent="bob"))["handoffs"]
    assert [(len(row["instructions"]), row["cut"]) for row in alone] == [(INBOX_TEXT_CHARS_MAX + 1, True)]

    page = (await agent.ok("get_inbox", agent="bob1"))["handoffs"]
    assert len(page) == 20
    assert sum(len(row["instructions"]) for row in page) <= INBOX_TEXT_CHARS_MAX + len(page)
    assert (await agent.read(f"handoff://handoffs/{page[0]['handoff_id']}"))["instructions"] == long
    taken = await agent.ok("accept_handoff", agent="bob", handoff_id=many[0])
    assert taken["handoff"]["instructions"] == long
    short = await agent.offer(key, instructions="short", to="carol")
    assert [(row["handoff_id"], "cut" in row) for row in (await agent.ok("get_inbox", agent="carol"))["handoffs"]] == [
        (short, False)
    ]


async def test_an_inbox_matches_the_most_recently_declared_capabilities(agent: Agent) -> None:
    key = await agent.session()
    target: dict[str, Any] = {"target_agent": None, "target_capability": "review"}
    handoff_id = await agent.offer(key, **target)

    async def listed(**arguments: Any) -> list[int]:
        return [row["handoff_id"] for row in (await agent.ok("get_inbox", agent="bob", **arguments))["handoffs"]]

    assert await listed() == []
    assert await listed(capabilities=["review"]) == [handoff_id]
    assert await listed() == [handoff_id]
    assert await listed(capabilities=["build"]) == []
    assert (await agent.refused("accept_handoff", agent="bob", handoff_id=handoff_id))["code"] == "handoff_not_found"
    assert await listed(capabilities=["review"]) == [handoff_id]
    await agent.accept(handoff_id)
    assert await listed(capabilities=[]) == [handoff_id]  # a handoff that is already held stays


async def test_a_waiting_call_is_woken_by_an_offer_made_through_another_process(settings: Settings, agent: Agent) -> None:
    key = await agent.session()
    async with open_app(settings) as second, Client(build_server(second)) as client:
        other = Agent(client)
        ways: list[tuple[list[str] | None, dict[str, Any]]] = [
            (None, {"target_agent": "bob"}),
            (["review"], {"target_agent": None, "target_capability": "review"}),
        ]
        for declared, target in ways:
            found: list[dict[str, Any]] = []
            started = monotonic()
            async with anyio.create_task_group() as group:

                async def wait(declared: list[str] | None = declared, found: list[Any] = found) -> None:
                    inbox = await other.ok("get_inbox", agent="bob", capabilities=declared, wait_seconds=LONG_WAIT_S)
                    found.extend(inbox["handoffs"])

                group.start_soon(wait)
                await until(lambda: second.wakeups._waiters > 0)
                await agent.offer(key, **target)
            assert [row["state"] for row in found] == ["offered"]
            assert monotonic() - started < LONG_WAIT_S  # woken: a wait that runs out finds the offer too
            await agent.ok("resolve_handoff", agent="alice", handoff_id=found[0]["handoff_id"], action="cancel")


async def test_a_wait_ends_on_time_and_reads_the_inbox_only_when_notified(
    agent: Agent, app: App, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    real = inbox.read

    async def counted(conn: Any, name: str, **position: Any) -> Any:
        reads.append(name)
        return await real(conn, name, **position)

    monkeypatch.setattr(inbox, "read", counted)
    started = monotonic()

    async def notify_without_a_change() -> None:
        await until(lambda: len(reads) == 2)  # before it waits, and once it would hear of a change
        await db.execute("SELECT pg_notify('handoff', 'agent:bob'), pg_notify('handoff', 'agent:carol')")

    async with anyio.create_task_group() as group:
        group.start_soon(notify_without_a_change)
        assert (await agent.ok("get_inbox", agent="bob", wait_seconds=1))["handoffs"] == []

    assert 0.9 < monotonic() - started < LONG_WAIT_S
    assert reads == ["bob"] * 3


async def test_an_offer_made_while_the_listen_connection_was_lost_is_found_after_reconnecting(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    async with open_app(settings) as second, Client(build_server(second)) as client:
        found: list[dict[str, Any]] = []

        async def wait() -> None:
            found.extend((await Agent(client).ok("get_inbox", agent="bob", wait_seconds=LONG_WAIT_S))["handoffs"])

        with anyio.fail_after(LONG_WAIT_S):  # found after the reconnect: a wait that runs out finds the offer too
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await until(lambda: second.wakeups._waiters > 0)
                await db.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE application_name = 'handoff-wakeups' AND datname = current_database()"
                )
                await agent.offer(key)
    assert len(found) == 1


async def test_an_offer_to_nobody_is_made_with_a_warning_that_names_similar_agents_the_sender_knows(agent: Agent) -> None:
    shared, other = await agent.session(), await agent.session(agent="mallory")
    await agent.accept(await agent.offer(shared, to="Grace"), agent="Grace")
    await agent.accept(await agent.offer(other, to="graeme", agent="mallory"), agent="graeme")

    async def warning(**target: str) -> str | None:
        offer = {"agent": "alice", "session_key": shared, "instructions": "Go on."}
        return (await agent.ok("request_handoff", **offer, **target)).get("warning")

    for name in ("graec", "grace"):
        told = await warning(target_agent=name)
        assert told is not None
        assert f"No agent named {name!r} has been seen" in told
        assert "You share a session with 'Grace'." in told
        assert "graeme" not in told
    assert "You share" not in (await warning(target_agent="zoe") or "")
    assert await warning(target_agent="Grace") is None
    assert await warning(target_agent="graeme") is None  # it has been seen, even if not by the sender

    await agent.ok("get_inbox", agent="zoe")
    assert await warning(target_agent="zoe") is None
    assert "No other agent has declared the capability 'sql'" in (await warning(target_capability="sql") or "")
    await agent.ok("get_inbox", agent="alice", capabilities=["sql"])
    assert await warning(target_capability="sql") is not None
    await agent.ok("get_inbox", agent="zoe", capabilities=["sql"])
    assert await warning(target_capability="sql") is None


async def test_a_sender_may_have_only_its_share_of_open_offers_to_one_target(settings: Settings) -> None:
    assert settings.offers_per_target_max < INBOX_PAGE  # so that the first page has room for the offers of others
    few = settings.model_copy(update={"offers_per_target_max": 3})
    async with open_app(few) as app, Client(build_server(app)) as client:
        agent = Agent(client)
        key, other = await agent.session(), await agent.session("mallory")
        offer = {"session_key": key, "instructions": "Go on."}
        asked = {"agent": "alice", "target_agent": "bob", **offer}
        sessions = [await agent.session() for _ in range(12)]
        results = await all_of(
            *(client.call_tool("request_handoff", asked | {"session_key": each}) for each in sessions)
        )  # at once, so that none sees the others
        assert sum(not result.is_error for result in results) == 3

        error = await agent.refused("request_handoff", **asked)
        assert (error["code"], error["retryable"], error["share"]) == ("share_used_up", True, "offers")
        assert len((await agent.ok("get_inbox", agent="bob"))["handoffs"]) == 3
        await agent.offer(key, "carol")
        await agent.offer(other, agent="mallory")
        for target in ("sql", "python"):
            for _ in range(3):
                await agent.ok("request_handoff", agent="alice", target_capability=target, **offer)
        assert (await agent.refused("request_handoff", agent="alice", target_capability="sql", **offer))["share"] == "offers"

        held = (await agent.ok("get_inbox", agent="bob"))["handoffs"][0]["handoff_id"]
        await agent.accept(held)
        await agent.ok("request_handoff", **asked)
