"""What models are shown is small, complete and correct."""

import json
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import jsonschema
import pytest
from mcp import Client
from pydantic import BaseModel, ValidationError

from handoff.app import open_app
from handoff.context import App
from handoff.server.catalog import ADMIN_TOOLS, RESOURCES, TOOLS, list_tools
from handoff.server.protocol import build_server
from handoff.settings import Settings
from handoff.tools.contract import Tool
from tests.agents import Agent
from tests.requests import body, headers
from tests.server.test_bad_input import BAD
from tests.server.test_http import edge

TOKENS_MAX = 2_300
BYTES_PER_TOKEN = 4
NEEDS_MORE_THAN_A_SCHEMA = ("content", "cursor", "metadata", "agent", "entries", "supersedes", "instructions")


@pytest.fixture
async def http(app: App) -> AsyncGenerator[httpx2.AsyncClient]:
    async with edge(app) as client:
        yield client


async def test_the_whole_response_to_tools_list_stays_under_its_limit_of_tokens(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/mcp", json=body("tools/list"), headers=headers("tools/list"))

    assert len(answer.json()["result"]["tools"]) == len(TOOLS) == 10
    assert len(answer.content) / BYTES_PER_TOKEN < TOKENS_MAX

    older = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    answer = await http.post("/mcp", json=older, headers=headers("tools/list") | {"mcp-protocol-version": "2025-11-25"})
    assert len(answer.json()["result"]["tools"]) == len(TOOLS)
    assert len(answer.content) / BYTES_PER_TOKEN < TOKENS_MAX


def test_every_tool_has_a_description_schemas_and_hints() -> None:
    hints = {tool.name: tool.annotations for tool in list_tools(Settings())}
    for tool in list_tools(Settings(admin=True)):
        assert tool.description
        assert tool.input_schema["additionalProperties"] is False
        assert tool.output_schema is not None
        assert tool.output_schema["required"]
        jsonschema.Draft202012Validator.check_schema(tool.input_schema)
        jsonschema.Draft202012Validator.check_schema(tool.output_schema)
    reading = {name for name, hint in hints.items() if hint and hint.read_only_hint}
    assert reading == {"get_context", "search_context"}
    # A tool without a hint counts as destructive, by the protocol's default.
    final = {name for name, hint in hints.items() if not hint or (not hint.read_only_hint and hint.destructive_hint is None)}
    assert final == {"resolve_handoff", "close_session"}


def limits(schema: Any, path: str = "") -> list[str]:
    """The paths of strings and arrays in a schema that have no bound."""
    if not isinstance(schema, dict):
        return []
    unbounded: list[str] = []
    match schema.get("type"):
        case "string" if not {"maxLength", "pattern", "enum"} & schema.keys() and "At most" not in schema.get(
            "description", ""
        ):
            unbounded.append(path)
        case "array" if "maxItems" not in schema:
            unbounded.append(path)
        case _:
            pass
    for name, below in {**schema.get("properties", {}), "[]": schema.get("items")}.items():
        unbounded += limits(below, f"{path}.{name}")
    return unbounded


def test_every_argument_states_its_limit() -> None:
    for tool in list_tools(Settings(admin=True)):
        assert limits(tool.input_schema, tool.name) == []
    small = {tool.name: tool for tool in list_tools(Settings(content_bytes_max=2_048))}
    entry = small["update_context"].input_schema["properties"]["entries"]["items"]["properties"]
    assert entry["content"]["description"] == "At most 2048 bytes"


def test_the_published_schema_refuses_what_the_service_refuses() -> None:
    schemas = {tool.name: jsonschema.Draft202012Validator(tool.input_schema) for tool in list_tools(Settings())}
    for tool, arguments, named in BAD:
        text = json.dumps(arguments)
        if named in NEEDS_MORE_THAN_A_SCHEMA or "\\u0000" in text:
            continue  # JSON Schema can't express limits in bytes or depth, or exclude U+0000
        if "\\u" in text or "\\n" in text:
            continue  # in Python's re, which stands in for ECMA's here, \\w is Unicode and $ comes before a last newline
        if any(isinstance(value, float) or value == 2**60 for value in arguments.values()):
            continue  # JSON Schema counts 1.0 as an integer, and the bound of all integers is left out of the schemas
        assert not schemas[tool].is_valid(arguments), (tool, arguments)


GOOD: dict[str, dict[str, Any]] = {
    "register_session": {"agent": "a"},
    "update_context": {"agent": "a", "session_key": "s", "entries": [{"type": "message", "content": "x"}]},
    "get_context": {"agent": "a", "session_key": "s"},
    "search_context": {"agent": "a", "query": "x"},
    "request_handoff": {"agent": "a", "session_key": "s", "target_agent": "b", "instructions": "x"},
    "get_inbox": {"agent": "a"},
    "accept_handoff": {"agent": "a", "handoff_id": 1},
    "renew_handoff": {"agent": "a", "handoff_id": 1, "token": 1},
    "resolve_handoff": {"agent": "a", "handoff_id": 1, "action": "complete", "token": 1},
    "close_session": {"agent": "a", "session_key": "s"},
    "lapse_handoff": {"handoff_id": 1},
    "session_data": {"agent": "a", "action": "hold", "of": "session", "name": "s", "reason": "x"},
    "configuration": {},
    "job": {"agent": "a", "job": "settle", "action": "run", "reason": "x"},
    "explain_anomaly": {"agent": "a", "incident": 1},
    "backtest": {"agent": "a", "series": "x"},
    "retry_webhooks": {"agent": "a", "endpoint": "x"},
}
OF_EVERY_TYPE: list[Any] = [True, 0, -1, 7, 10**6, 1.5, "", "x", "1", "message", [], [1], ["x"], {}, {"x": 1}]
NAMES = [
    *["a", "A9", "_", "s-1", "a.b:c@d+e=f~g", "a" * 100],
    *["", "-a", ".a", "a b", "a/b", "a?b", "a%b", "a'b", 'a"b', "a;b", "a\\b", "a*b", "a" * 101, "a" * 256],
]


def test_the_published_schema_and_the_service_agree_on_each_argument_alone() -> None:
    served = {tool.name: tool for tool in (*TOOLS, *ADMIN_TOOLS)}
    judged: Counter[bool] = Counter()
    for tool in list_tools(Settings(admin=True)):
        schema = jsonschema.Draft202012Validator(tool.input_schema)
        for name in tool.input_schema["properties"]:
            values = NAMES if name in ("agent", "session_key", "target_agent", "target_capability") else OF_EVERY_TYPE
            for value in values:
                if value == "" and "enum" in tool.input_schema["properties"][name]:
                    continue  # it counts as left out
                arguments = GOOD[tool.name] | {name: value}
                fits = schema.is_valid(arguments)
                assert accepts(served[tool.name], arguments) == fits, (tool.name, name, value)
                judged[fits] += 1
        for name in tool.input_schema.get("required", []):
            lacking = {key: value for key, value in GOOD[tool.name].items() if key != name}
            assert not schema.is_valid(lacking)
            assert not accepts(served[tool.name], lacking), (tool.name, name)
    assert min(judged.values()) > 100, judged


def accepts(tool: Tool[Any], arguments: dict[str, Any]) -> bool:
    try:
        tool.arguments.model_validate(tool.arguments.given(arguments))
    except ValidationError:
        return False
    return True


async def test_admin_tools_are_listed_only_where_the_settings_allow_them(settings: Settings, agent: Agent) -> None:
    listed = {tool.name for tool in (await agent.client.list_tools()).tools}
    assert listed == {tool.name for tool in TOOLS}
    with pytest.raises(Exception, match="Unknown tool"):
        await agent.client.call_tool("lapse_handoff", {"handoff_id": 1})

    async with open_app(settings.model_copy(update={"admin": True})) as app, Client(build_server(app)) as client:
        listed = {tool.name for tool in (await client.list_tools()).tools}
    assert listed == {tool.name for tool in (*TOOLS, *ADMIN_TOOLS)}


async def test_results_of_tools_fit_their_published_schemas(agent: Agent) -> None:
    schemas = {tool.name: tool.output_schema for tool in list_tools(Settings())}
    used: set[str] = set()

    async def checked(tool: str, **arguments: Any) -> dict[str, Any]:
        answer = await agent.ok(tool, **arguments)
        jsonschema.validate(answer, schemas[tool] or {})
        used.add(tool)
        return answer

    key = (await checked("register_session", agent="alice", metadata={"a": 1}))["session_key"]
    entries = [{"type": "message", "content": "hello"}] * 3
    await checked("update_context", agent="alice", session_key=key, entries=entries)
    await checked("get_context", agent="alice", session_key=key)
    await checked("get_context", agent="alice", session_key=key, view="entries", limit=1)
    await checked("search_context", agent="alice", query="hello", limit=1)
    asked = {"session_key": key, "target_agent": "bob", "instructions": "Go on.", "deadline_minutes": 5}
    handoff_id = (await checked("request_handoff", agent="alice", **asked))["handoff_id"]
    await checked("get_inbox", agent="bob")
    token = (await checked("accept_handoff", agent="bob", handoff_id=handoff_id))["handoff"]["token"]
    await checked("renew_handoff", agent="bob", handoff_id=handoff_id, token=token)
    await checked("resolve_handoff", agent="bob", handoff_id=handoff_id, token=token, action="complete")
    await checked("close_session", agent="alice", session_key=key)
    assert used == set(schemas)


async def test_discovery_announces_only_capabilities_that_exist(agent: Agent) -> None:
    capabilities = agent.client.server_capabilities
    assert capabilities is not None
    assert capabilities.tools is not None
    assert capabilities.resources is not None
    assert (capabilities.tools.list_changed, capabilities.resources.list_changed) == (False, False)
    assert capabilities.resources.subscribe is True


def unbounded(schema: Any, path: str) -> list[str]:
    """Return the paths of integers in a JSON schema that lack a minimum or a maximum."""
    if isinstance(schema, list):
        return [found for number, part in enumerate(schema) for found in unbounded(part, f"{path}.{number}")]
    if not isinstance(schema, dict):
        return []
    lacks = schema.get("type") == "integer" and not {"minimum", "maximum"} <= schema.keys()
    return [path] * lacks + [found for name, part in schema.items() for found in unbounded(part, f"{path}.{name}")]


@pytest.mark.parametrize(
    "model", [*(tool.arguments for tool in (*TOOLS, *ADMIN_TOOLS)), *{resource.query for resource in RESOURCES}]
)
def test_every_integer_of_a_tool_or_a_resource_has_both_bounds(model: type[BaseModel]) -> None:
    assert unbounded(model.model_json_schema(), model.__name__) == []


@pytest.mark.parametrize("number", [10**30, -(10**30), 0, -1])
async def test_an_integer_out_of_bounds_is_refused_over_the_protocol_without_http_too(agent: Agent, number: int) -> None:
    for tool, arguments in (("accept_handoff", {}), ("renew_handoff", {"token": 1})):
        error = await agent.refused(tool, agent="bob", handoff_id=number, **arguments)
        assert error["code"] == "invalid_arguments"
