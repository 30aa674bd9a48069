"""The life of a handoff: who may do what, when, and what each change leaves behind."""

import hashlib
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
    key = await agent.session()  # parity 4: there was no row, no accept, no complete
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
    key = await agent.session()  # parity 4: a full handoff closed the session for its receiver
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
            assert monotonic() - started < 5
            await agent.ok("resolve_handoff", agent="alice", handoff_id=found[0]["handoff_id"], action="cancel")


async def test_a_wait_without_an_offer_ends_in_time_and_looks_only_once(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    real = handoffs.inbox

    async def counted(conn: Any, name: str, **position: Any) -> Any:
        looks.append(name)
        return await real(conn, name, **position)

    monkeypatch.setattr(handoffs, "inbox", counted)
    started = monotonic()

    assert (await agent.ok("get_inbox", agent="bob", wait_seconds=1))["handoffs"] == []
    assert 0.9 < monotonic() - started < 3
    assert looks == ["bob"]


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

        assert (await agent.ok("lapse_handoff", handoff_id=handoff_id))["state"] == "offered"
        assert (await agent.refused("lapse_handoff", handoff_id=handoff_id))["code"] == "wrong_state"
        assert await agent.accept(handoff_id) == 2
