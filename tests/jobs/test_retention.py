"""What has outlived its time is deleted in batches, and nothing that is younger or still in use."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from handoff.context import App
from handoff.jobs import retention
from handoff.jobs.table import JOBS
from handoff.store import instances, performance
from handoff.store import retention as store
from handoff.store.performance import AgentCalls
from handoff.telemetry import metrics
from tests.agents import Agent
from tests.store.test_performance import BEGAN as NOW
from tests.store.test_performance import bucket

DOCUMENTED = Path(__file__).parents[2] / "docs/configuration.md"
TABLES = """
    SELECT relname FROM pg_class
     WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
"""
CASCADES = """
    SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint WHERE contype = 'f' AND confdeltype = 'c'
"""


async def test_results_are_kept_as_long_as_a_call_may_be_repeated(app: App, agent: Agent, db: asyncpg.Connection) -> None:
    for key in ("old", "young", "of an extended policy"):
        await agent.ok("register_session", agent="alice", session_key=key.replace(" ", "-"), idempotency_key=key)
    await agent.ok("close_session", agent="alice", session_key="old")
    await db.execute("UPDATE idempotency SET created_at = now() - interval '8 days' WHERE key = 'old'")
    await db.execute("UPDATE idempotency SET created_at = now() - interval '6 days 23 hours' WHERE key = 'young'")
    before = metrics.ROWS_DELETED.value("idempotency")

    await retention.run(app)

    assert {row["key"] for row in await db.fetch("SELECT key FROM idempotency")} == {"young", "of an extended policy"}
    assert metrics.ROWS_DELETED.value("idempotency") == before + 1
    replay = await agent.ok("register_session", agent="alice", session_key="young", idempotency_key="young")
    assert replay["session_key"] == "young"


async def test_a_policy_that_lets_sessions_live_longer_keeps_results_longer(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    await db.execute("UPDATE retention_policy SET active_for = '30 days' WHERE name = 'extended'")
    await agent.ok("register_session", agent="alice", session_key="s", idempotency_key="k")
    await agent.ok("close_session", agent="alice", session_key="s")
    await db.execute("UPDATE idempotency SET created_at = now() - interval '29 days'")
    await retention.run(app)
    assert await db.fetchval("SELECT count(*) FROM idempotency") == 1
    await db.execute("UPDATE idempotency SET created_at = now() - interval '31 days'")
    await retention.run(app)
    assert await db.fetchval("SELECT count(*) FROM idempotency") == 0


async def test_more_than_a_batch_is_deleted_in_one_run(
    app: App, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BATCH_MAX", 10)
    monkeypatch.setattr(store, "RESULT_BLOCKS_MAX", 1)
    await db.execute("""INSERT INTO idempotency (agent, key, tool, fingerprint, created_at)
                        SELECT 'a', n::text, 't', sha256('x'), now() - interval '9 days' FROM generate_series(1, 450) n""")
    assert await store.result_blocks(db) > 2
    await db.execute("INSERT INTO agent SELECT 'a' || n, '{}', now() - interval '8 days' FROM generate_series(1, 45) n")
    await retention.run(app)
    assert await db.fetchval("SELECT count(*) FROM idempotency") == await db.fetchval("SELECT count(*) FROM agent") == 0


async def test_the_history_of_alerts_and_health_ends_with_the_longest_policy_and_what_fires_stays(
    app: App, db: asyncpg.Connection
) -> None:
    for name, began, ended in (("old", 32, 31), ("recent", 32, 29), ("fires", 90, None)):
        await db.execute(
            """INSERT INTO alert (fingerprint, starts_at, ends_at, status, labels, annotations, notifications,
                                  received_at, updated_at)
               VALUES ($1, now() - make_interval(days => $2), now() - make_interval(days => $3),
                       CASE WHEN $3::int IS NULL THEN 'firing' ELSE 'resolved' END, '{}', '{}', 1, now(), now())""",
            name, began, ended,
        )  # fmt: skip
    await db.execute("""INSERT INTO health_event (at, instance, component, was, status, unit, detail)
                        SELECT now() - make_interval(days => n), 'i', 'pool', 'healthy', 'degraded', '', ''
                          FROM generate_series(40, 1, -1) n""")

    await retention.run(app)

    assert {row["fingerprint"] for row in await db.fetch("SELECT fingerprint FROM alert")} == {"recent", "fires"}
    assert await db.fetchval("SELECT count(*) FROM health_event") == 29


async def test_minutes_end_after_a_month_and_hours_and_days_with_the_longest_policy(
    app: App, db: asyncpg.Connection
) -> None:
    for days in (89, 91, 30, 32):
        await performance.write(
            db,
            replace(
                bucket(datetime.now(UTC) - timedelta(days=days), "service", [(NOW, "t", "ok", 1.0)], [], 0),
                agents=[AgentCalls("alice", 1, 0, 1, 100)],
            ),
        )
    await retention.run(app)
    this_one = "minute > now() - interval '1 day'"  # what this process has written of itself meanwhile
    for table in ("process_minute", "call_minute", "agent_minute"):
        assert await db.fetchval(f"SELECT count(*) FROM {table} WHERE NOT {this_one}") == 1, table
    for table in ("process_period", "call_period"):
        assert await db.fetchval(f"SELECT count(*) FROM {table} WHERE start < now() - interval '2 days'") == 6, table
    await db.execute("UPDATE retention_policy SET metrics_for = interval '7 days'")
    await retention.run(app)
    assert await db.fetchval(f"SELECT count(*) FROM process_minute WHERE NOT {this_one}") == 0
    assert await db.fetchval("SELECT count(*) FROM call_period WHERE start < now() - interval '2 days'") == 0


async def test_an_agent_is_forgotten_only_when_nothing_refers_to_it(app: App, agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session("took-part")
    await agent.offer(key, to="was-offered", agent="took-part")
    await db.execute("""INSERT INTO agent VALUES ('has-declared', '{python}', now()), ('left-nothing', '{}', now()),
                                                 ('took-part', '{}', now()), ('was-offered', '{}', now()),
                                                 ('came-today', '{}', now()) ON CONFLICT DO NOTHING""")
    await db.execute("UPDATE agent SET declared_at = now() - interval '8 days' WHERE name <> 'came-today'")

    async def left() -> set[str]:
        await retention.run(app)
        return {row["name"] for row in await db.fetch("SELECT name FROM agent")}

    assert await left() == {"has-declared", "took-part", "was-offered", "came-today"}
    long_ago = "UPDATE agent SET declared_at = now() - interval '91 days'"
    await agent.ok("get_inbox", agent="declares-again", capabilities=["python"])
    for again in ({}, {"capabilities": ["python"]}):  # both are a sign of life
        await db.execute(long_ago)
        await agent.ok("get_inbox", agent="declares-again", **again)
        assert await left() == {"declares-again", "took-part", "was-offered"}
    assert await db.fetchval("SELECT capabilities FROM agent WHERE name = 'declares-again'") == ["python"]


async def test_a_call_can_be_repeated_for_as_long_as_its_session_takes_writes(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    going_on, closed = await agent.session(idempotency_key="register-1"), await agent.session(idempotency_key="register-2")
    for key, name in ((going_on, "append-1"), (closed, "append-2")):
        await agent.says(key, "hello", idempotency_key=name)
    handoff = await agent.offer(going_on, idempotency_key="offer-1")
    await agent.accept(handoff, idempotency_key="accept-1")
    await agent.ok("close_session", agent="alice", session_key=closed, idempotency_key="close-2")
    await db.execute("UPDATE idempotency SET created_at = now() - interval '60 days'")
    await retention.run(app)

    kept = [row["key"] for row in await db.fetch("SELECT key FROM idempotency ORDER BY key")]
    assert kept == ["accept-1", "append-1", "offer-1", "register-1"]
    again = await agent.says(going_on, "hello", idempotency_key="append-1")
    assert (await agent.read(f"handoff://sessions/{going_on}"))["last_sequence"] == again["last_sequence"]


async def test_a_session_that_nobody_used_expires_after_a_week(app: App, agent: Agent, db: asyncpg.Connection) -> None:
    unused, used, offered, young = [await agent.session() for _ in range(4)]
    await agent.says(used, "hello")
    await agent.offer(offered)
    await db.execute("UPDATE session SET last_activity_at = now() - interval '8 days' WHERE key <> $1", young)
    await retention.run(app)

    found = [(await agent.read(f"handoff://sessions/{key}"))["status"] for key in (unused, used, offered, young)]
    assert found == ["expired", "active", "active", "active"]
    events = (await agent.read(f"handoff://sessions/{unused}/lifecycle"))["events"]
    assert [event["kind"] for event in events][-1] == "session.expired"


async def test_every_table_is_bounded_and_the_documentation_says_by_what(db: asyncpg.Connection) -> None:
    """A new table needs a row there: what deletes from it, or why nothing has to."""
    section = DOCUMENTED.read_text().partition("## What bounds each table\n")[2].partition("\n## ")[0]
    bounds = {
        table: bound
        for tables, bound in re.findall(r"^\| (`.*?) \| (.*) \|$", section, re.MULTILINE)
        for table in re.findall(r"`(\w+)`", tables)
    }
    assert sorted(bounds) == sorted(row[0] for row in await db.fetch(TABLES))
    cascades = {tuple(row) for row in await db.fetch(CASCADES)}
    for table, bound in bounds.items():
        if found := re.match(r"`(\w+)`, with which they are deleted$", bound):
            assert (table, found[1]) in cascades
        elif found := re.match(r"the job `(\w+)`", bound):
            assert found[1] in {job.name for job in JOBS}


async def test_incidents_anomalies_webhooks_and_processes_are_deleted_when_they_are_old_and_over(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    incident = """INSERT INTO incident (severity, component, summary, causes, anomalies, opened_at, last_at, closed_at)
                  SELECT 'warning', 'host', $1, '[]', 1, now() - $2::interval, now() - $2, now() - $3::interval
               RETURNING id"""
    days = timedelta(days=1)
    ids = [
        await db.fetchval(incident, name, began * days, over)
        for name, began, over in (("old", 91, 90 * days), ("open", 91, None), ("young", 89, 88 * days))
    ]
    await db.execute("""INSERT INTO series (name, kind, absence, begins_at, last_at)
                        VALUES ('s', 'level', 'gap', date_trunc('minute', now()), date_trunc('minute', now()))""")
    for age, of in ((91, ids[0]), (91, ids[1]), (91, None), (89, None)):
        await db.execute(
            """INSERT INTO anomaly (series_id, bucket, version, severity, shadow, value, expected, lower, upper, strength,
                                    confidence, spoke, sentence, incident_id)
               SELECT id, date_trunc('minute', now()) - $1::interval - coalesce($2::bigint, 0) * interval '1 minute', 1,
                      'warning', false, 1, 1, 1, 1, 1, 1, '{}', '', $2 FROM series WHERE name = 's'""",
            age * days,
            of,
        )
    handoff_id = await agent.offer(await agent.session())
    delivery = """INSERT INTO webhook_delivery (endpoint, handoff_id, event_id, kind, at, data, is_dead)
                  VALUES ('ops', $1, $2, 'handoff.offered', now() - $3::interval, '{}', $4)"""
    for number, (of, age, is_dead) in enumerate(
        ((handoff_id, 31, False), (handoff_id, 29, True), (77, 1, True), (77, 1, False))
    ):
        await db.execute(delivery, of, number, age * days, is_dead)
    seen = """INSERT INTO instance (id, kind, version, does_jobs, started_at, seen_at)
              VALUES ($1, 'service', '0', false, now(), now() - $2::interval)"""
    for name, age in (("gone", 61), ("alive", 59)):
        await db.execute(seen, name, age * timedelta(minutes=1))

    await retention.run(app)
    await instances.seen(db, "me", "service", "0", None, does_jobs=False)

    assert [row[0] for row in await db.fetch("SELECT summary FROM incident ORDER BY id")] == ["open", "young"]
    assert await db.fetchval("SELECT count(*) FROM anomaly") == 2
    assert [row[0] for row in await db.fetch("SELECT event_id FROM webhook_delivery ORDER BY 1")] == [1, 3]
    known = {row[0] for row in await db.fetch("SELECT id::text FROM instance")}
    assert (known & {"gone", "alive", "me"}) == {"alive", "me"}
