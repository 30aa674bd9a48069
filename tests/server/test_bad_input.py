"""Bad input of any kind is a clear error and changes nothing."""

import base64
import json
import re
from collections.abc import Callable
from time import thread_time
from typing import Any

import asyncpg
import httpx2
import pytest
from mcp import MCPError

from handoff.context import App
from handoff.errors import Invalid
from handoff.server.arguments import NAMES_MAX, validated
from handoff.server.asgi import excess
from handoff.server.catalog import ADMIN_TOOLS, TOOLS
from handoff.server.edge import JSON_VALUES_MAX
from handoff.tools.context import Entry, UpdateContext
from tests.agents import Agent
from tests.requests import META, PROTOCOL, body, call, headers
from tests.server.test_http import edge

TABLES = ("session", "participant", "context_entry", "handoff", "event", "idempotency", "agent")
HOSTILE_NAMES = [
    "../../x",
    "'; drop table session;--",
    "a b",
    "a\n",
    "\n",
    "a/b",
    "a\0b",
    "\u0430dmin",  # the first letter is Cyrillic
    "\uff41",  # a full-width a
    "-rf",
    ".hidden",
    "",
    "a" * 256,
    "a?b=c",
    "%2e%2e",
    "😀",
]
TELLS_TOO_MUCH = re.compile(r"Traceback|SELECT|INSERT|asyncpg|pydantic|\.py\b|Value error")
NAMED = (
    "sessions/{}",
    "sessions/{}/lifecycle",
    "context/{}",
    "summary/{}",
    "agents/{}/inbox",
    "agents/{}/sent",
    "agents/{}/sessions",
)
DEEP: dict[str, Any] = json.loads('{"a":' * 40 + "1" + "}" * 40)


async def rows(db: asyncpg.Connection) -> dict[str, Any]:
    state = {table: await db.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}
    return state | {"versions": await db.fetchval("SELECT sum(version) FROM session")}


def entry(**change: Any) -> dict[str, Any]:
    return {"agent": "alice", "session_key": "s", "entries": [{"type": "message", "content": "x", **change}]}


UPDATE = {"agent": "alice", "session_key": "s", "entries": [{"type": "message", "content": "x"}]}
REQUEST = {"agent": "alice", "session_key": "s", "target_agent": "bob", "instructions": "Go on."}

BAD: list[tuple[str, dict[str, Any], str]] = [
    # wrong types: nothing is coerced
    ("update_context", UPDATE | {"session_key": 1}, "session_key"),
    ("update_context", UPDATE | {"entries": {"type": "message", "content": "x"}}, "entries"),
    ("update_context", UPDATE | {"expected_sequence": "1"}, "expected_sequence"),
    ("update_context", UPDATE | {"expected_sequence": True}, "expected_sequence"),
    ("update_context", UPDATE | {"expected_sequence": 1.0}, "expected_sequence"),
    ("update_context", UPDATE | {"expected_sequence": -1}, "expected_sequence"),
    ("update_context", UPDATE | {"expected_sequence": 2**60}, "expected_sequence"),
    ("update_context", UPDATE | {"idempotency_key": 7}, "idempotency_key"),
    ("update_context", entry(content=7), "content"),
    ("update_context", entry(metadata=[]), "metadata"),
    ("update_context", entry(supersedes=2), "supersedes"),
    ("renew_handoff", {"agent": "alice", "handoff_id": "1", "token": 1}, "handoff_id"),
    ("get_inbox", {"agent": "alice", "wait_seconds": "30"}, "wait_seconds"),
    # empty, missing, too large
    ("update_context", {"agent": "alice", "session_key": "s"}, "entries"),
    ("update_context", UPDATE | {"entries": []}, "entries"),
    ("update_context", UPDATE | {"entries": UPDATE["entries"] * 51}, "entries"),
    ("update_context", UPDATE | {"idempotency_key": "k" * 256}, "idempotency_key"),
    ("update_context", entry(content=""), "content"),
    ("update_context", entry(content="x" * (1_048_576 + 1)), "content"),
    ("update_context", entry(metadata={"a": "x" * 16_384}), "metadata"),
    ("update_context", entry(supersedes=list(range(1, 40))), "supersedes"),
    ("request_handoff", REQUEST | {"instructions": ""}, "instructions"),
    ("request_handoff", REQUEST | {"instructions": "x" * 20_001}, "instructions"),
    ("request_handoff", REQUEST | {"priority": 10}, "priority"),
    ("request_handoff", REQUEST | {"deadline_minutes": -1}, "deadline_minutes"),
    ("accept_handoff", {"agent": "alice", "handoff_id": 1, "lease_seconds": 1}, "lease_seconds"),
    ("accept_handoff", {"agent": "alice", "handoff_id": 1, "lease_seconds": 10**9}, "lease_seconds"),
    ("get_context", {"agent": "alice", "session_key": "s", "token_budget": 1}, "token_budget"),
    ("get_context", {"agent": "alice", "session_key": "s", "limit": 101}, "limit"),
    ("get_inbox", {"agent": "alice", "wait_seconds": 31}, "wait_seconds"),
    ("get_inbox", {"agent": "alice", "capabilities": ["c"] * 33}, "capabilities"),
    ("get_inbox", {"agent": "alice", "cursor": "bm90IG91cnM"}, "cursor"),
    ("get_inbox", {"agent": "alice", "cursor": "W251bGwsMV0"}, "cursor"),
    ("get_inbox", {"agent": "alice", "cursor": "x" * 201}, "cursor"),
    ("get_inbox", {"agent": "alice", "cursor": "Wzk5OTk5LDFd"}, "cursor"),  # [99999,1]
    ("search_context", {"agent": "alice", "query": ""}, "query"),
    ("search_context", {"agent": "alice", "query": "x" * 501}, "query"),
    # U+0000, and JSON that can't be stored
    ("update_context", entry(content="a\0b"), "content"),
    ("update_context", entry(metadata={"a": "\0"}), "metadata"),
    ("update_context", entry(metadata={"\0": 1}), "metadata"),
    ("update_context", entry(metadata=DEEP), "metadata"),
    ("request_handoff", REQUEST | {"instructions": "a\0b"}, "instructions"),
    ("search_context", {"agent": "alice", "query": "\0"}, "query"),
    # unknown fields and values
    ("update_context", UPDATE | {"sesion_key": "s"}, "sesion_key"),
    ("update_context", entry(contents="x"), "contents"),
    ("update_context", entry(type="thought"), "type"),
    ("register_session", {"agent": "alice", "retention_policy": "x" * 51}, "retention_policy"),
    ("request_handoff", REQUEST | {"request_type": "gift"}, "request_type"),
    ("get_context", {"agent": "alice", "session_key": "s", "view": "all"}, "view"),
    ("get_inbox", {}, "agent"),
    # hostile names
    *[("register_session", {"agent": "alice", "session_key": name}, "session_key") for name in HOSTILE_NAMES if name],
    *[("register_session", {"agent": name}, "agent") for name in HOSTILE_NAMES],
    *[("request_handoff", REQUEST | {"target_agent": name}, "target_agent") for name in HOSTILE_NAMES[:3]],
    *[("get_inbox", {"agent": "alice", "capabilities": [name]}, "capabilities") for name in HOSTILE_NAMES[:3]],
]


async def test_a_bad_argument_is_named_and_nothing_changes(agent: Agent, db: asyncpg.Connection) -> None:
    await agent.session(session_key="s")
    before = await rows(db)
    for tool, arguments, named in BAD:
        error = await agent.refused(tool, **arguments)
        assert error["code"] in ("invalid_arguments", "agent_required"), (tool, arguments, error)
        assert named in error["message"], (tool, arguments, error)
        assert error["try"]
        assert error["retryable"] is False
        assert len(error["message"]) < 1_000
        told = f"{error['message']} {error['try']}"
        assert not TELLS_TOO_MUCH.search(told), told
        assert not [name for name in HOSTILE_NAMES if len(name) > 2 and name in told], told
    assert await rows(db) == before


async def test_numbers_that_json_or_postgres_cannot_hold_are_refused(app: App, db: asyncpg.Connection) -> None:
    before = await rows(db)
    async with edge(app) as http:
        for era in ("2026-07-28", "2025-11-25"):
            for text in ('{"a": NaN}', '{"a": Infinity}', '{"a": 1e999}', f'{{"a": {10**40}}}', '{"a": "\\ud800"}'):
                answer = await raw(http, era, f'{{"agent": "alice", "session_key": "n", "metadata": {text}}}')
                if answer.status_code == 400:
                    assert answer.json()["error"]["code"] == -32700, (era, text, answer.text)
                else:
                    error = json.loads(answer.json()["result"]["content"][0]["text"])["error"]
                    assert error["code"] == "invalid_arguments", (era, text)
                    assert error["message"].startswith(("metadata:", "arguments: must be valid Unicode")), (era, text)
                assert await rows(db) == before, (era, text)


async def test_numbers_within_those_bounds_are_returned_unchanged(app: App) -> None:
    numbers = [2**63, 2**64 - 1, -(2**63), 6.02214076e23, 5e-324, 0.1, 1.0, -0.0]
    async with edge(app) as http:
        answer = await raw(http, PROTOCOL, f'{{"agent": "alice", "metadata": {{"a": {json.dumps(numbers)}}}}}')

    kept = json.loads(answer.json()["result"]["content"][0]["text"])["metadata"]["a"]
    assert [(type(number), number) for number in kept] == [(type(number), number) for number in numbers]


async def raw(http: httpx2.AsyncClient, era: str, arguments: str) -> httpx2.Response:
    meta = f', "_meta": {json.dumps(META)}' if era == PROTOCOL else ""
    params = f'{{"name": "register_session", "arguments": {arguments}{meta}}}'
    content = f'{{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {params}}}'
    more = headers("tools/call", "register_session") | {"mcp-protocol-version": era}
    return await http.post("/mcp", content=content.encode(), headers=more)


def cursor(*position: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


BAD_URIS = [
    "handoff://sessions?limit=0",
    "handoff://sessions?limit=x",
    "handoff://sessions?limit=1&limit=2",
    "handoff://sessions?status=open",
    "handoff://sessions?since=yesterday",
    "handoff://sessions?since=2026-01-01T00:00:00",
    "handoff://sessions?agent=../../x",
    "handoff://sessions?cursor=AAAA",
    "handoff://sessions?unknown=1",
    "handoff://sessions?owner=../../x",
    "handoff://sessions?created_by=",
    "handoff://sessions?retention_policy=a%20b",
    "handoff://sessions?active_since=yesterday",
    "handoff://sessions?since=2026-01-02T00:00:00Z&until=2026-01-02T00:00:00Z",
    "handoff://agents/bob/sessions?agent=bob",
    "handoff://agents/bob/sent?state=open",
    f"handoff://agents/bob/sent?cursor={cursor('x')}",
    "handoff://context/s?order=newest&offset=1",
    "handoff://context/s?order=latest",
    "handoff://context/s?author=a%20b",
    "handoff://context/s?since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z",
    "handoff://sessions?%00",
    "handoff://sessions/a/b/c",
    "handoff://sessions/%2e%2e%2fx",
    "handoff://nothing",
    "handoff://handoffs/1e3",
    "handoff://handoffs/99999999999999999999",
    "handoff://handoffs/-1",
    "handoff://context/s?after=-1",
    "http://169.254.169.254/",
    "file:///etc/passwd",
    "handoff://[",
    "",
    "handoff://sessions#part",
    "handoff://sess\nions",
    "handoff://sessions/s?x",
    "handoff://sessions?since=0001-01-01T00:00:00%2B14:00",  # outside the years of UTC
    "handoff://sessions?since=9999-12-31T23:59:59-14:00",
    "handoff://sessions?limit=1e1",
    *[
        f"handoff://{path.format(name)}"
        for path in NAMED
        for name in ("%00", "%0a", "a%0a", "%ff", "%20", "a" * 300, "%C3%A9")
    ],
    f"handoff://sessions?cursor={cursor('2026-01-01T00:00:00', 1)}",  # without a time zone
    f"handoff://sessions?cursor={cursor('0001-01-01T00:00:00+14:00', 1)}",
    f"handoff://sessions?cursor={cursor(1, 1)}",
    f"handoff://sessions/s/lifecycle?cursor={cursor('1')}",
    f"handoff://sessions/s/lifecycle?cursor={cursor(2**63)}",
    f"handoff://agents/bob/inbox?cursor={cursor(2**40, 1)}",  # no such priority
    f"handoff://agents/bob/inbox?cursor={cursor(-1, 1)}",
    f"handoff://agents/bob/inbox?cursor={cursor(True, 1)}",
    f"handoff://context/s?cursor={cursor(1.0)}",
    f"handoff://context/s?cursor={cursor([1])}",
]


async def test_a_bad_uri_is_a_clear_error_and_nothing_changes(app: App, db: asyncpg.Connection) -> None:
    async with edge(app) as http:
        await call(http, "register_session", {"agent": "alice", "session_key": "s"})
        before = await rows(db)
        for uri in BAD_URIS:
            written = f"=?base64?{base64.b64encode(uri.encode()).decode()}?="
            answer = await http.post(
                "/mcp", json=body("resources/read", uri=uri), headers=headers("resources/read", written)
            )
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, -32602), (uri, error)
            assert error["data"]["code"] in ("invalid_arguments", "resource_not_found", "handoff_not_found"), (uri, error)
            assert (error["data"]["uri"], error["data"]["retryable"]) == (uri, False)
            assert error["data"]["try"]
            assert len(answer.content) < 2_500
            assert not TELLS_TOO_MUCH.search(error["message"]), error
        assert await rows(db) == before


MANY = 300_000
UNKNOWN_NAMES = {f"a{number}": 1 for number in range(MANY)}
LARGE: dict[str, dict[str, Any]] = {
    "unknown names": UNKNOWN_NAMES,
    "unknown names of entries": UPDATE | {"entries": [dict.fromkeys(map(str, range(MANY // 50)), 1)] * 50},
    "too many entries": UPDATE | {"entries": [{"a": 1}] * MANY},
    "too much metadata": entry(metadata={"a": [0] * MANY}),
}


def fastest(work: Callable[[], object]) -> float:
    """The least processor time of three runs, in seconds: the one that other processes disturbed least."""
    durations: list[float] = []
    for _ in range(3):
        began = thread_time()
        work()
        durations.append(thread_time() - began)
    return min(durations)


@pytest.mark.parametrize("arguments", LARGE.values(), ids=list(LARGE))
def test_refusing_large_arguments_costs_less_than_parsing_them(arguments: dict[str, Any]) -> None:
    def refuse() -> None:
        with pytest.raises(Invalid):
            validated(UpdateContext, arguments)

    encoded = json.dumps(arguments)
    assert fastest(refuse) < fastest(lambda: json.loads(encoded))


def test_no_tool_takes_as_many_names_as_are_refused_unseen() -> None:
    assert all(len(model.model_fields) <= NAMES_MAX for model in (Entry, *(tool.arguments for tool in TOOLS + ADMIN_TOOLS)))


PREFIX = b"[" + b"[]," * 600
BODIES = {
    "lists": (PREFIX + b"[]," * 1_000_000 + b"0]", "values"),
    "nested lists": (b"[" + (b"[" * 400 + b"]" * 400 + b",") * 4_000 + b"0]", "values"),
    "numbers": (b"[" + b"0," * 2_000_000 + b"0]", "values"),
    "strings": (PREFIX + b'"",' * 1_000_000 + b"0]", "values"),
    "strings of a backslash": (PREFIX + rb'"\\",' * 1_000_000 + b"0]", "values"),
    "names": (json.dumps(UNKNOWN_NAMES).encode(), "values"),
}


LINE = '[{"a": "\\", "b": [1, 2]}]\n'


@pytest.mark.parametrize("strings", [[LINE * 100_000], [LINE] * 20_000, ["\\", '"', 'é\\"', LINE] * 5_000])
def test_what_strings_contain_is_not_counted(strings: list[str]) -> None:
    code = json.dumps([[]] * 600 + strings).encode()
    assert excess(code, values_max=JSON_VALUES_MAX, levels_max=512) is None
    assert excess(code, values_max=600 + len(strings), levels_max=512) == "values"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
@pytest.mark.parametrize("before", ["", '"\u2222", ', '"\\n", ', r'"\x", ', '"", ' * 1_500 + '"\\"", '])
def test_no_string_hides_what_comes_after_it(encoding: str, before: str) -> None:
    deep, many = "[" * 600 + "]" * 600, "[[]" + ",[]" * JSON_VALUES_MAX + "]"
    assert excess(f"[{before}{deep}]".encode(encoding), values_max=1_000_000, levels_max=512) == "levels"
    assert excess(f"[{before}{many}]".encode(encoding), values_max=JSON_VALUES_MAX, levels_max=512) == "values"


def test_long_strings_with_escapes_cost_less_than_three_times_their_parsing() -> None:
    code = json.dumps([[]] * 600 + [LINE * 100_000]).encode()
    assert fastest(lambda: excess(code, values_max=JSON_VALUES_MAX, levels_max=512)) < 3 * fastest(lambda: json.loads(code))


@pytest.mark.parametrize(("content", "found"), BODIES.values(), ids=list(BODIES))
def test_what_a_body_has_too_much_of_is_found_at_less_than_the_cost_of_parsing_it(content: bytes, found: str | None) -> None:
    def look() -> None:
        assert excess(content, values_max=JSON_VALUES_MAX, levels_max=512) == found

    assert fastest(look) < fastest(lambda: json.loads(content))


async def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with edge(app) as http:
        most = {f"a{number}": 1 for number in range(JSON_VALUES_MAX // 2 - 20)}
        assert "invalid_arguments" in (await call(http, "get_inbox", most)).text
        monkeypatch.setattr("handoff.server.edge.orjson", None)
        answer = await call(http, "get_inbox", UNKNOWN_NAMES)

    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_many_values"


@pytest.mark.parametrize(
    "metadata",
    [
        {"question": "true"},
        {"question": 1},
        {"Question": True},
        {"todo ": True},
        {"pinned": ""},
        {"path": 7},
        {"Path": "a"},
    ],
)
async def test_a_mark_that_is_nearly_right_is_refused_by_name(agent: Agent, metadata: dict[str, Any]) -> None:
    key = await agent.session()
    entry = {"type": "file", "content": "?", "metadata": metadata}
    error = await agent.refused("update_context", agent="alice", session_key=key, entries=[entry])

    (name,) = metadata
    assert error["code"] == "invalid_arguments"
    assert name.strip().lower() in error["message"]
    assert (await agent.ok("get_context", agent="alice", session_key=key))["session"]["last_sequence"] == 1


async def test_a_filter_that_would_not_count_is_refused(agent: Agent) -> None:
    key = await agent.session()

    error = await agent.refused("get_context", agent="alice", session_key=key, only="todo")
    assert (error["code"], error["message"]) == (
        "invalid_arguments",
        "only selects among entries, so it needs view=entries.",
    )
    with pytest.raises(MCPError, match="type and only can't be combined"):
        await agent.read(f"handoff://context/{key}?type=file&only=todo")
