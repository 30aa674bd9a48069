"""The HTTP edge: what it checks, and that its short path and the SDK's long one give the same answers."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from handoff.app import open_app
from handoff.context import App
from handoff.operations.readiness import Readiness
from handoff.server.calls import call_tool
from handoff.server.edge import Edge
from handoff.server.protocol import build_server
from handoff.settings import Settings
from tests.agents import Agent
from tests.requests import body, call, headers

BASE = "http://127.0.0.1:8642"


@asynccontextmanager
async def edge(app: App, *, short_path: bool = True, settings: Settings | None = None) -> AsyncGenerator[httpx2.AsyncClient]:
    """An HTTP client of the service in this process."""
    server = build_server(app)
    asgi = Edge(
        server,
        settings or app.settings,
        readiness=Readiness(app.health.probe).problem,
        tokens=app.tokens,
        call_tool=partial(call_tool, app) if short_path else None,
        alerts=app.alerts,
    )
    transport = httpx2.ASGITransport(asgi)
    async with server.session_manager.run(), httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


@pytest.fixture
async def http(app: App) -> AsyncGenerator[httpx2.AsyncClient]:
    async with edge(app) as client:
        yield client


STORY: list[tuple[str, dict[str, Any]]] = [
    ("register_session", {"agent": "alice", "session_key": "s"}),
    ("register_session", {"agent": "alice", "session_key": "s"}),
    ("update_context", {"agent": "alice", "session_key": "s", "entries": [{"type": "message", "content": 'ä\\u2028 "q"'}]}),
    ("update_context", {"agent": "alice", "session_key": "s", "entries": []}),
    ("update_context", {"agent": "alice", "session_key": "s", "unknown": 1}),
    ("get_context", {"agent": "alice", "session_key": "s"}),
    ("get_inbox", {"agent": "alice"}),
    ("search_context", {"agent": "alice", "query": "nothing"}),
    ("renew_handoff", {"agent": "alice", "handoff_id": 9, "token": 1}),
    ("no_such_tool", {}),
    ("get_inbox", {}),
]
CHANGES_BY_NATURE = ("created_at", "status_since", "expires_at", "last_activity_at", "mark", "version")


def normalised(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: "…" if name in CHANGES_BY_NATURE else normalised(item) for name, item in value.items()}
    if isinstance(value, list):
        return [normalised(item) for item in value]
    if isinstance(value, str) and value.startswith("{"):
        return normalised(json.loads(value))
    return value


async def test_the_short_path_answers_as_the_sdk_does(app: App, agent: Agent) -> None:
    answers: dict[bool, list[Any]] = {}
    for short_path in (True, False):
        async with app.pool.acquire() as conn:
            await conn.execute("TRUNCATE session, idempotency RESTART IDENTITY CASCADE")
        async with edge(app, short_path=short_path) as client:
            replies = [await call(client, tool, arguments) for tool, arguments in STORY]
        answers[short_path] = [(reply.status_code, normalised(reply.json())) for reply in replies]

    assert answers[True] == answers[False]
    assert [status for status, _ in answers[True]] == [200] * 9 + [400, 200]


@pytest.mark.parametrize("protocol", ["2025-11-25", "2026-07-28"])
async def test_both_protocol_eras_are_served(app: App, protocol: str) -> None:
    async with edge(app) as http:
        transport = streamable_http_client(f"{BASE}/mcp", http_client=http)
        mode: Any = "legacy" if protocol == "2025-11-25" else "auto"
        async with Client(transport, mode=mode) as client:
            assert client.protocol_version == protocol
            agent = Agent(client)
            key = await agent.session()
            assert (await agent.says(key, "hi"))["first_sequence"] == 2
            assert (await agent.refused("get_context", agent="bob", session_key=key))["code"] == "session_not_found"
            assert (await agent.read(f"handoff://sessions/{key}"))["owner"] == "alice"


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("host", "evil.example", 421),
        ("host", "127.0.0.1.evil.example:80", 421),
        ("host", "evil.example:127.0.0.1", 421),
        ("host", "localhost", 200),
        ("host", "[::1]:99", 200),
        ("origin", "http://evil.example", 403),
        ("origin", "null", 403),
        ("origin", "http://localhost.evil.example", 403),
        ("origin", "http://localhost:3000", 200),
    ],
)
async def test_host_and_origin_are_always_checked(http: httpx2.AsyncClient, name: str, value: str, status: int) -> None:
    request = body("tools/list")

    answer = await http.post("/mcp", json=request, headers=headers("tools/list", **{name: value}))
    assert answer.status_code == status
    assert (await http.get("/healthz", headers={name: value})).status_code == status


async def test_further_hosts_and_origins_can_be_allowed(app: App) -> None:
    allowed = {"allowed_hosts": ("handoff.example",), "allowed_origins": ("https://app.example",)}
    async with edge(app, settings=app.settings.model_copy(update=allowed)) as http:
        more = {"host": "handoff.example", "origin": "https://app.example"}
        assert (await http.post("/mcp", json=body("tools/list"), headers=headers("tools/list", **more))).status_code == 200
        more["origin"] = "https://other.example"
        assert (await http.post("/mcp", json=body("tools/list"), headers=headers("tools/list", **more))).status_code == 403


async def test_an_ipv6_address_is_accepted_as_host_only_in_brackets(app: App) -> None:
    async with edge(app, settings=app.settings.model_copy(update={"host": "fd00::1"})) as http:
        for host, status in (("[fd00::1]:8642", 200), ("[fd00::1]", 200), ("fd00::1", 421), ("[fd00::2]:8642", 421)):
            answer = await http.post("/mcp", json=body("tools/list"), headers=headers("tools/list", host=host))
            assert answer.status_code == status, host


async def test_a_body_above_the_limit_is_refused_with_or_without_a_content_length(app: App) -> None:
    small = app.settings.model_copy(update={"body_bytes_max": 1 << 16})
    async with edge(app, settings=small) as http:
        declared = await http.post("/mcp", content=b"x" * (1 << 17), headers=headers("tools/list"))

        async def chunks() -> AsyncGenerator[bytes]:
            for _ in range(20):
                yield b"x" * (1 << 13)

        undeclared = await http.post("/mcp", content=chunks(), headers=headers("tools/list"))

    assert (declared.status_code, undeclared.status_code) == (413, 413)
    assert declared.json()["error"]["code"] == "body_too_large"


async def test_a_call_begins_when_its_body_is_there_however_long_the_client_took_to_send_it(settings: Settings) -> None:
    async with open_app(settings.model_copy(update={"append_wait_s_max": 0.5})) as app, edge(app) as http:
        await call(http, "register_session", {"agent": "alice", "session_key": "s"})
        arguments = {"agent": "alice", "session_key": "s", "entries": [{"type": "message", "content": "x"}]}
        content = json.dumps(body("tools/call", name="update_context", arguments=arguments)).encode()

        async def slowly() -> AsyncGenerator[bytes]:
            yield content[:20]
            await anyio.sleep(1)
            yield content[20:]

        answer = await http.post("/mcp", content=slowly(), headers=headers("tools/call", "update_context"))

    assert answer.json()["result"]["isError"] is False


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"\xff"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}',
        b'{"jsonrpc":"1.0","id":1,"method":"tools/call","params":{}}',
        b'{"jsonrpc":"2.0","id":true,"method":"tools/call","params":{"name":"get_inbox"}}',
        b'{"jsonrpc":"2.0","id":{},"method":"tools/call","params":{"name":"get_inbox"}}',
        b"[" * 20_000 + b"]" * 20_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        json.dumps([body("tools/call", name="get_inbox", arguments={"agent": "a"})]).encode(),
        json.dumps(body("tools/call", name="get_inbox", arguments=[])).encode(),
        json.dumps(body("tools/call", name=7, arguments={})).encode(),
    ],
)
async def test_a_malformed_request_is_a_client_error(http: httpx2.AsyncClient, content: bytes) -> None:
    answer = await http.post("/mcp", content=content, headers=headers("tools/call", "get_inbox"))

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] < 0
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"mcp-name": "get_context"}, 400),
        ({"mcp-method": "tools/list"}, 400),
        ({"mcp-protocol-version": "1999-01-01"}, 400),
        ({"content-type": "text/plain"}, 400),
        ({"accept": "text/html"}, 406),
        ({"mcp-name": "  get_inbox \t"}, 200),
    ],
)
async def test_headers_must_agree_with_the_body_apart_from_padding(
    http: httpx2.AsyncClient, change: dict[str, str], status: int
) -> None:
    assert (await call(http, "get_inbox", {"agent": "bob"}, **change)).status_code == status


async def test_a_duplicate_header_is_refused(http: httpx2.AsyncClient) -> None:
    twice = [*headers("tools/call", "get_inbox").items(), ("mcp-name", "get_inbox")]
    request = body("tools/call", name="get_inbox", arguments={"agent": "bob"})

    assert (await http.post("/mcp", json=request, headers=twice)).status_code == 400


async def test_other_paths_and_methods_are_refused(http: httpx2.AsyncClient) -> None:
    assert (await http.get("/")).status_code == 404
    assert (await http.get("/mcp/../healthz2")).status_code == 404
    assert (await http.get("/mcp", headers=headers("tools/list"))).status_code == 405
    assert (await http.delete("/mcp", headers=headers("tools/list"))).status_code == 405


async def test_a_service_can_be_alive_without_being_ready(http: httpx2.AsyncClient, app: App) -> None:
    assert (await http.get("/healthz")).json() == {"status": "alive"}
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    async with app.pool.acquire() as conn:
        await conn.execute("DELETE FROM schema_migration")

    unready = await http.get("/readyz")

    assert unready.status_code == 503
    assert "0001_" in unready.json()["problem"]


@pytest.mark.parametrize("key", [{}, {"idempotency_key": "k"}], ids=["without a key", "with a key"])
async def test_a_crash_is_hidden_from_the_caller_and_logged_once(
    app: App, monkeypatch: pytest.MonkeyPatch, logged: list[dict[str, Any]], key: dict[str, str]
) -> None:
    async def crash(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret detail")

    async with edge(app) as http:
        monkeypatch.setattr("handoff.store.sessions.see", crash)
        answer = await call(http, "close_session", {"agent": "alice", "session_key": "s", **key})

    error = json.loads(answer.json()["result"]["content"][0]["text"])["error"]
    assert (error["code"], error["retryable"]) == ("internal", bool(key)), "only a write with a key can be repeated safely"
    assert "secret" not in answer.text
    assert [line["event"] for line in logged if line["level"] == "error"] == ["tool.failed", "tool.call"]
    assert [line["event"] for line in logged if "exception" in line] == ["tool.failed"]
    assert "secret detail" in str(logged)
