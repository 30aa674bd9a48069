"""The life of a handoff: who may do what, when, and what each change leaves behind."""

import hashlib
import json
from time import monotonic
from typing import Any

import anyio
import asyncpg
import pytest
from mcp import Client

from handoff.app import App, open_app, settle_overdue
from handoff.server import build_server
from handoff.settings import Settings
from handoff.store import handoffs
from tests.agents import Agent, until

PAST = "UPDATE handoff SET lease_expires_at = now() - interval '1 second' WHERE lease_expires_at IS NOT NULL"


async def kinds(agent: Agent, key: str) -> list[str]:
    events = (await agent.read(f"handoff://sessions/{key}/lifecycle"))["events"]
    return [event["kind"].removeprefix("handoff.") for event in events][1:]


async def may_write(agent: Agent, key: str, *names: str) -> list[bool]:
    entry = {"type": "message", "content": "may I?"}
    answers: list[bool] = []
    for name in names:
        arguments = {"agent": name, "session_key": key, "entries": [entry]}
        answers.append(not (await agent.client.call_tool("update_context", arguments)).is_error)
    return answers


async def test_a_handoff_goes_from_offer_to_completion_and_each_step_leaves_one_event(agent: Agent) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    token = await agent.accept(handoff_id)
    hold = {"agent": "bob", "handoff_id": handoff_id, "token": token}

    assert (await agent.ok("renew_handoff", **hold))["state"] == "accepted"
    blocked = await agent.ok("resolve_handoff", action="block", note="waiting for a key", **hold)
    assert (blocked["state"], blocked["reason"]) == ("blocked", "waiting for a key")
    assert (await agent.ok("renew_handoff", **hold))["state"] == "accepted"
    done = await agent.ok("resolve_handoff", action="complete", note="shipped", **hold)

    assert (done["state"], done["outcome"], done["holder"], done["token"]) == ("completed", "shipped", "bob", token)
    assert "lease_expires_at" not in done
    assert await kinds(agent, key) == ["offered", "accepted", "renewed", "blocked", "renewed", "completed"]


async def test_the_receipt_is_the_digest_of_exactly_what_was_handed_over(agent: Agent) -> None:
    key = await agent.session()
    await agent.says(key, "first")
    await agent.says(key, "second")
    handoff = await agent.read(f"handoff://handoffs/{await agent.offer(key)}")
    await agent.says(key, "after the offer")

    entries = (await agent.ok("get_context", agent="alice", session_key=key, view="entries"))["entries"]
    handed = entries[: handoff["as_of_sequence"]]
    digest = hashlib.sha256(b"".join(bytes.fromhex(entry["content_hash"]) for entry in handed)).hexdigest()

    assert [entry["sequence"] for entry in handed] == [1, 2, 3]
    assert handoff["context_digest"] == digest


@pytest.mark.parametrize(
    ("action", "by", "note", "state"), [("reject", "bob", "too busy", "rejected"), ("cancel", "alice", None, "cancelled")]
)
async def test_an_offer_can_be_rejected_by_its_receiver_and_cancelled_by_its_sender(
    agent: Agent, action: str, by: str, note: str | None, state: str
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    other = "alice" if by == "bob" else "bob"

    refused = await agent.refused("resolve_handoff", agent=other, handoff_id=handoff_id, action=action, note="no")
    assert refused["code"] in ("not_addressed", "not_sender")
    done = await agent.ok("resolve_handoff", agent=by, handoff_id=handoff_id, action=action, note=note)

    assert (done["state"], done.get("reason")) == (state, note)
    again = await agent.refused("accept_handoff", agent="bob", handoff_id=handoff_id)
    assert (again["code"], again["state"]) == ("wrong_state", state)
    assert await kinds(agent, key) == ["offered", state]


async def test_a_stale_token_is_refused_and_the_error_names_who_holds_it_now(
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


@pytest.mark.parametrize(
    "arguments",
    [
        {"action": "complete"},
        {"action": "block", "note": "why"},
        {"action": "block", "token": 1},
        {"action": "reject"},
        {"action": "reject", "note": ""},
    ],
)
async def test_a_settlement_without_its_token_or_its_note_is_refused_and_changes_nothing(
    agent: Agent, arguments: dict[str, Any]
) -> None:
    handoff_id = await agent.offer(key := await agent.session())
    await agent.accept(handoff_id)

    error = await agent.refused("resolve_handoff", agent="bob", handoff_id=handoff_id, **arguments)

    assert (error["code"], error["retryable"]) == ("invalid_arguments", False)
    assert await kinds(agent, key) == ["offered", "accepted"]


async def test_what_nobody_offered_and_what_is_not_ones_own_look_the_same(agent: Agent) -> None:
    handoff_id = await agent.offer(await agent.session())
    calls: list[tuple[str, dict[str, Any]]] = [
        ("accept_handoff", {}),
        ("renew_handoff", {"token": 1}),
        ("resolve_handoff", {"action": "complete", "token": 1}),
        ("resolve_handoff", {"action": "block", "token": 1, "note": "x"}),
        ("resolve_handoff", {"action": "reject", "note": "x"}),
        ("resolve_handoff", {"action": "cancel"}),
    ]
    for tool, arguments in calls:
        for unknown in (handoff_id, 4_711, 0, -1):
            error = await agent.refused(tool, agent="mallory", handoff_id=unknown, **arguments)
            assert error["code"] == "handoff_not_found"
            assert error["message"] == f"There is no handoff {unknown} that you may see."


async def test_a_held_handoff_is_neither_cancelled_nor_rejected_nor_accepted_again(agent: Agent) -> None:
    handoff_id = await agent.offer(key := await agent.session())
    token = await agent.accept(handoff_id)
    hold = {"agent": "bob", "handoff_id": handoff_id, "token": token}
    attempts: list[tuple[str, dict[str, Any]]] = [
        ("resolve_handoff", {"agent": "alice", "action": "cancel"}),
        ("resolve_handoff", {"agent": "bob", "action": "reject", "note": "no"}),
        ("accept_handoff", {"agent": "bob"}),
    ]

    for state, possible in (("accepted", "renew, block, complete"), ("blocked", "renew")):
        for tool, arguments in attempts:
            error = await agent.refused(tool, handoff_id=handoff_id, **arguments)
            assert (error["code"], error["state"], error["holder"]) == ("wrong_state", state, "bob")
            assert error["try"] == f"From {state} it can go by: {possible}."
        if state == "accepted":
            await agent.ok("resolve_handoff", action="block", note="waiting", **hold)
    early = await agent.refused("resolve_handoff", action="complete", **hold)

    assert (early["code"], early["state"]) == ("wrong_state", "blocked")
    assert await kinds(agent, key) == ["offered", "accepted", "blocked"]


async def test_a_lease_is_as_long_as_it_was_asked_for_and_a_block_gives_time(agent: Agent, db: asyncpg.Connection) -> None:
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


async def test_a_lapse_past_the_deadline_expires_the_offer_by_the_clock(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key, deadline_minutes=5)
    await agent.accept(handoff_id)
    await db.execute("UPDATE handoff SET deadline = now() - interval '1 hour'")
    assert await settle_overdue(app) == 0  # who took it in time may finish
    await db.execute(PAST)

    assert await settle_overdue(app) == 1

    events = (await agent.read(f"handoff://sessions/{key}/lifecycle"))["events"][-2:]
    assert [(event["kind"], event.get("agent")) for event in events] == [("handoff.lapsed", None), ("handoff.expired", None)]
    assert events[0]["data"] == {"holder": "bob", "token": 1}


async def test_a_change_that_fails_leaves_neither_a_state_nor_an_event_nor_a_writer(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    await db.execute("UPDATE session SET writers = ARRAY['alice'] || array(SELECT 'w' || n FROM generate_series(1, 63) n)")

    error = await agent.refused("accept_handoff", agent="bob", handoff_id=handoff_id, idempotency_key="k")

    assert error["code"] == "limit_reached"
    seen = await agent.read(f"handoff://handoffs/{handoff_id}")
    assert (seen["state"], seen["token"], "holder" in seen) == ("offered", 0, False)
    assert await kinds(agent, key) == ["offered"]
    assert await db.fetchval("SELECT count(*) FROM participant WHERE agent = 'bob'") == 0
    assert await db.fetchval("SELECT count(*) FROM idempotency") == 0


async def test_a_lease_that_lapses_too_often_expires_the_handoff(settings: Settings, db: asyncpg.Connection) -> None:
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


async def test_a_blocked_handoff_whose_time_is_over_is_offered_again(agent: Agent, app: App, db: asyncpg.Connection) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    token = await agent.accept(handoff_id)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="block", token=token, note="waiting")
    await db.execute(PAST)

    await settle_overdue(app)

    assert (await agent.read(f"handoff://handoffs/{handoff_id}"))["state"] == "offered"
    assert await kinds(agent, key) == ["offered", "accepted", "blocked", "renewed", "lapsed"]


async def test_an_offer_past_its_deadline_expires_and_can_not_be_accepted(
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


async def test_only_the_addressed_agent_can_accept_and_only_once(agent: Agent) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)

    assert (await agent.refused("accept_handoff", agent="mallory", handoff_id=handoff_id))["code"] == "handoff_not_found"
    assert (await agent.refused("accept_handoff", agent="alice", handoff_id=handoff_id))["code"] == "not_addressed"
    await agent.accept(handoff_id)
    error = await agent.refused("accept_handoff", agent="bob", handoff_id=handoff_id)

    assert (error["code"], error["holder"]) == ("wrong_state", "bob")


async def test_of_many_agents_that_accept_at_once_exactly_one_holds_it(agent: Agent) -> None:
    key = await agent.session()
    names = [f"worker-{number}" for number in range(8)]
    for name in names:
        await agent.ok("get_inbox", agent=name, capabilities=["build"])
    offered = await agent.ok(
        "request_handoff", agent="alice", session_key=key, target_capability="build", instructions="Build."
    )
    outcomes: dict[str, bool] = {}

    async def accept(name: str) -> None:
        arguments = {"agent": name, "handoff_id": offered["handoff_id"]}
        result = await agent.client.call_tool("accept_handoff", arguments)
        outcomes[name] = not result.is_error
        assert outcomes[name] or "wrong_state" in str(result.content)

    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(accept, name)

    winners = [name for name, won in outcomes.items() if won]
    assert len(winners) == 1
    assert (await agent.read(f"handoff://handoffs/{offered['handoff_id']}"))["holder"] == winners[0]


async def test_the_sender_of_a_capability_offer_does_not_take_it_itself(agent: Agent) -> None:
    key = await agent.session()
    await agent.ok("get_inbox", agent="alice", capabilities=["review"])
    offered = await agent.ok(
        "request_handoff", agent="alice", session_key=key, target_capability="review", instructions="Review."
    )

    assert (await agent.ok("get_inbox", agent="alice"))["handoffs"] == []
    error = await agent.refused("accept_handoff", agent="alice", handoff_id=offered["handoff_id"])
    assert error["code"] == "not_addressed"


async def test_a_full_handoff_moves_the_session_and_a_lapse_gives_it_back(
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
    await agent.ok("get_context", agent="alice", session_key=key)  # she may still read
    events = (await agent.read(f"handoff://sessions/{key}/lifecycle"))["events"]
    moves = [(event["data"]["from"], event["data"]["to"]) for event in events if event["kind"] == "session.owner_changed"]
    assert moves == [("alice", "bob"), ("bob", "alice"), ("alice", "bob")]
    await agent.ok("close_session", agent="bob", session_key=key)


async def test_a_session_that_was_given_on_stays_with_its_last_receiver_when_an_earlier_lease_lapses(
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


async def test_two_full_offers_accepted_at_once_in_two_processes_move_the_session_once(
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


async def test_only_an_owner_gives_a_session_away_and_only_an_open_one(agent: Agent) -> None:
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
async def test_the_holder_writes_while_it_holds_and_a_collaborator_afterwards_too(
    agent: Agent, request_type: str, *, afterwards: bool
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key, request_type=request_type)
    token = await agent.accept(handoff_id)
    assert await may_write(agent, key, "alice", "bob") == [True, True]

    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="complete", token=token)

    assert await may_write(agent, key, "alice", "bob") == [True, afterwards]
    assert (await agent.read(f"handoff://sessions/{key}"))["owner"] == "alice"


async def test_a_collaborator_stays_one_when_a_later_transfer_to_it_ends(agent: Agent) -> None:
    key = await agent.session()
    for request_type in ("collaboration", "context_transfer"):
        handoff_id = await agent.offer(key, request_type=request_type)
        token = await agent.accept(handoff_id)
        await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="complete", token=token)

    assert await may_write(agent, key, "bob") == [True]


async def test_an_owner_gives_a_session_away_once(agent: Agent) -> None:
    key = await agent.session()
    to_bob = await agent.offer(key, "bob", request_type="full_handoff")
    to_carol = await agent.offer(key, "carol", request_type="full_handoff")
    await agent.accept(to_bob, "bob")

    error = await agent.refused("accept_handoff", agent="carol", handoff_id=to_carol)

    assert (error["code"], error["owner"]) == ("ownership_moved", "bob")
    offer = {"session_key": key, "instructions": "x", "target_agent": "dan"}
    assert (await agent.refused("request_handoff", agent="alice", **offer))["code"] == "not_a_writer"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"target_agent": None}, "invalid_arguments"),
        ({"target_capability": "review"}, "invalid_arguments"),
        ({"target_agent": "alice"}, "invalid_arguments"),
        ({"session_key": "unknown"}, "session_not_found"),
        ({"agent": "mallory"}, "not_a_writer"),
    ],
)
async def test_an_offer_that_makes_no_sense_is_refused_and_leaves_nothing(
    agent: Agent, db: asyncpg.Connection, change: dict[str, Any], code: str
) -> None:
    key = await agent.session()
    arguments = {"agent": "alice", "session_key": key, "target_agent": "bob", "instructions": "Go on.", **change}

    assert (await agent.refused("request_handoff", **arguments))["code"] == code
    assert await db.fetchval("SELECT count(*) FROM handoff") == 0


async def test_a_repeated_write_with_its_key_takes_effect_once(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session(idempotency_key="1", session_key="s")
    assert await agent.session(idempotency_key="1", session_key="s") == key
    offer = {"agent": "alice", "session_key": key, "target_agent": "bob", "instructions": "x", "idempotency_key": "2"}
    first = await agent.ok("request_handoff", **offer)
    assert await agent.ok("request_handoff", **offer) == first
    accept = {"agent": "bob", "handoff_id": first["handoff_id"], "idempotency_key": "3"}
    taken = await agent.ok("accept_handoff", **accept)
    assert (await agent.ok("accept_handoff", **accept))["handoff"] == taken["handoff"]
    complete = {"action": "complete", "token": 1, "idempotency_key": "4", **{k: accept[k] for k in ("agent", "handoff_id")}}
    done = await agent.ok("resolve_handoff", **complete)
    assert await agent.ok("resolve_handoff", **complete) == done
    error = await agent.refused("resolve_handoff", **complete | {"note": "other"})

    assert error["code"] == "idempotency_conflict"
    assert await kinds(agent, key) == ["offered", "accepted", "completed"]
    assert await db.fetchval("SELECT count(*) FROM session") == 1


async def test_a_refused_write_does_not_use_up_its_key(agent: Agent) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    hold = {"agent": "bob", "handoff_id": handoff_id, "token": 1, "idempotency_key": "k"}

    assert (await agent.refused("renew_handoff", **hold))["code"] == "wrong_state"
    await agent.accept(handoff_id)

    assert (await agent.ok("renew_handoff", **hold))["state"] == "accepted"


async def test_an_inbox_lists_the_urgent_first_and_pages_without_gap_or_repeat(agent: Agent) -> None:
    key = await agent.session()
    offered = [(await agent.offer(key, priority=number % 10), number % 10) for number in range(25)]
    await agent.offer(key, "carol")
    held = offered[7][0]
    await agent.accept(held)

    seen: list[tuple[int, int]] = []
    cursor: str | None = None
    while True:
        page = await agent.ok("get_inbox", agent="bob", cursor=cursor)
        assert len(page["handoffs"]) <= 10
        seen += [(row["handoff_id"], row["priority"]) for row in page["handoffs"]]
        cursor = page.get("next_cursor")
        if cursor is None:
            break

    assert seen == sorted(offered, key=lambda it: (-it[1], it[0]))


async def test_an_inbox_of_three_kinds_is_paged_without_gap_or_repeat_while_it_changes(agent: Agent) -> None:
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
    expected = sorted(offered, key=lambda it: (-it[1], it[0]))

    first = await agent.ok("get_inbox", agent="bob")
    seen = [row["handoff_id"] for row in first["handoffs"]]
    passed, coming = seen[0], expected[15][0]
    await agent.offer(key, priority=9)  # it stands before the position
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
    assert [row["handoff_id"] for row in first["handoffs"]] == [handoff_id for handoff_id, _ in expected[:10]]


async def test_an_inbox_holds_what_fits_the_capabilities_declared_last(agent: Agent) -> None:
    key = await agent.session()
    target: dict[str, Any] = {"target_agent": None, "target_capability": "review"}
    handoff_id = await agent.offer(key, **target)

    async def inbox(**arguments: Any) -> list[int]:
        return [row["handoff_id"] for row in (await agent.ok("get_inbox", agent="bob", **arguments))["handoffs"]]

    assert await inbox() == []
    assert await inbox(capabilities=["review"]) == [handoff_id]
    assert await inbox() == [handoff_id]
    assert await inbox(capabilities=["build"]) == []
    assert (await agent.refused("accept_handoff", agent="bob", handoff_id=handoff_id))["code"] == "handoff_not_found"
    assert await inbox(capabilities=["review"]) == [handoff_id]
    await agent.accept(handoff_id)
    assert await inbox(capabilities=[]) == [handoff_id]  # who holds it goes on holding it


async def test_an_acceptance_sent_to_two_processes_at_once_with_its_key_takes_one_lease(
    settings: Settings, agent: Agent
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    tokens: list[int] = []
    async with open_app(settings) as second, Client(build_server(second)) as client:

        async def accept(hand: Agent) -> None:
            tokens.append(await hand.accept(handoff_id, idempotency_key="k"))

        async with anyio.create_task_group() as group:
            for hand in (agent, Agent(client)) * 3:
                group.start_soon(accept, hand)

    assert tokens == [1] * 6
    assert await kinds(agent, key) == ["offered", "accepted"]


async def test_who_waits_is_woken_by_an_offer_from_another_process(settings: Settings, agent: Agent) -> None:
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
                    inbox = await other.ok("get_inbox", agent="bob", capabilities=declared, wait_seconds=30)
                    found.extend(inbox["handoffs"])

                group.start_soon(wait)
                await until(lambda: second.wakeups._waiters > 0)
                await agent.offer(key, **target)
            assert [row["state"] for row in found] == ["offered"]
            assert monotonic() - started < 2  # of the thirty seconds that it would wait
            await agent.ok("resolve_handoff", agent="alice", handoff_id=found[0]["handoff_id"], action="cancel")


async def test_a_wait_ends_in_time_and_looks_only_when_it_is_rung(
    agent: Agent, app: App, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    real = handoffs.inbox

    async def counted(conn: Any, name: str, **position: Any) -> Any:
        looks.append(name)
        return await real(conn, name, **position)

    monkeypatch.setattr(handoffs, "inbox", counted)
    started = monotonic()

    async def ring_for_nothing() -> None:
        await until(lambda: len(looks) == 1)
        await db.execute("SELECT pg_notify('handoff', 'agent:bob'), pg_notify('handoff', 'agent:carol')")

    async with anyio.create_task_group() as group:
        group.start_soon(ring_for_nothing)
        assert (await agent.ok("get_inbox", agent="bob", wait_seconds=1))["handoffs"] == []

    assert 0.9 < monotonic() - started < 3
    assert looks == ["bob", "bob"]


async def test_an_offer_made_while_nobody_could_listen_is_found_when_listening_begins_again(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    async with open_app(settings) as second, Client(build_server(second)) as client:
        found: list[dict[str, Any]] = []

        async def wait() -> None:
            found.extend((await Agent(client).ok("get_inbox", agent="bob", wait_seconds=20))["handoffs"])

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await until(lambda: second.wakeups._waiters > 0)
                await db.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE application_name = 'handoff-wakeups' AND datname = current_database()"
                )
                await agent.offer(key)
    assert len(found) == 1


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


async def test_a_duplicate_key_shows_the_state_of_the_session_that_has_it(agent: Agent) -> None:
    key = await agent.session(session_key="release-7")
    await agent.says(key, "hello")

    error = await agent.refused("register_session", agent="bob", session_key=key)

    assert {name: error[name] for name in ("code", "status", "owner", "last_sequence")} == {
        "code": "session_exists",
        "status": "active",
        "owner": "alice",
        "last_sequence": 2,
    }


async def test_an_operator_can_end_a_lease(settings: Settings) -> None:
    async with open_app(settings.model_copy(update={"admin": True})) as app, Client(build_server(app)) as client:
        agent = Agent(client)
        handoff_id = await agent.offer(await agent.session())
        await agent.accept(handoff_id)

        lapsed = await agent.ok("lapse_handoff", handoff_id=handoff_id, idempotency_key="k")
        assert lapsed["state"] == "offered"
        assert await agent.ok("lapse_handoff", handoff_id=handoff_id, idempotency_key="k") == lapsed
        assert (await agent.refused("lapse_handoff", handoff_id=handoff_id))["code"] == "wrong_state"
        assert await agent.accept(handoff_id) == 2


async def test_an_owner_can_cancel_an_offer_whose_sender_writes_no_more(agent: Agent) -> None:
    key = await agent.session()
    held = await agent.offer(key, "bob")
    token = await agent.accept(held)
    onward = await agent.offer(key, "carol", agent="bob")
    await agent.ok("resolve_handoff", agent="bob", handoff_id=held, action="complete", token=token)

    stranger = await agent.refused("resolve_handoff", agent="carol", handoff_id=onward, action="cancel")
    assert stranger["code"] == "not_sender"
    await agent.ok("resolve_handoff", agent="alice", handoff_id=onward, action="cancel")
    await agent.ok("close_session", agent="alice", session_key=key)


async def test_one_handoff_that_cannot_be_settled_does_not_keep_the_others_waiting(
    agent: Agent, app: App, db: asyncpg.Connection, caplog: pytest.LogCaptureFixture
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
    assert f"'handoff_id': {ids[0]}" in caplog.text
