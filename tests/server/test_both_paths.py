"""The edge's short path, the SDK's long one, and both protocol eras give the same answers, to good and bad requests."""

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import asyncpg
import httpx2
import pytest

from handoff.context import App
from tests.requests import META, body, call, headers
from tests.server.test_http import edge

CHANGES_BY_NATURE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z|s-[0-9a-f]{16}")


def request(
    arguments: str = '{"agent": "alice"}', *, number: str = "1", name: str = '"register_session"', meta: str | None = None
) -> str:
    """A tool call as text, so that it can contain what no serialiser would write."""
    params = f'{{"name": {name}, "arguments": {arguments}, "_meta": {meta or json.dumps(META)}}}'
    return f'{{"jsonrpc": "2.0", "id": {number}, "method": "tools/call", "params": {params}}}'


def metadata(value: str) -> str:
    return request(f'{{"agent": "alice", "session_key": "m", "metadata": {{"a": {value}}}}}')


def normalised(value: Any) -> Any:
    """An answer without the values that differ from call to call, and with JSON in strings parsed."""
    if isinstance(value, dict):
        return {name: "~" if name == "mark" else normalised(item) for name, item in value.items()}
    if isinstance(value, list):
        return [normalised(item) for item in value]
    if isinstance(value, str) and value.startswith("{"):
        return normalised(json.loads(value))
    return CHANGES_BY_NATURE.sub("~", value) if isinstance(value, str) else value


Paths = Callable[[bytes, list[tuple[str, str]]], Awaitable[list[tuple[int, Any]]]]


@pytest.fixture
async def paths(app: App, db: asyncpg.Connection) -> AsyncGenerator[Paths]:
    """The answers with and without the short path, each from an empty database."""
    async with edge(app) as short, edge(app, short_path=False) as long:

        async def answers(content: bytes, sent: list[tuple[str, str]]) -> list[tuple[int, Any]]:
            found: list[tuple[int, Any]] = []
            for http in (short, long):
                http.headers.clear()
                # What a good request says of itself is remembered, and must not stand for that of a bad one.
                await http.post("/mcp", content=request(), headers=[("host", "localhost"), *SENT])
                await db.execute("TRUNCATE session, idempotency, agent RESTART IDENTITY CASCADE")
                answer = await http.post("/mcp", content=content, headers=[("host", "localhost"), *sent])
                is_json = answer.headers.get("content-type") == "application/json"
                found.append((int(answer.status_code), normalised(answer.json()) if is_json else answer.text))
            return found

        yield answers


SENT = list(headers("tools/call", "register_session").items())
GOOD, REFUSED = 200, 400
CODES = (-32700, -32600, -32602, -32020, "invalid_arguments", "agent_required")  # -32020: a header disagrees with the body
HEADERS: list[tuple[str, str | None, int]] = [
    ("accept", None, 200),
    ("accept", "text/event-stream", 406),
    ("accept", "*/*", 200),
    ("accept", "application/json", 200),
    ("content-type", None, 400),
    ("content-type", "text/plain", 400),
    ("content-type", "application/json; charset=utf-8", 200),
    ("mcp-method", None, 400),
    ("mcp-method", "tools/list", 400),
    ("mcp-method", "Tools/Call", 400),
    ("mcp-name", None, 400),
    ("mcp-name", "get_context", 400),
    ("mcp-name", "REGISTER_SESSION", 400),
    ("mcp-name", "=?base64?cmVnaXN0ZXJfc2Vzc2lvbg==?=", 200),
    ("mcp-name", "  register_session\t ", 200),
    ("mcp-protocol-version", None, 200),  # the first revisions had no such header
    ("mcp-protocol-version", "1999-01-01", 400),
    ("mcp-protocol-version", " 2026-07-28 ", 200),
    ("mcp-session-id", "anything", 200),
]
BODIES: dict[str, tuple[str, int]] = {
    "a call": (request(), GOOD),
    "a call that is refused": (request('{"agent": "alice", "retention_policy": 1}'), GOOD),
    "a number as text": (request(number='"ä\\u2028\\"x"'), GOOD),
    "a negative number": (request(number="-7"), GOOD),
    "a number of 64 bits": (request(number=str(2**63)), GOOD),
    "a number above 64 bits": (request(number=str(10**30)), GOOD),
    "null as the id": (request(number="null"), REFUSED),
    "a fraction as the id": (request(number="1.5"), REFUSED),
    "an unknown tool": (request(name='"no_such_tool"'), REFUSED),
    "a tool whose name is a number": (request(name="7"), REFUSED),
    "no arguments": (request("null"), GOOD),
    "arguments that are a list": (request("[]"), REFUSED),
    "an argument twice: the last counts": (request('{"agent": "alice", "agent": "bob", "session_key": "t"}'), GOOD),
    "metadata of the envelope, unknown": (request(meta=json.dumps(META | {"traceparent": "00-a-b-01"})), GOOD),
    "no envelope": (request(meta="{}"), REFUSED),
    "malformed capabilities": (
        request(meta=json.dumps(META | {"io.modelcontextprotocol/clientCapabilities": 7})),
        REFUSED,
    ),
    "a byte order mark": ("\ufeff" + request(), GOOD),
    "trailing space": (request() + " \r\n\t", GOOD),
    "trailing text": (request() + "x", REFUSED),
    "a truncated body": (request()[:-9], REFUSED),
    "a batch": (f"[{request()}]", REFUSED),
    "deep metadata": (metadata("[" * 500 + "]" * 500), GOOD),
    "deep metadata, and text and lists that are not deep": (
        metadata("[" * 500 + '"[[{{\\"[["' + ", []" * 500 + "]" * 500),
        GOOD,
    ),
    "metadata too deep to read": (metadata("[" * 600 + "]" * 600), REFUSED),
    "metadata too deep for some parsers": (metadata("[" * 1_500 + "]" * 1_500), REFUSED),
    "metadata too deep for all parsers": (metadata('{"a":' * 20_000 + "1" + "}" * 20_000), REFUSED),
    "NaN": (metadata("NaN"), GOOD),
    "Infinity": (metadata("-Infinity"), GOOD),
    "a float beyond floats": (metadata("1e999"), GOOD),
    "an integer above 64 bits": (metadata(str(2**64)), GOOD),
    "a very long integer": (metadata("-" + "9" * 40), GOOD),
    "the largest of 64 bits": (metadata(str(2**64 - 1)), GOOD),
    "a large float": (metadata("6.02214076e23"), GOOD),
    "half of a surrogate pair": (metadata('"\\ud800"'), GOOD),
    "half of a surrogate pair as a name": (request('{"agent": "alice", "\\ud800": 1}'), GOOD),
}
KEPT = {
    "a call", "a number as text", "a negative number", "a number of 64 bits", "a number above 64 bits",
    "an argument twice: the last counts", "metadata of the envelope, unknown", "a byte order mark", "trailing space",
    "the largest of 64 bits", "a large float",
}  # fmt: skip


async def test_both_paths_answer_a_body_the_same(paths: Paths, db: asyncpg.Connection) -> None:
    for what, (content, status) in BODIES.items():
        named = "no_such_tool" if what == "an unknown tool" else "register_session"
        short, long = await paths(content.encode(), list(headers("tools/call", named).items()))

        assert short == long, what
        assert short[0] == status, what
        assert await db.fetchval("SELECT count(*) FROM session") == (what in KEPT), what
        if what not in KEPT:
            error = short[1].get("error") or short[1]["result"]["content"][0]["text"]["error"]
            assert error["code"] in CODES, what
            assert not re.search("Traceback|SELECT|asyncpg|pydantic", json.dumps(short[1])), what


async def test_an_unknown_tool_is_a_protocol_error(paths: Paths) -> None:
    short, long = await paths(request(name='"nothing"').encode(), list(headers("tools/call", "nothing").items()))

    assert short == long
    assert (short[1]["error"]["code"], short[1]["error"]["message"]) == (-32602, "Unknown tool: nothing")


async def test_both_paths_treat_a_header_the_same(paths: Paths, db: asyncpg.Connection) -> None:
    for name, value, status in HEADERS:
        sent = [pair for pair in SENT if pair[0] != name] + ([(name, value)] if value is not None else [])
        short, long = await paths(request().encode(), sent)

        assert short == long, (name, value)
        assert short[0] == status, (name, value)
        assert await db.fetchval("SELECT count(*) FROM session") == (status == 200), (name, value)


async def test_a_duplicate_of_a_significant_header_is_refused(paths: Paths, db: asyncpg.Connection) -> None:
    others = {"host": "localhost", "origin": "http://localhost", "authorization": "Bearer x"}
    for name in ("mcp-name", "mcp-method", "mcp-protocol-version", *others):
        value = (dict(SENT) | others)[name]
        first = [] if name in dict(SENT) or name == "host" else [(name, value)]
        short, long = await paths(request().encode(), [*SENT, *first, (name, value)])

        assert short == long, name
        assert short[0] == 400, name
        assert await db.fetchval("SELECT count(*) FROM session") == 0, name


async def test_the_older_protocol_gives_the_same_results(app: App, db: asyncpg.Connection) -> None:
    story: list[tuple[str, dict[str, Any]]] = [
        ("register_session", {"agent": "alice", "session_key": "s", "metadata": {"ä": [1, 2.5, None]}}),
        ("register_session", {"agent": "alice", "session_key": "s"}),
        ("update_context", {"agent": "alice", "session_key": "s", "entries": [{"type": "thought", "content": "x"}]}),
        ("request_handoff", {"agent": "alice", "session_key": "s", "target_agent": "bob", "instructions": "Go on."}),
        ("get_inbox", {"agent": "bob"}),
        ("accept_handoff", {"agent": "bob", "handoff_id": 1}),
        ("accept_handoff", {"agent": "carol", "handoff_id": 1}),
    ]
    results: dict[str, list[Any]] = {}
    for era in ("2026-07-28", "2025-11-25"):
        await db.execute("TRUNCATE session, idempotency, agent RESTART IDENTITY CASCADE")
        async with edge(app) as http:
            answered = [await in_era(http, era, tool, arguments) for tool, arguments in story]
        results[era] = [
            {name: result.get(name) for name in ("content", "structuredContent", "isError")} for result in answered
        ]

    older, current = (normalised(results[era]) for era in sorted(results))
    assert older == current
    assert [bool(result["isError"]) for result in current] == [False, True, True, False, False, False, True]


async def in_era(http: httpx2.AsyncClient, era: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A tool's result under the protocol of a date."""
    if era == "2026-07-28":
        return (await call(http, tool, arguments)).json()["result"]
    older = body("tools/call", name=tool, arguments=arguments)
    del older["params"]["_meta"]
    sent = {"accept": "application/json, text/event-stream", "mcp-protocol-version": era}
    return (await http.post("/mcp", json=older, headers=sent)).json()["result"]
