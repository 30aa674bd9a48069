"""Sessions are deleted when their policy's time has passed or on request, unless they are held, and leave a tombstone."""

import hashlib
from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import pytest
from mcp import Client

from handoff.context import App
from handoff.jobs import archive, delete, expire
from handoff.server.protocol import build_server
from handoff.settings import Settings
from tests.agents import Agent
from tests.clock import jump

TABLES = ("context_entry", "archive", "handoff", "event", "participant")
DAY_H = 24


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"admin": True})


@pytest.fixture
async def admin(app: App) -> AsyncGenerator[Agent]:
    async with Client(build_server(app)) as client:
        yield Agent(client)


async def rows_of(db: asyncpg.Connection, session_id: int) -> dict[str, int]:
    """The number of rows that belong to a session, by table, without those that have none."""
    counts = {
        table: await db.fetchval(f"SELECT count(*) FROM {table} WHERE session_id = $1", session_id) for table in TABLES
    }
    return {table: count for table, count in counts.items() if count}


async def audited(db: asyncpg.Connection) -> list[tuple[str, str]]:
    return [(row["action"], row["actor"]) for row in await db.fetch("SELECT action, actor FROM audit ORDER BY id")]


async def closed(agent: Agent, app: App, db: asyncpg.Connection, **arguments: Any) -> str:
    key = await agent.session(**arguments)
    await agent.says(key, "what was said")
    await agent.ok("close_session", agent="alice", session_key=key)
    return key


async def test_an_archived_session_is_deleted_when_its_policys_time_has_passed_and_its_bucket_dropped_as_a_whole(
    admin: Agent, app: App, db: asyncpg.Connection
) -> None:
    short, standard = [await closed(admin, app, db, retention_policy=name) for name in ("short", "standard")]
    await jump(db, hours=DAY_H + 1)
    await archive.run(app)
    ids = {row["key"]: row["id"] for row in await db.fetch("SELECT key, id FROM session")}
    await jump(db, hours=6.9 * DAY_H)
    await delete.run(app)
    assert len(await audited(db)) == 0
    await jump(db, hours=0.2 * DAY_H)

    for _ in range(2):  # a second run changes nothing
        await delete.run(app)

    assert (await admin.refused("get_context", agent="alice", session_key=short))["code"] == "session_not_found"
    assert (await admin.ok("get_context", agent="alice", session_key=standard))["session"]["status"] == "archived"
    assert await audited(db) == [("session.deleted", "service")]
    tombstone = await db.fetchrow("SELECT target, details::text FROM audit")
    assert tombstone is not None
    assert tombstone["target"] == f"session:{hashlib.sha256(short.encode()).hexdigest()}"
    assert '"entries": 2' in tombstone["details"]
    assert short not in str(tombstone)
    await jump(db, hours=7 * DAY_H)
    await db.execute("UPDATE archive_bucket SET week = week - 14 WHERE name IN (SELECT bucket FROM archive)")
    await delete.run(app)
    assert await rows_of(db, ids[short]) == {}
    assert set(await rows_of(db, ids[standard])) == {"archive", "event", "participant"}


@pytest.mark.parametrize("of", ["session", "agent", "policy"])
async def test_what_is_held_outlives_its_policy_and_a_refused_deletion_is_audited(
    admin: Agent, app: App, db: asyncpg.Connection, of: str
) -> None:
    key = await closed(admin, app, db, retention_policy="short")
    name = {"session": key, "agent": "alice", "policy": "short"}[of]
    held = await admin.ok("session_data", agent="ops", action="hold", of=of, name=name, reason="case 7")
    assert held["hold"]["held_by"] == "ops"
    before = await admin.read(f"handoff://context/{key}")
    await jump(db, hours=DAY_H + 1)
    await archive.run(app)
    await jump(db, hours=60 * DAY_H)
    for _ in range(2):
        await delete.run(app)

    error = await admin.refused("session_data", agent="ops", action="delete", of="session", name=key, reason="asked for")

    assert (error["code"], error["sessions_held"]) == ("held", 1)
    assert await admin.read(f"handoff://context/{key}") == before
    assert await audited(db) == [("data.held", "ops"), ("data.deletion_refused", "ops")]
    assert (await admin.read("handoff://lifecycle"))["holds"][0]["reason"] == "case 7"
    weeks = [
        row["week"] for row in await db.fetch("SELECT week FROM archive_bucket WHERE name IN (SELECT bucket FROM archive)")
    ]
    assert weeks == [await db.fetchval("SELECT date_trunc('week', now() AT TIME ZONE 'UTC')::date")]  # it has moved
    await admin.ok("session_data", agent="ops", action="release", of=of, name=name, reason="closed")
    await delete.run(app)
    assert (await admin.refused("get_context", agent="alice", session_key=key))["code"] == "session_not_found"
    assert await db.fetchval("SELECT count(*) FROM session") == 0
    assert await db.fetchval("SELECT count(*) FROM archive") == 0  # its new bucket would be kept for a whole period more


async def test_a_request_erases_a_session_and_all_that_refers_to_it_and_tells_who_holds_it(
    admin: Agent, app: App, db: asyncpg.Connection
) -> None:
    key, other = await admin.session(idempotency_key="first"), await admin.session()
    session_id = await db.fetchval("SELECT id FROM session WHERE key = $1", key)
    for each in (key, other):
        await admin.says(each, "a secret", idempotency_key=f"says {each}")
        await admin.accept(await admin.offer(each, instructions="secret"), idempotency_key=f"takes {each}")
    nested = "UPDATE idempotency SET result = jsonb_build_object('handoff', result) WHERE tool = 'accept_handoff'"
    await db.execute(nested)  # as version 0.1.0 kept them
    told: list[str] = []
    await db.add_listener("handoff", lambda _conn, _pid, _channel, topics: told.append(str(topics)))

    done = await admin.ok("session_data", agent="ops", action="delete", of="session", name=key, reason="right to erasure")

    assert done["deleted"] == {
        "sessions": 1,
        "entries": 2,
        "content_bytes": done["deleted"]["content_bytes"],
        "handoffs": 1,
        "events": 4,
    }
    assert await rows_of(db, session_id) == {}
    left = await db.fetchval("SELECT string_agg(result::text, ' ') FROM idempotency")
    assert key not in left
    assert other in left
    await db.execute("SELECT 1")  # receives what is still under way
    assert any("agent:bob" in topics for topics in told)
    assert await audited(db) == [("session.deleted", "ops")]
    for name in (key, "nobody"):
        error = await admin.refused("session_data", agent="ops", action="delete", of="session", name=name, reason="again")
        assert error["code"] == "nothing_found"


async def test_of_a_session_that_is_erased_no_row_of_any_table_keeps_its_key_or_a_word_of_it(
    admin: Agent, app: App, db: asyncpg.Connection
) -> None:
    """Whatever refers to a session: a table that is added later has to be emptied too."""
    first, second = [await admin.session(session_key=f"rosebud-{n}", idempotency_key=f"rosebud {n}") for n in range(2)]
    for key in (first, second):
        keyed = (f"{key}-{n}" for n in range(99))
        await admin.says(key, "the rosebud sledge", idempotency_key=next(keyed))
        handoff_id = await admin.offer(key, instructions="find the rosebud", idempotency_key=next(keyed))
        of_it: dict[str, Any] = {"handoff_id": handoff_id}
        amended = {"agent": "alice", "session_key": key, "instructions": "find every rosebud"}
        await admin.ok("request_handoff", **of_it, **amended, idempotency_key=next(keyed))
        token = await admin.accept(handoff_id, idempotency_key=next(keyed))
        held = {**of_it, "agent": "bob", "token": token}
        await admin.ok("renew_handoff", **held, idempotency_key=next(keyed))
        await admin.ok("resolve_handoff", **held, action="complete", note="rosebud it was", idempotency_key=next(keyed))
        await admin.ok("close_session", agent="alice", session_key=key, idempotency_key=next(keyed))
        for action in ("hold", "release"):
            await admin.ok("session_data", agent="ops", action=action, of="session", name=key, reason="case 7")
    number = await db.fetchval("SELECT id FROM session WHERE key = $1", first)
    await db.execute("UPDATE session SET status_since = now() - interval '2 days' WHERE id = $1", number)
    await archive.run(app)
    await db.execute("INSERT INTO quarantine VALUES ($1, 'receipt', 1, now(), now(), 'ops')", number)  # and readmitted
    await db.execute("INSERT INTO archive_failure VALUES ($1, 1, 'rosebud', now(), now())", number)
    await db.execute("""INSERT INTO webhook_delivery (endpoint, handoff_id, event_id, kind, at, data, is_dead)
                        SELECT 'ops', h.id, h.id, 'handoff.offered', now(), jsonb_build_object('session_key', s.key), true
                          FROM handoff h JOIN session s ON s.id = h.session_id""")
    tables = [
        row[0]
        for row in await db.fetch("""SELECT relname FROM pg_class
                                      WHERE relnamespace = current_schema()::regnamespace
                                        AND relkind IN ('r', 'p') AND NOT relispartition""")
    ]

    async def mentioned() -> set[str]:
        count = "SELECT count(*) FROM {table} t WHERE t::text LIKE '%rosebud%'"
        return {table for table in tables if await db.fetchval(count.format(table=table))}

    assert await mentioned() >= {"session", "context_entry", "archive", "handoff", "idempotency", "webhook_delivery"}
    for key in (first, second):
        await admin.ok("session_data", agent="ops", action="delete", of="session", name=key, reason="right to erasure")
    assert await mentioned() == set()
    assert await db.fetchval("SELECT count(*) FROM idempotency") == 0


async def test_an_agents_sessions_are_erased_except_those_that_are_held(
    admin: Agent, app: App, db: asyncpg.Connection
) -> None:
    _, held, archived = [await closed(admin, app, db) for _ in range(3)]
    await admin.ok("session_data", agent="ops", action="hold", of="session", name=held, reason="case 7")
    await db.execute("UPDATE session SET status_since = now() - interval '2 days' WHERE key = $1", archived)
    await archive.run(app)
    foreign = await admin.session("carol")

    done = await admin.ok("session_data", agent="ops", action="delete", of="agent", name="alice", reason="it has left")

    assert (done["deleted"]["sessions"], done["sessions_held"], done["sessions_left"]) == (2, 1, 1)
    assert {row["key"] for row in await db.fetch("SELECT key FROM session")} == {held, foreign}
    assert await db.fetchval("SELECT count(*) FROM archive") == 0
    assert [action for action, _ in await audited(db)] == [
        "data.held",
        "session.deleted",
        "session.deleted",
        "data.deletion_refused",
    ]
    assert (await admin.refused("session_data", agent="ops", action="delete", of="policy", name="short", reason="x"))[
        "code"
    ] == ("invalid_arguments")
    for of, name in (("session", "nothing"), ("policy", "nothing")):
        assert (
            "There is no"
            in (await admin.refused("session_data", agent="ops", action="hold", of=of, name=name, reason="x"))["message"]
        )


async def test_the_lifecycle_of_all_sessions_says_what_is_due_and_when_and_how_many_bytes_it_takes(
    admin: Agent, app: App, db: asyncpg.Connection
) -> None:
    await admin.session()
    await closed(admin, app, db)
    old = await closed(admin, app, db, retention_policy="short")
    await db.execute("UPDATE session SET status_since = now() - interval '2 days' WHERE key = $1", old)
    await archive.run(app)
    late = await admin.session(retention_policy="short")
    await db.execute("UPDATE session SET expires_at = now() + interval '30 minutes' WHERE key = $1", late)

    seen = await admin.read("handoff://lifecycle")

    assert {name: one["sessions"] for name, one in seen["by_status"].items()} == {"active": 2, "completed": 1, "archived": 1}
    assert {name: (one["within_an_hour"], one["within_a_day"]) for name, one in seen["due"].items()} == {
        "sleep": (0, 1),
        "expire": (1, 2),
        "archive": (0, 1),
        "delete": (0, 0),
    }
    assert seen["entries_bytes"] > 0
    assert seen["archive_bytes"] == sum(bucket["bytes"] for bucket in seen["archive"]) > 0
    assert seen["archive"][0]["bucket"].startswith("short ")
    await expire.run(app)
    assert (await admin.read("handoff://lifecycle"))["by_status"]["active"]["sessions"] == 2
