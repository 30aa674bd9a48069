"""Who owns a session and who may write to it, as its handoffs are accepted, completed and lapse."""

import json
from typing import Any

import anyio
import asyncpg
import pytest
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.jobs.settle import settle_overdue
from handoff.server.protocol import build_server
from handoff.settings import Settings
from tests.agents import PAST, Agent, may_write


async def test_a_full_handoff_transfers_the_session_and_a_lapse_returns_it(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key, request_type="full_handoff")
    assert await may_write(agent, key, "alice", "bob") == [True, False]

    await agent.accept(handoff_id)
    assert await may_write(agent, key, "alice", "bob") == [False, True]
    assert (await agent.read(f"handoff://sessions/{key}"))["owner"] == "bob"

    await db.execute(PAST)
    await settle_overdue(app)
    assert await may_write(agent, key, "alice", "bob") == [True, False]
    assert (await agent.read(f"handoff://sessions/{key}"))["owner"] == "alice"

    token = await agent.accept(handoff_id)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="complete", token=token)
    assert await may_write(agent, key, "alice", "bob") == [False, True]
    await agent.ok("get_context", agent="alice", session_key=key)  # a former owner may still read
    events = (await agent.read(f"handoff://sessions/{key}/lifecycle"))["events"]
    moves = [(event["data"]["from"], event["data"]["to"]) for event in events if event["kind"] == "session.owner_changed"]
    assert moves == [("alice", "bob"), ("bob", "alice"), ("alice", "bob")]
    await agent.ok("close_session", agent="bob", session_key=key)


async def test_a_session_handed_on_stays_with_its_last_receiver_when_an_earlier_lease_lapses(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    to_bob = await agent.offer(key, "bob", request_type="full_handoff")
    await agent.accept(to_bob, "bob")
    to_carol = await agent.offer(key, "carol", agent="bob", request_type="full_handoff")
    token = await agent.accept(to_carol, "carol")
    await agent.ok("resolve_handoff", agent="carol", handoff_id=to_carol, action="complete", token=token)
    await db.execute(PAST)

    assert await settle_overdue(app) == 1

    assert (await agent.read(f"handoff://handoffs/{to_bob}"))["state"] == "offered"
    assert (await agent.read(f"handoff://sessions/{key}"))["owner"] == "carol"
    assert await may_write(agent, key, "alice", "bob", "carol") == [False, False, True]
    assert (await agent.refused("accept_handoff", agent="bob", handoff_id=to_bob))["code"] == "ownership_moved"


async def test_two_full_handoffs_accepted_at_once_in_two_processes_transfer_the_session_once(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    async with open_app(settings) as second, Client(build_server(second)) as client:
        for _ in range(5):
            key = await agent.session()
            offers = {name: await agent.offer(key, name, request_type="full_handoff") for name in ("bob", "carol")}
            codes: dict[str, str] = {}

            async def accept(hand: Agent, name: str, offers: dict[str, int] = offers, codes: Any = codes) -> None:
                answer = await hand.client.call_tool("accept_handoff", {"agent": name, "handoff_id": offers[name]})
                text = json.loads(getattr(answer.content[0], "text", ""))
                codes[name] = text["error"]["code"] if answer.is_error else "ok"

            async with anyio.create_task_group() as group:
                group.start_soon(accept, agent, "bob")
                group.start_soon(accept, Agent(client), "carol")
            assert sorted(codes.values()) == ["ok", "ownership_moved"]
            owner = next(name for name, code in codes.items() if code == "ok")
            assert (await agent.read(f"handoff://sessions/{key}"))["owner"] == owner
            assert await may_write(agent, key, "alice", "bob", "carol") == [False, owner == "bob", owner == "carol"]


async def test_only_the_owner_can_offer_a_full_handoff_and_only_of_an_open_session(agent: Agent) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key, request_type="collaboration")
    token = await agent.accept(handoff_id)
    asked = {"agent": "bob", "session_key": key, "target_agent": "carol", "instructions": "Go on."}

    error = await agent.refused("request_handoff", request_type="full_handoff", **asked)
    assert (error["code"], error["owner"]) == ("not_owner", "alice")
    onward = (await agent.ok("request_handoff", **asked))["handoff_id"]
    await agent.ok("resolve_handoff", agent="bob", handoff_id=onward, action="cancel")
    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="complete", token=token)
    await agent.ok("close_session", agent="alice", session_key=key)

    error = await agent.refused("request_handoff", **asked)
    assert (error["code"], error["status"]) == ("session_closed", "completed")


@pytest.mark.parametrize(("request_type", "afterwards"), [("context_transfer", False), ("collaboration", True)])
async def test_a_holder_may_write_while_it_holds_and_a_collaborator_also_afterwards(
    agent: Agent, request_type: str, *, afterwards: bool
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key, request_type=request_type)
    token = await agent.accept(handoff_id)
    assert await may_write(agent, key, "alice", "bob") == [True, True]

    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="complete", token=token)

    assert await may_write(agent, key, "alice", "bob") == [True, afterwards]
    assert (await agent.read(f"handoff://sessions/{key}"))["owner"] == "alice"


async def test_a_collaborator_keeps_write_access_when_a_later_transfer_to_it_ends(agent: Agent) -> None:
    key = await agent.session()
    for request_type in ("collaboration", "context_transfer"):
        handoff_id = await agent.offer(key, request_type=request_type)
        token = await agent.accept(handoff_id)
        await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="complete", token=token)

    assert await may_write(agent, key, "bob") == [True]


async def test_an_owner_cannot_transfer_a_session_twice(agent: Agent) -> None:
    key = await agent.session()
    to_bob = await agent.offer(key, "bob", request_type="full_handoff")
    to_carol = await agent.offer(key, "carol", request_type="full_handoff")
    await agent.accept(to_bob, "bob")

    error = await agent.refused("accept_handoff", agent="carol", handoff_id=to_carol)

    assert (error["code"], error["owner"]) == ("ownership_moved", "bob")
    offer = {"session_key": key, "instructions": "x", "target_agent": "dan"}
    assert (await agent.refused("request_handoff", agent="alice", **offer))["code"] == "not_a_writer"


async def test_a_session_with_open_handoffs_is_not_closed(agent: Agent) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)

    error = await agent.refused("close_session", agent="alice", session_key=key)
    assert (error["code"], error["handoff_ids"]) == ("open_handoffs", [handoff_id])
    assert (await agent.refused("close_session", agent="bob", session_key=key))["code"] == "not_owner"
    await agent.ok("resolve_handoff", agent="alice", handoff_id=handoff_id, action="cancel")
    closed = await agent.ok("close_session", agent="alice", session_key=key, outcome="cancelled")

    assert closed["status"] == "cancelled"
    assert (await agent.refused("close_session", agent="alice", session_key=key))["code"] == "session_closed"


async def test_a_duplicate_key_shows_its_participants_the_state_of_the_session_that_has_it(agent: Agent) -> None:
    key = await agent.session(session_key="release-7")
    await agent.says(key, "hello")

    error = await agent.refused("register_session", agent="alice", session_key=key)

    assert {name: error[name] for name in ("code", "status", "owner", "last_sequence")} == {
        "code": "session_exists",
        "status": "active",
        "owner": "alice",
        "last_sequence": 2,
    }


async def test_the_owner_can_cancel_an_offer_whose_sender_may_no_longer_write(agent: Agent) -> None:
    key = await agent.session()
    held = await agent.offer(key, "bob")
    token = await agent.accept(held)
    onward = await agent.offer(key, "carol", agent="bob")
    await agent.ok("resolve_handoff", agent="bob", handoff_id=held, action="complete", token=token)

    stranger = await agent.refused("resolve_handoff", agent="carol", handoff_id=onward, action="cancel")
    assert stranger["code"] == "not_sender"
    await agent.ok("resolve_handoff", agent="alice", handoff_id=onward, action="cancel")
    await agent.ok("close_session", agent="alice", session_key=key)
