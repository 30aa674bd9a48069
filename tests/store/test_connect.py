"""A connection that is lost in the middle of a call: the caller is told to repeat it, and nothing is half done."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.server.catalog import ADMIN_TOOLS, TOOLS
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.store import connect
from tests.agents import Agent, until
from tests.operations.test_alerts import alert, kept, notification
from tests.processes import PATIENCE_S
from tests.server.test_http import edge

TABLES = ("session", "participant", "context_entry", "handoff", "event", "idempotency")

OF_OPERATORS = ("backtest", "configuration", "explain_anomaly", "job", "retry_webhooks", "session_data")
INCIDENT = """
    INSERT INTO incident (severity, component, summary, causes, anomalies, opened_at, last_at)
    VALUES ('warning', 'host', '', '[]', 0, now(), now())
"""
SERIES = """
    INSERT INTO series (name, labels, kind, absence, begins_at, last_at)
    VALUES ('seen', '{}', 'level', 'gap', now() - interval '5 minutes', now())
"""
WEBHOOK = """
    INSERT INTO webhook_delivery (endpoint, handoff_id, event_id, kind, at, data, is_dead)
    VALUES ('ops', 1, 1, 'handoff.offered', now(), '{}', true)
"""


class Terminations:
    """Terminates the server's end of a pooled connection after the n-th statement that is run from now on."""

    def __init__(self, db: asyncpg.Connection) -> None:
        self._db = db
        self.after = 0
        self.statements = 0

    def arm(self, after: int) -> None:
        """Terminate after the statement with this number; 0 is never."""
        self.after, self.statements = after, 0

    async def ran(self, conn: asyncpg.Connection) -> None:
        """A statement has run on this connection."""
        self.statements += 1
        if self.statements == self.after:
            await self._db.execute("SELECT pg_terminate_backend($1)", conn.get_server_pid())
            await until(conn.is_closed)


@pytest.fixture
def terminations(db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> Terminations:
    terminates = Terminations(db)

    def then_maybe_terminated(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def run(self: asyncpg.Connection, *args: Any, **named: Any) -> Any:
            result = await method(self, *args, **named)
            await terminates.ran(self)
            return result

        return run

    methods = ("execute", "fetch", "fetchrow", "fetchval")
    wrapped = {name: then_maybe_terminated(getattr(connect.MeasuredConnection, name)) for name in methods}
    monkeypatch.setattr(connect, "MeasuredConnection", type("Terminated", (connect.MeasuredConnection,), wrapped))
    return terminates


@pytest.fixture
async def app(settings: Settings, terminations: Terminations) -> AsyncGenerator[App]:
    async with open_app(settings.model_copy(update={"admin": True})) as opened:
        yield opened


async def arguments_of(agent: Agent, tool: str, number: int) -> dict[str, Any]:
    """Set up what the tool needs, and return the arguments of a call that succeeds."""
    key = await agent.session(session_key=f"s{number}")
    keyed: dict[str, Any] = {"idempotency_key": f"k{number}"}
    alice, bob = {"agent": "alice", **keyed}, {"agent": "bob", **keyed}
    if tool in OF_OPERATORS:
        return {"agent": "alice"} | await admin_arguments_of(agent, tool, key, number)
    match tool:
        case "register_session":
            return alice | {"session_key": f"new{number}"}
        case "update_context":
            return alice | {"session_key": key, "entries": [{"type": "message", "content": "x"}]}
        case "get_context":
            return {"agent": "alice", "session_key": key}
        case "search_context":
            return {"agent": "alice", "session_key": key, "query": "registered"}
        case "close_session":
            return alice | {"session_key": key}
        case "request_handoff":
            return alice | {"session_key": key, "target_agent": "bob", "instructions": "Go on."}
        case "get_inbox":
            await agent.offer(key, f"bob{number}")
            return {"agent": f"bob{number}", "capabilities": ["python"], "wait_seconds": 1}
        case "accept_handoff":
            return bob | {"handoff_id": await agent.offer(key)}
        case _:
            handoff_id = await agent.offer(key)
            token = await agent.accept(handoff_id)
            held = keyed | {"handoff_id": handoff_id}
            more = {"renew_handoff": {"token": token}, "resolve_handoff": {"token": token, "action": "complete"}}
            return held | ({"agent": "bob", **more[tool]} if tool in more else {})


async def admin_arguments_of(agent: Agent, tool: str, key: str, number: int) -> dict[str, Any]:
    if tool == "backtest":
        return {"series": "seen"}
    if tool == "explain_anomaly":
        return {"incident": 1, "feedback": "noise"}
    if tool == "retry_webhooks":
        return {"endpoint": "ops"}
    if tool == "session_data":
        return {"action": "hold", "of": "session", "name": key, "reason": "x"}
    if tool == "job":
        return {"job": "certificates", "action": "run", "reason": "x"}
    version = (await agent.ok("configuration"))["version"]
    changes = {"monitoring": {"thresholds": {"job_failures": 100 + number}}}
    return {"action": "set", "changes": json.dumps(changes), "expected_version": version, "reason": "x"}


@pytest.mark.parametrize("tool", [tool.name for tool in (*TOOLS, *ADMIN_TOOLS)])
async def test_a_connection_lost_after_any_statement_of_a_tool_is_a_retryable_error_and_leaves_nothing_half_done(
    app: App, db: asyncpg.Connection, terminations: Terminations, tool: str
) -> None:
    for row in (INCIDENT, SERIES, WEBHOOK):
        await db.execute(row)
    async with Client(build_server(app)) as client:
        agent = Agent(client)
        whole = await arguments_of(agent, tool, 0)
        before = await rows(db)
        terminations.arm(0)
        await agent.ok(tool, **whole)
        statements = terminations.statements
        written = await rows(db) - before
        assert statements

        for number in range(1, statements + 1):
            arguments = await arguments_of(agent, tool, number)
            before = await rows(db)
            terminations.arm(number)
            result = await agent.client.call_tool(tool, arguments)
            terminations.arm(0)
            if result.is_error:
                error = json.loads(getattr(result.content[0], "text", ""))["error"]
                assert (error["code"], error["retryable"]) == ("unavailable", True), f"after statement {number}"
                assert ("idempotency_key" in error["try"]) == ("idempotency_key" in arguments)
            assert await rows(db) - before in (written, Counter()), f"after statement {number}"

            if tool == "configuration" and await is_configured(agent, arguments):
                assert (await agent.refused(tool, **arguments))["code"] == "configuration_changed"  # it had taken effect
            else:
                await agent.ok(tool, **arguments)
            assert await rows(db) - before == written, f"after statement {number}"


async def test_a_write_without_a_key_that_may_have_taken_effect_must_be_checked_before_it_is_repeated(
    app: App, terminations: Terminations
) -> None:
    async with Client(build_server(app)) as client:
        terminations.arm(1)
        error = await Agent(client).refused("register_session", agent="alice")

    assert (error["code"], error["retryable"]) == ("unavailable", False)
    assert "check with get_context or get_inbox" in error["try"]


async def is_configured(agent: Agent, arguments: dict[str, Any]) -> bool:
    return (await agent.ok("configuration"))["version"] > arguments["expected_version"]


async def rows(db: asyncpg.Connection) -> Counter[str]:
    return Counter({table: await db.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES})


async def test_a_notification_whose_connection_is_lost_is_refused_as_retryable_and_stored_later(
    app: App, db: asyncpg.Connection, terminations: Terminations
) -> None:
    async with edge(app) as http:
        number, is_over = 0, False
        while not is_over:
            number += 1
            terminations.arm(number)
            answer = await http.post("/alerts", json=notification(alert(number=number)))
            is_over = terminations.statements < number
            terminations.arm(0)
            if answer.status_code != 200:
                assert (answer.status_code, answer.json()["error"]["retryable"]) == (503, True)
        assert number > 3
        async with asyncio.timeout(PATIENCE_S):
            while len(await kept(db)) < number:
                await asyncio.sleep(0.1)


async def test_a_postgres_whose_files_are_gone_is_an_outage_and_no_bug_of_ours(
    agent: Agent, db: asyncpg.Connection, logged: list[dict[str, Any]]
) -> None:
    await db.execute("""
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'could not open file "base/5/1259"' USING ERRCODE = 'undefined_file'; END $$
    """)
    await db.execute("CREATE TRIGGER fail BEFORE INSERT ON session EXECUTE FUNCTION fail()")

    assert (await agent.refused("register_session", agent="alice"))["code"] == "unavailable"
    assert not [line for line in logged if "exception" in line]
