"""One trace shows a whole handoff; traces of errors and slow calls are kept; spans contain no content."""

from collections.abc import AsyncGenerator
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import anyio
import asyncpg
import httpx2
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPDeprecationWarning
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.trace import SpanKind

from handoff.context import App
from handoff.jobs.settle import settle_overdue
from handoff.model import Caller
from handoff.server.calls import ClientGone, call_tool, perform
from handoff.server.protocol import build_server
from handoff.server.record import Subject
from handoff.store.connect import connection
from handoff.telemetry import metrics, spans
from handoff.telemetry.calls import OPERATIONS_PER_CALL_MAX, Arrival, CallRecord, begin, finished, parse_traceparent
from handoff.telemetry.scope import SCHEMA_URL
from handoff.telemetry.spans import Tracer
from tests.agents import LONG_WAIT_S, PAST, Agent, until
from tests.collector import Collector, attributes
from tests.requests import body, headers
from tests.server.test_http import edge

SENDER = "00-11111111111111111111111111111111-2222222222222222-01"
RECEIVER = "00-33333333333333333333333333333333-4444444444444444-01"
UNSAMPLED = "00-55555555555555555555555555555555-6666666666666666-00"


@pytest.fixture
async def http(observed: App) -> AsyncGenerator[httpx2.AsyncClient]:
    """The edge of a service whose signals go to the collector."""
    async with edge(observed) as client:
        yield client


def hexed(value: bytes) -> str:
    return value.hex()


async def named(collector: Collector, name: str, count: int = 1) -> list[Any]:
    """Wait until there are `count` spans of this name, and return them."""
    await until(lambda: len([span for span in collector.spans() if span.name == name]) >= count)
    return [span for span in collector.spans() if span.name == name]


async def call(
    http: httpx2.AsyncClient, tool: str, arguments: dict[str, Any], traceparent: str | None = None, **more: str
) -> Any:
    from tests.requests import META

    meta = META | ({"traceparent": traceparent} if traceparent else {})
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    answer = await http.post("/mcp", json={**request, "params": params}, headers=headers("tools/call", tool, **more))
    return answer.json()["result"]


async def test_a_call_is_a_child_of_the_traceparent_in_its_meta_and_linked_to_its_http_span(
    http: httpx2.AsyncClient, collector: Collector
) -> None:
    await call(http, "register_session", {"agent": "alice"}, SENDER)

    [span] = await named(collector, "tools/call register_session")
    [outer] = await named(collector, "POST /mcp")
    assert (hexed(span.trace_id), hexed(span.parent_span_id)) == (SENDER[3:35], SENDER[36:52])
    assert [hexed(link.span_id) for link in span.links] == [hexed(outer.span_id)]
    assert attributes(span) == {
        "mcp.method.name": "tools/call",
        "gen_ai.tool.name": "register_session",
        "gen_ai.operation.name": "execute_tool",
        "mcp.protocol.version": "2026-07-28",
        "jsonrpc.request.id": "1",
        "gen_ai.agent.name": "alice",
        "network.transport": "tcp",
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
    }
    statements = [child for child in collector.spans() if child.parent_span_id == span.span_id]
    assert {statement.name for statement in statements} >= {"sessions.CREATE", "append.APPEND"}
    assert all(span.start_time_unix_nano <= statement.start_time_unix_nano for statement in statements)
    assert all(statement.end_time_unix_nano <= span.end_time_unix_nano for statement in statements)


async def test_without_a_meta_the_http_span_is_the_parent_and_continues_its_header(
    http: httpx2.AsyncClient, collector: Collector
) -> None:
    http.headers["traceparent"] = RECEIVER
    await call(http, "register_session", {"agent": "alice"})

    [span] = await named(collector, "tools/call register_session")
    [outer] = await named(collector, "POST /mcp")
    assert hexed(outer.trace_id) == hexed(span.trace_id) == RECEIVER[3:35]
    assert (outer.parent_span_id, span.parent_span_id) == (bytes.fromhex(RECEIVER[36:52]), outer.span_id)
    assert list(span.links) == []


@pytest.mark.parametrize(
    ("host", "address", "port"), [("localhost:8642", "localhost", 8642), ("[::1]:80", "::1", 80), ("[::1]", "::1", None)]
)
async def test_the_http_span_names_the_address_that_the_client_called(
    http: httpx2.AsyncClient, collector: Collector, host: str, address: str, port: int | None
) -> None:
    await call(http, "register_session", {"agent": "alice"}, host=host)
    [span] = await named(collector, "POST /mcp")
    assert (attributes(span)["server.address"], attributes(span).get("server.port")) == (address, port)


async def test_the_http_span_is_what_was_measured_around_the_call(http: httpx2.AsyncClient, collector: Collector) -> None:
    await call(http, "register_session", {"agent": "alice"}, SENDER)
    unknown = body("tools/call", name="no_such_tool", arguments={})
    refused = await http.post("/mcp", json=unknown, headers=headers("tools/call", "no_such_tool"))

    first, second = await named(collector, "POST /mcp", 2)
    [inner] = await named(collector, "tools/call register_session")
    assert attributes(first) == {
        "http.request.method": "POST",
        "http.route": "/mcp",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": 8642,
        "url.scheme": "http",
        "url.path": "/mcp",
    }
    assert first.start_time_unix_nano < inner.start_time_unix_nano
    assert inner.end_time_unix_nano < first.end_time_unix_nano
    assert refused.status_code == attributes(second)["http.response.status_code"] == 400
    assert second.status.code == 0  # a fault of the caller's is no error of the server's


@pytest.mark.parametrize(
    ("method", "params", "code", "name"),
    [
        ("tools/call", {"name": "no_such_tool", "arguments": {}}, -32602, "invalid_params"),
        ("tools/call", {"name": "get_inbox", "arguments": 7}, -32602, "invalid_params"),
        ("prompts/get", {"name": "dance", "arguments": {}}, -32602, "prompt_not_found"),
        ("logging/setLevel", {"level": "info"}, -32601, "method_not_found"),
        ("rosebud/unheard_of", {}, -32601, "method_not_found"),
        ("resources/read", {"uri": "handoff://sessions/nobody-knows"}, -32602, "session_not_found"),
        ("subscriptions/listen", {"notifications": {"resourceSubscriptions": ["x://y"]}}, -32602, "resource_not_found"),
    ],
)
async def test_a_request_that_is_refused_is_counted_logged_and_traced(
    http: httpx2.AsyncClient,
    collector: Collector,
    method: str,
    params: dict[str, Any],
    code: int,
    name: str,
) -> None:
    target = str(params.get("name", params.get("uri", ""))) or None
    answer = await http.post("/mcp", json=body(method, **params), headers=headers(method, target))
    assert answer.json()["error"]["code"] == code

    known = "_OTHER" if "rosebud" in method else method
    [span] = await named(collector, known)
    assert attributes(span)["rpc.response.status_code"] == str(code)
    assert attributes(span)["handoff.error.code"] == name
    assert (span.status.code, "error.type" in attributes(span)) == (0, False)  # it is the caller's fault
    await until(lambda: any(line["event"] == "request.failed" for line in collector.lines()))
    [line] = [line for line in collector.lines() if line["event"] == "request.failed"]
    assert (line["level"], line["outcome"], line["method"]) == ("warning", name, known)
    assert line["trace_id"] == span.trace_id.hex()
    points = collector.metrics()["mcp.server.operation.duration"].histogram.data_points
    labels = [attributes(point) for point in points if point.count]
    assert [it for it in labels if (it["mcp.method.name"], it.get("handoff.error.code")) == (known, name)]
    assert b"rosebud" not in b"".join(collector.bodies["traces"] + collector.bodies["logs"] + collector.bodies["metrics"])


async def test_a_resource_is_recorded_under_its_name(http: httpx2.AsyncClient, collector: Collector) -> None:
    uri = "handoff://agents/alice/inbox?limit=1"
    answer = await http.post("/mcp", json=body("resources/read", uri=uri), headers=headers("resources/read", uri))
    assert "result" in answer.json()

    [span] = await named(collector, "resources/read")
    assert attributes(span)["mcp.resource.uri"] == "handoff://agents/alice/inbox"
    await until(lambda: "mcp.server.operation.duration" in (collector.metrics() if collector.bodies["metrics"] else {}))
    points = collector.metrics()["mcp.server.operation.duration"].histogram.data_points
    assert {attributes(point).get("handoff.resource") for point in points} >= {attributes(span)["handoff.resource"]}


async def test_a_request_that_becomes_no_call_is_counted_and_logged_by_its_reason(
    http: httpx2.AsyncClient, logged: list[dict[str, Any]], collector: Collector
) -> None:
    before = metrics.REFUSALS.value("header_mismatch")
    for _ in range(3):
        answer = await http.post("/mcp", json=body("tools/list"), headers=headers("tools/call", "get_inbox"))
        assert answer.status_code == 400

    await until(lambda: any(line["event"] == "http.refused" for line in collector.lines()))
    lines = [line for line in collector.lines() if line["event"] == "http.refused"]
    assert [(line["level"], line["reason"], line["status"], line["path"]) for line in lines] == [
        ("warning", "header_mismatch", 400, "/mcp")
    ]
    assert metrics.REFUSALS.value("header_mismatch") == before + 3


async def test_an_older_client_s_handshake_and_ping_are_recorded(observed: App, collector: Collector) -> None:
    async with Client(build_server(observed), mode="legacy") as client:
        with pytest.warns(MCPDeprecationWarning):
            await client.send_ping()  # pyright: ignore[reportDeprecated] - that is what is tested

    for method in ("initialize", "ping"):
        [span] = await named(collector, method)
        assert attributes(span)["mcp.protocol.version"]
        assert attributes(span)["network.transport"] == "pipe"


async def test_an_invalid_traceparent_is_ignored(http: httpx2.AsyncClient, collector: Collector) -> None:
    for bad in ("garbage", "00-" + "0" * 32 + "-2222222222222222-01", "x" * 10_000):
        assert not (await call(http, "register_session", {"agent": "alice"}, bad))["isError"]

    spans = await named(collector, "tools/call register_session", 3)
    assert len({span.trace_id for span in spans}) == 3
    assert bytes(16) not in {span.trace_id for span in spans}


async def test_one_trace_shows_a_whole_handoff(http: httpx2.AsyncClient, collector: Collector) -> None:
    key = (await call(http, "register_session", {"agent": "alice"}))["structuredContent"]["session_key"]
    asked = {"agent": "alice", "session_key": key, "target_agent": "bob", "instructions": "Go on."}
    handoff_id = (await call(http, "request_handoff", asked, SENDER))["structuredContent"]["handoff_id"]
    taken = await call(http, "accept_handoff", {"agent": "bob", "handoff_id": handoff_id}, RECEIVER)
    done = {"agent": "bob", "handoff_id": handoff_id, "token": taken["structuredContent"]["handoff"]["token"]}
    await call(http, "renew_handoff", done, RECEIVER)
    await call(http, "resolve_handoff", {**done, "action": "complete"}, RECEIVER)

    [offered] = await named(collector, "tools/call request_handoff")
    [accepted] = await named(collector, "tools/call accept_handoff")
    [renewed] = await named(collector, "tools/call renew_handoff")
    [completed] = await named(collector, "tools/call resolve_handoff")
    [wait] = await named(collector, "handoff wait")
    [work] = await named(collector, "handoff work")
    for span in (accepted, renewed, completed):
        assert hexed(span.trace_id) == RECEIVER[3:35]
        assert (offered.trace_id, offered.span_id) in {(link.trace_id, link.span_id) for link in span.links}
    for stretch, ending in ((wait, accepted), (work, completed)):
        assert (stretch.trace_id, stretch.parent_span_id) == (offered.trace_id, offered.span_id)
        assert [(link.trace_id, link.span_id) for link in stretch.links] == [(ending.trace_id, ending.span_id)]
    assert attributes(wait) == {"handoff.id": handoff_id, "handoff.type": "context_transfer", "handoff.action": "accept"}
    assert wait.end_time_unix_nano == work.start_time_unix_nano
    assert offered.start_time_unix_nano <= wait.start_time_unix_nano < work.end_time_unix_nano


async def test_a_lapsed_lease_ends_the_work_span_as_an_error(
    observed: App, collector: Collector, db: asyncpg.Connection
) -> None:
    async with Client(build_server(observed)) as client:
        agent = Agent(client)
        await agent.accept(await agent.offer(await agent.session()))
        await db.execute(PAST)
        assert await settle_overdue(observed) == 1

    [work] = await named(collector, "handoff work")
    assert attributes(work)["error.type"] == "lapse"


async def test_noteworthy_and_ordinary_traces_are_each_kept_within_their_own_budget(
    observed: App, collector: Collector
) -> None:
    tracer = Tracer(observed.signals.resource, lambda _: None, per_s_max=3) if observed.signals else None
    assert tracer is not None

    def decisions(*, noteworthy: bool, traceparent: str | None = None) -> list[str]:
        meta = {"traceparent": traceparent} if traceparent else None
        return [tracer.decide(begin(meta, None), noteworthy=noteworthy) for _ in range(5)]

    assert decisions(noteworthy=False) == ["ordinary"] * 3 + ["no"] * 2
    assert decisions(noteworthy=True) == ["noteworthy"] * 3 + ["no"] * 2  # a budget of its own
    assert decisions(noteworthy=False, traceparent=SENDER) == ["asked"] * 5
    assert decisions(noteworthy=False, traceparent=UNSAMPLED) == ["no"] * 5


async def test_an_unsampled_parent_does_not_hide_an_error(http: httpx2.AsyncClient, collector: Collector) -> None:
    await call(http, "register_session", {"agent": "alice"}, UNSAMPLED)
    await call(http, "close_session", {"agent": "alice", "session_key": "nobody-knows"}, UNSAMPLED)

    [failed] = await named(collector, "tools/call close_session")
    assert attributes(failed)["error.type"] == "tool_error"
    assert attributes(failed)["handoff.error.code"] == "session_not_found"
    assert (failed.status.code, failed.status.message) == (2, "tool_error")
    assert [span for span in collector.spans() if span.name == "tools/call register_session"] == []


async def test_the_span_of_a_cancelled_call_says_so_and_is_no_error(observed: App, collector: Collector) -> None:
    waiting = {"agent": "bob", "wait_seconds": LONG_WAIT_S}
    arrival = Arrival(monotonic(), {"traceparent": SENDER}, {})

    with pytest.raises(ClientGone):
        await call_tool(observed, Caller(), "get_inbox", waiting, arrival, lambda: anyio.sleep(0.1))

    [span] = await named(collector, "tools/call get_inbox")
    assert (span.status.code, attributes(span)["handoff.error.code"]) == (0, "cancelled")


async def test_spans_contain_no_content(http: httpx2.AsyncClient, collector: Collector) -> None:
    marker = "rosebud"
    key = "s-1"
    await call(http, "register_session", {"agent": "alice", "session_key": key, "metadata": {"about": marker}}, SENDER)
    entry = {"type": "message", "content": marker, "metadata": {"path": marker}}
    await call(http, "update_context", {"agent": "alice", "session_key": key, "entries": [entry]}, SENDER)
    await call(http, "search_context", {"agent": "alice", "query": marker}, SENDER)
    await call(http, "close_session", {"agent": "alice", "session_key": "not-1"}, SENDER)
    await named(collector, "tools/call close_session")

    assert len(collector.spans()) > 8
    assert marker.encode() not in b"".join(collector.bodies["traces"])


async def test_appends_that_share_a_statement_each_have_a_span_for_it(
    http: httpx2.AsyncClient, collector: Collector
) -> None:
    from tests.agents import all_of

    key = (await call(http, "register_session", {"agent": "alice"}))["structuredContent"]["session_key"]
    arguments = {"agent": "alice", "session_key": key, "entries": [{"type": "message", "content": "x"}]}
    await all_of(*(call(http, "update_context", arguments, SENDER) for _ in range(12)))

    calls = await named(collector, "tools/call update_context", 12)
    for span in calls:
        shown = [child for child in collector.spans() if child.parent_span_id == span.span_id]
        assert [child.name for child in shown] == ["append.APPEND"]
        assert shown[0].kind == SpanKind.CLIENT.value + 1  # OTLP counts from 1
        assert attributes(shown[0])["db.operation.batch.size"] >= 1


def test_a_call_records_a_bounded_number_of_operations() -> None:
    record = CallRecord(1, 2, None, 0)
    for _ in range(500):
        record.add(finished("sessions.FIND", 0, ""))

    assert len(record.operations) == OPERATIONS_PER_CALL_MAX
    assert parse_traceparent(record.traceparent) is not None


async def test_with_telemetry_off_there_is_no_tracer(app: App) -> None:
    assert (app.signals, spans.tracer()) == (None, None)


async def test_a_statement_that_postgres_refuses_is_recorded_with_its_code(observed: App, collector: Collector) -> None:
    async def run() -> bytes:
        async with connection(observed.pool) as conn:
            await conn.fetch("SELECT 1 / 0")
        return b"{}"

    await perform(observed, Subject("tools/call", "get_inbox"), Arrival(monotonic(), {"traceparent": SENDER}, {}), run)
    [call_span] = await named(collector, "tools/call get_inbox")
    [statement] = [span for span in collector.spans() if span.parent_span_id == call_span.span_id]
    found = attributes(statement)
    assert (found["db.response.status_code"], found["error.type"]) == ("22012", "DivisionByZeroError")
    database = urlsplit(observed.settings.database_url.get_secret_value() if observed.settings.database_url else "")
    assert found["db.namespace"] == database.path.strip("/")
    await until(lambda: "db.client.operation.duration" in (collector.metrics() if collector.bodies["metrics"] else {}))
    points = collector.metrics()["db.client.operation.duration"].histogram.data_points
    assert [it for it in map(attributes, points) if it.get("db.response.status_code") == "22012"]


async def test_metrics_have_the_attributes_that_the_conventions_require(
    http: httpx2.AsyncClient, collector: Collector
) -> None:
    await call(http, "register_session", {"agent": "alice"})
    await http.post(
        "/mcp", json=body("prompts/get", name="catch_up", arguments={}), headers=headers("prompts/get", "catch_up")
    )
    metrics.HTTP_DURATION.record(0.001, "POST", "503", "/mcp")
    seen = len(collector.bodies["metrics"])
    await until(lambda: len(collector.bodies["metrics"]) > seen + 1)

    calls = [attributes(it) for it in collector.metrics()["mcp.server.operation.duration"].histogram.data_points]
    over_http = {"network.transport": "tcp", "network.protocol.name": "http", "network.protocol.version": "1.1"}
    tool = {"mcp.method.name": "tools/call", "gen_ai.tool.name": "register_session", "gen_ai.operation.name": "execute_tool"}
    assert {**tool, **over_http} in calls
    prompt = {"mcp.method.name": "prompts/get", "gen_ai.prompt.name": "catch_up", "rpc.response.status_code": "-32602"}
    assert {**prompt, "handoff.error.code": "invalid_arguments", **over_http} in calls
    requests = [attributes(it) for it in collector.metrics()["http.server.request.duration"].histogram.data_points]
    request = {"http.request.method": "POST", "http.route": "/mcp", "url.scheme": "http", "network.protocol.version": "1.1"}
    assert {**request, "http.response.status_code": "200"} in requests
    assert {**request, "http.response.status_code": "503", "error.type": "503"} in requests


async def test_the_pool_s_metrics_and_all_signals_name_their_convention(observed: App, collector: Collector) -> None:
    await observed.pool.fetchval("SELECT 1")
    await until(lambda: "db.client.connection.count" in (collector.metrics() if collector.bodies["metrics"] else {}))
    count = collector.metrics()["db.client.connection.count"].sum
    assert not count.is_monotonic
    assert {attributes(point)["db.client.connection.pool.name"] for point in count.data_points} == {"handoff"}
    await until(lambda: bool(collector.bodies["logs"]))  # of the start
    for request, scopes in (
        (ExportMetricsServiceRequest.FromString(collector.bodies["metrics"][-1]).resource_metrics, "scope_metrics"),
        (ExportLogsServiceRequest.FromString(collector.bodies["logs"][-1]).resource_logs, "scope_logs"),
    ):
        assert [group.schema_url for group in request] == [SCHEMA_URL]
        ours = [scope for group in request for scope in getattr(group, scopes) if scope.scope.name == "handoff"]
        assert [scope.schema_url for scope in ours] == [SCHEMA_URL]
