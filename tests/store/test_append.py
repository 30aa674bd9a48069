"""Appends are exact under concurrency, and a call that is refused does not affect the others in its batch."""

import hashlib
import json
from time import monotonic
from typing import Any

import asyncpg
import pytest
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.errors import HandoffError
from handoff.model import ENTRY_TYPES
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store.append import Append, NewEntry
from tests.agents import Agent, all_of, kinds
from tests.clock import jump
from tests.store.appends import item, sequences


async def test_thirty_two_concurrent_appends_to_one_session_leave_no_gap(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()  # with MAX(sequence) + 1 and no lock, about four of five appends would fail

    done = await all_of(*[agent.says(key, f"message {number}") for number in range(32)])

    assert sorted(answer["first_sequence"] for answer in done) == list(range(2, 34))
    assert await sequences(db, key) == list(range(1, 34))


async def test_many_appends_to_many_sessions_at_once_leave_no_gap_in_any(agent: Agent, db: asyncpg.Connection) -> None:
    keys = [await agent.session() for _ in range(16)]

    done = await all_of(*[agent.says(key, f"{number}") for number in range(8) for key in keys])

    assert sorted(answer["first_sequence"] for answer in done) == sorted(list(range(2, 10)) * 16)
    for key in keys:
        assert await sequences(db, key) == list(range(1, 10))


async def test_batches_of_two_processes_with_the_same_sessions_in_opposite_order_do_not_deadlock(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    keys = [await agent.session() for _ in range(12)]
    async with open_app(settings) as one, open_app(settings) as other:
        for _ in range(10):
            await all_of(
                *[one.lane.append(item(key)) for key in keys for _ in range(3)],
                *[other.lane.append(item(key)) for key in reversed(keys) for _ in range(3)],
            )

    for key in keys:  # reading last_sequence before taking the lock would give two processes the same numbers
        assert await sequences(db, key) == list(range(1, 62))
    assert await db.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


async def test_three_processes_that_append_to_the_same_sessions_neither_fail_nor_leave_gaps(
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


async def test_a_call_that_cannot_be_applied_does_not_fail_the_others_in_its_batch(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key, foreign, offered = await agent.session(), await agent.session("carol"), await agent.session("carol")
    await agent.offer(offered, "alice", agent="carol")  # so that alice may read it, but not write
    errors: list[dict[str, Any]] = []

    async def refused(**arguments: Any) -> None:
        entry = {"type": "message", "content": "no", **arguments.pop("entry", {})}
        errors.append(await agent.refused("update_context", agent="alice", entries=[entry], **arguments))

    await all_of(
        *[agent.says(key, f"{number}") for number in range(5)],
        refused(session_key="nobody-knows-it"),
        refused(session_key=foreign),
        refused(session_key=offered),
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


async def test_an_append_that_postgres_rejects_fails_alone(agent: Agent, app: App, db: asyncpg.Connection) -> None:
    key = await agent.session()
    refused: list[str] = []

    async def append(one: Append) -> None:
        try:
            await app.lane.append(one)
        except asyncpg.PostgresError as error:
            refused.append(type(error).__name__)

    good = [item(key) for _ in range(6)]
    bad = Append(key, "alice", [NewEntry("message", "x", "{not json", None, 1, bytes(32))], monotonic())
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
    assert len({at for at, _ in won}) == len(won)  # one winner per sequence number
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


async def test_entries_can_supersede_only_entries_that_existed_before_the_call(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()
    entries = [{"type": "decision", "content": "a"}, {"type": "decision", "content": "b", "supersedes": [2]}]

    error = await agent.refused("update_context", agent="alice", session_key=key, entries=entries)
    assert (error["code"], error["current_sequence"]) == ("invalid_arguments", 1)
    await agent.ok("update_context", agent="alice", session_key=key, entries=entries[:1])
    await agent.ok("update_context", agent="alice", session_key=key, entries=entries[1:])

    assert await db.fetchval("SELECT supersedes FROM context_entry WHERE sequence = 3") == [2]


async def test_a_dormant_session_to_which_two_processes_append_is_reactivated_once(
    settings: Settings, agent: Agent, db: asyncpg.Connection
) -> None:
    keys = [await agent.session() for _ in range(4)]
    await db.execute("UPDATE session SET status = 'dormant'")
    async with open_app(settings) as one, open_app(settings) as other:
        await all_of(*[app.lane.append(item(key)) for app in (one, other) for key in keys for _ in range(4)])

    woken = await db.fetch("SELECT session_id FROM event WHERE kind = 'session.reactivated' ORDER BY session_id")
    assert woken == await db.fetch("SELECT id FROM session ORDER BY id")


async def test_a_closed_session_accepts_no_entries_and_a_dormant_one_is_reactivated_once(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    await db.execute("UPDATE session SET status = 'dormant'")

    await all_of(*[agent.says(key, str(number)) for number in range(8)])

    assert await kinds(agent, key) == ["session.reactivated"]  # one event per change
    assert (await agent.read(f"handoff://sessions/{key}"))["status"] == "active"
    await agent.ok("close_session", agent="alice", session_key=key)
    error = await agent.refused(
        "update_context", agent="alice", session_key=key, entries=[{"type": "message", "content": "more"}]
    )
    assert (error["code"], error["status"]) == ("session_closed", "completed")
    assert len(await sequences(db, key)) == 9


async def test_an_append_extends_the_expiry_by_the_retention_policy(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session(retention_policy="short")
    await jump(db, hours=3.9)

    await agent.says(key, "still here")

    assert await db.fetchval("SELECT expires_at - last_activity_at = interval '4 hours' FROM session")
    assert await db.fetchval("SELECT last_activity_at > now() - interval '1 minute' FROM session")


async def test_an_entry_is_stored_exactly_with_its_size_and_hash(agent: Agent, db: asyncpg.Connection) -> None:
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
    assert await db.fetchval("SELECT content_bytes = (SELECT sum(size_bytes) FROM context_entry) FROM session")


async def test_sizes_and_hashes_are_those_of_the_content_in_utf_8(agent: Agent, db: asyncpg.Connection) -> None:
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


async def test_near_the_limit_every_append_that_fits_is_written_whatever_else_is_in_its_batch(
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


async def test_content_above_the_limit_in_bytes_is_refused(settings: Settings, db: asyncpg.Connection) -> None:
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


async def test_the_counts_in_a_sessions_row_are_those_of_its_entries_and_are_not_trusted_when_incomplete(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    types = ["message", "file", "decision", "decision", "summary"]
    for supersedes in ([], [2, 3], [3, 4]):
        entries: list[dict[str, Any]] = [{"type": type_, "content": "x"} for type_ in types]
        entries[0] |= {"supersedes": supersedes} if supersedes else {}
        await agent.ok("update_context", agent="alice", session_key=key, entries=entries)

    row = await db.fetchrow("SELECT entry_counts, superseded_counts FROM session WHERE key = $1", key)
    assert row is not None
    counted = await db.fetch("SELECT type, count(*) AS n, count(superseded_by) AS gone FROM context_entry GROUP BY type")
    assert dict(zip(ENTRY_TYPES, row["entry_counts"], strict=True)) == dict.fromkeys(ENTRY_TYPES, 0) | {
        each["type"]: each["n"] for each in counted
    }
    assert dict(zip(ENTRY_TYPES, row["superseded_counts"], strict=True)) == dict.fromkeys(ENTRY_TYPES, 0) | {
        each["type"]: each["gone"] for each in counted
    }
    assert await db.fetchval("SELECT superseded_by FROM context_entry WHERE sequence = 3") == 12

    whole = (await agent.ok("get_context", agent="alice", session_key=key))["brief"]
    await db.execute("UPDATE session SET entry_counts = '{0,0,0,0,0,0}', version = version + 1 WHERE key = $1", key)
    assert (await agent.ok("get_context", agent="alice", session_key=key))["brief"] == whole


async def test_the_next_append_counts_anew_what_a_process_of_an_older_release_has_appended(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    await agent.says(key, "one")
    await db.execute(  # as the release before migration 0005 appends: it does not count
        """WITH s AS (UPDATE session SET last_sequence = last_sequence + 1, version = version + 1 WHERE key = $1 RETURNING *)
           INSERT INTO context_entry (session_id, sequence, type, content, supersedes, size_bytes, content_hash, author,
                                      created_at)
           SELECT id, last_sequence, 'decision', 'x', '{2}', 1, sha256('x'), 'alice', now() FROM s""",
        key,
    )
    entry = {"type": "summary", "content": "x"}

    for _ in range(2):
        await agent.ok("update_context", agent="alice", session_key=key, entries=[entry, entry])

    row = await db.fetchrow("SELECT entry_counts, superseded_counts FROM session WHERE key = $1", key)
    assert row is not None
    assert dict(zip(ENTRY_TYPES, row["entry_counts"], strict=True)) == {
        **dict.fromkeys(ENTRY_TYPES, 0),
        "system": 1,
        "message": 1,
        "decision": 1,
        "summary": 4,
    }
    assert dict(zip(ENTRY_TYPES, row["superseded_counts"], strict=True)) == {**dict.fromkeys(ENTRY_TYPES, 0), "message": 1}
