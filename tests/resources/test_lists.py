"""Lists with filters: of sessions with how they stand, of entries, and of what an agent has handed over."""

from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from handoff.context import App
from handoff.store import entries, lists
from handoff.store.archive import move
from handoff.store.connect import transact
from tests.agents import PAST, Agent
from tests.resources.test_resources import pages


async def keys(agent: Agent, query: str, path: str = "sessions") -> list[str]:
    """The keys of the list's sessions, oldest first, read with small pages."""
    return [row["session_key"] for row in await pages(agent, f"handoff://{path}?limit=3{query}", "sessions")][::-1]


async def test_sessions_are_filtered_by_owner_creator_policy_activity_and_time_together(
    agent: Agent, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "ROWS_READ_MAX", 5)  # so that pages end at rows that the filters leave out
    all_keys = [
        await agent.session("alice" if number % 3 else "bob", retention_policy="short" if number % 4 == 0 else "standard")
        for number in range(24)
    ]
    taken = all_keys[1::6]
    for key in taken:
        await agent.accept(await agent.offer(key, request_type="full_handoff"))
    await db.execute("UPDATE session SET created_at = created_at - interval '2 days' WHERE id <= 8")
    await db.execute("UPDATE session SET last_activity_at = now() - interval '1 hour' WHERE id % 2 = 0")
    await db.execute("UPDATE participant p SET created_at = s.created_at FROM session s WHERE s.id = p.session_id")
    bound = quote((await db.fetchval("SELECT now() - interval '1 day'")).isoformat())
    recent = quote((await db.fetchval("SELECT now() - interval '10 minutes'")).isoformat())
    bobs = [key for number, key in enumerate(all_keys) if number % 3 == 0 or key in taken]

    assert await keys(agent, "&owner=bob") == bobs
    assert await keys(agent, "&created_by=bob") == all_keys[::3]
    assert await keys(agent, "&owner=bob&created_by=alice") == taken
    assert await keys(agent, "&retention_policy=short") == all_keys[::4]
    assert await keys(agent, f"&until={bound}") == all_keys[:8]
    assert await keys(agent, f"&since={bound}&retention_policy=short") == all_keys[8::4]
    assert await keys(agent, f"&active_since={recent}") == all_keys[::2]
    assert await keys(agent, f"&active_since={recent}&until={bound}&agent=bob") == [k for k in all_keys[:8:2] if k in bobs]
    assert await keys(agent, "&created_by=alice&owner=bob", "agents/alice/sessions") == taken
    assert await keys(agent, "&owner=nobody") == await keys(agent, "&retention_policy=unknown") == []


async def test_the_plus_of_a_time_zone_may_stand_in_a_query_as_it_is(agent: Agent) -> None:
    key = await agent.session()
    created = datetime.fromisoformat((await agent.read(f"handoff://sessions/{key}"))["created_at"])
    just_then = created.astimezone(timezone(timedelta(hours=2))).isoformat()
    assert just_then.endswith("+02:00")
    assert await keys(agent, f"&since={just_then}") == await keys(agent, f"&since={quote(just_then)}") == [key]


async def test_a_session_in_a_list_says_how_it_stands(agent: Agent, app: App, db: asyncpg.Connection) -> None:
    async def one(key: str) -> dict[str, Any]:
        listed = {row["session_key"]: row for row in (await agent.read("handoff://sessions"))["sessions"]}[key]
        alone = await agent.read(f"handoff://sessions/{key}")
        assert {**listed, "idle_s": None} == {**alone, "idle_s": None}
        return listed

    def at(row: dict[str, Any], name: str) -> datetime:
        return datetime.fromisoformat(row[name] if name in row else row["due"][name])

    kept = {name: timedelta(hours=hours) for name, hours in (("active", 24), ("dormant", 2), ("archived", 30 * 24))}
    after = timedelta(seconds=app.settings.archive_after_s)
    key = await agent.session()
    await db.execute("UPDATE session SET last_activity_at = now() - interval '90 seconds'")
    row = await one(key)
    assert 90 <= row["idle_s"] < 300
    assert at(row, "dormant_at") == at(row, "last_activity_at") + kept["dormant"]
    assert at(row, "archived_at") == at(row, "expires_at") + after
    assert at(row, "deleted_at") == at(row, "archived_at") + kept["archived"]
    assert (row["handoffs"], row["held"]) == ({"open": 0, "lapses": 0}, False)
    assert row["entries_max"] == app.settings.session_entries_max

    taken = await agent.offer(key)
    await agent.accept(taken)
    await db.execute(PAST)
    await agent.accept(taken, "bob")
    await agent.offer(key, "carol")
    row = await one(key)
    assert "dormant_at" not in row["due"]  # not while anything of it is on offer or held
    lease = (await agent.read(f"handoff://handoffs/{taken}"))["lease_expires_at"]
    assert row["handoffs"] == {"open": 2, "lapses": 1, "holder": "bob", "lease_expires_at": lease}

    other = await agent.session()
    await agent.ok("close_session", agent="alice", session_key=other)
    await db.execute("INSERT INTO legal_hold VALUES ('session', $1, 'A claim.', 'root')", other)
    row = await one(other)
    assert (sorted(row["due"]), row["held"]) == (["archived_at"], True)
    assert at(row, "archived_at") == at(row, "status_since") + after
    await db.execute("DELETE FROM legal_hold")
    number = await db.fetchval("SELECT id FROM session WHERE key = $1", other)
    await transact(app.pool, lambda conn: move(conn, number))
    row = await one(other)
    assert sorted(row["due"]) == ["deleted_at"]
    assert at(row, "deleted_at") == at(row, "status_since") + kept["archived"]


async def test_what_an_agent_sent_is_listed_with_what_became_of_it(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "ROWS_READ_MAX", 2)
    key = await agent.session()
    sent = [await agent.offer(key, f"w{number}", instructions=f"Do {number}. " * 2_000) for number in range(5)]
    await agent.offer(await agent.session("bob"), "alice", "bob")
    token = await agent.accept(sent[0], "w0")
    await agent.ok("resolve_handoff", agent="w0", handoff_id=sent[0], action="complete", token=token, note="All done.")
    await agent.ok("resolve_handoff", agent="w3", handoff_id=sent[3], action="reject", note="No time.")
    await agent.ok("resolve_handoff", agent="alice", handoff_id=sent[4], action="cancel")

    found = await pages(agent, "handoff://agents/alice/sent?limit=2", "handoffs")
    assert [(row["handoff_id"], row["state"]) for row in found] == list(
        zip(sent[::-1], ("cancelled", "rejected", "offered", "offered", "completed"), strict=True)
    )
    assert [found[-1]["outcome"], found[1]["reason"], "next" in found[2]] == ["All done.", "No time.", True]
    assert found[0]["cut"]
    assert all(row["updated_at"] >= row["created_at"] for row in found)
    offered = await pages(agent, "handoff://agents/alice/sent?limit=1&state=offered", "handoffs")
    assert [row["handoff_id"] for row in offered] == [sent[2], sent[1]]
    assert await pages(agent, "handoff://agents/w0/sent?limit=1", "handoffs") == []


async def test_entries_are_filtered_by_author_and_time_from_either_end_in_an_archive_too(
    agent: Agent, app: App, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "FILTERED_MAX", 7)
    key = await agent.session()
    await agent.accept(await agent.offer(key, request_type="collaboration"))
    for number in range(2, 30):
        await agent.says(key, f"{number}", "alice" if number % 3 else "bob", idempotency_key=f"{number}")
    await agent.ok(
        "update_context",
        agent="alice",
        session_key=key,
        entries=[{"type": "decision", "content": "30", "metadata": {"pinned": True}}],
    )
    await db.execute("UPDATE context_entry SET created_at = now() - interval '1 hour' * (40 - sequence)")
    now = await db.fetchval("SELECT now()")
    since, until = (quote((now - timedelta(hours=40 - at)).isoformat()) for at in (10, 20))

    async def found(query: str) -> list[int]:
        listed = await pages(agent, f"handoff://context/{key}?limit=3{query}", "entries")
        return [entry["sequence"] for entry in listed]

    async def check() -> None:
        assert await found("&order=newest") == list(range(30, 0, -1))
        assert await found("&order=newest&after=25") == [30, 29, 28, 27, 26]
        assert await found("&author=bob") == list(range(3, 30, 3))
        assert await found("&author=bob&order=newest") == list(range(27, 0, -3))
        assert await found(f"&since={since}&until={until}") == list(range(11, 21))
        assert await found(f"&since={since}&until={until}&order=newest&author=bob") == [18, 15, 12]
        assert await found("&order=newest&only=pinned") == await found("&author=alice&type=decision") == [30]
        assert await found("&author=nobody") == []

    await check()
    await db.execute("UPDATE handoff SET state = 'cancelled', lease_expires_at = NULL")
    await agent.ok("close_session", agent="alice", session_key=key)
    number = await db.fetchval("SELECT id FROM session WHERE key = $1", key)
    assert await transact(app.pool, lambda conn: move(conn, number))
    await check()


async def test_the_first_page_of_a_context_says_what_the_session_holds_by_type_and_how_fast_it_grows(
    agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    await agent.ok(
        "update_context",
        agent="alice",
        session_key=key,
        entries=[{"type": "decision", "content": "é"}, {"type": "decision", "content": "b", "supersedes": [1]}],
    )
    assert "entries_per_hour" not in (await agent.read(f"handoff://context/{key}"))["totals"]
    await db.execute("UPDATE session SET created_at = last_activity_at - interval '30 minutes'")

    page = await agent.read(f"handoff://context/{key}?limit=1")
    stored = await db.fetchval("SELECT content_bytes FROM session")
    assert page["totals"] == {
        "entries": 3,
        "by_type": {"system": 1, "decision": 2},
        "superseded": 1,
        "content_bytes": stored,
        "entries_per_hour": 6.0,
        "bytes_per_hour": 2 * stored,
    }
    assert "totals" not in await agent.read(f"handoff://context/{key}?limit=1&cursor={quote(page['next_cursor'])}")
