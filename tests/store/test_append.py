"""The append: concurrent, exact, repeatable; one bad call never harms its neighbours."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Any

import anyio
import asyncpg
import pytest
from mcp import Client

from handoff.app import App, open_app
from handoff.errors import HandoffError
from handoff.server import build_server
from handoff.settings import Settings
from handoff.store.append import Append, AppendLane, NewEntry
from tests.agents import Agent

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
SEQUENCES = "SELECT sequence FROM context_entry e JOIN session s ON s.id = e.session_id WHERE s.key = $1 ORDER BY sequence"


async def sequences(db: asyncpg.Connection, key: str) -> list[int]:
    return [row["sequence"] for row in await db.fetch(SEQUENCES, key)]


async def all_of(*calls: Any) -> list[Any]:
    """Make all calls at once; their results in order."""
    results: list[Any] = [None] * len(calls)

    async def one(place: int, call: Any) -> None:
        results[place] = await call

    async with anyio.create_task_group() as group:
        for place, call in enumerate(calls):
            group.start_soon(one, place, call)
    return results


async def test_thirty_two_concurrent_appends_to_one_session_leave_no_gap(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()  # MAX + 1 without a lock fails four of five here

    done = await all_of(*[agent.says(key, f"message {number}") for number in range(32)])

    assert sorted(answer["first_sequence"] for answer in done) == list(range(2, 34))
    assert await sequences(db, key) == list(range(1, 34))


async def test_many_appends_to_many_sessions_at_once_leave_no_gap_in_any(agent: Agent, db: asyncpg.Connection) -> None:
    keys = [await agent.session() for _ in range(16)]

    done = await all_of(*[agent.says(key, f"{number}") for number in range(8) for key in keys])

    assert sorted(answer["first_sequence"] for answer in done) == sorted(list(range(2, 10)) * 16)
    for key in keys:
        assert await sequences(db, key) == list(range(1, 10))


async def test_batches_of_two_processes_over_the_same_sessions_in_opposite_order_do_not_deadlock(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    keys = [await agent.session() for _ in range(12)]
    async with open_app(settings) as one, open_app(settings) as other:
        for _ in range(10):
            await all_of(
                *[one.lane.append(item(key)) for key in keys for _ in range(3)],
                *[other.lane.append(item(key)) for key in reversed(keys) for _ in range(3)],
            )

    for key in keys:  # a base read before the lock would give two processes the same numbers
        assert await sequences(db, key) == list(range(1, 62))
    assert await db.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


async def test_processes_that_append_to_the_same_sessions_neither_fail_nor_leave_gaps(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    keys = [await agent.session() for _ in range(6)]
    async with (
        open_app(settings) as first,
        open_app(settings) as second,
        Client(build_server(first)) as one,
        Client(build_server(second)) as other,
    ):
        hands = [agent, Agent(one), Agent(other)]
        await all_of(
            *[
                hand.says(keys[(number + place) % len(keys)], f"{place}/{number}")
                for number in range(60)
                for place, hand in enumerate(hands)
            ]
        )

    for key in keys:
        assert await sequences(db, key) == list(range(1, 32))
    assert await db.fetchval("SELECT sum(last_sequence) FROM session") == 6 + 180


async def test_a_call_that_cannot_be_applied_does_not_fail_its_neighbours(agent: Agent, db: asyncpg.Connection) -> None:
    key, foreign = await agent.session(), await agent.session("carol")
    errors: list[dict[str, Any]] = []

    async def refused(**arguments: Any) -> None:
        entry = {"type": "message", "content": "no", **arguments.pop("entry", {})}
        errors.append(await agent.refused("update_context", agent="alice", entries=[entry], **arguments))

    await all_of(
        *[agent.says(key, f"{number}") for number in range(5)],
        refused(session_key="nobody-knows-it"),
        refused(session_key=foreign),
        refused(session_key=key, expected_sequence=77),
        refused(session_key=key, entry={"supersedes": [99]}),
        *[agent.says(key, f"{number}") for number in range(5)],
    )

    assert {error["code"] for error in errors} == {
        "session_not_found",
        "not_a_writer",
        "sequence_mismatch",
        "invalid_arguments",
    }
    assert await sequences(db, key) == list(range(1, 12))
    assert await sequences(db, foreign) == [1]


async def test_what_postgres_refuses_fails_alone(agent: Agent, app: App, db: asyncpg.Connection) -> None:
    key = await agent.session()
    refused: list[str] = []

    async def append(one: Append) -> None:
        try:
            await app.lane.append(one)
        except asyncpg.PostgresError as error:
            refused.append(type(error).__name__)

    good = [item(key) for _ in range(6)]
    bad = Append(key, "alice", [NewEntry("message", "x", "{not json", "", 1, bytes(32))], monotonic())
    await all_of(*[append(one) for one in (*good[:3], bad, *good[3:])])

    assert refused == ["InvalidTextRepresentationError"]
    assert await sequences(db, key) == list(range(1, 8))


async def test_an_expected_sequence_is_exact_while_others_append_from_two_processes(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    entry = {"type": "decision", "content": "now"}
    won: list[tuple[int, int]] = []

    async def compare_and_set(hand: Agent) -> None:
        at = 1
        for _ in range(12):
            arguments = {"agent": "alice", "session_key": key, "entries": [entry], "expected_sequence": at}
            result = await hand.client.call_tool("update_context", arguments)
            answer = json.loads(getattr(result.content[0], "text", ""))
            if not result.is_error:
                won.append((at, answer["first_sequence"]))
            at = answer["error"]["current_sequence"] if result.is_error else answer["last_sequence"]

    async with open_app(settings) as second, Client(build_server(second)) as client:
        hands = [agent, Agent(client)]
        await all_of(
            *[compare_and_set(hand) for hand in hands * 3],
            *[hand.says(key, "meanwhile") for hand in hands for _ in range(10)],
        )

    assert won
    assert all(first == at + 1 for at, first in won)
    assert len({at for at, _ in won}) == len(won)  # one winner a sequence
    assert await sequences(db, key) == list(range(1, 1 + 1 + 20 + len(won)))


async def test_of_many_appends_that_expect_the_same_sequence_exactly_one_wins(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()
    outcomes: list[str] = []

    async def attempt(number: int) -> None:
        result = await agent.client.call_tool(
            "update_context",
            {
                "agent": "alice",
                "session_key": key,
                "entries": [{"type": "message", "content": str(number)}],
                "expected_sequence": 1,
            },
        )
        outcomes.append("lost" if result.is_error else "won")

    await all_of(*[attempt(number) for number in range(20)])

    assert sorted(outcomes) == ["lost"] * 19 + ["won"]
    assert await sequences(db, key) == [1, 2]
    error = await agent.refused(
        "update_context",
        agent="alice",
        session_key=key,
        entries=[{"type": "message", "content": "late"}],
        expected_sequence=1,
    )
    assert (error["code"], error["current_sequence"], error["retryable"]) == ("sequence_mismatch", 2, False)


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


async def test_the_same_key_many_times_at_once_in_two_processes_writes_once(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    async with open_app(settings) as second, Client(build_server(second)) as client:
        hands = [agent, Agent(client)] * 8
        done = await all_of(*[hand.says(key, "once", idempotency_key="k") for hand in hands])

    assert {answer["first_sequence"] for answer in done} == {2}
    assert sorted(answer["replayed"] for answer in done) == [False] + [True] * 15
    assert await sequences(db, key) == [1, 2]


async def test_the_same_key_on_two_sessions_at_once_in_two_processes_is_one_write_and_conflicts(
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


async def test_a_client_that_repeats_all_it_wrote_through_three_processes_gets_first_results_only(
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


async def test_a_key_that_another_tool_is_just_using_is_a_conflict_even_when_it_costs_a_deadlock(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    await db.execute("SET deadlock_timeout = '10s'")  # so that the append, which looks after one second, gives way
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
            await waits_for_a_lock(db)  # it has locked the session, and wants the key
            await db.execute("SELECT FROM session FOR NO KEY UPDATE")
            await waits_for_a_lock(db)  # it wants the session, with a snapshot in which the key is free

    assert [error["code"] for error in refused] == ["idempotency_conflict"]
    assert await db.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 1
    assert await sequences(db, key) == [1]


async def waits_for_a_lock(db: asyncpg.Connection) -> None:
    with anyio.fail_after(5):
        while not await db.fetchval(WAITING):
            await db.execute("SELECT pg_stat_clear_snapshot()")
            await anyio.sleep(0.005)


async def test_a_repeat_is_answered_when_the_session_would_take_no_more(agent: Agent) -> None:
    key = await agent.session()
    first = await agent.says(key, "last words", idempotency_key="k")
    await agent.ok("close_session", agent="alice", session_key=key)

    again = await agent.says(key, "last words", idempotency_key="k")

    assert again == first | {"replayed": True}


async def test_entries_can_supersede_only_what_was_there_before_the_call(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()
    entries = [{"type": "decision", "content": "a"}, {"type": "decision", "content": "b", "supersedes": [2]}]

    error = await agent.refused("update_context", agent="alice", session_key=key, entries=entries)
    assert (error["code"], error["current_sequence"]) == ("invalid_arguments", 1)
    await agent.ok("update_context", agent="alice", session_key=key, entries=entries[:1])
    await agent.ok("update_context", agent="alice", session_key=key, entries=entries[1:])

    assert await db.fetchval("SELECT supersedes FROM context_entry WHERE sequence = 3") == [2]


async def test_a_dormant_session_to_which_two_processes_append_wakes_once(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    keys = [await agent.session() for _ in range(4)]
    await db.execute("UPDATE session SET status = 'dormant'")
    async with open_app(settings) as one, open_app(settings) as other:
        await all_of(*[app.lane.append(item(key)) for app in (one, other) for key in keys for _ in range(4)])

    woken = await db.fetch("SELECT session_id FROM event WHERE kind = 'session.reactivated' ORDER BY session_id")
    assert woken == await db.fetch("SELECT id FROM session ORDER BY id")


async def test_a_closed_session_takes_nothing_and_a_dormant_one_wakes_once(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()
    await db.execute("UPDATE session SET status = 'dormant'")

    await all_of(*[agent.says(key, str(number)) for number in range(8)])

    kinds = [event["kind"] for event in (await agent.read(f"handoff://sessions/{key}/lifecycle"))["events"]]
    assert kinds == ["session.created", "session.reactivated"]  # one event a change
    assert (await agent.read(f"handoff://sessions/{key}"))["status"] == "active"
    await agent.ok("close_session", agent="alice", session_key=key)
    error = await agent.refused(
        "update_context", agent="alice", session_key=key, entries=[{"type": "message", "content": "more"}]
    )
    assert (error["code"], error["status"]) == ("session_closed", "completed")
    assert len(await sequences(db, key)) == 9


async def test_activity_moves_the_expiry_by_the_policy(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session(retention_policy="short")
    await db.execute("UPDATE session SET expires_at = now(), last_activity_at = now() - interval '1 day'")

    await agent.says(key, "still here")

    assert await db.fetchval("SELECT expires_at - last_activity_at = interval '4 hours' FROM session")
    assert await db.fetchval("SELECT last_activity_at > now() - interval '1 minute' FROM session")


async def test_an_entry_is_kept_exactly_with_its_size_hash_and_time(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()
    content = "Größe: 10 µs\n\t😀 \\ \" ' $1 %s"
    entries = [
        {"type": "file", "content": content, "metadata": {"path": "a/b.py", "n": [1, 2.5, None]}},
        {"type": "decision", "content": "B", "supersedes": [1]},
    ]

    receipt = await agent.ok("update_context", agent="alice", session_key=key, entries=entries)

    page = await agent.ok("get_context", agent="alice", session_key=key, view="entries", after_sequence=1)
    file, decision = page["entries"]
    assert file["content"] == content
    assert file["size_bytes"] == len(content.encode())
    assert file["content_hash"] == hashlib.sha256(content.encode()).hexdigest() == receipt["content_hashes"][0]
    assert file["metadata"] == entries[0]["metadata"]
    assert decision["supersedes"] == [1]
    assert receipt["size_bytes"] == len(content.encode()) + 1
    assert 0 <= await db.fetchval("SELECT max(processing_ms) FROM context_entry WHERE sequence > 1") < 5_000
    assert await db.fetchval("SELECT content_bytes = (SELECT sum(size_bytes) FROM context_entry) FROM session")


async def test_sizes_and_hashes_are_of_the_content_as_utf_8_whatever_it_is(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()
    contents = ["é", "e\u0301", "\u200b", "👩‍👩‍👧", "\ufeffx", "\u2028\r\n", "\U0001f600" * 700, " ", "\x7f\x01"]
    entries = [{"type": "message", "content": content} for content in contents]

    receipts = [await agent.ok("update_context", agent="alice", session_key=key, entries=entries) for _ in range(2)]

    expected = [hashlib.sha256(content.encode()).hexdigest() for content in contents]
    assert [receipt["content_hashes"] for receipt in receipts] == [expected, expected]
    assert {receipt["size_bytes"] for receipt in receipts} == {sum(len(content.encode()) for content in contents)}
    wrong = (
        "SELECT count(*) FROM context_entry"
        " WHERE size_bytes <> octet_length(content) OR content_hash <> sha256(convert_to(content, 'UTF8'))"
    )
    assert await db.fetchval(wrong) == 0
    kept = await db.fetch("SELECT content FROM context_entry WHERE sequence > 1 ORDER BY sequence")
    assert [row["content"] for row in kept] == contents * 2


async def test_the_time_that_an_append_has_waited_is_kept(agent: Agent, app: App, db: asyncpg.Connection) -> None:
    late = item(await agent.session())
    late.received -= 2

    await app.lane.append(late)

    assert 2_000 <= await db.fetchval("SELECT processing_ms FROM context_entry WHERE sequence = 2") < 4_000


@pytest.mark.parametrize("settings_change", [{"session_entries_max": 100}])
async def test_a_session_is_full_at_its_limit_and_not_before(
    settings: Settings, settings_change: dict[str, Any], db: asyncpg.Connection
) -> None:
    bounded = settings.model_copy(update=settings_change)
    async with open_app(bounded) as app, Client(build_server(app)) as client:
        agent = Agent(client)
        key = await agent.session()
        entries = [{"type": "message", "content": str(number)} for number in range(33)]
        for _ in range(3):
            await agent.ok("update_context", agent="alice", session_key=key, entries=entries)
        error = await agent.refused("update_context", agent="alice", session_key=key, entries=entries[:1])

    assert (error["code"], error["current_sequence"]) == ("limit_reached", 100)
    assert len(await sequences(db, key)) == 100


async def test_near_the_limit_what_fits_is_taken_whatever_its_neighbours_wanted(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    async with open_app(settings.model_copy(update={"session_entries_max": 100})) as app:
        await app.lane.append(item(key, name="k", entries=50))
        await app.lane.append(item(key, entries=45))

        async def append(one: Append) -> str | int:
            try:
                return (await app.lane.append(one)).first_sequence
            except HandoffError as error:
                return error.code

        wanted = [
            item(key),
            item(key, name="k", entries=50),
            item(key, entries=30),
            item(key, entries=2),
            item(key),
            item(key),
        ]
        answers = await all_of(*[append(one) for one in wanted])

    assert answers == [97, 2, "limit_reached", 98, 100, "limit_reached"]
    assert await sequences(db, key) == list(range(1, 101))


async def test_content_above_the_limit_is_refused_by_its_bytes(settings: Settings, db: asyncpg.Connection) -> None:
    async with (
        open_app(settings.model_copy(update={"content_bytes_max": 1_024})) as app,
        Client(build_server(app)) as client,
    ):
        agent = Agent(client)
        key = await agent.session()
        await agent.says(key, "ä" * 512)
        entry = {"type": "message", "content": "ä" * 513}
        error = await agent.refused("update_context", agent="alice", session_key=key, entries=[entry])

    assert (error["code"], error["bytes_max"]) == ("invalid_arguments", 1_024)
    assert len(await sequences(db, key)) == 2


def waiting(app: App, *items: Append) -> list[list[Append]]:
    """The batches that a lane would make of these."""
    lane = AppendLane(app.pool, app.settings)
    lane._waiting.extend(items)
    batches: list[list[Append]] = []
    while lane._waiting:
        batches.append(lane._take())
    return batches


def item(key: str, expected: int | None = None, name: str | None = None, size_bytes: int = 1, entries: int = 1) -> Append:
    new = [NewEntry("message", "x", None, "", 1, bytes(32))] * entries
    return Append(key, "alice", new, monotonic(), 0, expected, name, key.encode() if name else None, size_bytes)


async def test_a_batch_is_bounded_and_keeps_apart_what_must_not_share_a_statement(app: App) -> None:
    def sizes(items: Sequence[Append]) -> list[int]:
        return [len(batch) for batch in waiting(app, *items)]

    assert sizes([item("s") for _ in range(150)]) == [64, 64, 22]
    assert sizes([item("s", expected=1), item("s"), item("t")]) == [1, 2]
    assert sizes([item("s"), item("s", expected=1)]) == [1, 1]
    assert sizes([item("s", name="k"), item("t", name="k"), item("t")]) == [1, 2]
    assert sizes([item("s", size_bytes=3 << 20), item("t", size_bytes=3 << 20)]) == [1, 1]


async def test_a_full_queue_refuses_cheaply_and_says_to_retry(settings: Settings) -> None:
    async with open_app(settings.model_copy(update={"append_queue_max": 1, "append_batch_max": 1})) as app:
        lane, refusals = app.lane, 0
        first, second = item("s"), item("s")
        async with anyio.create_task_group() as group:

            async def append(it: Append) -> None:
                nonlocal refusals
                try:
                    await lane.append(it)
                except HandoffError as error:
                    refusals += error.code == "overloaded" and error.retryable

            group.start_soon(append, first)
            group.start_soon(append, second)
    assert refusals == 1


async def test_a_caller_that_goes_away_takes_nothing_back(agent: Agent, app: App, db: asyncpg.Connection) -> None:
    key = await agent.session()
    new = Append(key, "alice", [NewEntry("message", "stays", None, "", 5, bytes(32))], monotonic())
    async with anyio.create_task_group() as group:
        group.start_soon(app.lane.append, new)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    await app.lane.drain()

    assert await sequences(db, key) == [1, 2]


async def test_a_caller_that_went_away_and_repeats_its_call_gets_the_first_result(
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


async def test_an_append_that_has_waited_too_long_is_refused_and_not_written(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    async with open_app(settings.model_copy(update={"append_wait_s_max": 0.5})) as app:
        late, young = item(key), item(key)
        late.received -= 1
        answers = await all_of(refusal(app, late), refusal(app, young))

    assert answers == [("overloaded", True), None]
    assert await sequences(db, key) == [1, 2]


async def refusal(app: App, one: Append) -> tuple[str, bool] | None:
    try:
        await app.lane.append(one)
    except HandoffError as error:
        return error.code, error.retryable
    return None


async def test_a_database_that_refuses_connections_is_a_retryable_error(
    settings: Settings, postgres_url: str, database_url: str
) -> None:
    name = database_url.split("?", maxsplit=1)[0].rpartition("/")[2]
    admin = await asyncpg.connect(postgres_url)
    async with open_app(settings) as app, Client(build_server(app)) as client:
        await client.list_tools()
        await app.pool.expire_connections()
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            error = await Agent(client).refused("register_session", agent="alice")
        finally:
            await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            await admin.close()

    assert (error["code"], error["retryable"]) == ("unavailable", True)
