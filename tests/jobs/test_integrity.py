"""Sessions in which something does not fit are found, set aside and told of, and are neither archived nor deleted."""

from typing import Any

import asyncpg
import pytest

from handoff.context import App
from handoff.jobs import archive, delete, integrity
from handoff.settings import Settings
from handoff.store import integrity as store
from handoff.telemetry import metrics
from tests.agents import Agent

OF_KEY = "session_id = (SELECT id FROM session WHERE key = $1)"
DAMAGE = {
    "content": f"UPDATE context_entry SET content = 'forged' WHERE {OF_KEY} AND sequence = 2",
    "sequence": f"DELETE FROM context_entry WHERE {OF_KEY} AND sequence = 2",
    "sequence at the end": f"DELETE FROM context_entry WHERE {OF_KEY} AND sequence = 4",
    "sequence of all": f"DELETE FROM context_entry WHERE {OF_KEY}",
    "receipt": f"UPDATE context_entry SET content = 'x', content_hash = sha256('x') WHERE {OF_KEY} AND sequence = 2",
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"admin": True})


async def worked_on(agent: Agent) -> str:
    key = await agent.session()
    for text in ("one", "zwei \u00fc", "\U0001f600"):
        await agent.says(key, text)
    await agent.offer(key)
    return key


@pytest.mark.parametrize("page", [store.ENTRIES_MAX, 3])
async def test_what_does_not_fit_is_set_aside_by_its_reason_and_nothing_else(
    app: App, agent: Agent, db: asyncpg.Connection, logged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(store, "ENTRIES_MAX", page)
    damaged = {what: await worked_on(agent) for what in DAMAGE}
    for _ in range(3):
        await worked_on(agent)
    await integrity.run(app)
    assert await store.listed(db) == []

    for what, key in damaged.items():
        await db.execute(DAMAGE[what], key)
    before = metrics.ENTRIES_CHECKED.value()
    await integrity.run(app)
    found = {row["session_key"]: (row["reason"], row["sequence"]) for row in await store.listed(db)}
    assert found == {
        damaged["content"]: ("content", 2),
        damaged["sequence"]: ("sequence", 3),
        damaged["sequence at the end"]: ("sequence", 3),
        damaged["sequence of all"]: ("sequence", 0),
        damaged["receipt"]: ("receipt", None),
    }
    assert {reason: metrics.QUARANTINED.value(reason) for reason in ("content", "sequence", "receipt")} == {
        "content": 1,
        "sequence": 3,
        "receipt": 1,
    }
    assert metrics.ENTRIES_CHECKED.value() == before + await db.fetchval("SELECT count(*) FROM context_entry")
    assert any(line["event"] == "integrity.quarantined" for line in logged)


async def test_a_session_that_is_set_aside_is_neither_archived_nor_deleted(
    app: App, agent: Agent, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [await agent.session(), await agent.session(), await agent.session()]
    for key in keys:
        await agent.says(key, "hello")
        await agent.ok("close_session", agent="alice", session_key=key)
    await db.execute(DAMAGE["content"], keys[0])
    await integrity.run(app)
    await db.execute("UPDATE session SET status_since = status_since - interval '400 days'")
    await archive.run(app)
    assert [row["status"] for row in await db.fetch("SELECT status FROM session ORDER BY id")] == [
        "completed",
        "archived",
        "archived",
    ]
    await db.execute("INSERT INTO quarantine (session_id, reason) SELECT id, 'receipt' FROM session WHERE key = $1", keys[1])
    await db.execute("UPDATE session SET status_since = status_since - interval '400 days'")
    await delete.run(app)
    left = [row["key"] for row in await db.fetch("SELECT key FROM session ORDER BY id")]
    assert left == keys[:2]
    assert [it["session_key"] for it in (await agent.read("handoff://lifecycle"))["quarantine"]] == keys[:2]
    monkeypatch.setattr(store, "_LISTED_MAX", 1)
    shown = await agent.read("handoff://lifecycle")
    assert ([it["session_key"] for it in shown["quarantine"]], shown["quarantine_left_out"]) == (keys[:1], 1)


async def test_a_session_that_is_readmitted_stays_out_of_quarantine_until_something_else_does_not_fit(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    key, whole = await worked_on(agent), await worked_on(agent)
    await db.execute(DAMAGE["content"], key)
    await integrity.run(app)
    asked = {"agent": "root", "action": "readmit", "of": "session", "name": key, "reason": "Restored by hand."}

    done = await agent.ok("session_data", **asked)
    assert (done["quarantine"]["reason"], done["quarantine"]["sequence"]) == ("content", 2)
    audited = await db.fetchrow("SELECT actor, action, details FROM audit ORDER BY id DESC LIMIT 1")
    assert audited is not None
    assert (audited["actor"], audited["action"]) == ("root", "data.readmitted")
    for refused in ({**asked}, {**asked, "name": whole}, {**asked, "name": "no-such"}, {**asked, "of": "policy"}):
        error = await agent.refused("session_data", **refused)
        assert error["code"] == ("invalid_arguments" if refused["of"] == "policy" else "nothing_found")
    assert await db.fetchval("SELECT count(*) FROM audit WHERE action = 'data.readmitted'") == 1

    for _ in range(2):
        await integrity.run(app)
        assert await store.listed(db) == []
        assert metrics.QUARANTINED.value("content") == 0
    assert not (await agent.read(f"handoff://sessions/{key}"))["held"]

    await db.execute(DAMAGE["sequence"], key)
    await integrity.run(app)
    assert [(row["session_key"], row["reason"]) for row in await store.listed(db)] == [(key, "sequence")]


DAMAGE_IN_ARCHIVE = {
    "content": f"UPDATE archive SET contents[300 - first_sequence] = 'forged' WHERE {OF_KEY} AND first_sequence = 257",
    "hash": f"UPDATE archive SET content_hashes[2] = sha256('x') WHERE {OF_KEY} AND first_sequence = 1",
    "entry": "UPDATE archive SET (contents, content_hashes) = (contents[2:], content_hashes[2:])"
    f" WHERE {OF_KEY} AND first_sequence = 257",
    "block": f"DELETE FROM archive WHERE {OF_KEY} AND first_sequence = 257",
    "last block": f"DELETE FROM archive WHERE {OF_KEY} AND first_sequence = 513",
    "all": f"DELETE FROM archive WHERE {OF_KEY}",
}


async def test_what_does_not_fit_in_the_archive_is_set_aside_too(
    app: App, agent: Agent, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BLOCKS_MAX", 2)  # so that a session's three end in the middle of a page
    damaged = {what: await agent.session() for what in DAMAGE_IN_ARCHIVE}
    keys = [*damaged.values(), await agent.session(), await agent.session()]
    for key in keys:
        for _ in range(11):
            entries = [{"type": "message", "content": "zwei \u00fc"}] * 50
            await agent.ok("update_context", agent="alice", session_key=key, entries=entries)
        await agent.ok("close_session", agent="alice", session_key=key)
    await db.execute("UPDATE session SET status_since = status_since - interval '2 days'")
    await archive.run(app)
    before = metrics.ENTRIES_CHECKED.value()
    await integrity.run(app)
    assert metrics.ENTRIES_CHECKED.value() == before + 551 * len(keys)
    assert await store.listed(db) == []

    for what, key in damaged.items():
        await db.execute(DAMAGE_IN_ARCHIVE[what], key)
    await db.execute("DELETE FROM session WHERE key = $1", keys[-1])  # its blocks wait for their bucket to be dropped
    for _ in range(2):
        await integrity.run(app)
    found = {row["session_key"]: (row["reason"], row["sequence"]) for row in await store.listed(db)}
    assert found == {
        damaged["content"]: ("content", 299),
        damaged["hash"]: ("content", 2),
        damaged["entry"]: ("sequence", 257),
        damaged["block"]: ("sequence", 513),
        damaged["last block"]: ("sequence", 512),
        damaged["all"]: ("sequence", 0),
    }
    await db.execute("UPDATE session SET status_since = status_since - interval '400 days'")
    await delete.run(app)
    assert {row["key"] for row in await db.fetch("SELECT key FROM session")} == set(damaged.values())
