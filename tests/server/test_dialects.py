"""The list of tools keeps to what the converters of other people's clients and models accept."""

import copy
import json
import os
import platform
import re
import subprocess
import sys
from typing import Any

import jsonschema
import llguidance
import pytest
from agents.strict_schema import ensure_strict_json_schema
from google.genai import types as gemini
from langchain_core.utils.function_calling import convert_to_openai_tool

from handoff.server.catalog import list_tools
from handoff.settings import Settings
from tests.agents import Agent
from tests.conformance import npm

SCHEMAS: dict[str, dict[str, Any]] = {tool.name: tool.input_schema for tool in list_tools(Settings(admin=True))}
every_tool = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=list(SCHEMAS))


def nodes(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """A schema and all schemas within it."""
    below = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return [schema, *(node for part in below for node in nodes(part))]


# llama.cpp compiles a schema to a grammar (common/json-schema-to-grammar.cpp) and parses that (src/llama-grammar.cpp), and
# one schema that it can't compile fails a request with all of its tools. LM Studio and Ollama use it.
@every_tool
def test_the_grammars_of_llama_cpp_can_express_every_schema(schema: dict[str, Any]) -> None:
    for node in nodes(schema):
        assert isinstance(node["type"], str), node
        assert not {"$ref", "anyOf", "oneOf", "allOf", "format", "const", "not"} & node.keys(), node
        if "pattern" in node:
            assert re.fullmatch(r"\^[^\\^$.|*+]*(\[[A-Za-z0-9_.:@+=~-]+\][^\\^$.|*+]*)*\$", node["pattern"]), node
        bounds = [node.get(name, 0) for name in ("minLength", "maxLength", "minItems", "maxItems")]
        bounds += [int(number) for number in re.findall(r"\d+(?=\})", node.get("pattern", ""))]
        assert max(bounds) < 2_000, node  # MAX_REPETITION_THRESHOLD


def example(schema: dict[str, Any]) -> Any:
    """A value for this schema, with every listed property; those required come first, as grammars of llama.cpp have them."""
    if schema["type"] == "object":
        names = sorted(schema["properties"], key=lambda name: name not in schema.get("required", ()))
        return {name: example(schema["properties"][name]) for name in names}
    if schema["type"] == "array":
        return [example(schema["items"])]
    number = schema.get("minimum", 1)
    of_type = {"string": schema.get("enum", ["alice"])[0], "integer": number, "number": number, "boolean": True}
    return of_type[schema["type"]]


@pytest.mark.external
@pytest.mark.timeout(npm.INSTALL_TIMEOUT_S + npm.RUN_TIMEOUT_S)
@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="llama.cpp is installed as built for Linux on x86-64"
)
def test_llama_cpp_makes_a_grammar_of_every_schema_that_takes_what_the_schema_lists() -> None:
    questions: list[dict[str, Any]] = []
    for schema in SCHEMAS.values():
        full = example(schema)
        jsonschema.validate(full, schema)
        least = {name: full[name] for name in schema.get("required", ())}
        calls = (full, least, {**full, "unlisted": "1"}, "alice")
        questions.append({"schema": schema, "texts": [json.dumps(call) for call in calls]})

    done = subprocess.run(
        [sys.executable, "-m", "tests.server.llama_cpp", str(npm.install(npm.LLAMA_CPP) / npm.LLAMA_CPP / "bins/linux-x64")],
        input=json.dumps(questions),
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        capture_output=True,
        text=True,
        timeout=npm.RUN_TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")  # it also warns of what it leaves out of the grammar
    assert dict(zip(SCHEMAS, json.loads(done.stdout), strict=True)) == {tool: [True, True, False, False] for tool in SCHEMAS}


@every_tool
def test_llguidance_compiles_every_schema(schema: dict[str, Any]) -> None:
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
    assert llguidance.LLMatcher.validate_grammar(grammar) == ""


@every_tool
def test_gemini_takes_every_schema_as_a_function_declaration(schema: dict[str, Any]) -> None:
    gemini.Schema.from_json_schema(json_schema=gemini.JSONSchema(**schema), raise_error_on_unsupported_field=False)
    for node in nodes(schema):
        assert set(node) <= {
            *gemini.Schema.model_fields,
            "additionalProperties",
            "minItems",
            "maxItems",
            "maxLength",
            "minLength",
        }
        if node["type"] == "object":  # "should be non-empty for OBJECT type"
            assert node["properties"]
            assert set(node.get("required", ())) <= set(node["properties"])
        if node["type"] == "array":
            assert node["items"]
        assert all(isinstance(value, str) and value for value in node.get("enum", ()))
        assert "enum" not in node or node["type"] == "string"


@every_tool
def test_openais_strict_mode_takes_every_schema(schema: dict[str, Any]) -> None:
    strict = ensure_strict_json_schema(copy.deepcopy(schema))
    jsonschema.Draft202012Validator.check_schema(strict)
    for node in nodes(strict):
        assert not {"default", "title", "patternProperties", "uniqueItems", "minProperties", "maxProperties"} & node.keys()
        if node["type"] == "object":
            assert node["required"] == list(node["properties"])
            assert node["additionalProperties"] is False


@pytest.mark.filterwarnings("ignore:'asyncio.iscoroutinefunction' is deprecated:DeprecationWarning")  # langchain uses it
@every_tool
def test_langchain_hands_every_schema_on_as_it_is(schema: dict[str, Any]) -> None:
    tool = convert_to_openai_tool({"name": "tool", "description": "A tool.", "parameters": copy.deepcopy(schema)})
    assert tool["function"]["parameters"] == schema


def complete(tool: str, **arguments: Any) -> dict[str, Any]:
    """A call in which every listed property is present, of objects within it too, as OpenAI's strict mode makes it."""
    strict = ensure_strict_json_schema(copy.deepcopy(SCHEMAS[tool]))
    jsonschema.validate(arguments, strict)
    return arguments


async def test_each_tool_can_be_called_with_every_listed_property_present(agent: Agent) -> None:
    async def ok(tool: str, **arguments: Any) -> dict[str, Any]:
        called.add(tool)
        return await agent.ok(tool, **complete(tool, **arguments))

    called: set[str] = set()
    shared = {"agent": "alice", "idempotency_key": ""}
    session = await ok("register_session", **shared, session_key="", retention_policy="standard", metadata={"continues": ""})
    key = session["session_key"]
    metadata = {"path": "", "pinned": False, "question": True, "todo": False, "retraction": False}
    entry = {"type": "message", "content": "Go?", "supersedes": [], "metadata": metadata}
    await ok("update_context", **shared, session_key=key, entries=[entry], expected_sequence=1, token=0)
    listed = {"view": "entries", "only": "question", "after_sequence": 0, "offset": 0, "limit": 20, "token_budget": 4_000}
    page = await ok("get_context", agent="alice", session_key=key, **listed)
    assert [shown["metadata"] for shown in page["entries"]] == [
        {"pinned": False, "question": True, "todo": False, "retraction": False}
    ]
    await ok("search_context", agent="alice", session_key="", query="go", limit=1)
    asked = {"session_key": key, "request_type": "context_transfer", "instructions": "Go on.", "priority": 5}
    none = {"deadline_minutes": 0, "handoff_id": 0}
    offer = await ok("request_handoff", **shared, **asked, **none, target_agent="bob", target_capability="")
    inbox = {"capabilities": ["review"], "wait_seconds": 0, "mark": "", "cursor": ""}
    await ok("get_inbox", agent="bob", **inbox)
    held = {"agent": "bob", "handoff_id": offer["handoff_id"], "idempotency_key": ""}
    taken = await ok("accept_handoff", **held, lease_seconds=60, token_budget=4_000)
    held["token"] = taken["handoff"]["token"]
    await ok("renew_handoff", **held, lease_seconds=60)
    await ok("resolve_handoff", **held, action="complete", note="")
    offer = await ok("request_handoff", **shared, **asked, **none, target_agent="", target_capability="review")
    withdrawn = {**shared, "handoff_id": offer["handoff_id"], "token": 0, "note": ""}
    assert (await ok("resolve_handoff", **withdrawn, action="cancel"))["state"] == "cancelled"
    await ok("close_session", **shared, session_key=key, outcome="completed")
    of_operators = {"lapse_handoff", "session_data", "job", "configuration", "explain_anomaly", "backtest", "retry_webhooks"}
    assert called == SCHEMAS.keys() - of_operators
