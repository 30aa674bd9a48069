"""What counts as left out, and what a refusal of arguments says, for all tools alike."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from handoff.context import App
from handoff.errors import Invalid
from handoff.server.arguments import validated
from handoff.server.catalog import ADMIN_TOOLS, TOOLS, list_tools
from handoff.settings import Settings
from handoff.tools.contract import Tool
from tests.agents import Agent
from tests.calls import fitting
from tests.requests import call
from tests.server.test_both_paths import in_era
from tests.server.test_catalog import GOOD
from tests.server.test_http import edge

ALL: dict[str, Tool[Any]] = {tool.name: tool for tool in (*TOOLS, *ADMIN_TOOLS)}
LISTED: dict[str, dict[str, Any]] = {tool.name: tool.input_schema for tool in list_tools(Settings(admin=True))}
EVERY_ARGUMENT = [(tool, name) for tool, schema in LISTED.items() for name in schema["properties"]]
NEVER_ZERO = ("handoff_id", "token", "deadline_minutes")


def accepted(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the tool runs with; those left out are not among them."""
    model = ALL[tool].arguments
    return validated(model, model.given(arguments)).model_dump(exclude_unset=True)


@pytest.mark.parametrize(("tool", "name"), EVERY_ARGUMENT)
def test_null_leaves_out_every_optional_argument_and_no_required_one(tool: str, name: str) -> None:
    others = {key: value for key, value in GOOD[tool].items() if key != name}
    if name in LISTED[tool].get("required", ()):
        with pytest.raises(Invalid, match=f"{name}: .* not null"):
            accepted(tool, others | {name: None})
    else:
        assert accepted(tool, others | {name: None}) == others


@pytest.mark.parametrize(("tool", "name"), EVERY_ARGUMENT)
def test_empty_text_leaves_out_optional_texts_only_and_zero_the_numbers_that_never_are(tool: str, name: str) -> None:
    schema = LISTED[tool]["properties"][name]
    is_optional = name not in LISTED[tool].get("required", ())
    others = {key: value for key, value in GOOD[tool].items() if key != name}
    if is_optional and schema["type"] == "string":
        assert accepted(tool, others | {name: ""}) == others
    else:
        with pytest.raises(Invalid, match=name):
            accepted(tool, others | {name: ""})
    if is_optional and name in NEVER_ZERO:
        assert accepted(tool, others | {name: 0}) == others
        with pytest.raises(Invalid, match=name):
            accepted(tool, others | {name: False})


def is_beyond_schemas(value: Any) -> bool:
    """Whether it is something that JSON Schema can't exclude: U+0000, integers above 64 bits, or a lone retraction."""
    if isinstance(value, dict):
        return bool(value.get("retraction")) or any(is_beyond_schemas(part) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return any(is_beyond_schemas(item) for item in value)
    return (isinstance(value, str) and "\0" in value) or (isinstance(value, int | float) and abs(value) > 2**53)


@pytest.mark.parametrize("tool", list(LISTED))
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_every_call_that_the_listed_schema_allows_is_accepted(tool: str, data: st.DataObject) -> None:
    arguments = data.draw(fitting(LISTED[tool]))
    assume(not is_beyond_schemas(arguments))
    accepted(tool, arguments)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("get_context", {"limit": "5"}, "limit: must be an integer, without quotes, not the text '5'."),
    ("get_context", {"limit": 5.0}, "limit: must be an integer, without quotes, not the number 5.0."),
    ("get_context", {"limit": 101}, "limit: must be at most 100, not 101."),
    ("get_context", {"view": "all"}, "view: must be 'brief' or 'entries', not the text 'all'."),
    ("get_context", {"session_key": None}, "session_key: must be text, not null."),
    ("get_context", {"session": "s"}, "session: no such name; the names are agent, session_key, view, token_budget, "),
    ("get_inbox", {"capabilities": "review"}, "capabilities: must be a list, not the text 'review'."),
    ("get_inbox", {"capabilities": ["Go on!"]}, "capabilities.0: must be text that matches ^[A-Za-z0-9_]"),
    ("get_inbox", {"capabilities": ["Go on!"]}, ", not a text of 6 characters."),
    ("search_context", {"query": []}, "query: must be text, not a list of 0 items."),
    ("search_context", {"query": ["x"]}, "query: must be text, not a list of 1 item."),
    ("search_context", {"query": ""}, "query: must be text of at least 1 character, not a text of 0 characters."),
    ("register_session", {"agent": "!"}, ", not a text of 1 character."),
    ("update_context", {"entries": []}, "entries: must be a list of at least 1 item, not a list of 0 items."),
    (
        "accept_handoff",
        {"handoff_id": 10**40},
        "handoff_id: must be at most 9007199254740991, not an integer of more than 18",
    ),
    ("update_context", {"entries": [{"type": "message", "text": "x"}]}, "entries.0.content: is required and was not sent"),
    (
        "update_context",
        {"entries": [{"type": "message", "content": "x", "text": "x"}]},
        "entries.0.text: no such name; the names are type, content, supersedes, metadata.",
    ),
]


@pytest.mark.parametrize(("tool", "arguments", "said"), REFUSED)
def test_a_refusal_says_what_was_sent_and_what_is_wanted(tool: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid) as refused:
        accepted(tool, GOOD[tool] | arguments)
    assert said in refused.value.message


async def test_both_eras_take_null_as_left_out(app: App) -> None:
    asked = {"agent": "alice", "session_key": None, "metadata": None, "retention_policy": None, "idempotency_key": None}
    async with edge(app) as http:
        for era in ("2026-07-28", "2025-06-18"):
            key = (await in_era(http, era, "register_session", asked))["structuredContent"]["session_key"]
            read = await in_era(
                http, era, "get_context", {"agent": "alice", "session_key": key, "limit": None, "view": None}
            )
            assert read["isError"] is False
        refused = await call(http, "get_context", {"agent": "alice", "session_key": None})
    assert "session_key: must be text, not null" in refused.text


async def test_what_is_left_out_of_an_amendment_changes_nothing(agent: Agent) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key, deadline_minutes=60, priority=7)
    same = {"agent": "alice", "session_key": key, "handoff_id": handoff_id, "instructions": "Go on, with care."}
    nothing = {"target_agent": "", "target_capability": None, "priority": None, "deadline_minutes": 0, "idempotency_key": ""}

    amended = await agent.ok("request_handoff", **same, **nothing)
    every = nothing | {"target_agent": "bob", "request_type": "context_transfer", "priority": 5}  # as it is, or the default
    assert (await agent.ok("request_handoff", **same, **every))["priority"] == 7
    for more in ({"priority": 6}, {"target_agent": "carol"}, {"request_type": "collaboration"}, {"deadline_minutes": 60}):
        refused = await agent.refused("request_handoff", **same, **(every | more))
        assert f"not {next(iter(more))}." in refused["message"]

    assert (amended["handoff_id"], amended["state"]) == (handoff_id, "offered")
    assert amended["instructions"] == "Go on, with care."


async def test_null_and_left_out_are_one_call_to_an_idempotency_key(agent: Agent) -> None:
    first = await agent.ok("register_session", agent="alice", session_key="s", idempotency_key="k")
    nulls = {"metadata": None, "retention_policy": None}
    assert await agent.ok("register_session", agent="alice", session_key="s", idempotency_key="k", **nulls) == first


async def test_marks_that_are_null_and_an_empty_path_are_left_out(agent: Agent) -> None:
    key = await agent.session()
    metadata = {"path": "", "question": None, "todo": True, "other": None}
    entry = {"type": "message", "content": "x", "metadata": metadata, "supersedes": None}
    await agent.ok("update_context", agent="alice", session_key=key, entries=[entry])

    page = await agent.ok("get_context", agent="alice", session_key=key, view="entries", after_sequence=1)
    assert page["entries"][0]["metadata"] == {"todo": True, "other": None}


@pytest.mark.parametrize("value", [1, [], {}, "x" * 256])
async def test_the_session_that_another_continues_is_named_by_text(agent: Agent, value: object) -> None:
    error = await agent.refused("register_session", agent="alice", metadata={"continues": value})
    assert "'continues' must be text" in error["message"]


async def test_a_backslash_before_u0000_is_text_like_any_other(agent: Agent) -> None:
    told = {"a": "\\u0000", "\\\\u0000": ["\\" * 3 + "u0000"]}
    session = await agent.ok("register_session", agent="alice", metadata=told)
    assert session["metadata"] == told
    for nul in ({"a": "\\\0"}, {"\0": 1}, {"a": ["\\\\\0"]}):
        error = await agent.refused("register_session", agent="alice", metadata=json.loads(json.dumps(nul)))
        assert "U+0000" in error["message"]
