"""What HTTP and URIs say is the same is answered alike, what is refused is named, and browsers and proxies are served."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import httpx2
import pytest

from handoff.app import open_app
from handoff.context import App
from handoff.server import waiting
from handoff.server.standards import Allowed
from handoff.settings import Settings
from tests.agents import Agent
from tests.processes import PATIENCE_S
from tests.requests import body, call, headers
from tests.server.test_http import edge

ORIGIN = "https://app.example.com"
HANDSHAKE = "2025-06-18"


@pytest.fixture
async def http(app: App) -> AsyncGenerator[httpx2.AsyncClient]:
    allowed = {"allowed_origins": (ORIGIN,), "allowed_hosts": ("handoff.example:8443",)}
    async with edge(app, settings=app.settings.model_copy(update=allowed)) as client:
        yield client


@pytest.mark.parametrize(
    ("protocol", "method"),
    [
        *(("2026-07-28", method) for method in ("GET", "POST", "DELETE", "PUT", "OPTIONS")),
        *((HANDSHAKE, method) for method in ("POST", "DELETE", "PUT", "OPTIONS")),  # its GET opens a stream
    ],
)
async def test_the_endpoint_with_a_slash_is_the_endpoint(http: httpx2.AsyncClient, method: str, protocol: str) -> None:
    request = body("tools/list") if protocol != HANDSHAKE else {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    sent = headers("tools/list", **{"mcp-protocol-version": protocol})

    with_slash, without = [await http.request(method, path, json=request, headers=sent) for path in ("/mcp/", "/mcp")]

    assert (with_slash.status_code, with_slash.content) == (without.status_code, without.content)
    assert method != "POST" or with_slash.status_code == 200
    assert with_slash.content, "an answer without a body says nothing"


@pytest.mark.parametrize(
    ("allowed", "values"),
    [
        (
            "handoff.example",
            ["Handoff.Example", "handoff.example.", "handoff.example:443", "handoff.example:80", "h%61ndoff.example"],
        ),
        ("handoff.example:8443", ["HANDOFF.example.:8443"]),
        ("Handoff.Example.", ["handoff.example"]),
        ("https://App.example.com/", [ORIGIN, "HTTPS://app.example.com:443"]),
        ("http://app.example.com:80", ["http://app.example.com"]),
        ("[::1]:99", ["[0:0:0:0:0:0:0:1]:99"]),
        ("bücher.example", ["xn--bcher-kva.example"]),
    ],
)
def test_hosts_and_origins_are_compared_as_uris_are(allowed: str, values: list[str]) -> None:
    for value in values:
        assert Allowed([], [allowed]).holds(value), value


@pytest.mark.parametrize(
    ("allowed", "value"),
    [
        ("handoff.example", "handoff.example:8443"),
        ("handoff.example", "handoff.example.evil"),
        ("https://app.example.com", "http://app.example.com"),
        ("https://app.example.com", "https://app.example.com:80"),
        ("https://app.example.com", "app.example.com"),
        ("https://app.example.com", "null"),
        ("handoff.example", ""),
        ("[::1]", "[::1"),
    ],
)
def test_another_host_or_origin_is_none_of_them(allowed: str, value: str) -> None:
    assert not Allowed([], [allowed]).holds(value)


@pytest.mark.parametrize(("name", "value"), [("host", "evil.example"), ("origin", "https://evil.example")])
async def test_a_host_or_an_origin_that_is_refused_is_named(http: httpx2.AsyncClient, name: str, value: str) -> None:
    refused = await http.post("/mcp", json=body("tools/list"), headers=headers("tools/list", **{name: value}))

    assert f"'{value}'" in refused.json()["error"]["message"]
    assert "access-control-allow-origin" not in refused.headers


async def test_a_browser_may_ask_without_a_token_what_a_page_of_an_allowed_origin_may_send(
    settings: Settings, tmp_path: Any
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{'0' * 64} ada read,write\n")
    with_tokens = settings.model_copy(update={"allowed_origins": (ORIGIN,), "tokens_file": tokens})
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,mcp-protocol-version,mcp-method,mcp-name,mcp-param-x",
    }
    async with open_app(with_tokens) as app, edge(app) as http:
        answer = await http.options("/mcp", headers=asked)
        forbidden = await http.options("/mcp", headers={**asked, "origin": "https://evil.example"})
        unauthorized = await http.post("/mcp", json=body("tools/list"), headers=headers("tools/list", origin=ORIGIN))

    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["vary"] == "Origin"
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = set(answer.headers["access-control-allow-headers"].split(", "))
    assert set(asked["access-control-request-headers"].split(",")) | {"accept", "mcp-session-id", "last-event-id"} <= allowed
    assert int(answer.headers["access-control-max-age"]) > 0
    assert forbidden.status_code == 403
    assert "access-control-allow-origin" not in forbidden.headers
    assert (unauthorized.status_code, unauthorized.headers["access-control-allow-origin"]) == (401, ORIGIN)
    assert "www-authenticate" in unauthorized.headers["access-control-expose-headers"]


async def test_a_page_of_an_allowed_origin_may_read_every_answer(http: httpx2.AsyncClient) -> None:
    sent = headers("tools/list", origin=ORIGIN)
    answers = [
        await call(http, "get_inbox", {"agent": "ada"}, origin=ORIGIN),
        await http.post("/mcp", json=body("tools/list"), headers=sent),
        await http.post("/mcp", content=b"{", headers=sent),
        await http.post("/mcp", json=body("tools/list"), headers={**sent, "accept": "text/html"}),
        await http.get("/mcp", headers=sent),
        await http.get("/nowhere", headers=sent),
        await http.get("/readyz", headers=sent),
        await http.post("/mcp", json=body("tools/list"), headers={**sent, "host": "evil.example"}),
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 400, 406, 405, 404, 200, 421]
    assert {answer.headers.get("access-control-allow-origin") for answer in answers} == {ORIGIN}
    assert {answer.headers.get("vary") for answer in answers} == {"Origin"}
    without = await call(http, "get_inbox", {"agent": "ada"})
    assert "access-control-allow-origin" not in without.headers


@pytest.mark.parametrize("protocol", ["2026-07-28", HANDSHAKE])
@pytest.mark.parametrize(
    "change",
    [
        {"accept": None},
        {"accept": "*/*"},
        {"accept": "Application/JSON; q=0.9, TEXT/event-stream"},
        {"accept": "application/*"},
        {"accept": ""},
        {"content-type": "Application/JSON; Charset=UTF-8"},
    ],
)
async def test_media_types_are_compared_without_case_and_parameters(
    http: httpx2.AsyncClient, protocol: str, change: dict[str, str | None]
) -> None:
    request = body("tools/list") if protocol != HANDSHAKE else {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    sent = {**headers("tools/list", **{"mcp-protocol-version": protocol}), **change}
    del http.headers["accept"]  # httpx2's own
    pairs = [(name, value) for name, value in sent.items() if value is not None]

    answer = await http.post("/mcp", json=request, headers=pairs)

    assert answer.status_code == 200, answer.text
    assert answer.json()["result"]["tools"]


async def test_several_accept_lines_are_one(http: httpx2.AsyncClient) -> None:
    sent = [it for it in headers("tools/list").items() if it[0] != "accept"]

    answer = await http.post(
        "/mcp", json=body("tools/list"), headers=[*sent, ("accept", "application/json"), ("accept", "text/event-stream")]
    )

    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("method", "accept"), [("tools/list", "text/event-stream"), ("subscriptions/listen", "application/json")]
)
async def test_what_a_client_does_not_accept_is_refused_in_words(http: httpx2.AsyncClient, method: str, accept: str) -> None:
    answer = await http.post("/mcp", json=body(method, notifications={}), headers=headers(method, accept=accept))

    assert answer.status_code == 406
    assert accept in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/.well-known/oauth-protected-resource"),
        ("GET", "/.well-known/oauth-protected-resource/mcp"),
        ("GET", "/.well-known/oauth-authorization-server"),
        ("GET", "/.well-known/openid-configuration"),
        ("POST", "/register"),
    ],
)
async def test_a_client_that_looks_for_oauth_is_told_what_is_wanted(
    http: httpx2.AsyncClient, method: str, path: str
) -> None:
    answer = await http.request(method, path)

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "no_oauth"
    assert "without authentication" in answer.json()["error"]["message"]


async def test_the_scheme_of_a_token_has_no_case(settings: Settings, tmp_path: Any) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b ada read,write\n")  # of "secret"
    async with open_app(settings.model_copy(update={"tokens_file": tokens})) as app, edge(app) as http:
        for scheme in ("Bearer", "bearer", "BEARER ", "bEaReR"):
            answer = await call(http, "get_inbox", {}, authorization=f"{scheme} secret")
            assert answer.status_code == 200, scheme
        looked = await http.get("/.well-known/oauth-protected-resource")

    assert "token from the operator" in looked.json()["error"]["message"]


@pytest.mark.parametrize("protocol", ["2026-07-28", HANDSHAKE])
async def test_a_call_that_waits_sends_comments_until_its_answer(
    app: App, agent: Agent, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setattr(waiting, "KEEP_ALIVE_S", 0.05)
    handoff_id = await agent.offer(await agent.session())
    arguments = {"agent": "grace", "wait_seconds": 1}
    request = body("tools/call", name="get_inbox", arguments=arguments)
    sent = headers("tools/call", "get_inbox", **{"mcp-protocol-version": protocol})
    if protocol == HANDSHAKE:
        del request["params"]["_meta"]
    async with edge(app) as http:
        waited = await http.post("/mcp", json=request, headers=sent)
        json_only = await http.post("/mcp", json=request, headers={**sent, "accept": "application/json"})
        monkeypatch.setattr(waiting, "KEEP_ALIVE_S", PATIENCE_S)
        request["params"]["arguments"]["agent"] = "bob"
        at_once = await http.post("/mcp", json=request, headers=sent)

    assert waited.headers["content-type"] == "text/event-stream"
    comments, _, event = waited.text.partition("event: message\r\ndata: ")
    assert set(filter(None, comments.split("\r\n\r\n"))) == {": ping"}
    assert json.loads(event)["result"]["structuredContent"]["handoffs"] == []
    assert json_only.json()["result"]["structuredContent"]["handoffs"] == []
    assert at_once.json()["result"]["structuredContent"]["handoffs"][0]["handoff_id"] == handoff_id


async def test_a_subscription_is_kept_alive(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp.server._streamable_http_modern._SSE_PING_INTERVAL", 0.05)
    pings = 0
    is_seen = anyio.Event()
    request = json.dumps(body("subscriptions/listen", notifications={})).encode()
    raw = [(name.encode(), value.encode()) for name, value in headers("subscriptions/listen", host="localhost").items()]
    scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": raw, "query_string": b"", "root_path": ""}
    sent = [{"type": "http.request", "body": request, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if sent:
            return sent.pop()
        await is_seen.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal pings
        pings += message.get("body", b"").count(b": ping")
        if pings == 2:
            is_seen.set()

    async with edge(app) as http:
        transport: Any = http._transport  # httpx2 collects a response before it gives it
        with anyio.fail_after(10):
            await transport.app(scope, receive, send)

    assert pings >= 2
