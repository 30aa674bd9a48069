"""The entries of closed sessions move to the archive, where they take less space and every read answers as before."""

from datetime import datetime, timedelta
from random import Random
from typing import Any

import asyncpg

from handoff.context import App
from handoff.jobs import archive
from handoff.simulation import text
from tests.agents import Agent, kinds
from tests.clock import jump

QUERIES = (
    "ledger",
    '"the nightly import"',
    "ledger -import",
    "import or 数据",
    "数据",
    "getUserName",
    "-ledger",
    "zebra",
    "the",
)
MARKS = ("question", "todo", "pinned")


async def session_of_two_blocks(agent: Agent) -> str:
    """A session with all that an entry can be, and a handoff; return its key."""
    key = await agent.session(metadata={"continues": "earlier"})
    rng = Random(7)  # noqa: S311 - the same in each run
    written: list[dict[str, Any]] = [text.entry(rng, text.TOPICS[0], 300) for _ in range(300)]
    written[5] = {"type": "message", "content": "数据库 \x01 é𝄞\n\\ getUserName", "metadata": {"question": True}}
    written[6] = {"type": "decision", "content": "x" * 90_000, "metadata": {"todo": True, "deep": {"a": [1, None, "é"]}}}
    written[7] = {"type": "summary", "content": "where it stands", "metadata": {"pinned": True}}
    written[270] = {"type": "message", "content": "answers 6", "supersedes": [7, 20]}
    written[290] = {"type": "message", "content": "never mind", "supersedes": [30], "metadata": {"retraction": True}}
    for start in range(0, len(written), 50):
        await agent.ok("update_context", agent="alice", session_key=key, entries=written[start : start + 50])
    token = await agent.accept(handoff_id := await agent.offer(key))
    await agent.says(key, "the end of the ledger", agent="bob", token=token)
    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="complete", token=token, note="done")
    return key


async def everything(agent: Agent, key: str) -> dict[str, Any]:
    """Every read of a session's context, without what changes by archiving: its status, since when, and its version."""
    read: dict[str, Any] = {}
    asked = {"agent": "alice", "session_key": key}
    for budget in (200, 4_000, 20_000):
        read[f"brief {budget}"] = await agent.ok("get_context", **asked, token_budget=budget)
    for mark in (None, *MARKS):
        page = await agent.ok("get_context", **asked, view="entries", limit=100, **({"only": mark} if mark else {}))
        read[f"only {mark}"] = page
    for after in range(0, 301, 50):
        read[f"after {after}"] = await agent.read(f"handoff://context/{key}?after={after}&limit=50")
    read["second part"] = await agent.read(f"handoff://context/{key}?after=7&offset=50000")
    for kind in ("message", "decision", "file"):
        read[f"type {kind}"] = await agent.read(f"handoff://context/{key}?type={kind}&limit=100&after=100")
    read["summary"] = await agent.read(f"handoff://summary/{key}")
    for query in QUERIES:
        for scope in (asked, {"agent": "alice"}):
            read[f"{query} {len(scope)}"] = await agent.ok("search_context", query=query, limit=50, **scope)
    for answer in read.values():
        for part in (answer, answer.get("session", {})):
            part.update(dict.fromkeys(("status", "status_since", "version")))
    return read


async def test_every_read_of_an_archived_session_answers_as_before_and_every_write_is_refused(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    key, other = await session_of_two_blocks(agent), await agent.session()
    await agent.says(other, "the nightly import fills the ledger; zebra")
    for each in (key, other):
        await agent.ok("close_session", agent="alice", session_key=each)
    before, receipt = await everything(agent, key), await agent.read("handoff://handoffs/1")
    await archive.run(app)
    assert await db.fetchval("SELECT count(*) FROM archive") == 0  # it has not been closed for long enough
    await db.execute("UPDATE session SET status_since = status_since - interval '25 hours' WHERE key = $1", key)
    last_activity = await db.fetchval("SELECT last_activity_at FROM session WHERE key = $1", key)

    for _ in range(2):  # a second run changes nothing
        await archive.run(app)

    assert (await agent.read(f"handoff://sessions/{key}"))["status"] == "archived"
    assert await everything(agent, key) == before
    assert await agent.read("handoff://handoffs/1") == receipt
    assert await db.fetchval("SELECT count(*) FROM archive") == 2
    assert (
        await db.fetchval("SELECT count(*) FROM context_entry e JOIN session s ON s.id = session_id WHERE key = $1", key)
        == 0
    )
    assert await db.fetchval("SELECT last_activity_at FROM session WHERE key = $1", key) == last_activity
    assert (await kinds(agent, key))[-2:] == ["session.status_changed", "session.archived"]
    for tool, arguments in (
        ("update_context", {"entries": [{"type": "message", "content": "more"}]}),
        ("request_handoff", {"target_agent": "bob", "instructions": "x"}),
        ("close_session", {}),
    ):
        error = await agent.refused(tool, agent="alice", session_key=key, **arguments)
        assert (error["code"], error["status"]) == ("session_closed", "archived")


async def test_a_session_that_would_read_differently_stays_as_it_is_and_delays_no_other(
    agent: Agent, app: App, db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    broken, sound = await agent.session(), await agent.session()
    for key in (broken, sound):
        await agent.says(key, "one")
        await agent.says(key, "two")
        await agent.ok("close_session", agent="alice", session_key=key)
    await db.execute(
        "DELETE FROM context_entry WHERE sequence = 2 AND session_id = (SELECT id FROM session WHERE key = $1)", broken
    )
    await jump(db, hours=25)

    await archive.run(app)

    statuses = {row["key"]: row["status"] for row in await db.fetch("SELECT key, status FROM session")}
    assert statuses == {broken: "completed", sound: "archived"}
    assert await db.fetchval("SELECT count(*) FROM context_entry") == 2
    assert [line["event"] for line in logged if line["level"] == "error"] == ["archive.failed"]

    for attempts, seconds in ((2, 120), (3, 240), (30, 86_400)):
        await archive.run(app)  # too early: nothing is tried
        await db.execute("UPDATE archive_failure SET next_at = failed_at, attempts = $1", attempts - 1)
        await archive.run(app)
        told = (await agent.read("handoff://lifecycle"))["not_archived"]
        assert [(it["session_key"], it["attempts"], it["error"]) for it in told] == [(broken, attempts, "NotArchivable")]
        waits = datetime.fromisoformat(told[0]["next_at"]) - datetime.fromisoformat(told[0]["failed_at"])
        assert waits == timedelta(seconds=seconds)
    assert sum(line["event"] == "archive.failed" for line in logged) == 4

    await db.execute("UPDATE session SET last_sequence = 2 WHERE key = $1", broken)
    await db.execute("UPDATE context_entry SET sequence = 2 WHERE sequence = 3")
    await db.execute("UPDATE archive_failure SET next_at = failed_at")
    await archive.run(app)
    assert (await agent.read(f"handoff://sessions/{broken}"))["status"] == "archived"
    assert (await agent.read("handoff://lifecycle"))["not_archived"] == []


async def test_the_archive_of_the_demos_prose_takes_a_fifth_of_the_space(
    agent: Agent, app: App, db: asyncpg.Connection
) -> None:
    rng = Random(1)  # noqa: S311 - the same in each run
    for _ in range(12):
        key = await agent.session()
        topic = rng.choice(text.TOPICS)
        for _ in range(2):
            entries = [text.entry(rng, topic, 200) for _ in range(50)]
            await agent.ok("update_context", agent="alice", session_key=key, entries=entries)
        await agent.ok("close_session", agent="alice", session_key=key)
    await db.execute("VACUUM FULL context_entry")
    before = await db.fetchval("SELECT pg_total_relation_size('context_entry')")
    await jump(db, hours=25)

    await archive.run(app)

    after = await db.fetchval(
        "SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree('archive') WHERE isleaf"
    )
    print(f"{before:,} bytes before, {after:,} in the archive: {before / after:.1f} times smaller")
    assert after * 5 < before
