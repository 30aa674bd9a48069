"""Sessions become dormant, wake, and expire, each by one event; what they refuse; and what becomes of their handoffs."""

import asyncpg
import pytest

from handoff.context import App
from handoff.jobs import dormant, expire
from handoff.model import SESSION_TRANSITIONS
from tests.agents import Agent, kinds
from tests.clock import jump

ENTRY = [{"type": "message", "content": "more"}]


async def activity(db: asyncpg.Connection, key: str) -> object:
    return await db.fetchval("SELECT last_activity_at FROM session WHERE key = $1", key)


async def test_an_idle_session_sleeps_and_wakes_on_a_write_or_an_offer_each_by_one_event(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    await jump(db, hours=1.9)
    await dormant.run(app)
    assert (await agent.read(f"handoff://sessions/{key}"))["status"] == "active"
    await jump(db, hours=0.2)
    before = await activity(db, key)

    for _ in range(2):  # a second run changes nothing
        await dormant.run(app)

    assert (await agent.read(f"handoff://sessions/{key}"))["status"] == "dormant"
    assert await activity(db, key) == before
    await agent.says(key, "good morning")
    assert (await agent.read(f"handoff://sessions/{key}"))["status"] == "active"
    await jump(db, hours=2.1)
    await dormant.run(app)
    await agent.offer(key)
    assert (await agent.read(f"handoff://sessions/{key}"))["status"] == "active"
    assert await kinds(agent, key) == [*["session.dormant", "session.reactivated"] * 2, "offered"]


async def test_a_session_of_which_something_is_on_offer_or_held_stays_awake(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    offered, held = await agent.session(), await agent.session()
    await agent.offer(offered)
    token = await agent.accept(handoff_id := await agent.offer(held), lease_seconds=86_400)
    await jump(db, hours=3)

    await dormant.run(app)

    for key in (offered, held):
        assert (await agent.read(f"handoff://sessions/{key}"))["status"] == "active"
    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="complete", token=token)
    await jump(db, hours=3)
    await dormant.run(app)
    assert (await agent.read(f"handoff://sessions/{held}"))["status"] == "dormant"


async def test_from_the_moment_of_its_expiry_a_session_is_expired_before_any_job_has_noticed(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    await jump(db, hours=24.1)

    assert (await agent.read(f"handoff://sessions/{key}"))["status"] == "expired"
    assert (await agent.read("handoff://sessions?status=active"))["sessions"] == []
    assert (await agent.read("handoff://sessions?status=expired&agent=alice"))["sessions"][0]["session_key"] == key
    asked = {"agent": "alice", "session_key": key}
    for tool, arguments in (
        ("update_context", {"entries": ENTRY}),
        ("request_handoff", {"target_agent": "bob", "instructions": "x"}),
        ("close_session", {}),
    ):
        error = await agent.refused(tool, **asked, **arguments)
        assert (error["code"], error["status"]) == ("session_closed", "expired")
        assert f'"continues": "{key}"' in error["try"]
    for who, tool, arguments in (
        ("bob", "accept_handoff", {}),
        ("bob", "resolve_handoff", {"action": "reject", "note": "x"}),
        ("alice", "resolve_handoff", {"action": "cancel", "note": "x"}),
        ("alice", "request_handoff", {"session_key": key, "instructions": "x"}),
    ):
        error = await agent.refused(tool, agent=who, handoff_id=handoff_id, **arguments)
        assert error["code"] == "wrong_state"
        assert f"Handoff {handoff_id} is expired because its session is over" in error["message"]
    for answer in (
        (await agent.ok("get_context", **asked))["session"],
        await agent.read(f"handoff://summary/{key}"),
        (await agent.read("handoff://agents/alice/sessions"))["sessions"][0],
    ):
        assert answer["status"] == "expired"
    assert await kinds(agent, key) == ["offered"]  # nothing refused has changed anything


async def test_an_expiry_ends_offers_and_leases_first_and_tells_those_who_wait(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    offered, held, plain = [await agent.session(retention_policy="short") for _ in range(3)]
    await agent.ok("get_inbox", agent="bob", capabilities=["work"])
    await agent.offer(offered)
    handoff_id = await agent.offer(held, target_agent=None, target_capability="work", request_type="full_handoff")
    await agent.accept(handoff_id)
    told: list[str] = []
    await db.add_listener("handoff", lambda _conn, _pid, _channel, topics: told.append(str(topics)))
    await jump(db, hours=4.1)
    before = await activity(db, held)

    await expire.run(app)

    assert await kinds(agent, plain) == ["session.expired"]
    assert await kinds(agent, offered) == ["offered", "expired", "session.expired"]
    seen = await kinds(agent, held)
    assert seen[-4:] == ["lapsed", "session.owner_changed", "expired", "session.expired"]
    assert (await agent.read(f"handoff://handoffs/{handoff_id}"))["reason"] == "its session is over"
    assert (await agent.read(f"handoff://sessions/{held}"))["owner"] == "alice"
    assert await activity(db, held) == before
    await db.execute("SELECT 1")  # receives what is still under way
    assert any(f"handoff:{handoff_id}" in topics and "agent:bob" in topics for topics in told)
    await expire.run(app)
    assert await kinds(agent, held) == seen


async def test_a_session_lives_as_long_as_the_lease_that_an_agent_takes(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session(retention_policy="short")
    await jump(db, hours=3)
    token = await agent.accept(await agent.offer(key), lease_seconds=36_000)
    await jump(db, hours=9)

    await agent.says(key, "still at it", agent="bob", token=token)

    assert (await agent.read(f"handoff://sessions/{key}"))["status"] == "active"


async def test_a_session_whose_handoff_cannot_be_ended_delays_no_other(
    agent: Agent, app: App, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, other = await agent.session(), await agent.session()
    handoff_id = await agent.offer(stuck)
    await jump(db, hours=25)
    await db.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'broken'; END $$;"
        "CREATE TRIGGER broken BEFORE UPDATE ON handoff FOR EACH ROW EXECUTE FUNCTION fail()"
    )

    await expire.run(app)

    assert await db.fetchval("SELECT status FROM session WHERE key = $1", other) == "expired"
    assert await db.fetchval("SELECT status FROM session WHERE key = $1", stuck) == "active"
    await db.execute("DROP TRIGGER broken ON handoff; UPDATE session SET expiry_check_at = now()")
    await expire.run(app)
    assert await kinds(agent, stuck) == ["offered", "expired", "session.expired"]
    assert (await agent.read(f"handoff://handoffs/{handoff_id}"))["state"] == "expired"


async def test_closing_leaves_one_event_that_says_from_where_to_where_and_is_no_activity(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    await jump(db, hours=3)
    await dormant.run(app)
    before = await activity(db, key)

    closed = await agent.ok("close_session", agent="alice", session_key=key, outcome="cancelled")

    events = (await agent.read(f"handoff://sessions/{key}/lifecycle"))["events"]
    assert closed["status"] == "cancelled"
    assert await activity(db, key) == before
    assert [(event["kind"], event.get("data")) for event in events[2:]] == [
        ("session.dormant", None),
        ("session.status_changed", {"from": "dormant", "to": "cancelled"}),
    ]


def test_the_table_leads_back_to_life_from_dormant_only() -> None:
    steps = {(origin, change.status) for (origin, _), change in SESSION_TRANSITIONS.items()}

    assert {origin for origin, status in steps if status == "active"} == {"dormant"}
    assert {origin for origin, status in steps if status == "expired"} == {"active", "dormant"}
