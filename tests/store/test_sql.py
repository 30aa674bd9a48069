"""Every statement is valid on the migrated schema, and the frequent ones read no more rows than they return."""

import asyncio
import importlib
import json
import pkgutil
from collections.abc import AsyncGenerator, Generator, Iterator
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from handoff import store
from handoff.model import ENTRY_TYPES, MARKS
from handoff.store import (
    append,
    archive,
    entries,
    events,
    handoffs,
    idempotency,
    inbox,
    integrity,
    lifecycle,
    lists,
    retention,
    sessions,
    statistics,
    storage,
)
from tests.conftest import _database, _execute

VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "CREATE", "(SELECT")
BIG = ("session", "participant", "context_entry", "handoff", "event", "idempotency")


def statements() -> Iterator[tuple[str, str]]:
    """Yield every SQL constant of handoff.store with its name."""
    for module_info in pkgutil.iter_modules(store.__path__):
        module = importlib.import_module(f"handoff.store.{module_info.name}")
        for name, value in vars(module).items():
            if name.isupper() and not name.startswith("_") and isinstance(value, str) and value.lstrip().startswith(VERBS):
                yield f"{module_info.name}.{name}", value


SQL = dict(statements())


def test_the_statements_are_discovered() -> None:
    assert len(SQL) > 35
    assert {"append.APPEND", "inbox.WHOLE", "lists.SESSIONS_BY_AGENT", "events.RECORD"} <= set(SQL)


FILL = """
    INSERT INTO session (key, created_by, owner, writers, status, retention_policy, metadata, created_at, expires_at,
                         last_activity_at, last_sequence, content_bytes, version)
    SELECT 's' || n, 'a' || n % 9, 'a' || n % 9, ARRAY['a' || n % 9],
           CASE WHEN n % 10 = 0 THEN 'completed' ELSE 'active' END, 'standard', '{}',
           now() - n * interval '1 minute', now() + interval '1 day', now() - n * interval '1 minute',
           CASE WHEN n <= 20 THEN 1500 ELSE 10 END, 100, 1
      FROM generate_series(1, 20000) n;
    INSERT INTO participant (agent, session_id, created_at) SELECT owner, id, created_at FROM session;
    INSERT INTO participant (agent, session_id, created_at) SELECT 'sees-all', id, created_at FROM session;
    INSERT INTO event (session_id, kind, agent, at)
    SELECT id, 'session.created', owner, now() FROM session
    UNION ALL
    SELECT id, 'session.reactivated', owner, now() FROM session, generate_series(1, 500) WHERE id <= 20;
    INSERT INTO context_entry (session_id, sequence, type, content, metadata, supersedes, size_bytes, content_hash, author,
                               created_at)
    SELECT id, q, (ARRAY['message', 'file', 'tool_call', 'system', 'decision', 'summary'])[1 + q % 6],
           'word' || q || ' text ' || id,
           CASE WHEN q % 50 = 0 THEN '{"question": true}'::jsonb END, CASE WHEN q % 40 = 0 THEN ARRAY[q - 1]::bigint[] END,
           20, sha256('x'), owner, now()
      FROM session, generate_series(1, 10) q WHERE id BETWEEN 21 AND 500
    UNION ALL
    SELECT id, q, (ARRAY['message', 'file', 'tool_call', 'system', 'decision', 'summary'])[1 + q % 6],
           'word' || q || ' text ' || id,
           CASE WHEN q % 50 = 0 THEN '{"question": true}'::jsonb END, CASE WHEN q % 40 = 0 THEN ARRAY[q - 1]::bigint[] END,
           20, sha256('x'), owner, now()
      FROM session, generate_series(1, 1500) q WHERE id <= 20;
    INSERT INTO idempotency (agent, key, tool, fingerprint, sequence, created_at)
    SELECT owner, key, 'update_context', sha256('x'), 1, now() FROM session;
    INSERT INTO agent VALUES ('w2', ARRAY['c1', 'c2'], now());
    INSERT INTO handoff (session_id, request_type, sender, target_agent, target_capability, instructions, priority, deadline,
                         state, holder, token, lease_expires_at, lapses, as_of_sequence, context_digest, created_at,
                         updated_at)
    SELECT id, 'context_transfer', owner, CASE WHEN id % 2 = 0 THEN 'w' || id % 7 END,
           CASE WHEN id % 2 = 1 THEN 'c' || id % 5 END, 'x', id / 8 % 10,
           CASE WHEN id % 3 = 0 THEN now() + interval '1 day' END,
           (ARRAY['offered', 'accepted', 'completed', 'rejected'])[1 + id / 2 % 4],
           CASE WHEN id / 2 % 4 IN (1, 2) THEN 'w' || id % 7 END, 1,
           CASE WHEN id / 2 % 4 = 1 THEN now() + interval '1 hour' END, 0, 1, sha256('x'), created_at, now()
      FROM session;
    ANALYZE;
"""


@pytest.fixture(scope="module")
def filled_url(postgres_url: str) -> Generator[str]:
    """A database with 20,000 sessions, 20 of them long, with their entries, events and handoffs."""
    for url in _database(postgres_url, "template_handoff"):
        asyncio.run(_execute(url, FILL))
        yield url


@pytest.fixture
async def filled(filled_url: str) -> AsyncGenerator[asyncpg.Connection]:
    """A connection to the filled database; a test's writes are rolled back."""
    conn = await asyncpg.connect(filled_url)
    await conn.set_type_codec("json", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    transaction = conn.transaction()
    await transaction.start()
    yield conn
    await transaction.rollback()
    await conn.close()


@pytest.mark.parametrize("name", sorted(SQL))
async def test_each_statement_can_be_prepared_on_the_migrated_database(name: str, filled: asyncpg.Connection) -> None:
    await filled.prepare(SQL[name])


def literal(value: Any) -> str:
    """Return a value as an SQL literal without a type: the parameter determines it."""
    match value:
        case None:
            return "NULL"
        case list():
            return (
                "'{"
                + ",".join(
                    f'"\\\\x{each.hex()}"' if isinstance(each, bytes) else literal(each).replace("'", '"') for each in value
                )
                + "}'"
            )
        case bytes():
            return f"'\\x{value.hex()}'"
        case str() | datetime():
            return f"'{value}'"
        case _:
            return str(value)


async def plan(db: asyncpg.Connection, statement: str, *arguments: Any) -> list[dict[str, Any]]:
    """Return the scans that the statement makes: node type, table, index and rows read. Its writes are rolled back.

    Includes the scans of its first run and of its seventh, when Postgres may have switched to a generic plan.
    """
    scans: list[dict[str, Any]] = []

    def walk(node: dict[str, Any]) -> None:
        if node.get("Relation Name") in BIG or "Index Name" in node:
            removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
            rows = (node["Actual Rows"] + removed) * node["Actual Loops"]
            names = {"type": node["Node Type"], "table": node.get("Relation Name"), "index": node.get("Index Name")}
            scans.append({**names, "rows": rows})
        for child in node.get("Plans", []):
            walk(child)

    execute = f"EXECUTE p({', '.join(map(literal, arguments))})"
    await db.execute(f"PREPARE p AS {statement}")
    for run in range(7):
        transaction = db.transaction()
        await transaction.start()
        if run in (0, 6):
            explained = await db.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON, BUFFERS off) {execute}")
            walk(explained[0]["Plan"])
        else:
            await db.execute(execute)
        await transaction.rollback()
    await db.execute("DEALLOCATE p")
    return scans


def most(scans: list[dict[str, Any]], table: str) -> float:
    """Return the rows read from a table by the largest scan; fail if any scan reads a whole table."""
    assert not [scan for scan in scans if scan["type"] == "Seq Scan"], scans
    return max((scan["rows"] for scan in scans if scan["table"] == table), default=0)


EVER, NEWEST = lists.EVER, lists.NEWEST[0]


NO_FILTERS = (None,) * 6
ALONG: list[tuple[str, tuple[str, ...]]] = [
    (lists.SESSIONS, ()),
    (lists.SESSIONS_BY_STATUS, ("completed",)),
    (lists.SESSIONS_BY_POLICY, ("standard",)),
    (lists.SESSIONS_BY_AGENT, ("a7",)),
    (lists.SESSIONS_OUTLINE, ()),
    (lists.SESSIONS_BY_AGENT_OUTLINE, ("a7",)),
]


async def test_lists_of_sessions_read_one_page(filled: asyncpg.Connection) -> None:
    middle = await filled.fetchrow("SELECT created_at, id FROM session WHERE key = 's10000'")
    assert middle is not None
    for statement, along in ALONG:
        for position in ((NEWEST, 0), (middle["created_at"], middle["id"])):
            scans = await plan(filled, statement, *position, EVER, 21, 21, *NO_FILTERS, "1 day", *along)
            assert 0 < most(scans, "session") <= 21
            assert most(scans, "participant") <= 21
            assert most(scans, "handoff") <= 21


async def test_a_filter_without_an_index_reads_no_more_than_its_limit(filled: asyncpg.Connection) -> None:
    limit = lists.ROWS_READ_MAX
    for statement, along in ALONG:
        which = ("active",) if along == ("completed",) else along  # few are completed, so all of these may be read
        for filters in (
            ("dormant", None, None, None, None, None),
            (None, "a7", None, None, None, None),
            (None, None, "a8", "a8", None, NEWEST),
            ("active", "sees-all", "a7", None, "standard", EVER),
        ):
            scans = await plan(filled, statement, NEWEST, 0, EVER, limit, 21, *filters, "1 day", *which)
            assert 0 < most(scans, "session") <= limit * 1.2  # nine of ten are active: by creation or by status is the same
            assert most(scans, "participant") <= limit


async def test_what_an_agent_sent_is_read_one_page_at_a_time(filled: asyncpg.Connection) -> None:
    await filled.execute("UPDATE handoff SET sender = 'rare' WHERE id % 200 = 0")
    await filled.execute("ANALYZE handoff")
    scans = await plan(filled, lists.SENT, "rare", 9_000, 21, 21, None)

    assert "handoff_sent" in {scan["index"] for scan in scans}
    assert 0 < most(scans, "handoff") <= 21
    scans = await plan(filled, lists.SENT, "a7", 20_001, lists.ROWS_READ_MAX, 21, "cancelled")
    assert 0 < most(scans, "handoff") <= lists.ROWS_READ_MAX


async def test_a_page_of_entries_with_filters_reads_only_the_entries_that_it_looks_at(filled: asyncpg.Connection) -> None:
    filters = ("decision", None, "nobody", EVER, NEWEST)
    for statement in (entries.PAGE_FILTERED, entries.PAGE_NEWEST_FIRST):
        assert most(await plan(filled, statement, 5, 700, 901, 20, 1 << 20, *filters), "context_entry") <= 200


async def test_a_lifecycle_reads_one_page(filled: asyncpg.Connection) -> None:
    for after in (0, 21_000):
        assert most(await plan(filled, events.OF_SESSION, 5, after, 51), "event") == 51


async def test_a_page_of_entries_reads_one_page(filled: asyncpg.Connection) -> None:
    assert most(await plan(filled, entries.PAGE, 5, 700, 20, 1 << 20), "context_entry") <= 20
    assert most(await plan(filled, entries.PAGE_BY_TYPE, 5, 700, 20, 1 << 20, "decision"), "context_entry") <= 20


async def test_a_brief_reads_the_newest_entries_per_type_and_not_the_whole_session(filled: asyncpg.Connection) -> None:
    wanted = 20
    scans = await plan(
        filled, entries.BRIEF, 5, list(ENTRY_TYPES), [wanted] * len(ENTRY_TYPES), 1_000, 1_000_000, wanted, 100
    )

    # The scans of types also read marked entries, and skip them; the last one finds the first message.
    skipped = 1_500 // 50
    assert most(scans, "context_entry") <= wanted * (len(ENTRY_TYPES) + len(MARKS)) + skipped + 1
    read = {scan["index"] for scan in scans if scan["rows"]}
    assert {"context_entry_valid", "context_entry_open_question"} <= read


async def test_entries_are_counted_without_reading_them(filled: asyncpg.Connection) -> None:
    assert most(await plan(filled, entries.COUNT_MARKED, 5), "context_entry") <= 1_500 // 50


@pytest.mark.parametrize("position", [(10, 0), (5, 9_000), (0, 15_000)])
async def test_an_inbox_reads_one_page_of_each_of_its_three_lists_from_any_position(
    filled: asyncpg.Connection, position: tuple[int, int]
) -> None:
    page = await filled.fetch(inbox.WHOLE, "w2", *position, 11)
    scans = await plan(filled, inbox.WHOLE, "w2", *position, 11)

    assert len(page) == 11
    assert most(scans, "handoff") <= 22  # two capabilities
    assert most(scans, "session") <= 11
    read = {scan["index"] for scan in scans if scan["rows"]}
    assert {"handoff_offered_to_agent", "handoff_offered_to_capability", "handoff_held"} <= read


async def test_what_is_new_in_an_inbox_is_found_without_reading_the_rest_of_it(filled: asyncpg.Connection) -> None:
    await filled.execute("UPDATE handoff SET updated_at = now() - interval '1 hour'")
    new = await filled.fetch(
        "UPDATE handoff SET updated_at = now() WHERE id IN (SELECT id FROM handoff WHERE target_agent = 'w2' AND"
        " state = 'offered' ORDER BY id DESC LIMIT 3) RETURNING id"
    )
    # A mark from before this transaction. One that it reads itself has it as over once a later one of another test is.
    at = await filled.fetchrow("SELECT x || ':' || x || ':', now() - interval '10 minutes' FROM pg_current_xact_id() x")
    assert at is not None
    arguments = ("w2", 10, 0, 11, *at)

    assert {row["id"] for row in await filled.fetch(inbox.SINCE, *arguments)} == {row["id"] for row in new}
    scans = await plan(filled, inbox.SINCE, *arguments)
    assert most(scans, "handoff") <= 11
    assert {"handoff_offered_to_agent_since", "handoff_offered_to_capability_since"} <= {scan["index"] for scan in scans}


async def test_an_inbox_read_page_by_page_is_the_inbox_read_at_once(filled: asyncpg.Connection) -> None:
    await filled.execute("DELETE FROM handoff WHERE id > 1500")
    whole = [(row["priority"], row["id"]) for row in await filled.fetch(inbox.WHOLE, "w2", 10, 0, 1_000)]
    paged: list[tuple[int, int]] = []
    position = (10, 0)
    while (page := await filled.fetch(inbox.WHOLE, "w2", *position, 7))[0]["id"] is not None:
        paged += [(row["priority"], row["id"]) for row in page]
        position = paged[-1]

    assert len(whole) > 100
    assert paged == whole == sorted(whole, key=lambda pair: (-pair[0], pair[1]))


async def test_overdue_handoffs_are_found_by_index(filled: asyncpg.Connection) -> None:
    await filled.execute("UPDATE handoff SET deadline = now() - interval '1 hour' WHERE id IN (12, 24)")

    assert most(await plan(filled, handoffs.OVERDUE, 100), "handoff") <= 2


async def test_sessions_that_are_due_are_found_by_index(filled: asyncpg.Connection) -> None:
    await filled.execute("UPDATE session SET idle_check_at = now() + interval '1 hour', expiry_check_at = expires_at")
    await filled.execute("ANALYZE session")
    await filled.execute("UPDATE session SET idle_check_at = now(), expiry_check_at = now() WHERE id IN (11, 12, 13)")

    for statement in (lifecycle.SLEEP, lifecycle.EXPIRE):
        scans = await plan(filled, statement, 500)
        assert most([scan for scan in scans if scan["index"] != "session_pkey"], "session") <= 6
        assert most(scans, "handoff") <= 6


async def test_statistics_read_the_rows_of_their_range_only(filled: asyncpg.Connection) -> None:
    now = await filled.fetchval("SELECT max(created_at) FROM session")
    asked = (now - timedelta(minutes=100), now - timedelta(minutes=40), "day", None)

    assert most(await plan(filled, statistics.SESSIONS, *asked), "session") == 60
    assert most(await plan(filled, statistics.SESSIONS_OF_AGENT, *asked, "a7"), "participant") <= 60
    scans = await plan(filled, statistics.HANDOFFS, *asked, None)
    assert most([scan for scan in scans if scan["index"] != "session_pkey"], "handoff") == 60
    scans = await plan(filled, statistics.CONTEXT, *asked, None)  # reads all sessions, but entries of the active ones only
    assert {scan["rows"] for scan in scans if scan["table"] == "context_entry"} == {60 * 10}


async def test_an_append_reads_only_its_own_session(filled: asyncpg.Connection) -> None:
    scans = await plan(filled, append.APPEND, *columns([7]))

    assert most(scans, "session") == 1
    assert most(scans, "idempotency") <= 1


async def test_a_full_batch_reads_only_its_own_sessions(filled: asyncpg.Connection) -> None:
    scans = await plan(filled, append.APPEND, *columns([1 + number % 32 for number in range(64)]))

    assert most(scans, "session") == 32
    assert most(scans, "idempotency") <= 64


def columns(numbers: list[int]) -> list[Any]:
    """Return the arguments of the APPEND statement for one entry to each of these sessions."""
    count = len(numbers)
    return [
        list(range(count)),
        [f"s{number}" for number in numbers],
        [f"a{number % 9}" for number in numbers],
        *([value] * count for value in (None, 1, 0)),
        [f"key{place}" for place in range(count)],
        *([value] * count for value in (bytes(32), 1)),
        list(range(count)),
        *([value] * count for value in (1, "message", "x", None, "", 1, bytes(32))),
        ["active", "dormant"],
        10_000,
        [None] * count,
    ]


async def test_visibility_and_the_newest_handoffs_are_found_by_index(filled: asyncpg.Connection) -> None:
    assert most(await plan(filled, sessions.FIND, "s5"), "session") == 1
    seen = await plan(filled, sessions.SEE, "s5", "w2")
    assert (most(seen, "session"), most(seen, "handoff") <= 1) == (1, True)
    found = await plan(filled, handoffs.FIND, 5, "w2")
    assert (most(found, "session"), most(found, "handoff")) == (1, 1)
    assert most(await plan(filled, idempotency.FIND, "a5", "s5"), "idempotency") == 1
    assert most(await plan(filled, entries.EDGES, 5, 280), "context_entry") == 1
    assert most(await plan(filled, handoffs.LATEST_OF_SESSION, 5, 3), "handoff") <= 3


async def test_the_jobs_that_go_through_everything_read_bounded_parts_of_it_along_an_index(
    filled: asyncpg.Connection,
) -> None:
    await filled.execute("UPDATE idempotency SET created_at = now() - interval '40 days' WHERE ctid < '(50,0)'")
    await filled.execute("ANALYZE idempotency")
    batch = 50

    results = await plan(filled, retention.RESULTS, "7 days", "(0,0)", "(10,0)")
    in_blocks = await filled.fetchval("SELECT count(*) FROM idempotency WHERE ctid < '(10,0)'")
    assert [scan["type"] for scan in results if scan["table"] == "idempotency"].count("Tid Range Scan") == 2
    assert most(results, "idempotency") <= in_blocks
    assert most(results, "session") <= 2 * in_blocks
    assert most(await plan(filled, retention.AGENTS, "", batch), "handoff") <= batch
    checked = await plan(filled, integrity.CHECK, 20, 1_490, batch, 1 << 24)
    assert most(checked, "context_entry") <= 2 * batch
    assert most(checked, "session") <= batch
    await filled.execute("UPDATE session SET status = 'archived' WHERE id % 50 = 0")
    await filled.execute("ANALYZE session")
    assert most(await plan(filled, storage.ARCHIVED, batch), "session") <= 20_000 / 50
    await filled.execute("UPDATE session SET status_since = now() - interval '9 days' WHERE status = 'completed'")
    assert 0 < most(await plan(filled, archive.DUE, "1 day", batch), "session") <= batch
