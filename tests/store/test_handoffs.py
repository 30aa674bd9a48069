"""The life cycle of a handoff: who may do what, and what each step records."""

import hashlib
from typing import Any

import anyio
import asyncpg
import pytest

from handoff.brief import tokens_max
from handoff.context import App
from handoff.model import SEQUENCE_MAX
from handoff.store import entries, handoffs
from handoff.store.connect import connection
from handoff.views import handoff_view
from tests.agents import Agent, kinds


async def test_a_handoff_goes_from_offer_to_completion_and_each_step_records_one_event(agent: Agent) -> None:
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


async def test_a_reason_is_that_of_the_present_state_and_its_event_keeps_it(agent: Agent) -> None:
    handoff_id = await agent.offer(key := await agent.session())
    hold = {"agent": "bob", "handoff_id": handoff_id, "token": await agent.accept(handoff_id)}

    await agent.ok("resolve_handoff", action="block", note="no key " * 500, **hold)
    asked = {"agent": "alice", "session_key": key, "handoff_id": handoff_id}
    await agent.ok("request_handoff", **asked, instructions="The key is in the vault.")
    amended = await agent.read(f"handoff://handoffs/{handoff_id}")
    resumed = await agent.ok("renew_handoff", **hold)
    done = await agent.ok("resolve_handoff", action="complete", **hold)

    assert (amended["state"], amended["reason"]) == ("blocked", "no key " * 500)
    assert [(it["state"], it.get("reason")) for it in (resumed, done)] == [("accepted", None), ("completed", None)]
    events = (await agent.read(f"handoff://sessions/{key}/lifecycle"))["events"]
    reasons = {event["kind"]: event.get("data", {}).get("reason") for event in events}
    assert {kind: reason for kind, reason in reasons.items() if reason} == {"handoff.blocked": ("no key " * 500)[:1_000]}


async def test_the_context_digest_covers_exactly_the_entries_that_were_handed_over(agent: Agent) -> None:
    key = await agent.session()
    await agent.says(key, "first")
    await agent.says(key, "second")
    handoff = await agent.read(f"handoff://handoffs/{await agent.offer(key)}")
    await agent.says(key, "after the offer")

    page = await agent.ok("get_context", agent="alice", session_key=key, view="entries")
    handed = page["entries"][: handoff["as_of_sequence"]]
    digest = hashlib.sha256(b"".join(bytes.fromhex(entry["content_hash"]) for entry in handed)).hexdigest()

    assert [entry["sequence"] for entry in handed] == [1, 2, 3]
    assert handoff["context_digest"] == digest


async def test_appends_go_on_while_the_context_is_hashed_and_the_digest_covers_them(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await agent.session()
    for number in range(7):
        await agent.says(key, f"entry {number}")
    hash_entries, appended = entries.add_hashes, False

    async def append_meanwhile(*arguments: Any, **named: Any) -> None:
        nonlocal appended
        await hash_entries(*arguments, **named)
        if not appended:
            await agent.says(key, "meanwhile")  # would hang if the session were locked by now
            appended = True

    monkeypatch.setattr(entries, "_HASHES_MAX", 3)
    monkeypatch.setattr(entries, "add_hashes", append_meanwhile)
    handoff = await agent.read(f"handoff://handoffs/{await agent.offer(key)}")

    page = await agent.ok("get_context", agent="alice", session_key=key, view="entries", limit=100)
    digest = hashlib.sha256(b"".join(bytes.fromhex(entry["content_hash"]) for entry in page["entries"])).hexdigest()
    assert handoff["as_of_sequence"] == len(page["entries"]) == 9
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
async def test_a_resolution_without_its_token_or_note_is_refused_and_changes_nothing(
    agent: Agent, arguments: dict[str, Any]
) -> None:
    handoff_id = await agent.offer(key := await agent.session())
    await agent.accept(handoff_id)

    error = await agent.refused("resolve_handoff", agent="bob", handoff_id=handoff_id, **arguments)

    assert (error["code"], error["retryable"]) == ("invalid_arguments", False)
    assert await kinds(agent, key) == ["offered", "accepted"]


async def test_an_unknown_handoff_and_one_between_other_agents_get_the_same_error(agent: Agent) -> None:
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
        for unknown in (handoff_id, 4_711, SEQUENCE_MAX):
            error = await agent.refused(tool, agent="mallory", handoff_id=unknown, **arguments)
            assert error["code"] == "handoff_not_found"
            assert error["message"] == f"There is no handoff {unknown} that you may see."


async def test_a_held_handoff_cannot_be_cancelled_rejected_or_accepted_again(agent: Agent) -> None:
    handoff_id = await agent.offer(key := await agent.session())
    token = await agent.accept(handoff_id)
    hold = {"agent": "bob", "handoff_id": handoff_id, "token": token}
    attempts: list[tuple[str, dict[str, Any]]] = [
        ("resolve_handoff", {"agent": "alice", "action": "cancel"}),
        ("resolve_handoff", {"agent": "bob", "action": "reject", "note": "no"}),
        ("accept_handoff", {"agent": "bob"}),
    ]

    for state, allowed in (("accepted", "renew, block, complete"), ("blocked", "renew")):
        for tool, arguments in attempts:
            error = await agent.refused(tool, handoff_id=handoff_id, **arguments)
            assert (error["code"], error["state"], error["holder"]) == ("wrong_state", state, "bob")
            assert error["try"] == f"Allowed now, to its holder: {allowed}."
        if state == "accepted":
            await agent.ok("resolve_handoff", action="block", note="waiting", **hold)
    early = await agent.refused("resolve_handoff", action="complete", **hold)

    assert (early["code"], early["state"]) == ("wrong_state", "blocked")
    assert await kinds(agent, key) == ["offered", "accepted", "blocked"]


async def test_a_change_that_fails_leaves_state_events_and_writers_unchanged(agent: Agent, db: asyncpg.Connection) -> None:
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


async def test_only_the_addressed_agent_can_accept_and_only_once(agent: Agent) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)

    assert (await agent.refused("accept_handoff", agent="mallory", handoff_id=handoff_id))["code"] == "handoff_not_found"
    assert (await agent.refused("accept_handoff", agent="alice", handoff_id=handoff_id))["code"] == "not_addressed"
    await agent.accept(handoff_id)
    error = await agent.refused("accept_handoff", agent="bob", handoff_id=handoff_id)

    assert (error["code"], error["holder"]) == ("wrong_state", "bob")


async def test_of_many_agents_that_accept_at_once_exactly_one_gets_the_handoff(agent: Agent) -> None:
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


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"target_agent": None}, "invalid_arguments"),
        ({"target_capability": "review"}, "invalid_arguments"),
        ({"target_agent": "alice"}, "invalid_arguments"),
        ({"session_key": "unknown"}, "session_not_found"),
        ({"agent": "mallory"}, "session_not_found"),
    ],
)
async def test_an_invalid_offer_is_refused_and_nothing_is_written(
    agent: Agent, db: asyncpg.Connection, change: dict[str, Any], code: str
) -> None:
    key = await agent.session()
    arguments = {"agent": "alice", "session_key": key, "target_agent": "bob", "instructions": "Go on.", **change}

    assert (await agent.refused("request_handoff", **arguments))["code"] == code
    assert await db.fetchval("SELECT count(*) FROM handoff") == 0


async def test_what_to_do_next_depends_on_who_reads(agent: Agent, app: App) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key, to="bob")

    async def steps() -> dict[str | None, str]:
        async with connection(app.pool) as conn:
            row = await handoffs.find(conn, handoff_id)
            assert row is not None
            return {viewer: handoff_view(row, viewer).get("next", "") for viewer in ("alice", "bob", "carol", None)}

    offered = await steps()
    inbox = await agent.ok("get_inbox", agent="bob")
    token = await agent.accept(handoff_id)
    accepted = await steps()
    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="block", token=token, note="no key")
    blocked = await steps()
    await agent.ok("renew_handoff", agent="bob", handoff_id=handoff_id, token=token)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="complete", token=token)
    completed = await steps()

    assert offered["bob"].startswith("It is offered to you: call accept_handoff")
    assert inbox["handoffs"][0]["next"] == offered["bob"]
    assert offered["alice"].startswith("Wait until it is accepted.")
    assert offered["carol"] == offered[None] == "Leave it to bob, to whom it is offered."
    assert accepted["bob"].startswith("You hold it: work on it")
    assert accepted["alice"].startswith("Wait: bob is working on it.")
    assert accepted["carol"] == accepted[None] == "Leave it to bob, who is working on it."
    assert blocked["bob"].startswith("You hold it, and it is blocked")
    assert blocked["alice"].startswith("bob holds it and is blocked")
    assert blocked["carol"] == blocked[None] == "Leave it to bob, who holds it and is blocked."
    assert set(completed.values()) == {""}


async def test_an_offer_to_a_capability_tells_those_who_may_have_it_what_to_do(agent: Agent) -> None:
    key = await agent.session()
    await agent.ok("get_inbox", agent="bob", capabilities=["sql"])
    asked = await agent.ok(
        "request_handoff", agent="alice", session_key=key, target_capability="sql", instructions="Tune it."
    )
    inbox = await agent.ok("get_inbox", agent="bob")

    assert asked["next"].startswith("Wait until it is accepted.")
    assert inbox["handoffs"][0]["next"].startswith("If you have declared the capability sql, call accept_handoff")


async def test_a_sender_replaces_the_instructions_of_an_offer_which_then_speak_of_the_whole_session(agent: Agent) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key, instructions="Half is done.")
    await agent.says(key, "The other half too.")
    asked = {"agent": "alice", "session_key": key, "handoff_id": handoff_id, "instructions": "All is done but the tests."}

    answer = await agent.ok("request_handoff", **asked, idempotency_key="k")
    again = await agent.ok("request_handoff", **asked, idempotency_key="k")

    offer = (await agent.ok("get_inbox", agent="bob"))["handoffs"][0]
    assert (offer["handoff_id"], offer["state"], offer["instructions"]) == (handoff_id, "offered", asked["instructions"])
    assert offer["as_of_sequence"] == answer["as_of_sequence"] == 2
    fresh = await agent.ok("request_handoff", agent="alice", session_key=key, target_agent="carol", instructions="x")
    assert offer["context_digest"] == fresh["context_digest"]
    assert again == answer
    assert await kinds(agent, key) == ["offered", "amended", "offered"]


@pytest.mark.parametrize("request_type", ["context_transfer", "full_handoff"])
async def test_a_sender_adds_a_note_for_the_holder_whose_lease_and_receipt_stay_as_they_are(
    agent: Agent, request_type: str
) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key, instructions="Do it.", request_type=request_type)
    held = (await agent.ok("accept_handoff", agent="bob", handoff_id=handoff_id))["handoff"]
    await agent.ok("update_context", agent="bob", session_key=key, entries=[{"type": "message", "content": "on it"}])
    if request_type == "full_handoff":
        refused = await agent.refused(
            "update_context", agent="alice", session_key=key, entries=[{"type": "message", "content": "x"}]
        )
        assert (refused["code"], "add a note for the holder by request_handoff" in refused["try"]) == ("not_a_writer", True)
    asked = {"agent": "alice", "session_key": key, "handoff_id": handoff_id}

    await agent.ok("request_handoff", **asked, instructions="Not on Friday.")
    await agent.ok("request_handoff", **asked, instructions="Nor on Monday.")

    row = (await agent.ok("get_inbox", agent="bob"))["handoffs"][0]
    first, second, original = row["instructions"].split("\n\n")
    assert (first, second) == (
        "Note from alice, after entry 2: Nor on Monday.",
        "Note from alice, after entry 2: Not on Friday.",
    )
    assert original == "Do it."
    for name in ("state", "token", "lease_expires_at", "as_of_sequence", "context_digest"):
        assert row[name] == held[name]
    brief = (await agent.ok("get_context", agent="bob", session_key=key))["brief"]
    assert brief["parts"][0]["text"] == row["instructions"]
    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, token=row["token"], action="complete")
    settled = await agent.refused("request_handoff", **asked, instructions="Too late.")
    assert (settled["code"], "is settled" in settled["try"]) == ("wrong_state", True)


async def test_an_amendment_that_is_refused_says_why_and_changes_nothing(agent: Agent) -> None:
    key, other = await agent.session(), await agent.session()
    handoff_id = await agent.offer(key, instructions="Do it. " * 2_800)
    asked = {"session_key": key, "handoff_id": handoff_id, "instructions": "More."}

    refusals = {
        "more": await agent.refused("request_handoff", agent="alice", **asked, target_agent="carol", priority=9),
        "session": await agent.refused("request_handoff", agent="alice", **{**asked, "session_key": other}),
        "target": await agent.refused("request_handoff", agent="bob", **asked),
        "stranger": await agent.refused("request_handoff", agent="carol", **asked),
    }
    token = await agent.accept(handoff_id)
    refusals["long"] = await agent.refused("request_handoff", agent="alice", **{**asked, "instructions": "x" * 1_000})

    codes = {name: error["code"] for name, error in refusals.items()}
    assert codes == {
        "more": "invalid_arguments",
        "session": "invalid_arguments",
        "target": "not_sender",
        "stranger": "handoff_not_found",
        "long": "limit_reached",
    }
    assert "not priority and target_agent" in refusals["more"]["message"]
    assert refusals["long"]["try"].startswith("Shorten the note by 63")
    row = await agent.read(f"handoff://handoffs/{handoff_id}")
    assert (row["token"], row["instructions"]) == (token, "Do it. " * 2_800)


async def test_the_answer_to_an_offer_says_what_the_receivers_brief_leaves_out(agent: Agent) -> None:
    key = await agent.session()
    decisions = [{"type": "decision", "content": f"{n} " + "so it is " * 20} for n in range(50)]
    for _ in range(2):
        await agent.ok("update_context", agent="alice", session_key=key, entries=decisions)

    answer = await agent.ok("request_handoff", agent="alice", session_key=key, target_agent="bob", instructions="Go on.")

    seen = answer["brief"]
    sent = (await agent.ok("get_context", agent="bob", session_key=key))["brief"]
    assert (seen["tokens"], seen["omitted"]) == (sent["tokens"], sent["omitted"])
    assert seen["omitted"]["by_kind"]["decision"] > len(seen["omitted"]["listed"]) > 3
    assert seen["tokens"] <= tokens_max(seen["token_budget"])
