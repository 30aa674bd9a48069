"""What is measured: names held to the code, labels that callers can't widen, counts that agree with the database."""

import re
from typing import Any

import anyio
import asyncpg
import httpx2
from mcp import Client
from prometheus_client.parser import text_string_to_metric_families

from handoff.context import App
from handoff.jobs.table import JOBS
from handoff.model import EVENT_OF_ACTION
from handoff.operations.checks import CHECKS, REMEDIES, THRESHOLDS
from handoff.server.catalog import ADMIN_TOOLS, TOOLS
from handoff.server.protocol import build_server
from handoff.store.statements import names
from handoff.telemetry import metrics
from handoff.telemetry.instruments import Counter, Gauge, Histogram
from tests.agents import Agent, until
from tests.collector import Collector, attributes
from tests.processes import PATIENCE_S, serving
from tests.requests import body, headers


def test_labels_take_the_names_that_the_code_defines() -> None:
    assert {tool.name for tool in (*TOOLS, *ADMIN_TOOLS)} <= metrics.TOOL.values
    assert {job.name for job in JOBS} == metrics.JOB.values
    assert set(THRESHOLDS) == set(REMEDIES) == set(CHECKS) == metrics.COMPONENT.values
    assert {"tools/call", "resources/read"} <= metrics.METHOD.values
    assert len(set(names().values())) + 8 < metrics.STATEMENT.values_max


def test_instruments_follow_the_rules_that_rules_and_dashboards_count_on() -> None:
    assert len({it.name for it in metrics.INSTRUMENTS}) == len(metrics.INSTRUMENTS)
    for it in metrics.INSTRUMENTS:
        assert re.fullmatch(r"(handoff|mcp|http|db)\.[a-z._]+", it.name), it.name
        assert it.description.endswith("."), it.name
        assert "/" not in it.unit, f"{it.name}: rates have no unit of their own"
        if isinstance(it, Histogram):
            assert list(it.bounds) == sorted(set(it.bounds)), it.name
            odd = [bound for bound in it.bounds if bound == int(bound) or not 1e-4 <= bound < 1e6]
            assert not odd, f"{it.name}: le has two spellings: {odd}"


def test_all_series_that_there_can_be_are_few() -> None:
    """Callers choose neither names nor labels, so this bound holds whatever they send."""
    for it in metrics.INSTRUMENTS:
        size = len(it.bounds) + 3 if isinstance(it, Histogram) else 1
        # A tool fails by few of the codes, and methods have no tools; but even all combinations have a bound.
        assert it.series_max * size < 10**8, it.name
        assert it.series_max < 500 or it is metrics.OPERATION_DURATION or it in MANY, it.name


MANY = (metrics.HTTP_DURATION, metrics.STATEMENT_DURATION)


def exposed(app: App) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples of the exposition: name and labels to value."""
    assert app.signals is not None
    families = text_string_to_metric_families(app.signals.exposition().decode())
    return {
        (it.name, tuple(sorted(it.labels.items()))): it.value
        for family in families
        for it in family.samples
        if not it.name.endswith("_created")
    }


OF_CALLS = ("mcp.", "http.", "handoff.refusals", "handoff.calls", "handoff.context")


async def test_hostile_input_makes_no_series(database_url: str, collector: Collector) -> None:
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


async def test_what_is_pushed_and_what_is_scraped_are_the_same(observed: App, collector: Collector) -> None:
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
        assert [it for it in scraped if it.startswith(flat)], f"{name} is pushed, and not scraped"
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
    """By how much instruments have moved since it was made."""

    def __init__(self, *instruments: Counter | Gauge | Histogram) -> None:
        self._before = {it.name: self._read(it) for it in instruments}
        self._instruments = instruments

    def __call__(self) -> dict[str, float]:
        return {it.name: self._read(it) - self._before[it.name] for it in self._instruments}

    @staticmethod
    def _read(it: Counter | Gauge | Histogram) -> float:
        metric = it.metric()
        points: Any = [] if metric is None else metric.data.data_points
        return sum(point.count if isinstance(it, Histogram) else point.value for point in points)


async def test_counts_agree_with_what_the_database_committed(agent: Agent, db: asyncpg.Connection) -> None:
    change = Change(metrics.ENTRIES, metrics.TRANSITIONS, metrics.REPLAYS, metrics.TIME_TO_ACCEPT, metrics.TIME_TO_COMPLETE)
    key = await agent.session()
    for number in range(5):
        await agent.says(key, "hello", idempotency_key=f"k{number}")
        await agent.says(key, "hello", idempotency_key=f"k{number}")
    handoff_id = await agent.offer(key, idempotency_key="offer")
    assert await agent.offer(key, idempotency_key="offer") == handoff_id
    token = await agent.accept(handoff_id)
    await agent.refused("accept_handoff", agent="bob", handoff_id=handoff_id)  # rolled back: counts for nothing
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


async def test_a_brief_that_is_given_out_is_measured_with_what_it_left_out(agent: Agent) -> None:
    key = await agent.session()
    for number in range(30):
        await agent.says(key, f"{number} " * 60)
    change = Change(metrics.BRIEF_SIZE, metrics.BRIEF_OMITTED)

    asked = {"agent": "alice", "session_key": key, "token_budget": 300}
    answers = [await agent.ok("get_context", **asked) for _ in range(2)]  # the second is from the cache, and given out too

    omitted = answers[0]["brief"]["omitted"]["entries"]
    assert omitted > 0
    assert change() == {"handoff.brief.size": 2, "handoff.brief.omitted": 2 * omitted}


async def test_nothing_is_counted_that_was_not_committed(agent: Agent, db: asyncpg.Connection) -> None:
    key = await agent.session()
    handoff_id = await agent.offer(key)
    await db.execute(
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'too late'; END $$;"
        "CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON handoff DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION late()"
    )
    change = Change(metrics.TRANSITIONS, metrics.TIME_TO_ACCEPT)

    await agent.refused("accept_handoff", agent="bob", handoff_id=handoff_id)  # all went well until the commit

    assert set(change().values()) == {0}


async def test_calls_under_way_and_those_that_wait_are_told_apart(app: App, agent: Agent) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: agent.ok("get_inbox", agent="bob", wait_seconds=20))
        await until(lambda: metrics.WAITING_CALLS.value() == 1)
        assert metrics.ACTIVE_CALLS.value() == 0
        app.wakeups.release()
    assert metrics.WAITING_CALLS.value() == 0


def test_every_change_of_a_handoff_has_a_label() -> None:
    for action in ("offer", *EVENT_OF_ACTION):
        assert metrics.ACTION.allowed(action) == action
    assert metrics.ERROR.values_max <= 50
    assert metrics.CODE.values_max <= 50
