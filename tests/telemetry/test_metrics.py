"""Metrics: names match the code, callers cannot add label values, and counts match the database."""

import re
from time import monotonic
from typing import Any

import anyio
import asyncpg
import httpx2
import pytest
from mcp import Client
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from handoff.cache import LocalCache
from handoff.context import App
from handoff.jobs.table import JOBS
from handoff.model import EVENT_OF_ACTION, Caller
from handoff.operations.checks import CHECKS, LIMITS, REMEDIES
from handoff.server.calls import ClientGone, call_tool
from handoff.server.catalog import ADMIN_TOOLS, TOOLS
from handoff.server.protocol import build_server
from handoff.store.connect import connection
from handoff.store.statements import name_of, names
from handoff.telemetry import metrics
from handoff.telemetry.calls import Arrival
from handoff.telemetry.instruments import Counter, Gauge, Histogram
from tests.agents import LONG_WAIT_S, Agent, until
from tests.collector import Collector, attributes
from tests.processes import PATIENCE_S, serving
from tests.requests import body, headers


def test_labels_allow_the_names_that_the_code_defines() -> None:
    assert {tool.name for tool in (*TOOLS, *ADMIN_TOOLS)} <= metrics.TOOL.values
    assert {job.name for job in JOBS} == metrics.JOB.values
    assert set(LIMITS) == set(REMEDIES) == set(CHECKS) == metrics.COMPONENT.values
    assert {"tools/call", "resources/read"} <= metrics.METHOD.values
    assert len(set(names().values())) + 8 < metrics.STATEMENT.values_max


def test_instruments_follow_the_conventions_that_rules_and_dashboards_rely_on() -> None:
    assert len({instrument.name for instrument in metrics.INSTRUMENTS}) == len(metrics.INSTRUMENTS)
    for instrument in metrics.INSTRUMENTS:
        assert re.fullmatch(r"(handoff|mcp|http|db)\.[a-z._]+", instrument.name), instrument.name
        assert instrument.description.endswith("."), instrument.name
        assert "/" not in instrument.unit, f"{instrument.name}: record a count, not a rate"
        if isinstance(instrument, Histogram):
            assert list(instrument.bounds) == sorted(set(instrument.bounds)), instrument.name
            odd = [bound for bound in instrument.bounds if bound == int(bound) or not 1e-4 <= bound < 1e6]
            assert not odd, f"{instrument.name}: Prometheus would write le in two ways: {odd}"


def test_the_largest_number_of_series_is_small() -> None:
    """Callers choose neither names nor label values, so this bound holds whatever they send."""
    least, between, _ = sorted(label.values_max for label in (metrics.TOOL, metrics.RESOURCE, metrics.PROMPT))
    for instrument in metrics.INSTRUMENTS:
        size = len(instrument.bounds) + 3 if isinstance(instrument, Histogram) else 1
        if instrument is metrics.OPERATION_DURATION:  # a call has a tool, a resource or a prompt
            size /= least * between
        # Most combinations never occur, such as a tool or a resource with another method than its own; but all are bounded.
        assert instrument.series_max * size < 10**10, instrument.name
        assert instrument.series_max < 500 or instrument is metrics.OPERATION_DURATION or instrument in MANY, instrument.name


MANY = (metrics.HTTP_DURATION, metrics.STATEMENT_DURATION)


def exposed(app: App) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return all samples of the exposition: value by name and labels."""
    assert app.signals is not None
    families = text_string_to_metric_families(app.signals.exposition().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


OF_CALLS = ("mcp.", "http.", "handoff.refusals", "handoff.calls", "handoff.context")


async def test_hostile_input_creates_no_series(database_url: str, collector: Collector) -> None:
    with serving(database_url=database_url, telemetry="true", ops_port=0) as service:

        async def series() -> int:
            seen = len(collector.bodies["metrics"])
            await until(lambda: len(collector.bodies["metrics"]) > seen + 1)
            return sum(
                len(getattr(metric, metric.WhichOneof("data")).data_points)
                for name, metric in collector.metrics().items()
                if name.startswith(OF_CALLS)
            )

        async def attack(http: httpx2.AsyncClient, number: int) -> None:
            odd = f"x-{number}"
            await http.get(f"/{odd}")
            await http.request(odd.upper(), "/mcp")
            await http.get("/healthz", headers={"host": odd})
            await http.post("/mcp", json=body("tools/call", name=odd, arguments={}), headers=headers("tools/call", odd))
            await http.post("/mcp", json=body(odd), headers=headers(odd))
            for tool in ("update_context", "get_inbox"):
                arguments = {"agent": odd, "session_key": odd, "entries": [{"type": odd, "content": odd}], odd: odd}
                request = body("tools/call", name=tool, arguments=arguments)
                await http.post("/mcp", json=request, headers=headers("tools/call", tool))

        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", timeout=PATIENCE_S) as http:
            await attack(http, 0)
            await attack(http, 1)
            before = await series()
            for number in range(2, 60):
                await attack(http, number)
            assert await series() == before
    labels = {value for metric in collector.metrics().values() for value in values_of(metric)}
    assert not {value for value in labels if "x-" in value.lower()}


def values_of(metric: Any) -> set[str]:
    points = getattr(metric, metric.WhichOneof("data")).data_points
    return {str(value) for point in points for value in attributes(point).values()}


async def test_pushed_and_scraped_metrics_are_the_same(observed: App, collector: Collector) -> None:
    async with Client(build_server(observed)) as client:
        agent = Agent(client)
        await agent.accept(await agent.offer(await agent.session()))
    seen = len(collector.bodies["metrics"])
    await until(lambda: len(collector.bodies["metrics"]) > seen + 1)

    pushed = collector.metrics()
    scraped = {name for name, _ in exposed(observed)}
    for instrument in (metrics.TRANSITIONS, metrics.OPERATION_DURATION, metrics.HANDOFFS_OPEN, metrics.POOL_MAX):
        if instrument.metric() is None:
            continue
        assert instrument.name in pushed
    for name, metric in pushed.items():
        flat = name.replace(".", "_")
        assert [other for other in scraped if other.startswith(flat)], f"{name} is pushed but not scraped"
        kind = metric.WhichOneof("data")
        if kind == "histogram" and name == "mcp.server.operation.duration":
            calls = {
                attributes(point)["gen_ai.tool.name"]: point.count
                for point in metric.histogram.data_points
                if "gen_ai.tool.name" in attributes(point)
            }
            shown = {
                dict(labels)["gen_ai_tool_name"]: value
                for (sample, labels), value in exposed(observed).items()
                if sample == "mcp_server_operation_duration_seconds_count" and dict(labels).get("gen_ai_tool_name")
            }
            assert calls == shown


class Change:
    """By how much instruments have changed since this object was created."""

    def __init__(self, *instruments: Counter | Gauge | Histogram) -> None:
        self._before = {instrument.name: self._read(instrument) for instrument in instruments}
        self._instruments = instruments

    def __call__(self) -> dict[str, float]:
        return {instrument.name: self._read(instrument) - self._before[instrument.name] for instrument in self._instruments}

    @staticmethod
    def _read(instrument: Counter | Gauge | Histogram) -> float:
        metric = instrument.metric()
        points: Any = [] if metric is None else metric.data.data_points
        return sum(point.count if isinstance(instrument, Histogram) else point.value for point in points)


async def test_counts_agree_with_what_the_database_committed(agent: Agent, db: asyncpg.Connection) -> None:
    change = Change(metrics.ENTRIES, metrics.TRANSITIONS, metrics.REPLAYS, metrics.TIME_TO_ACCEPT, metrics.TIME_TO_COMPLETE)
    key = await agent.session()
    for number in range(5):
        await agent.says(key, "hello", idempotency_key=f"k{number}")
        await agent.says(key, "hello", idempotency_key=f"k{number}")
    handoff_id = await agent.offer(key, idempotency_key="offer")
    assert await agent.offer(key, idempotency_key="offer") == handoff_id
    token = await agent.accept(handoff_id)
    await agent.refused("accept_handoff", agent="bob", handoff_id=handoff_id)  # rolled back, so not counted
    await agent.refused("update_context", agent="eve", session_key=key, entries=[{"type": "message", "content": "x"}])
    await agent.ok("resolve_handoff", agent="bob", handoff_id=handoff_id, action="complete", token=token)

    committed = await db.fetchval("SELECT count(*) FROM event WHERE handoff_id IS NOT NULL")
    assert change() == {
        "handoff.context.entries": await db.fetchval("SELECT count(*) FROM context_entry"),
        "handoff.transitions": committed,
        "handoff.idempotent.replays": 6,
        "handoff.time_to_accept": 1,
        "handoff.time_to_complete": 1,
    }


async def test_a_returned_brief_is_measured_with_the_number_of_omitted_entries(agent: Agent) -> None:
    key = await agent.session()
    for number in range(30):
        await agent.says(key, f"{number} " * 60)
    change = Change(metrics.BRIEF_SIZE, metrics.BRIEF_OMITTED)

    asked = {"agent": "alice", "session_key": key, "token_budget": 300}
    answers = [await agent.ok("get_context", **asked) for _ in range(2)]  # the second comes from the cache and counts too

    omitted = answers[0]["brief"]["omitted"]["entries"]
    assert omitted > 0
    assert change() == {"handoff.brief.size": 2, "handoff.brief.omitted": 2 * omitted}


async def test_a_change_that_is_not_committed_is_not_counted(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    await db.execute(
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'too late'; END $$;"
        "CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON handoff DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION late()"
    )
    change = Change(metrics.TRANSITIONS, metrics.TIME_TO_ACCEPT)

    await agent.refused("accept_handoff", agent="bob", handoff_id=handoff_id)  # the commit itself fails

    assert set(change().values()) == {0}


async def test_active_and_waiting_calls_are_counted_separately(app: App, agent: Agent) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: agent.ok("get_inbox", agent="bob", wait_seconds=20))
        await until(lambda: metrics.WAITING_CALLS.value() == 1)
        assert metrics.ACTIVE_CALLS.value() == 0
        app.wakeups.release()
    assert metrics.WAITING_CALLS.value() == 0


def test_every_action_on_a_handoff_has_a_label_value() -> None:
    for action in ("offer", *EVENT_OF_ACTION):
        assert metrics.ACTION.allowed(action) == action
    assert metrics.ERROR.values_max <= 50
    assert metrics.CODE.values_max <= 50


async def test_a_cancelled_call_is_counted_as_cancelled_and_a_lost_race_as_no_failed_statement(app: App) -> None:
    cancelled = ("tools/call", "get_inbox", "cancelled", "cancelled", "pipe", "", "", "")
    before = metrics.OPERATION_DURATION.count(*cancelled)
    waiting = {"agent": "bob", "wait_seconds": LONG_WAIT_S}
    with pytest.raises(ClientGone):
        await call_tool(app, Caller(), "get_inbox", waiting, Arrival(monotonic()), lambda: anyio.sleep(0.1))
    assert metrics.OPERATION_DURATION.count(*cancelled) == before + 1

    race = "DO $$ BEGIN RAISE unique_violation; END $$"
    failed = metrics.STATEMENT_DURATION.count(name_of(race), "UniqueViolationError", "23505")
    with pytest.raises(asyncpg.UniqueViolationError):
        async with connection(app.pool) as conn:
            await conn.execute(race)
    assert metrics.STATEMENT_DURATION.count(name_of(race), "UniqueViolationError", "23505") == failed


async def test_openmetrics_has_the_same_samples_and_the_trace_of_a_recent_call(observed: App) -> None:
    assert observed.signals is not None
    trace = "11111111111111111111111111111111"
    arrival = Arrival(monotonic(), {"traceparent": f"00-{trace}-2222222222222222-01"}, {})
    await call_tool(observed, Caller(), "register_session", {"agent": "alice"}, arrival, anyio.sleep_forever)

    registry = observed.signals.registry
    families = list(openmetrics_families(openmetrics_latest(registry).decode()))  # the strict parser
    samples = [sample for family in families for sample in family.samples]
    assert {sample.name for sample in samples} == {name for name, _ in exposed(observed)}
    found = {sample.exemplar.labels["trace_id"] for sample in samples if sample.exemplar is not None}
    assert trace in found
    assert {sample.name for sample in samples if sample.exemplar} == {"mcp_server_operation_duration_seconds_bucket"}


async def test_large_entries_and_large_cache_values_are_counted(agent: Agent) -> None:
    key = await agent.session()
    entries, values = metrics.LARGE_ENTRIES.value("file"), metrics.CACHE_LARGE.value("in-process")
    for size in (100_000, 100_001):
        await agent.ok("update_context", agent="alice", session_key=key, entries=[{"type": "file", "content": "x" * size}])
    assert metrics.LARGE_ENTRIES.value("file") == entries + 1

    cache = LocalCache(2)
    for size in (1_000_000, 1_000_001):
        await cache.put("key", "x" * (size - 2), 60)  # and two quotes
    assert metrics.CACHE_LARGE.value("in-process") == values + 1
