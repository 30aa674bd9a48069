"""Postgres fails in various ways and returns: what callers are told meanwhile, and how they are woken afterwards."""

import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest
from mcp import Client

from handoff.app import open_app
from handoff.cli.embedded import postgres
from handoff.cli.postmaster import Postmaster
from handoff.context import App
from handoff.server.protocol import build_server
from handoff.settings import Settings
from tests.agents import LONG_WAIT_S, Agent, until
from tests.processes import PATIENCE_S, free_port, serving, wait_until_ready
from tests.server.test_http import edge
from tests.test_faults import QUICK, own_postgres, until_a_call_waits, until_written

INBOX = "handoff://agents/bob/inbox"


@asynccontextmanager
async def refusing_connections(postgres_url: str, database_url: str, application: str) -> AsyncGenerator[None]:
    """Make the database refuse new connections, and terminate those of one application."""
    name = database_url.split("?", maxsplit=1)[0].rpartition("/")[2]
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND application_name = $2",
        name,
        application,
    )
    try:
        yield
    finally:
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await admin.close()


async def test_a_change_made_while_the_listen_connection_was_lost_is_noticed_afterwards(
    app: App, agent: Agent, postgres_url: str, database_url: str, logged: list[dict[str, Any]]
) -> None:
    key = await agent.session()
    found: list[Any] = []

    async def wait() -> None:
        async with Client(build_server(app)) as other:
            found.extend((await Agent(other).ok("get_inbox", agent="bob", wait_seconds=LONG_WAIT_S))["handoffs"])

    with anyio.fail_after(LONG_WAIT_S):  # woken: a wait that runs out finds the offer too
        async with agent.client.listen(resource_subscriptions=[INBOX]) as subscription, anyio.create_task_group() as group:
            group.start_soon(wait)
            await until(lambda: app.wakeups._waiters == 1)
            async with refusing_connections(postgres_url, database_url, "handoff-wakeups"):
                await until(lambda: "ObjectNotInPrerequisiteState" in str(logged))  # reconnecting was refused
                await agent.offer(key)  # over a connection that is still in the pool
                assert found == []
            assert getattr(await anext(aiter(subscription)), "uri", None) == INBOX
    assert [row["target_agent"] for row in found] == ["bob"]


async def test_the_reconnect_pause_starts_short_again_after_a_successful_reconnect(
    app: App, postgres_url: str, logged: list[dict[str, Any]]
) -> None:
    cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'handoff-wakeups'"
    admin = await asyncpg.connect(postgres_url)
    for number in range(1, 4):
        await until(lambda: app.wakeups._listening)
        assert await admin.fetchval(cut) == 1
        await until(lambda number=number: len(lost(logged)) == number)
    await admin.close()

    assert [line["retry_s"] for line in lost(logged)] == [0.1, 0.1, 0.1]


def lost(logged: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the log lines about lost LISTEN connections."""
    return [line for line in logged if line["event"] == "wakeups.lost"]


async def test_waiting_calls_and_subscribers_survive_a_restart_of_postgres() -> None:
    with own_postgres() as (url, folder), serving(database_url=url, **QUICK) as service:
        async with Client(service.url) as client, Client(service.url) as waiting, Client(service.url) as listening:
            agent = Agent(client)
            key = await agent.session()
            await Agent(waiting).ok("get_inbox", agent="bob")  # so that the client has read the tools' schemas
            found: list[dict[str, Any]] = []

            async def wait() -> None:
                """Wait as a client does: repeat a call that fails with a retryable error."""
                while not found:
                    result = await waiting.call_tool("get_inbox", {"agent": "bob", "wait_seconds": LONG_WAIT_S})
                    said = json.loads(getattr(result.content[0], "text", ""))
                    if result.is_error:
                        assert (said["error"]["code"], said["error"]["retryable"]) == ("unavailable", True)
                        await anyio.sleep(0.1)
                    else:
                        found.extend(said["handoffs"])

            with anyio.fail_after(PATIENCE_S):
                async with (
                    listening.listen(resource_subscriptions=[INBOX]) as subscription,
                    anyio.create_task_group() as group,
                ):
                    group.start_soon(wait)
                    await anyio.to_thread.run_sync(stop_postgres, folder)
                    refused = await agent.refused("get_context", agent="alice", session_key=key)
                    assert (refused["code"], refused["retryable"]) == ("unavailable", True)
                    assert await anyio.to_thread.run_sync(service.status, "/readyz") == 503
                    with postgres(folder.parent):
                        await anyio.to_thread.run_sync(wait_until_ready, service)
                        await until_written(agent, key)
                        await agent.offer(key)
                        assert getattr(await anext(aiter(subscription)), "uri", None) == INBOX
                        await until(lambda: found)
    assert [row["target_agent"] for row in found] == ["bob"]


def stop_postgres(folder: Path) -> None:
    """Stop Postgres as its operator would."""
    Postmaster(folder.parent).stop()


async def test_nothing_is_left_of_a_subscriber_that_disconnects(app: App, agent: Agent) -> None:
    async with agent.client.listen(resource_subscriptions=[INBOX]):
        assert len(app.wakeups._listeners) == 1
        assert app.wakeups._subscribed[INBOX] == 1
    await until(lambda: not app.wakeups._listeners and not app.wakeups._subscribed)


@pytest.mark.parametrize(
    "uri",
    [
        f"{INBOX}?limit=5",
        "handoff://agents/b%6fb/inbox",
        "handoff://sessions",
        "handoff://sessions/s",
        "HANDOFF://agents/bob/inbox",
    ],
)
async def test_a_resource_without_updates_cannot_be_subscribed_to(agent: Agent, uri: str) -> None:
    await agent.session(session_key="s")
    await agent.read(uri)

    with pytest.raises(Exception, match="changes are not announced for it") as caught:
        async with agent.client.listen(resource_subscriptions=[uri]):
            pass
    assert getattr(caught.value, "code", None) == -32602


async def test_readiness_reports_what_is_wrong_with_the_database(
    settings: Settings, postgres_url: str, database_url: str, db: asyncpg.Connection
) -> None:
    async with open_app(settings) as app, edge(app) as http:

        async def problem() -> tuple[int, str]:
            answer = await http.get("/readyz")
            return answer.status_code, answer.json().get("problem", "")

        assert await problem() == (200, "")
        await db.execute("UPDATE schema_migration SET sha256 = 'another'")
        changed = await problem()
        await db.execute("TRUNCATE schema_migration")
        lacking = await problem()
        async with refusing_connections(postgres_url, database_url, "handoff"):
            refused = await problem()

    assert (changed[0], lacking[0], refused[0]) == (503, 503, 503)
    assert "was changed after it had been applied" in changed[1]
    assert "lacks migrations: 0001_" in lacking[1]
    assert "the database" in refused[1]


async def test_a_stop_does_not_wait_for_clients_of_the_older_protocol(database_url: str) -> None:
    arguments = {"name": "get_inbox", "arguments": {"agent": "bob", "wait_seconds": LONG_WAIT_S}}
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": arguments}
    ops = free_port()
    with serving(database_url=database_url, telemetry="true", ops_port=ops) as service:
        content = json.dumps(request).encode()
        head = (
            f"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
        )
        with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE_S) as wire:
            wire.sendall(f"{head}accept: application/json, text/event-stream\r\n\r\n".encode() + content)
            await anyio.to_thread.run_sync(until_a_call_waits, ops)
            service.process.terminate()
            answer = b"".join(iter(lambda: wire.recv(65_536), b""))  # to the end of the connection
            status = await anyio.to_thread.run_sync(service.process.wait, PATIENCE_S)

    # Were it waited for, a stop would have cut it off after its grace of 5 s, without an answer.
    assert b'"handoffs":[]' in answer
    assert status == 0


async def crash(*_: Any, **__: Any) -> Any:
    raise RuntimeError("secret detail")


async def test_an_unexpected_error_in_a_resource_is_hidden_from_the_caller_and_logged_once(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr("handoff.store.sessions.find", crash)
    monkeypatch.setattr("handoff.store.lists.one", crash)

    with pytest.raises(Exception, match="because of a bug") as caught:
        await agent.read("handoff://sessions/s")

    error: Any = caught.value
    assert (error.error.code, error.error.data["code"], error.error.data["retryable"]) == (-32603, "internal", True)
    assert "secret" not in str(error.error)
    assert [line["event"] for line in logged if "exception" in line] == ["resource.failed"]
