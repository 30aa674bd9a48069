"""Leases do not lapse for time in which nobody could renew them: asleep, without a service, or by a clock set forward.

Time is moved by shifting everything that is stored, which to Postgres's clock is the same.
"""

import asyncio
from typing import Any

import asyncpg
import pytest

from handoff.app import open_app
from handoff.context import App
from handoff.jobs.settle import settle_overdue
from handoff.operations.presence import Identity, Presence
from handoff.settings import Settings
from handoff.store import lease_clock
from handoff.store.connect import StandbyConnection
from tests.agents import Agent

AHEAD_S = 30.0
PASS = """
    WITH clock AS (UPDATE lease_clock SET until = until - $1::float8 * interval '1 second')
    UPDATE handoff SET lease_expires_at = lease_expires_at - $1::float8 * interval '1 second',
                       updated_at = updated_at - $1::float8 * interval '1 second'
"""
LEFT = "SELECT extract(epoch FROM lease_expires_at - now())::float8 FROM handoff WHERE id = $1"
WAITS = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"
UNTIL = "SELECT extract(epoch FROM until - now())::float8 FROM lease_clock"


@pytest.fixture
async def running(db: asyncpg.Connection) -> None:
    """A process has just let leases run for another 30 seconds."""
    await lease_clock.keep_running(db, AHEAD_S)


async def held(agent: Agent, lease_seconds: int = 600) -> tuple[str, dict[str, Any]]:
    """A session, and the handoff of it that bob has just accepted: its id and token."""
    key = await agent.session()
    offered = await agent.offer(key)
    taken = await agent.ok("accept_handoff", agent="bob", handoff_id=offered, lease_seconds=lease_seconds)
    return key, {"agent": "bob", "handoff_id": offered, "token": taken["handoff"]["token"]}


async def test_after_a_sleep_the_holder_goes_on_before_any_process_has_noticed(
    agent: Agent, app: App, db: asyncpg.Connection, running: None
) -> None:
    key, hold = await held(agent)
    other_key, other = await held(agent)
    await db.execute(PASS, 8 * 3_600.0)

    assert await settle_overdue(app) == 0
    await agent.says(key, "I slept well.", "bob")
    await agent.ok("renew_handoff", **hold, lease_seconds=900)
    assert (await agent.ok("resolve_handoff", **other, action="complete"))["state"] == "completed"
    await agent.says(other_key, "Done.", "alice")

    await lease_clock.keep_running(db, AHEAD_S)
    assert await db.fetchval(LEFT, hold["handoff_id"]) == pytest.approx(900, abs=20), "it was renewed after the sleep"


async def test_after_a_sleep_nobody_else_gets_the_lease_while_its_time_runs(
    agent: Agent, db: asyncpg.Connection, running: None
) -> None:
    for name in ("bob", "carol"):
        await agent.ok("get_inbox", agent=name, capabilities=["review"])
    asked = {"target_agent": None, "target_capability": "review", "instructions": "Review."}
    offered = await agent.ok("request_handoff", agent="alice", session_key=await agent.session(), **asked)
    await agent.accept(offered["handoff_id"], "bob")
    await db.execute(PASS, 8 * 3_600.0)

    for _ in range(2):  # before and after the first process noticed
        refused = await agent.refused("accept_handoff", agent="carol", handoff_id=offered["handoff_id"])
        assert (refused["code"], refused["holder"]) == ("wrong_state", "bob")
        await lease_clock.keep_running(db, AHEAD_S)


async def test_a_lease_has_the_time_left_that_it_had_when_the_clock_stopped(
    agent: Agent, app: App, db: asyncpg.Connection, running: None
) -> None:
    _, hold = await held(agent, lease_seconds=600)
    await db.execute(PASS, 8 * 3_600.0)

    woken = await lease_clock.keep_running(db, AHEAD_S)

    assert woken is not None
    assert woken["stood_still_s"] == pytest.approx(8 * 3_600 - AHEAD_S, abs=20)
    assert woken["moved"] == 1
    assert await db.fetchval(LEFT, hold["handoff_id"]) == pytest.approx(600 - AHEAD_S, abs=20)
    await db.execute("UPDATE handoff SET lease_expires_at = now()")
    assert await settle_overdue(app) == 1, "and then it lapses"


async def test_a_lease_that_had_passed_before_the_sleep_lapses(
    agent: Agent, app: App, db: asyncpg.Connection, running: None
) -> None:
    key, hold = await held(agent, lease_seconds=5)
    await db.execute(PASS, 8 * 3_600.0)

    assert (await agent.refused("update_context", session_key=key, agent="bob", entries=[SAID]))["code"] == "stale_token"
    woken = await lease_clock.keep_running(db, AHEAD_S)
    assert woken is not None
    assert woken["moved"] == 0
    assert await settle_overdue(app) == 1
    assert (await agent.refused("renew_handoff", **hold))["code"] == "stale_token"


async def test_of_processes_that_are_back_at_once_one_moves_a_lease(
    agent: Agent, database_url: str, db: asyncpg.Connection, running: None
) -> None:
    _, hold = await held(agent, lease_seconds=600)
    await db.execute(PASS, 8 * 3_600.0)
    first, second = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    try:
        async with first.transaction():
            moved = [await lease_clock.keep_running(first, AHEAD_S)]
            waiting = asyncio.create_task(lease_clock.keep_running(second, AHEAD_S))
            while not await db.fetchval(WAITS, second.get_server_pid()):
                await asyncio.sleep(0.01)
        moved.append(await waiting)
    finally:
        await first.close()
        await second.close()

    assert [row["moved"] for row in moved if row is not None] == [1, 0]
    assert await db.fetchval(LEFT, hold["handoff_id"]) == pytest.approx(600 - AHEAD_S, abs=20)


async def test_while_a_process_keeps_the_clock_running_leases_are_left_alone(
    agent: Agent, app: App, db: asyncpg.Connection, running: None
) -> None:
    _, hold = await held(agent, lease_seconds=600)
    await db.execute(PASS, AHEAD_S / 2)

    went_on = await lease_clock.keep_running(db, AHEAD_S)

    assert went_on is not None
    assert (went_on["stood_still_s"] < 0, went_on["moved"]) == (True, 0)
    assert await db.fetchval(LEFT, hold["handoff_id"]) == pytest.approx(600 - AHEAD_S / 2, abs=20)


async def test_an_end_that_is_too_far_ahead_is_put_right(db: asyncpg.Connection) -> None:
    """The system's clock was a day ahead when it was written, and has been set back."""
    await db.execute("UPDATE lease_clock SET until = now() + interval '1 day'")

    await lease_clock.keep_running(db, AHEAD_S)

    assert await db.fetchval(UNTIL) == pytest.approx(AHEAD_S, abs=20)


async def test_a_process_with_a_short_interval_does_not_shorten_what_another_has_given(
    db: asyncpg.Connection, running: None
) -> None:
    await lease_clock.keep_running(db, 0.3)

    assert await db.fetchval(UNTIL) == pytest.approx(AHEAD_S, abs=20)


@pytest.mark.parametrize("kind", ["service", "worker"])
async def test_only_processes_that_serve_agents_keep_leases_running(
    settings: Settings, db: asyncpg.Connection, logged: list[dict[str, Any]], kind: Any
) -> None:
    await lease_clock.keep_running(db, AHEAD_S)
    await db.execute(PASS, 3_600.0)
    database = StandbyConnection(settings, application_name="presence")
    presence = Presence(settings, Identity("it", kind, None, runs_jobs=True))
    task = asyncio.create_task(presence.run(database))
    try:
        while not presence.alive:
            await asyncio.sleep(0.01)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        database.terminate()

    said = [it["stood_still_s"] for it in logged if it["event"] == "leases.kept"]
    assert said == ([pytest.approx(3_600 - AHEAD_S, abs=20)] if kind == "service" else [])
    assert (await db.fetchval(UNTIL) > 0) is (kind == "service")


async def test_before_the_first_process_leases_run_by_the_clock_of_the_database(agent: Agent, app: App, db: Any) -> None:
    _, hold = await held(agent, lease_seconds=5)
    await db.execute(PASS, 10.0)

    assert await settle_overdue(app) == 1
    async with open_app(app.settings) as other:
        assert await settle_overdue(other) == 0
    assert (await agent.refused("renew_handoff", **hold))["code"] == "stale_token"


SAID = {"type": "message", "content": "Too late."}
