"""Recommendations open on what is measured, close when it changes, and then say what was measured."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from handoff.context import App
from handoff.jobs import recommend, trends
from handoff.recommendations import KINDS
from handoff.settings import Settings
from handoff.store import evidence, performance
from handoff.store.connect import connection
from handoff.store.performance import Bucket
from handoff.telemetry import metrics
from handoff.telemetry.buckets import LAG_S, STATEMENT_S, WAIT_S
from tests.agents import Agent
from tests.stack.rules import alerts

OFFERS = """
    INSERT INTO handoff (session_id, request_type, sender, target_agent, instructions, priority, state, holder, token,
                         lapses, as_of_sequence, context_digest, created_at, accepted_at, updated_at, loop)
    SELECT (SELECT max(id) FROM session), 'context_transfer', $1, $2, 'x', 5, $3::text,
           CASE WHEN $3 = 'completed' THEN $2 END, 1, 0, 1, sha256('x'), now(),
           CASE WHEN $3 = 'completed' THEN now() END, now(), CASE WHEN $5 THEN '{"kind": "rounds", "count": 2}'::jsonb END
      FROM generate_series(1, $4::int)
    RETURNING id
"""
ACCEPTED = """
    INSERT INTO event (session_id, handoff_id, kind, agent, at, data)
    SELECT (SELECT max(id) FROM session), unnest($1::bigint[]), $2::text, $3::text, now(), $4::jsonb
"""
AGO = "UPDATE {} SET created_at = created_at - interval '4 days'"
# As the extension has it: what a statement took since the statistics were reset.
STATEMENTS = """
    CREATE TABLE pg_stat_statements AS
    SELECT d.oid AS dbid, current_user::regrole::oid AS userid, 42::bigint AS queryid, 100::bigint AS calls,
           40000::float8 AS total_exec_time,
           'SELECT content FROM context_entry WHERE author = $1 AND size_bytes > $2' AS query
      FROM pg_database d WHERE datname = current_database()
"""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"storage_bytes_max": 10 << 30})


async def offers(
    db: asyncpg.Connection, sender: str, to: str, state: str, count: int, *, looping: bool = False
) -> list[int]:
    return [row["id"] for row in await db.fetch(OFFERS, sender, to, state, count, looping)]


def counted(bounds: tuple[float, ...], values: Sequence[float]) -> list[int]:
    """How many of the values there are in each bucket."""
    places = [bisect_left(bounds, value) for value in values]
    return [places.count(place) for place in range(len(bounds) + 1)]


async def minutes(
    db: asyncpg.Connection,
    ago: Iterable[int],
    *,
    processes: int = 1,
    cpu: float = 0.1,
    cpus: float = 1.0,
    overloaded: int = 0,
    lags_s: Sequence[float] = (0.001,),
    statements_s: Sequence[float] = (0.002,),
    waits_s: Sequence[float] = (),
    cache: tuple[int, int] = (0, 0),
) -> None:
    """Write what each process did in the minutes that ended so many minutes ago, as the service writes it."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    for back in ago:
        for number in range(processes):
            bucket = Bucket(
                at=now - timedelta(minutes=back + 1), id=uuid4(), instance=f"i{number}", kind="service", seconds=60,
                cpu_s=60 * cpu, memory_bytes=1, disk_ratio=0.1, pool_timeouts=0, cache_hits=cache[0], cache_misses=cache[1],
                cache_errors=0, pool_waits=counted(WAIT_S, waits_s), loop_lags=counted(LAG_S, lags_s),
                statements=counted(STATEMENT_S, statements_s), calls=[], cpus=cpus, overloaded=overloaded,
            )  # fmt: skip
            await performance.write(db, bucket)


async def read(agent: Agent, query: str = "") -> dict[str, Any]:
    return await agent.read(f"handoff://analytics/recommendations{query}")


async def test_each_kind_opens_on_its_figure_and_closes_with_what_was_measured_after(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    key = await agent.session()
    await recommend.run(app)
    assert (await read(agent))["recommendations"] == []

    await offers(db, "ann", "bob", "rejected", 6)
    accepted = await offers(db, "ann", "bob", "completed", 6)
    await offers(db, "ann", "cid", "rejected", 9)  # too few to say anything
    await offers(db, "dan", "eve", "completed", 5, looping=True)
    await db.execute(ACCEPTED, accepted, "handoff.accepted", "bob", None)
    await db.execute(ACCEPTED, [*accepted[:2], *accepted[:2]], "handoff.accepted", "bob", None)
    await db.execute(ACCEPTED, accepted[:4], "handoff.lapsed", None, '{"holder": "bob"}')
    for _ in range(10):
        await agent.says(key, "x" * 100_001)
    sizes = """INSERT INTO storage_size
               SELECT 'archive', now() - n * interval '12 hours', (9.5 - n) * (1::bigint << 30)
                 FROM generate_series(0, 4) n"""
    await db.execute(sizes)
    await agent.session("old")
    await db.execute(
        "UPDATE session SET status = 'archived', status_since = now() - interval '20 days', content_bytes = 5000"
        " WHERE owner = 'old'"
    )
    await db.execute(STATEMENTS)
    await minutes(db, range(1), waits_s=[0.0001] * 900 + [0.05] * 40 + [0.1] * 60, cache=(10, 990))
    await recommend.run(app)
    await recommend.run(app)  # a rerun opens nothing twice

    found = {it["kind"]: it for it in (await read(agent))["recommendations"]}
    assert len((await read(agent))["recommendations"]) == len(found)
    assert found.keys() == KINDS.keys() - {"scale", "scale_ahead"}
    assert {kind: (it["subject"], round(it["figure"]["at_opening"], 3)) for kind, it in found.items()} == {
        "rejecting_route": ("ann to bob", 0.5),
        "looping_route": ("dan to eve", 5),
        "lapsing_agent": ("bob", 0.4),
        "oversized_context": ("alice", 10),
        "retention": ("standard", pytest.approx(6.9, abs=0.2)),
        "slow_query": ("42", 400),
        "pool_size": ("service", 0.06),
        "cache_lifetime": ("service", 0.99),
    }
    assert found["oversized_context"]["evidence"]["large_bytes"] == 1_000_010
    assert found["retention"]["evidence"]["archived_days_instead"] == 15
    assert "context_entry" in " ".join(found["slow_query"]["evidence"]["plan"])
    assert {it["state"] for it in found.values()} == {"open"}
    assert [metrics.RECOMMENDATIONS.value(kind) for kind in KINDS] == [int(kind in found) for kind in KINDS]

    # A figure between the two levels, or a statement that is idle, changes nothing.
    await offers(db, "ann", "bob", "completed", 8)
    await recommend.run(app)
    again = {it["kind"]: it for it in (await read(agent))["recommendations"]}
    assert {it["state"] for it in again.values()} == {"open"}
    assert (again["rejecting_route"]["now"]["figure"], again["slow_query"]["now"]["figure"]) == (0.3, 400)

    await offers(db, "ann", "bob", "completed", 10)
    await db.execute("UPDATE handoff SET loop = NULL")
    await db.execute("DELETE FROM event WHERE kind = 'handoff.lapsed'")
    await db.execute(AGO.format("context_entry"))
    await db.execute("DELETE FROM storage_size")
    await db.execute("DELETE FROM process_period")
    await db.execute("DELETE FROM process_minute")
    await minutes(db, range(1), waits_s=[0.0001] * 1_000 + [0.05] * 40 + [0.1] * 10, cache=(300, 700))
    await db.execute("UPDATE pg_stat_statements SET calls = calls + 30, total_exec_time = total_exec_time + 300")
    await recommend.run(app)
    await recommend.run(app)

    closed = {it["kind"]: it for it in (await read(agent))["recommendations"]}
    assert closed.keys() == found.keys()
    assert {it["state"] for it in closed.values()} == {"closed"}
    assert {kind: it["measured_after"] for kind, it in closed.items() if kind not in ("slow_query", "rejecting_route")} == {
        "looping_route": {"figure": 0, "evidence": {"looping": 0, "offers": 5}},
        "lapsing_agent": {"figure": 0, "evidence": {"lapsed": 0, "accepted": 10}},
        "oversized_context": {"figure": None, "evidence": {}},
        "retention": {"figure": None, "evidence": {}},
        "pool_size": {"figure": 10 / 1050, "evidence": {"waits": 1050, "longer_than_50_ms": 10, "timeouts": 0}},
        "cache_lifetime": {"figure": 0.7, "evidence": {"hits": 300, "misses": 700}},
    }
    assert closed["rejecting_route"]["measured_after"]["evidence"] == {"rejected": 6, "answered": 30}
    assert closed["slow_query"]["measured_after"]["figure"] == pytest.approx(10)
    assert metrics.RECOMMENDATIONS.value("slow_query") == 0

    await db.execute("UPDATE recommendation SET closed_at = now() - interval '91 days'")
    await recommend.run(app)
    assert (await read(agent))["recommendations"] == []


async def one(agent: Agent, kind: str) -> dict[str, Any] | None:
    """The newest recommendation of this kind."""
    return next((it for it in (await read(agent))["recommendations"] if it["kind"] == kind), None)


@pytest.mark.parametrize(
    ("saturated", "needed"),
    [
        ({"cpu": 0.9}, 3),  # 1.8 CPUs, of each of which 60 % should be used
        ({"cpu": 0.45, "cpus": 0.5}, 3),  # the same, of processes that may use half a CPU each
        ({"lags_s": [0.001] * 90 + [0.5] * 10}, 3),
        ({"overloaded": 1}, 3),
        ({"cpu": 0.9, "lags_s": [0.2], "statements_s": [0.2]}, 3),  # slow only because the event loop is late
    ],
)
async def test_more_processes_are_recommended_when_half_of_an_hour_was_saturated_until_none_is_of_a_day(
    app: App, agent: Agent, db: asyncpg.Connection, saturated: dict[str, Any], needed: int
) -> None:
    waiting: dict[str, Any] = {
        "waits_s": [0.1] * 1_000
    }  # for connections that are held for so long only because the processes are busy
    await minutes(db, range(40, 69), processes=2, **saturated, **waiting)
    await minutes(db, (30,), processes=2, waits_s=[0.001] * 1_000)
    await recommend.run(app)
    assert (await read(agent))["recommendations"] == []  # 29 minutes

    await minutes(db, (29,), processes=2, **saturated, **waiting)
    await recommend.run(app)
    found = await one(agent, "scale")
    assert found is not None
    assert (found["figure"]["at_opening"], found["evidence"]["saturated_minutes"]) == (0.5, 30)
    assert (found["evidence"]["processes"], found["evidence"]["processes_needed"]) == (2, needed)
    assert await one(agent, "pool_size") is None  # more connections would not help

    await db.execute("UPDATE process_minute SET minute = minute - interval '20 hours'")
    await minutes(db, range(5), processes=3, cpu=0.6)
    await recommend.run(app)
    assert (await one(agent, "scale") or {})["state"] == "open"  # the busiest hour of the day may come again

    await db.execute("DELETE FROM process_minute WHERE minute < now() - interval '20 hours'")
    await recommend.run(app)
    closed = await one(agent, "scale")
    assert closed is not None
    assert (closed["state"], closed["measured_after"]["figure"]) == ("closed", 0)
    after = closed["measured_after"]["evidence"]
    assert (after["saturated_minutes"], after["processes"], after["cpus_used"]) == (0, 3, pytest.approx(1.8))
    assert "processes_needed" not in after


@pytest.mark.parametrize(
    "busy", [{"cpu": 0.9}, {"lags_s": [0.3]}, {"overloaded": 100}], ids=["CPU", "event loop", "overloaded"]
)
async def test_while_the_database_is_slow_connections_may_be_missing_but_processes_are_not(
    app: App, agent: Agent, db: asyncpg.Connection, busy: dict[str, Any]
) -> None:
    await minutes(db, range(50), **busy, statements_s=[0.002] * 90 + [1.4] * 10, waits_s=[0.1] * 20)
    await recommend.run(app)
    assert [it["kind"] for it in (await read(agent))["recommendations"]] == ["pool_size"]


async def test_growth_of_the_busiest_hour_recommends_processes_before_they_are_short(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    await minutes(db, range(10), cpu=0.6)
    hours = """INSERT INTO process_period (grain, start, kind, seconds, cpu_s, memory_byte_s, memory_max, disk_max,
                                           pool_timeouts, cache_hits, cache_misses, cache_errors, pool_waits, loop_lags)
               SELECT 'hour', $1::date::timestamp AT TIME ZONE 'UTC' + hour * interval '1 hour', 'service', 3600,
                      CASE hour WHEN 9 THEN $2::float8 ELSE 100 END, 1, 1, 0.1, 0, 0, 0, 0, array_fill(0, ARRAY[10]),
                      array_fill(0, ARRAY[10])
                 FROM unnest('{3,9,15}'::int[]) hour"""
    today: date = await db.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    for ago in range(30, 0, -1):  # from 0.3 to 0.59 CPUs
        await db.execute(hours, today - timedelta(days=ago), 3600 * (0.6 - 0.01 * ago))
    await recommend.run(app)
    assert (await read(agent))["recommendations"] == []  # nothing has been forecast yet

    await trends.run(app)
    await recommend.run(app)
    found = await one(agent, "scale_ahead")
    assert found is not None
    assert found["figure"]["at_opening"] == pytest.approx((0.6 + 0.29) / 0.8, abs=0.01)
    evidence = found["evidence"]
    assert (evidence["cpus_used"], evidence["cpus_limit"]) == (pytest.approx(0.59), pytest.approx(0.8))
    assert abs(date.fromisoformat(evidence["limit_reached"]["expected"]) - today - timedelta(days=20)) <= timedelta(days=1)
    assert (evidence["processes"], evidence["processes_needed"]) == (1, 2)

    await db.execute("DELETE FROM process_minute")
    await minutes(db, range(10), processes=2, cpu=0.3)
    await trends.run(app)
    await recommend.run(app)
    closed = await one(agent, "scale_ahead")
    assert closed is not None
    assert closed["state"] == "closed"
    assert closed["measured_after"]["evidence"]["processes"] == 2

    await db.execute("DELETE FROM process_minute")
    await minutes(db, range(30), cpu=1.0)  # what is short now belongs to `scale`, whatever is forecast
    await trends.run(app)
    await recommend.run(app)
    assert {it["kind"] for it in (await read(agent))["recommendations"] if it["state"] == "open"} == {"scale"}


async def test_pages_hold_open_ones_first_and_an_agent_sees_those_that_concern_it(
    app: App, agent: Agent, db: asyncpg.Connection
) -> None:
    await agent.session()
    for number in range(4):
        await offers(db, f"a{number}", "bob" if number else "eve", "rejected", 10)
    await recommend.run(app)
    await db.execute("UPDATE recommendation SET closed_at = now() WHERE subject = 'a3 to bob'")
    seen: list[str] = []
    page = await read(agent, "?limit=2")
    while "next_cursor" in page:
        seen += [it["subject"] for it in page["recommendations"]]
        page = await read(agent, f"?limit=2&cursor={page['next_cursor']}")
    seen += [it["subject"] for it in page["recommendations"]]
    assert (seen[3], sorted(seen[:3])) == ("a3 to bob", ["a0 to eve", "a1 to bob", "a2 to bob"])
    assert page["not_measured"] == {"slow_query": "The database lacks the extension pg_stat_statements."}
    of_bob = await read(agent, "?agent=bob")
    assert sorted(it["subject"] for it in of_bob["recommendations"]) == ["a1 to bob", "a2 to bob", "a3 to bob"]
    assert "not_measured" not in of_bob


async def test_a_plan_is_made_without_running_the_statement_and_says_why_there_is_none(
    app: App, db: asyncpg.Connection
) -> None:
    await db.execute("CREATE TABLE t (a bigint PRIMARY KEY)")
    async with connection(app.pool) as conn, conn.transaction():
        plan = await evidence._plan(conn, "INSERT INTO t VALUES ($1)")
        assert plan[0].startswith("Insert on t")
        assert (await evidence._plan(conn, "SELECT FROM t WHERE a = $1"))[0].startswith("Index Only Scan")
        two = await evidence._plan(conn, "SELECT 1; INSERT INTO t VALUES (1)")
        assert two == ["no plan: PostgresSyntaxError"]
        assert await conn.fetchval("SELECT count(*) FROM t") == 0


def test_every_kind_closes_below_what_it_opens_at_and_leads_to_an_entry_of_the_runbook() -> None:
    for name, kind in KINDS.items():
        assert 0 < kind.closes_at < kind.opens_at, name
        assert kind.runbook in alerts(), name


async def test_large_entries_and_recent_handoffs_are_found_by_their_indexes(database_url: str) -> None:
    conn = await asyncpg.connect(database_url)
    try:
        await conn.execute("SET enable_seqscan = off")
        for statement, index in ((evidence.LARGE, "context_entry_large"), (evidence.ROUTES, "handoff_by_creation")):
            text = statement.replace("$1", "'3 days'").replace("$2", "9").replace("$3", "9")
            assert index in " ".join(row[0] for row in await conn.fetch(f"EXPLAIN {text}"))
    finally:
        await conn.close()
