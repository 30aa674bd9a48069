"""Leases and deadlines: fencing tokens, what happens when time passes, and what an operator may end."""

from typing import Any

import asyncpg
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.jobs.settle import settle_overdue
from handoff.server.protocol import build_server
from handoff.settings import Settings
from tests.agents import PAST, Agent, kinds


async def test_a_stale_token_is_refused_and_the_error_names_the_current_holder(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    await agent.ok("get_inbox", agent="bob", capabilities=["review"])
    await agent.ok("get_inbox", agent="carol", capabilities=["review"])
    asked = {"target_agent": None, "target_capability": "review", "instructions": "Review."}
    offered = await agent.ok("request_handoff", agent="alice", session_key=key, **asked)
    handoff_id = offered["handoff_id"]
    first = await agent.accept(handoff_id, "bob")
    stale = {"agent": "bob", "handoff_id": handoff_id, "token": first}
    await db.execute(PAST)

    lapsed = await agent.refused("renew_handoff", **stale)
    assert (lapsed["code"], lapsed["holder"]) == ("stale_token", None)
    token = await agent.accept(handoff_id, "carol")

    assert token == first + 1
    for tool, arguments in (
        ("renew_handoff", {}),
        ("resolve_handoff", {"action": "complete"}),
        ("resolve_handoff", {"action": "block", "note": "x"}),
    ):
        error = await agent.refused(tool, **stale, **arguments)
        assert (error["code"], error["holder"]) == ("stale_token", "carol")
        assert "carol" in error["message"]
    assert (await agent.read(f"handoff://handoffs/{handoff_id}"))["state"] == "accepted"
    assert await kinds(agent, key) == ["offered", "accepted", "lapsed", "accepted"]


async def test_an_older_token_of_the_same_agent_is_stale_too(agent: Agent, app: App, db: asyncpg.Connection) -> None:
    handoff_id = await agent.offer(await agent.session())
    first = await agent.accept(handoff_id)
    await db.execute(PAST)
    await settle_overdue(app)
    token = await agent.accept(handoff_id)

    for stale in (first, token + 1):
        error = await agent.refused("renew_handoff", agent="bob", handoff_id=handoff_id, token=stale)
        assert (error["code"], error["holder"], error["state"]) == ("stale_token", "bob", "accepted")
    assert (await agent.ok("renew_handoff", agent="bob", handoff_id=handoff_id, token=token))["token"] == token


async def test_a_lease_lasts_as_long_as_requested_and_longer_while_blocked(agent: Agent, db: asyncpg.Connection) -> None:
    handoff_id = await agent.offer(await agent.session())

    async def lease_s() -> float:
        return await db.fetchval("SELECT extract(epoch FROM lease_expires_at - updated_at)::float FROM handoff")

    token = await agent.accept(handoff_id, lease_seconds=30)
    hold = {"agent": "bob", "handoff_id": handoff_id, "token": token}
    assert await lease_s() == 30
    await agent.ok("renew_handoff", lease_seconds=3_600, **hold)
    assert await lease_s() == 3_600
    await agent.ok("renew_handoff", **hold)
    assert await lease_s() == 900
    await agent.ok("resolve_handoff", action="block", note="waiting", **hold)
    assert await lease_s() == 86_400


async def test_a_handoff_that_lapses_after_its_deadline_expires(agent: Agent, app: App, db: asyncpg.Connection) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key, deadline_minutes=5)
    await agent.accept(handoff_id)
    await db.execute("UPDATE handoff SET deadline = now() - interval '1 hour'")
    assert await settle_overdue(app) == 0  # a holder that accepted in time may finish after the deadline
    await db.execute(PAST)

    assert await settle_overdue(app) == 1

    events = (await agent.read(f"handoff://sessions/{key}/lifecycle"))["events"][-2:]
    assert [(event["kind"], event.get("agent")) for event in events] == [("handoff.lapsed", None), ("handoff.expired", None)]
    assert events[0]["data"] == {"holder": "bob", "token": 1}


async def test_a_handoff_whose_lease_lapses_too_often_expires(settings: Settings, db: asyncpg.Connection) -> None:
    async with open_app(settings.model_copy(update={"lapses_max": 2})) as app, Client(build_server(app)) as client:
        agent = Agent(client)
        key = await agent.session()
        handoff_id = await agent.offer(key)
        for expected in ("offered", "offered", "expired"):
            await agent.accept(handoff_id)
            await db.execute(PAST)
            assert await settle_overdue(app) == 1
            assert (await agent.read(f"handoff://handoffs/{handoff_id}"))["state"] == expected
        assert (await kinds(agent, key))[-3:] == ["accepted", "lapsed", "expired"]
        assert await settle_overdue(app) == 0


async def test_a_blocked_handoff_whose_lease_has_lapsed_is_offered_again(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    token = await agent.accept(handoff_id)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="block", token=token, note="waiting")
    await db.execute(PAST)

    await settle_overdue(app)

    assert (await agent.read(f"handoff://handoffs/{handoff_id}"))["state"] == "offered"
    assert await kinds(agent, key) == ["offered", "accepted", "blocked", "renewed", "lapsed"]


async def test_an_offer_past_its_deadline_expires_and_cannot_be_accepted(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key, deadline_minutes=5)
    await db.execute("UPDATE handoff SET deadline = now()")

    error = await agent.refused("accept_handoff", agent="bob", handoff_id=handoff_id)
    assert (error["code"], error["state"]) == ("wrong_state", "expired")
    await settle_overdue(app)

    seen = await agent.read(f"handoff://handoffs/{handoff_id}")
    assert (seen["state"], seen["reason"]) == ("expired", "its deadline passed")


async def test_an_operator_can_end_a_lease_and_the_audit_keeps_it(settings: Settings, db: asyncpg.Connection) -> None:
    async with open_app(settings.model_copy(update={"admin": True})) as app, Client(build_server(app)) as client:
        agent = Agent(client)
        handoff_id = await agent.offer(await agent.session())
        await agent.accept(handoff_id)

        lapsed = await agent.ok("lapse_handoff", handoff_id=handoff_id, idempotency_key="k")
        assert lapsed["state"] == "offered"
        assert await agent.ok("lapse_handoff", handoff_id=handoff_id, idempotency_key="k") == lapsed
        assert (await agent.refused("lapse_handoff", handoff_id=handoff_id))["code"] == "wrong_state"
        assert await agent.accept(handoff_id) == 2
    kept = [tuple(row) for row in await db.fetch("SELECT actor, action, target FROM audit")]
    assert kept == [("operator", "handoff.lapse", f"handoff {handoff_id}")]


async def test_a_handoff_that_cannot_be_settled_does_not_delay_the_others(
    agent: Agent, app: App, db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    ids = [await agent.offer(await agent.session()) for _ in range(3)]
    for handoff_id in ids:
        await agent.accept(handoff_id)
    await db.execute(PAST)
    await db.execute(
        "CREATE FUNCTION stuck() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'stuck'"
        " USING DETAIL = 'the row holds: rosebud'; END $$"
    )
    await db.execute(
        f"CREATE TRIGGER stuck BEFORE UPDATE ON handoff FOR EACH ROW WHEN (OLD.id = {ids[0]}) EXECUTE FUNCTION stuck()"
    )

    assert await settle_overdue(app) == 2

    states = [(await agent.read(f"handoff://handoffs/{handoff_id}"))["state"] for handoff_id in ids]
    assert states == ["accepted", "offered", "offered"]
    assert [line["handoff_id"] for line in logged if line["event"] == "settle.failed"] == [ids[0]]


async def test_a_holder_cannot_write_once_its_lease_has_passed_even_if_no_job_has_noticed(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    for request_type in ("context_transfer", "collaboration", "full_handoff"):
        handoff_id = await agent.offer(key, request_type=request_type)
        token = await agent.accept(handoff_id)
        await agent.says(key, "mine to write", agent="bob", token=token)
        await db.execute("UPDATE handoff SET lease_expires_at = now() - interval '1 second' WHERE id = $1", handoff_id)
        before = await db.fetchval("SELECT last_sequence FROM session WHERE key = $1", key)

        for arguments in ({}, {"token": token}):
            error = await agent.refused(
                "update_context",
                agent="bob",
                session_key=key,
                entries=[{"type": "message", "content": "too late"}],
                **arguments,
            )
            assert error["code"] == "stale_token", request_type
        assert await db.fetchval("SELECT last_sequence FROM session WHERE key = $1", key) == before
        await agent.ok("resolve_handoff", agent="alice", handoff_id=handoff_id, action="cancel")
        await agent.says(key, "the sender still writes")


async def test_a_process_with_an_older_token_cannot_write_under_a_newer_one_of_the_same_agent(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    old = await agent.accept(handoff_id)
    await db.execute("UPDATE handoff SET lease_expires_at = now() - interval '1 second' WHERE id = $1", handoff_id)
    new = await agent.accept(handoff_id)

    error = await agent.refused(
        "update_context", agent="bob", session_key=key, token=old, entries=[{"type": "message", "content": "stale"}]
    )

    assert error["code"] == "stale_token"
    await agent.says(key, "current", agent="bob", token=new)


async def test_who_may_write_for_another_reason_writes_on_after_a_lease_has_passed(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    done = await agent.offer(key, request_type="collaboration")
    token = await agent.accept(done)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=done, action="complete", token=token)
    passed = await agent.offer(key)
    await agent.accept(passed)
    await db.execute("UPDATE handoff SET lease_expires_at = now() - interval '1 second' WHERE id = $1", passed)

    await agent.says(key, "a collaborator for good", agent="bob")
