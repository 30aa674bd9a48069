"""Telemetry arrives in its back ends, metrics, traces and logs link to one another, and an outage loses nothing."""

import asyncio
import json
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

from tests.agents import Agent
from tests.stack.bundle import Stack
from tests.stack.conftest import ADA_TOKEN

COUNT = "mcp_server_operation_duration_seconds_count"
OUTAGE_S = 60
CALLS_MIN = 450  # during the outage, however long they take
CALLS_AFTER = 50
CALLS_PER_S = 15  # low enough that every call is sampled and has a trace
BACK_ENDS = ("prometheus", "loki", "jaeger")

ARRIVES = {  # (service, signal): a query that finds it in its back end
    ("handoff", "metric"): f'{COUNT}{{service_name="handoff", gen_ai_tool_name="update_context"}}',
    ("handoff", "trace"): 'traces_span_metrics_calls_total{service_name="handoff", span_name="tools/call update_context"}',
    ("handoff", "log"): '{service_name="handoff"} | json | event="tool.call"',
    ("handoff-worker", "metric"): 'handoff_job_duration_seconds_count{service_name="handoff-worker"}',
    ("handoff-worker", "log"): '{service_name="handoff-worker"}',
    ("host", "metric"): 'system_memory_utilization_ratio{service_name="host"}',
    ("postgres", "metric"): 'postgresql_commits_total{service_name="postgres"}',
    ("redis", "metric"): 'redis_keyspace_hits_total{service_name="redis"}',
}


@pytest.fixture
def back_up(stack: Stack) -> Generator[None]:
    """Start the stack again after the test, whatever it stopped."""
    yield
    stack.up()


async def write(ada: Agent, count: int = 1) -> str:
    """Write `count` messages into a new session, and return its key."""
    session = await ada.session("ada")
    for number in range(count):
        await ada.says(session, f"line {number}", "ada")
    return session


def lines_of(stack: Stack, session: str) -> list[dict[str, Any]]:
    """The log lines of the appends to a session, with their trace ids."""
    lines = stack.logql(
        f'{{service_name="handoff"}} | json | event="tool.call" | tool="update_context" | session="{session}"'
    )
    return [{**it, **json.loads(it["line"])} for it in lines]


@pytest.mark.parametrize(("service", "signal"), ARRIVES)
async def test_every_signal_of_every_service_arrives(stack: Stack, service: str, signal: str) -> None:
    async with stack.agent(ADA_TOKEN) as ada:
        await write(ada)
    ask = stack.logql if signal == "log" else stack.promql
    stack.eventually(lambda: ask(ARRIVES[service, signal]))


async def test_the_first_events_of_a_new_series_count_as_an_increase(stack: Stack) -> None:
    """A series whose first sample is 7 has increased by 7; otherwise no alert would see the first failures of a kind."""
    series = f'{COUNT}{{gen_ai_tool_name="accept_handoff", handoff_error_code="handoff_not_found"}}'
    assert not stack.promql(series)
    async with stack.agent(ADA_TOKEN) as ada:
        for _ in range(7):
            await ada.refused("accept_handoff", agent="ada", handoff_id=10**9)
    stack.eventually(lambda: stack.promql(f"{series} == 7"))
    stack.eventually(lambda: stack.promql(f"increase({series}[5m]) > 6.5"), show=lambda: stack.promql(f"{series}[5m]"))


def test_a_restart_of_the_collector_does_not_make_external_counters_jump_up_from_zero(stack: Stack, back_up: None) -> None:
    """Counters of the host, Postgres and Redis continue while the collector is down."""
    counters = "system_disk_io_time_seconds_total", "postgresql_commits_total", "redis_commands_processed_total"

    def newest() -> list[float]:
        return [float(it["value"][1]) for name in counters for it in stack.promql(f"max(timestamp({name}))")]

    began = time.time()
    stack.eventually(lambda: len(newest()) == len(counters) and min(newest()) > began, show=newest)
    stack.compose("restart", "otel-collector")
    up_again = time.time()
    stack.eventually(lambda: min(newest()) > up_again + 1, show=newest)
    for name in counters:
        assert stack.promql(f"resets({name}[{time.time() - began:.0f}s]) > 0") == []


async def test_a_call_can_be_followed_from_metric_to_trace_to_log_line(stack: Stack) -> None:
    began = time.time()
    async with stack.agent(ADA_TOKEN) as ada:
        session = await write(ada)

    def exemplars() -> list[str]:
        query = {"query": f'{COUNT.replace("count", "bucket")}{{gen_ai_tool_name="update_context"}}'}
        found = stack.get(
            "PROMETHEUS_PORT", "/api/v1/query_exemplars", start=f"{began - 1:.3f}", end=f"{time.time():.3f}", **query
        )
        return [it["labels"]["trace_id"] for series in found["data"] for it in series["exemplars"]]

    def spans() -> set[tuple[str, str]]:
        return {(it["spanId"], it["name"]) for it in stack.trace(line["trace_id"])}

    (line,) = stack.eventually(lambda: lines_of(stack, session))
    stack.eventually(lambda: line["trace_id"] in exemplars(), show=exemplars)
    stack.eventually(lambda: (line["span_id"], "tools/call update_context") in spans(), show=spans)


async def test_an_outage_of_all_back_ends_with_a_killed_collector_loses_nothing(
    stack: Stack, back_up: None, say: Callable[[str], None]
) -> None:
    def logged() -> int:
        appends = f'{{service_name="handoff"}} | json | event="tool.call" | tool="update_context" | session="{session}"'
        query = f"sum(count_over_time({appends} [1h]))"
        found = stack.get("LOKI_PORT", "/loki/api/v1/query", query=query)["data"]["result"]
        return int(found[0]["value"][1]) if found else 0

    appended = f'{COUNT}{{{stack.instance()}, gen_ai_tool_name="update_context"}}'

    def counted() -> int:
        samples = stack.promql(f"sum({appended})")
        return int(samples[0]["value"][1]) if samples else 0

    async with stack.agent(ADA_TOKEN) as ada:
        session = await write(ada, 1)
        stack.eventually(lambda: logged() == 1)
        said = time.time()
        stack.eventually(lambda: stack.promql(f"timestamp({appended}) > {said}"))  # so all earlier calls have been counted
        before, written, over = counted(), 1, False

        async def work() -> None:
            nonlocal written
            while not over:
                await ada.says(session, "on we go", "ada")
                written += 1
                await asyncio.sleep(1 / CALLS_PER_S)

        await asyncio.to_thread(stack.compose, "stop", *BACK_ENDS)
        began = time.monotonic()
        working = asyncio.create_task(work())

        async def worked(seconds: float, calls: int) -> None:
            while not working.done() and (time.monotonic() - began < seconds or written < calls):
                await asyncio.sleep(1 / CALLS_PER_S)

        await worked(OUTAGE_S / 2, CALLS_MIN // 2)
        await asyncio.to_thread(stack.compose, "kill", "--signal=KILL", "otel-collector")
        await asyncio.to_thread(stack.compose, "start", "otel-collector")
        await worked(OUTAGE_S, CALLS_MIN)
        await asyncio.to_thread(stack.compose, "start", *BACK_ENDS)
        await worked(0, written + CALLS_AFTER)
        over = True
        await working

    def figures() -> tuple[int, int]:
        return logged(), counted() - before

    stack.eventually(lambda: figures() == (written, written - 1), show=figures)
    lines = lines_of(stack, session)
    missing = [it["trace_id"] for it in lines]

    def all_found() -> bool:
        missing[:] = [it for it in missing if not stack.trace(it)]
        return not missing

    stack.eventually(all_found, show=lambda: missing)
    say(f"{written} calls through an outage of {OUTAGE_S} s: all logged, counted, and {len(lines)} looked up as traces")
