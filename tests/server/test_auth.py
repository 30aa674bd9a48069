"""Tokens: who may call, as which agent, and what they can read."""

import hashlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from time import monotonic
from typing import Any

import httpx2
import pytest

from handoff.app import open_app
from handoff.configuration import THRESHOLDS
from handoff.context import App
from handoff.server.auth import Tokens, TokensFileError
from handoff.settings import Settings
from tests.agents import until
from tests.operations.test_health import checked
from tests.requests import body, call, headers
from tests.server.test_http import edge

PEOPLE = {"alice": "read,write", "bob": "read,write", "reader": "read", "root": "admin"}


def line(name: str, scopes: str, token: str | None = None) -> str:
    return f"{hashlib.sha256((token or f'token-of-{name}').encode()).hexdigest()} {name} {scopes}\n"


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer token-of-{name}"}


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("# who may call\n\n" + "".join(line(name, scopes) for name, scopes in PEOPLE.items()))
    return path


@pytest.fixture
async def guarded(settings: Settings, tokens_file: Path) -> AsyncGenerator[App]:
    async with open_app(settings.model_copy(update={"tokens_file": tokens_file})) as app:
        yield app


@pytest.fixture
async def http(guarded: App) -> AsyncGenerator[httpx2.AsyncClient]:
    async with edge(guarded) as client:
        yield client


async def said(http: httpx2.AsyncClient, who: str, tool: str, **arguments: Any) -> dict[str, Any]:
    """The JSON that a tool returned to `who`."""
    answer = await call(http, tool, arguments, **bearer(who))
    return json.loads(answer.json()["result"]["content"][0]["text"])


async def code(http: httpx2.AsyncClient, who: str, tool: str, **arguments: Any) -> str:
    return (await said(http, who, tool, **arguments))["error"]["code"]


async def read(http: httpx2.AsyncClient, who: str, uri: str) -> dict[str, Any]:
    request = body("resources/read", uri=uri)
    return (await http.post("/mcp", json=request, headers=headers("resources/read", uri, **bearer(who)))).json()


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic token-of-alice", "token-of-alice", "Bearer TOKEN-of-alice"],
)
async def test_without_a_known_token_only_the_health_endpoints_answer(
    http: httpx2.AsyncClient, authorization: str | None
) -> None:
    more = {} if authorization is None else {"authorization": authorization}
    for method in ("tools/list", "server/discover", "initialize"):
        answer = await http.post("/mcp", json=body(method), headers=headers(method, **more))
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["error"]["code"] == "unauthorized"
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/readyz")).status_code == 200


async def test_an_agent_can_act_only_as_itself_and_can_leave_its_name_out(http: httpx2.AsyncClient) -> None:
    session = await said(http, "alice", "register_session", session_key="s")
    assert session["owner"] == "alice"

    assert await code(http, "alice", "register_session", agent="bob") == "agent_mismatch"
    assert await code(http, "bob", "get_inbox", agent="alice") == "agent_mismatch"
    assert (await said(http, "alice", "get_inbox", agent="alice"))["handoffs"] == []


async def test_a_call_beyond_the_tokens_scopes_is_refused(http: httpx2.AsyncClient) -> None:
    for tool, arguments in (
        ("register_session", {}),
        ("update_context", {"session_key": "s", "entries": [{"type": "message", "content": "x"}]}),
        ("accept_handoff", {"handoff_id": 1}),
        ("get_inbox", {"capabilities": ["review"]}),
        ("update_context", {"no_such": "argument"}),  # the scope comes first
    ):
        assert await code(http, "reader", tool, **arguments) == "scope_missing"
    assert (await said(http, "reader", "get_inbox"))["handoffs"] == []


async def test_a_session_can_be_read_by_its_participants_the_target_of_an_offer_and_admins(http: httpx2.AsyncClient) -> None:
    await said(http, "alice", "register_session", session_key="s")
    entry = {"type": "message", "content": "the launch code is rosebud"}
    await said(http, "alice", "update_context", session_key="s", entries=[entry])

    async def sees(who: str) -> list[bool]:
        return [
            "error" not in await said(http, who, "get_context", session_key="s"),
            bool((await said(http, who, "search_context", query="rosebud"))["matches"]),
            *["error" not in await read(http, who, f"handoff://{uri}") for uri in ("sessions/s", "context/s", "summary/s")],
            "rosebud" in json.dumps(await read(http, who, "handoff://context/s")),
            '\\"s\\"' in json.dumps(await read(http, who, "handoff://sessions")),
        ]

    assert await sees("alice") == [True] * 7
    assert await sees("root") == [True] * 7
    assert await sees("bob") == [False] * 7

    asked = {"session_key": "s", "target_agent": "bob", "instructions": "Go on."}
    handoff = await said(http, "alice", "request_handoff", **asked)
    offered = await sees("bob")
    assert offered[0] is True  # a session on offer can be read before the offer is accepted
    assert (await said(http, "bob", "accept_handoff", handoff_id=handoff["handoff_id"]))["handoff"]["holder"] == "bob"
    assert await sees("bob") == [True] * 7
    assert await sees("reader") == [False] * 7


async def test_an_agents_inbox_and_sessions_are_hidden_from_other_agents(http: httpx2.AsyncClient) -> None:
    await said(http, "alice", "register_session", session_key="s")

    assert (await read(http, "bob", "handoff://agents/alice/inbox"))["error"]["data"]["code"] == "agent_mismatch"
    assert "result" in await read(http, "root", "handoff://agents/alice/inbox")
    refused = (await read(http, "bob", "handoff://agents/alice/sent"))["error"]["data"]
    assert (refused["code"], "handoff://agents/bob/sent" in refused["try"]) == ("agent_mismatch", True)
    assert [("result" in await read(http, who, "handoff://agents/alice/sent")) for who in ("alice", "root")] == [True, True]
    own = await read(http, "alice", "handoff://agents/alice/sessions")
    foreign = await read(http, "bob", "handoff://agents/alice/sessions")
    assert len(json.loads(own["result"]["contents"][0]["text"])["sessions"]) == 1
    assert json.loads(foreign["result"]["contents"][0]["text"])["sessions"] == []


async def test_knowing_the_name_of_another_agents_session_does_not_give_access_to_it(http: httpx2.AsyncClient) -> None:
    await said(http, "alice", "register_session", session_key="s")
    offer = await said(http, "alice", "request_handoff", session_key="s", target_agent="reader", instructions="Go on.")
    number = offer["handoff_id"]

    for uri in ("sessions/s/lifecycle", f"handoffs/{number}", "sessions/s", "context/s", "summary/s"):
        assert (await read(http, "bob", f"handoff://{uri}"))["error"]["data"]["code"].endswith("_not_found"), uri
        assert "result" in await read(http, "alice", f"handoff://{uri}"), uri
    assert "result" in await read(http, "reader", f"handoff://handoffs/{number}")
    hidden = await read(http, "bob", "handoff://sessions?agent=alice")
    assert json.loads(hidden["result"]["contents"][0]["text"])["sessions"] == []
    assert await code(http, "bob", "search_context", query="registered", session_key="s") == "session_not_found"
    for tool, more in (("accept_handoff", {}), ("renew_handoff", {"token": 1}), ("resolve_handoff", {"action": "cancel"})):
        assert await code(http, "bob", tool, handoff_id=number, **more) == "handoff_not_found"
    assert (
        await code(http, "root", "register_session", agent="alice") == "agent_mismatch"
    )  # a token acts as its own agent, also with the scope admin


async def test_tokens_work_with_the_older_protocol_too(http: httpx2.AsyncClient) -> None:
    arguments: dict[str, Any] = {"name": "register_session", "arguments": {"session_key": "s"}}
    older = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": arguments}
    sent = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}

    assert (await http.post("/mcp", json=older, headers=sent)).status_code == 401
    answer = await http.post("/mcp", json=older, headers=sent | bearer("alice"))
    assert answer.json()["result"]["structuredContent"]["owner"] == "alice"
    arguments["arguments"] |= {"agent": "bob"}
    answer = await http.post("/mcp", json=older, headers=sent | bearer("alice"))
    assert "agent_mismatch" in answer.text


async def test_a_changed_tokens_file_takes_effect_while_the_service_runs(settings: Settings, tokens_file: Path) -> None:
    ticking = settings.model_copy(update={"tokens_file": tokens_file, "settle_interval_s": 0.02})
    async with open_app(ticking) as app:
        assert app.tokens is not None
        tokens = app.tokens
        tokens_file.write_text(line("carol", "read"))
        await until(lambda: tokens.caller(b"token-of-carol") is not None)
        assert tokens.caller(b"token-of-alice") is None


async def test_a_refresh_reads_a_changed_tokens_file_and_ignores_a_broken_one(
    http: httpx2.AsyncClient, guarded: App, tokens_file: Path
) -> None:
    assert guarded.tokens is not None
    tokens_file.write_text(line("carol", "read,write"))
    looked_twice(guarded.tokens)
    assert (await call(http, "get_inbox", {}, **bearer("alice"))).status_code == 401
    assert (await call(http, "get_inbox", {}, **bearer("carol"))).status_code == 200

    tokens_file.write_text("nonsense\n")
    looked_twice(guarded.tokens)
    assert (await call(http, "get_inbox", {}, **bearer("carol"))).status_code == 200
    tokens_file.unlink()
    looked_twice(guarded.tokens)
    assert (await call(http, "get_inbox", {}, **bearer("carol"))).status_code == 200


def looked_twice(tokens: Tokens) -> None:
    tokens.refresh()
    tokens.refresh()


@pytest.mark.parametrize("harm", ["a malformed line", "deleted", "a folder"])
async def test_while_the_tokens_file_cannot_be_used_health_says_so(
    http: httpx2.AsyncClient,
    guarded: App,
    tokens_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    logged: list[dict[str, Any]],
    harm: str,
) -> None:
    tokens = guarded.tokens
    assert tokens is not None
    assert (await checked(guarded.health))["components"]["tokens"]["detail"] == f"{len(PEOPLE)} tokens"
    if harm == "a malformed line":  # alice is revoked, and another line is wrong
        tokens_file.write_text(line("bob", "read") + "nonsense\n")
    else:
        tokens_file.unlink()
        if harm == "a folder":
            tokens_file.mkdir()
    looked_twice(tokens)
    looked_twice(tokens)
    assert tokens.refused_s > 0
    monkeypatch.setattr(tokens, "_refused_at", monotonic() - THRESHOLDS["tokens_refused_seconds"].default)

    found = (await checked(guarded.health))["components"]["tokens"]
    assert found["status"] == "degraded"
    assert f"{tokens_file}:" in found["detail"]
    assert f"in use: {len(PEOPLE)} tokens, read before" in found["detail"]
    assert (await call(http, "get_inbox", {}, **bearer("alice"))).status_code == 200
    assert [it["level"] for it in logged if it["event"] == "auth.tokens_file_refused"] == ["error"]  # once

    if harm == "a folder":
        tokens_file.rmdir()
    tokens_file.write_text(line("bob", "read"))
    looked_twice(tokens)
    assert tokens.refused_s == 0
    assert (await checked(guarded.health))["components"]["tokens"]["status"] == "healthy"
    assert (await call(http, "get_inbox", {}, **bearer("alice"))).status_code == 401


def test_a_file_that_is_rewritten_in_place_revokes_nobody_who_stays_in_it(tokens_file: Path) -> None:
    whole = tokens_file.read_text()
    tokens = Tokens(tokens_file)
    for end in range(0, len(whole), 7):  # as a look may find it at any point of the writing
        tokens_file.write_text(whole[:end])
        tokens.refresh()
        assert tokens.caller(b"token-of-alice") is not None
    tokens_file.write_text(whole + line("carol", "read"))
    looked_twice(tokens)
    assert tokens.caller(b"token-of-carol") is not None


def test_an_empty_token_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"{hashlib.sha256(b'').hexdigest()} ada read,write\n")
    with pytest.raises(TokensFileError, match=":1: this is the SHA-256 of an empty token"):
        Tokens(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("abc alice read\n", ":1: the first word must be the token"),
        (line("alice", "read") + line("bad name!", "read"), ":2:"),
        (line("alice", "everything"), "scopes must be"),
        (line("../../x", "read"), "name must match"),
        ("one two\n", "a line must have the form"),
        (
            line("alice", "read") + "\n" + line("root", "admin", "token-of-alice"),
            ":3: this token is already on an earlier line",
        ),
        (line("alice", "read").upper(), "64 lowercase hexadecimal digits"),
        ("\xff", "can't decode"),
    ],
)
def test_a_tokens_file_that_cannot_be_used_is_refused_with_the_line_number(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text, encoding="latin-1")

    with pytest.raises(TokensFileError, match=says):
        Tokens(path)


def test_tokens_whose_digests_begin_alike_are_not_confused(tmp_path: Path) -> None:
    wanted, found = 2, {}
    number = 0
    while wanted > len(found):
        digest = hashlib.sha256(str(number).encode()).digest()
        if digest[:2] == b"\x00\x01":
            found[str(number)] = digest
        number += 1
    first, second = found
    path = tmp_path / "tokens"
    path.write_text(line("one", "read", first) + line("two", "read", second))
    tokens = Tokens(path)

    assert [getattr(tokens.caller(token.encode()), "agent", None) for token in (first, second, "0")] == ["one", "two", None]


async def test_tokens_are_never_logged(http: httpx2.AsyncClient, logged: list[dict[str, Any]]) -> None:
    await call(http, "get_inbox", {}, **bearer("alice"))
    await call(http, "get_inbox", {}, **bearer("nobody"))

    assert logged
    assert "token-of" not in str(logged)
