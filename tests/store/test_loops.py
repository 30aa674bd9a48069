"""A session that goes in circles: its sender and its receiver are told, and an operator can have such offers refused."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff.configuration import LoopLimits
from handoff.context import App
from handoff.errors import Conflict
from handoff.loops import circles, find
from handoff.settings import Settings
from handoff.store import handoffs
from handoff.store.connect import connection
from handoff.telemetry import metrics
from tests.agents import Agent, until
from tests.test_policies import change, operating


async def hand_over(agent: Agent, key: str, sender: str, to: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Offer the session, accept and complete the handoff; return the answers to the offer and to its acceptance."""
    asked = {"agent": sender, "session_key": key, "target_agent": to, "instructions": "Go on.", **more}
    offered = await agent.ok("request_handoff", request_type="full_handoff", **asked)
    taken = await agent.ok("accept_handoff", agent=to, handoff_id=offered["handoff_id"])
    token = taken["handoff"]["token"]
    await agent.ok("resolve_handoff", agent=to, handoff_id=offered["handoff_id"], action="complete", token=token)
    return offered, taken


async def introduce(agent: Agent, *names: str) -> None:
    """Let agents be seen, so that no offer to them is one to nobody."""
    for name in names:
        await agent.ok("get_inbox", agent=name)


def warned() -> float:
    return sum(metrics.LOOP_WARNINGS.value(kind) for kind in ("rounds", "depth", "handoffs"))


async def test_the_third_turn_between_two_agents_is_told_to_both_kept_in_the_trail_and_counted(
    agent: Agent, db: asyncpg.Connection
) -> None:
    await introduce(agent, "alice", "bob")
    key, before = await agent.session(), warned()
    for sender, to in (("alice", "bob"), ("bob", "alice")) * 2:
        offered, taken = await hand_over(agent, key, sender, to)
        assert "warning" not in offered
        assert "notice" not in taken["brief"]["parts"][0]
    assert warned() == before

    offered, taken = await hand_over(agent, key, "alice", "bob")

    assert offered["warning"].startswith(
        "Within 24 hours, this session has already gone from 'alice' to 'bob' and come back 2 t"
    )
    assert "resolve_handoff action=cancel" in offered["warning"]
    assert offered["loop"] == taken["handoff"]["loop"] == {"kind": "rounds", "count": 2}
    assert taken["brief"]["parts"][0]["notice"].startswith(
        "This session has gone this way and come back 2 times within 24 h"
    )
    assert warned() == before + 1
    events = (await agent.read(f"handoff://sessions/{key}/lifecycle"))["events"]
    assert [it["data"].get("loop") for it in events if it["kind"] == "handoff.offered"] == [None] * 4 + [offered["loop"]]
    settled = (await agent.ok("get_context", agent="bob", session_key=key))["brief"]["parts"][0]
    assert "notice" not in settled

    await db.execute("UPDATE handoff SET accepted_at = accepted_at - interval '1 day'")
    assert "warning" not in (await hand_over(agent, key, "bob", "alice"))[0]


async def test_a_loop_over_three_agents_is_found_but_not_one_task_after_another(agent: Agent) -> None:
    await introduce(agent, "alice", "bob", "carol")
    ring = await agent.session()
    for _ in range(2):
        for sender, to in (("alice", "bob"), ("bob", "carol"), ("carol", "alice")):
            assert "warning" not in (await hand_over(agent, ring, sender, to))[0]
    assert "come back 2 times" in (await hand_over(agent, ring, "alice", "bob"))[0]["warning"]

    tasks = await agent.session()
    for number in range(6):
        handoff_id = await agent.offer(tasks, instructions=f"Task {number}")
        token = await agent.accept(handoff_id)
        done = {"agent": "bob", "handoff_id": handoff_id, "action": "complete", "token": token}
        assert "loop" not in await agent.ok("resolve_handoff", **done)


async def test_a_chain_too_deep_and_a_session_handed_on_too_often_are_told(agent: Agent, app: App) -> None:
    names = ["alice", "bob", "carol", "dave", "erin", "frank"]
    await introduce(agent, *names)
    key = await agent.session()
    for sender, to in pairwise(names[:5]):
        await agent.accept(await agent.offer(key, to=to, agent=sender), agent=to)
    deep = await agent.ok("request_handoff", agent="erin", session_key=key, target_agent="frank", instructions="And you.")
    assert deep["warning"].startswith("With this offer, 5 handoffs of this session wait for one another.")
    notice = (await agent.ok("accept_handoff", agent="frank", handoff_id=deep["handoff_id"]))["brief"]["parts"][0]["notice"]
    assert notice.startswith("This is the last of 5 handoffs that wait for one another. Do not hand it on")

    often = await agent.session()
    for number in range(20):
        sender, to = names[number % 6], names[(number + 1) % 6]
        offered, _ = await hand_over(agent, often, sender, to)
        assert offered.get("loop", {}).get("kind") in (None, "rounds")
    offered = await agent.ok(
        "request_handoff", agent=names[2], session_key=often, target_agent="grace", instructions="Over to you."
    )
    assert offered["loop"] == {"kind": "handoffs", "count": 20}
    assert offered["warning"].startswith("No agent named 'grace' has been seen here so far.")
    assert "This session has already been handed over 20 times." in offered["warning"]


async def test_an_operator_can_have_loops_refused_and_a_refusal_changes_nothing(
    settings: Settings, db: asyncpg.Connection, tmp_path: Path
) -> None:
    (file := tmp_path / "handoff.toml").write_text("[monitoring.loops]\ndepth = 9\nrounds = 9\n")
    async with operating(settings.model_copy(update={"config_file": file})) as (app, agent):
        await introduce(agent, "alice", "bob")
        await change(agent, {"monitoring": {"loops": {"rounds": 5, "refuse_rounds": 1}}})
        await until(lambda: app.policies.monitoring.loops.refuse_rounds == 1)
        assert (app.policies.monitoring.loops.rounds, app.policies.monitoring.loops.depth) == (5, 9)
        key = await agent.session()
        await hand_over(agent, key, "alice", "bob")
        await hand_over(agent, key, "bob", "alice")
        offer = {"agent": "alice", "session_key": key, "target_agent": "bob", "instructions": "Once more."}
        before = await db.fetchval("SELECT count(*) FROM event")

        refused = await agent.refused("request_handoff", **offer)

        assert (refused["code"], refused["loop"], refused["limit"]) == ("loop_limit", "rounds", 1)
        assert "come back once. The operator allows no further offer" in refused["message"]
        assert refused["try"].startswith("Do not offer it again: finish the work yourself or ask a person")
        assert await db.fetchval("SELECT count(*) FROM event") == before
        wrong = {"action": "set", "expected_version": 2, "reason": "a test"}
        changes = json.dumps({"monitoring": {"loops": {"depth": 1, "rounds": 201}}})
        refused = await agent.refused("configuration", agent="ops", **wrong, changes=changes)
        assert "monitoring.loops.depth: must be a whole number from 2 to 200" in refused["message"]


async def test_the_trail_of_a_session_is_read_by_its_index_and_bounded(agent: Agent, app: App) -> None:
    key = await agent.session()
    await agent.offer(key)
    async with connection(app.pool) as conn:
        plan = await conn.fetch(f"EXPLAIN {handoffs.TRAIL.replace('$1', '1').replace('$2', '200')}")
    assert "handoff_of_session" in " ".join(str(row[0]) for row in plan)


ROUTES = st.sampled_from([("a", "b"), ("b", "a"), ("c", "a"), ("b", "c"), ("c", "b")])


@given(steps=st.lists(st.tuples(ROUTES, st.booleans()), max_size=40))
def test_rounds_are_the_times_that_a_walk_leaves_by_the_route_and_returns(steps: list[tuple[tuple[str, str], bool]]) -> None:
    trail = [
        {"sender": sender, "holder": holder, "target_capability": "review" if holder == "b" else "test",
         "state": "completed", "accepted_at": kept or None, "is_recent": kept or None}
        for (sender, holder), kept in steps
    ]  # fmt: skip
    walked = "".join("o" if route == ("a", "b") else "i" if route[1] == "a" else "" for route, kept in steps if kept)
    while "oo" in walked or "ii" in walked:  # what is already out can't leave
        walked = walked.replace("oo", "o").replace("ii", "i")

    found = circles(trail[::-1], "a", "b", None)

    assert (found.rounds, found.depth) == (walked.count("oi"), 1)
    assert found.handoffs == sum(kept for _, kept in steps)
    assert circles(trail[::-1], "a", None, "review") == found  # only b has it
    assert circles(trail[::-1], "a", None, "test").rounds == 0  # nothing from a to whom has this


def test_agents_that_hold_handoffs_of_one_another_do_not_make_an_endless_chain() -> None:
    held = {"target_capability": "review", "state": "accepted", "accepted_at": True, "is_recent": True}
    trail = [{**held, "sender": "a", "holder": "b"}, {**held, "sender": "b", "holder": "a"}]
    assert circles(trail, "a", None, "test").depth == 2
    assert circles(trail, "a", None, "review").rounds == 0
    with pytest.raises(Conflict):
        find(trail, LoopLimits(refuse_depth=2), "a", None, "test")
