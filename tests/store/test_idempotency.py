"""Idempotency keys: a repeated call takes effect once and returns the first result, in whichever process it arrives."""

from functools import partial
from hashlib import sha256
from typing import Any

import anyio
import asyncpg
import orjson
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store.idempotency import fingerprint
from handoff.tools.sessions import RegisterSession
from tests.agents import Agent, all_of, kinds
from tests.processes import PATIENCE_S
from tests.store.appends import item, sequences

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


async def test_a_repeated_key_returns_the_first_result_and_writes_nothing(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()

    first = await agent.says(key, "once", idempotency_key="k")
    await agent.says(key, "in between")
    again = await agent.says(key, "once", idempotency_key="k")

    assert again == first | {"replayed": True}
    assert await sequences(db, key) == [1, 2, 3]


async def test_a_key_used_with_other_arguments_or_by_another_tool_is_an_error(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session(idempotency_key="made")
    await agent.says(key, "once", idempotency_key="k")
    entry = {"type": "message", "content": "other"}

    for reused in ("k", "made"):
        error = await agent.refused(
            "update_context", agent="alice", session_key=key, entries=[entry], idempotency_key=reused
        )
        assert error["code"] == "idempotency_conflict"
    error = await agent.refused("register_session", agent="alice", idempotency_key="k")
    assert error["code"] == "idempotency_conflict"
    assert await sequences(db, key) == [1, 2]
    assert await db.fetchval("SELECT count(*) FROM session") == 1


async def test_a_key_belongs_to_its_agent(agent: Agent) -> None:
    mine, yours = await agent.session("alice"), await agent.session("bob")

    first = await agent.says(mine, "same", idempotency_key="k")
    second = await agent.says(yours, "same", agent="bob", idempotency_key="k")

    assert (first["replayed"], second["replayed"]) == (False, False)


async def test_one_key_used_many_times_at_once_in_two_processes_writes_once(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    async with open_app(settings) as second, Client(build_server(second)) as client:
        hands = [agent, Agent(client)] * 8
        done = await all_of(*[hand.says(key, "once", idempotency_key="k") for hand in hands])

    assert {answer["first_sequence"] for answer in done} == {2}
    assert sorted(answer["replayed"] for answer in done) == [False] + [True] * 15
    assert await sequences(db, key) == [1, 2]


async def test_one_key_used_for_two_sessions_at_once_in_two_processes_writes_once_and_conflicts_once(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    keys = [await agent.session(), await agent.session()]
    codes: list[str] = []

    async def attempt(hand: Agent, key: str) -> None:
        entry = {"type": "message", "content": "where?"}
        arguments = {"agent": "alice", "session_key": key, "entries": [entry], "idempotency_key": "k"}
        result = await hand.client.call_tool("update_context", arguments)
        codes.append("conflict" if result.is_error else "ok")

    async with open_app(settings) as second, Client(build_server(second)) as client:
        for _ in range(10):
            codes.clear()
            await db.execute("DELETE FROM idempotency; DELETE FROM context_entry WHERE sequence > 1")
            await db.execute("UPDATE session SET last_sequence = 1")
            await all_of(attempt(agent, keys[0]), attempt(Agent(client), keys[1]))
            assert sorted(codes) == ["conflict", "ok"]
            assert await db.fetchval("SELECT count(*) FROM context_entry WHERE sequence > 1") == 1


async def test_a_client_that_repeats_its_writes_through_three_processes_gets_only_first_results(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    keys = [await agent.session() for _ in range(8)]
    first: dict[str, int] = {}
    fresh: list[str] = []

    async def write(app: App, numbers: list[int]) -> None:
        for number in numbers:
            name = str(number)
            done = await app.lane.append(item(keys[number % 8], name=name))
            assert first.setdefault(name, done.first_sequence) == done.first_sequence
            if not done.replayed:
                fresh.append(name)

    async with open_app(settings) as one, open_app(settings) as two, open_app(settings) as three:
        await all_of(
            *[
                write(app, [worker * 16 + (number * stride + worker) % 16 for number in range(16)])
                for app, stride in ((one, 1), (two, 5), (three, 11))
                for worker in range(8)
            ]
        )

    assert sorted(fresh, key=int) == [str(number) for number in range(128)]
    assert await db.fetchval("SELECT count(*) FROM context_entry WHERE sequence > 1") == 128


async def test_a_key_that_another_tool_is_using_is_a_conflict_even_after_a_deadlock(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    await db.execute("SET deadlock_timeout = '10s'")  # longer than the append's, which is thus cancelled
    refused: list[dict[str, Any]] = []
    async with open_app(settings) as app, Client(build_server(app)) as client:

        async def append() -> None:
            entries = [{"type": "message", "content": "x"}]
            arguments = {"agent": "alice", "session_key": key, "entries": entries, "idempotency_key": "k"}
            refused.append(await Agent(client).refused("update_context", **arguments))

        async with anyio.create_task_group() as group, db.transaction():
            claim = "INSERT INTO idempotency VALUES ('alice', 'k', 'request_handoff', sha256('x'), NULL, '{}', now())"
            await db.execute(claim)
            group.start_soon(append)
            await waits_for_a_lock(db)  # the append has locked the session and waits for the key
            await db.execute("SELECT FROM session FOR NO KEY UPDATE")
            await waits_for_a_lock(db)  # the append waits for the session, with a snapshot in which the key is free

    assert [error["code"] for error in refused] == ["idempotency_conflict"]
    # There may be several: when an abort releases the row lock, the append may get it first again.
    assert await db.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") >= 1
    assert await sequences(db, key) == [1]


async def waits_for_a_lock(db: asyncpg.Connection) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not await db.fetchval(WAITING):
            await db.execute("SELECT pg_stat_clear_snapshot()")
            await anyio.sleep(0.005)


async def test_a_repeat_gets_the_first_result_even_after_the_session_was_closed(agent: Agent) -> None:
    key = await agent.session()
    first = await agent.says(key, "last words", idempotency_key="k")
    await agent.ok("close_session", agent="alice", session_key=key)

    again = await agent.says(key, "last words", idempotency_key="k")

    assert again == first | {"replayed": True}


async def test_a_caller_that_disconnects_and_repeats_its_call_gets_the_first_result(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    async with db.transaction():
        await db.execute("SELECT FROM session FOR NO KEY UPDATE")
        async with anyio.create_task_group() as group:
            group.start_soon(partial(agent.says, key, "stays", idempotency_key="k"))
            await waits_for_a_lock(db)
            group.cancel_scope.cancel()
    await app.lane.drain()

    again = await agent.says(key, "stays", idempotency_key="k")

    assert (again["first_sequence"], again["replayed"]) == (2, True)
    assert await sequences(db, key) == [1, 2]


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


def test_only_the_arguments_that_were_sent_count() -> None:
    class Later(RegisterSession):
        """The tool in a later version, with another default and a new argument."""

        retention_policy: str = "extended"
        color: str | None = None

    sent = {"agent": "alice", "metadata": {"a": None}, "idempotency_key": "k"}
    now, later = RegisterSession.model_validate(sent), Later.model_validate(sent)
    assert fingerprint("register_session", later) == fingerprint("register_session", now)
    null = RegisterSession.model_validate(sent | {"session_key": None})
    assert fingerprint("register_session", null) == fingerprint("register_session", now)
    for other in ({"metadata": {}}, {"retention_policy": "short"}, {"session_key": "s"}):
        differs = RegisterSession.model_validate(sent | other)
        assert fingerprint("register_session", differs) != fingerprint("register_session", now)


async def test_a_write_made_by_the_version_before_is_replayed_after_the_upgrade(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key = "s"
    entry = {"type": "message", "content": "x", "metadata": {"a": None}}
    whole_entry = entry | {"supersedes": None}
    lease: dict[str, Any] = {"handoff_id": 1, "token": 1}
    offer = {"session_key": key, "instructions": "x", "target_agent": "bob"}
    whole_offer = {**offer, "target_capability": None, "request_type": "context_transfer", "priority": 5}
    calls: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("register_session", "alice", {"session_key": key}, {"retention_policy": "standard", "metadata": None}),
        ("update_context", "alice", {"session_key": key, "entries": [entry]}, {"entries": [whole_entry]}),
        ("request_handoff", "alice", offer, {**whole_offer, "deadline_minutes": None}),
        ("accept_handoff", "bob", {"handoff_id": 1}, {"lease_seconds": None, "token_budget": 1_500}),
        ("renew_handoff", "bob", lease, {"lease_seconds": None}),
        ("resolve_handoff", "bob", lease | {"action": "complete"}, {"note": None}),
        ("close_session", "alice", {"session_key": key}, {"outcome": "completed"}),
    ]
    calls[1][3]["expected_sequence"] = None
    for tool, name, arguments, rest in calls:
        keyed = {"agent": name, **arguments, "idempotency_key": tool}
        first = await agent.ok(tool, **keyed)
        former = sha256(tool.encode() + b"\0" + orjson.dumps(arguments | rest, option=orjson.OPT_SORT_KEYS)).digest()
        await db.execute("UPDATE idempotency SET fingerprint = $2 WHERE key = $1", tool, former)
        again = await agent.ok(tool, **keyed)
        if tool == "update_context":
            assert again == first | {"replayed": True}
        else:
            assert again == first


async def test_a_refused_write_leaves_its_key_unused(agent: Agent) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    hold = {"agent": "bob", "handoff_id": handoff_id, "token": 1, "idempotency_key": "k"}

    assert (await agent.refused("renew_handoff", **hold))["code"] == "wrong_state"
    await agent.accept(handoff_id)

    assert (await agent.ok("renew_handoff", **hold))["state"] == "accepted"


async def test_an_acceptance_sent_to_two_processes_at_once_with_one_key_takes_one_lease(
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
