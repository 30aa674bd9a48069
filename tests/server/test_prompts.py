"""Prompts: listed, written from what the caller may read, and completed, in both protocol eras."""

import hashlib
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import pytest
from mcp import Client

from handoff.app import open_app
from handoff.context import App
from handoff.server.protocol import build_server
from handoff.settings import Settings
from tests.agents import until
from tests.collector import Collector, attributes
from tests.requests import PROTOCOL, body, headers
from tests.server.test_http import edge

OLDER = "2025-11-25"
SCOPES = {"ada": "read,write", "ben": "read,write", "eve": "read,write", "mut": "write"}


@pytest.fixture
async def http(settings: Settings, tmp_path: Any) -> AsyncGenerator[httpx2.AsyncClient]:
    """A service with tokens."""
    tokens = tmp_path / "tokens"
    lines = [f"{hashlib.sha256(f'{name}-token'.encode()).hexdigest()} {name} {scopes}" for name, scopes in SCOPES.items()]
    tokens.write_text("\n".join(lines))
    with_tokens = settings.model_copy(update={"tokens_file": tokens})
    async with open_app(with_tokens) as app, edge(app) as client:
        yield client


async def ask(
    http: httpx2.AsyncClient, method: str, version: str = PROTOCOL, agent: str = "ben", **params: Any
) -> dict[str, Any]:
    name = params.get("name")
    request = body(method, **params)
    if version == OLDER:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    sent = headers(method, name, authorization=f"Bearer {agent}-token") | {"mcp-protocol-version": version}
    return (await http.post("/mcp", json=request, headers=sent)).json()


async def tool(http: httpx2.AsyncClient, token: str, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await ask(http, "tools/call", agent=token, name=tool, arguments=arguments)
    return answer["result"]["structuredContent"]


async def written(http: httpx2.AsyncClient, version: str, agent: str, name: str, **arguments: str) -> str:
    answer = await ask(http, "prompts/get", version, agent, name=name, arguments=arguments)
    [message] = answer["result"]["messages"]
    assert message["role"] == "user"
    return message["content"]["text"]


async def completed(http: httpx2.AsyncClient, version: str, agent: str, prompt: str, argument: str, typed: str) -> list[str]:
    ref = {"type": "ref/prompt", "name": prompt}
    asked = {"name": argument, "value": typed}
    answer = await ask(http, "completion/complete", version, agent, ref=ref, argument=asked)
    return answer["result"]["completion"]["values"]


@pytest.mark.parametrize("version", [PROTOCOL, OLDER])
async def test_prompts_are_listed_written_and_completed_from_what_the_caller_may_read(
    http: httpx2.AsyncClient, version: str
) -> None:
    listed = (await ask(http, "prompts/list", version))["result"]["prompts"]
    assert [(it["name"], [(arg["name"], arg["required"]) for arg in it["arguments"]]) for it in listed] == [
        ("hand_over", [("session_key", True), ("target_agent", False)]),
        ("take_over", [("handoff_id", True)]),
        ("catch_up", [("session_key", True)]),
    ]
    assert all(arg["description"] for it in listed for arg in it["arguments"])

    await tool(http, "ada", "register_session", session_key="port-1")
    entry = {"type": "decision", "content": "Comments are tokens."}
    await tool(http, "ada", "update_context", session_key="port-1", entries=[entry])
    assert "Comments are tokens." in await written(http, version, "ada", "hand_over", session_key="port-1")
    offered = await tool(
        http, "ada", "request_handoff", session_key="port-1", target_agent="ben", instructions="Port the lexer."
    )
    number = str(offered["handoff_id"])

    taken = await written(http, version, "ben", "take_over", handoff_id=number)
    assert f"handoff_id={number}" in taken
    assert "Port the lexer." in taken
    assert "Comments are tokens." in await written(http, version, "ben", "catch_up", session_key="port-1")
    to_ben = await written(http, version, "ada", "hand_over", session_key="port-1", target_agent="ben")
    assert "target_agent=ben" in to_ben

    assert await completed(http, version, "ben", "take_over", "handoff_id", number[0]) == [number]
    assert await completed(http, version, "ben", "take_over", "handoff_id", "x") == []
    assert await completed(http, version, "ada", "catch_up", "session_key", "po") == ["port-1"]
    assert await completed(http, version, "eve", "catch_up", "session_key", "po") == []
    assert await completed(http, version, "ada", "dance", "session_key", "po") == []


REFUSED = [
    ("ben", "dance", {}, "prompt_not_found"),
    ("ben", "catch_up", {}, "invalid_arguments"),
    ("ben", "catch_up", {"session_key": "a", "agent": "ben"}, "invalid_arguments"),
    ("ben", "catch_up", {"session_key": "no spaces"}, "invalid_arguments"),
    ("ben", "take_over", {"handoff_id": "first"}, "invalid_arguments"),
    ("ben", "take_over", {"handoff_id": "77"}, "handoff_not_found"),
    ("eve", "catch_up", {"session_key": "private"}, "session_not_found"),
    ("mut", "catch_up", {"session_key": "private"}, "scope_missing"),
]


async def test_what_a_caller_may_not_have_or_has_mistyped_is_refused_with_what_to_do(http: httpx2.AsyncClient) -> None:
    await tool(http, "ada", "register_session", session_key="private")
    for version in (PROTOCOL, OLDER):
        for agent, name, arguments, code in REFUSED:
            error = (await ask(http, "prompts/get", version, agent, name=name, arguments=arguments))["error"]
            assert (error["code"], error["data"]["code"]) == (-32602, code), (version, name, arguments)
            assert error["data"]["try"]


async def test_a_prompt_is_traced_and_counted_by_its_name(observed: App, collector: Collector) -> None:
    async with edge(observed) as http:
        await tool(http, "ada", "register_session", agent="ada", session_key="seen")
        await written(http, PROTOCOL, "ada", "catch_up", session_key="seen")

    def found() -> list[Any]:
        return [it for it in collector.spans() if it.name == "prompts/get catch_up"]

    await until(found)
    [span] = found()
    assert attributes(span)["gen_ai.prompt.name"] == "catch_up"
    assert attributes(span)["gen_ai.conversation.id"] == "seen"


async def test_clients_are_told_that_there_are_prompts(app: App) -> None:
    async with Client(build_server(app)) as client:
        listed = await client.list_prompts()
        assert [it.name for it in listed.prompts] == ["hand_over", "take_over", "catch_up"]
