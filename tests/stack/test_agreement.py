"""Numbers agree: pushed with scraped metrics, and records written with records received plus dropped."""

import json
from typing import Any

import httpx2
import pytest

from tests.processes import free_port, start, stop, wait_until_ready
from tests.requests import body, headers
from tests.stack.bundle import ANSWER_S, Stack
from tests.stack.conftest import ADA_TOKEN

QUERIES = (
    'sum by (gen_ai_tool_name) (mcp_server_operation_duration_seconds_count{%s, mcp_method_name="tools/call"})',
    "sum by (service_name, handoff_error_code) (mcp_server_operation_duration_seconds_count{%s})",
    'histogram_quantile(0.9, sum by (le) (mcp_server_operation_duration_seconds_bucket{%s, mcp_method_name="tools/call"}))',
    'sum by (le) (mcp_server_operation_duration_seconds_bucket{%s, gen_ai_tool_name="update_context"})',
    "sum by (handoff_action, handoff_type) (handoff_transitions_total{%s})",
    "sum by (context_type) (handoff_context_entries_total{%s})",
    "sum by (le) (handoff_context_entry_size_bytes_bucket{%s})",
    "sum by (result) (handoff_cache_operation_duration_seconds_count{%s})",
    "max by (component) (handoff_health_status{%s})",
    "max by (version) (handoff_build_info{%s})",
    "max by (service_version, deployment_environment_name) (db_client_connection_max{%s})",
)


def answer(stack: Stack, query: str, port: str) -> list[tuple[str, str]]:
    return sorted((json.dumps(it["metric"], sort_keys=True), it["value"][1]) for it in stack.promql(query, port))


async def test_a_promql_query_returns_the_same_for_pushed_and_scraped_metrics(stack: Stack) -> None:
    async with stack.agent(ADA_TOKEN) as ada:
        key = await ada.session("ada")
        for _ in range(20):
            await ada.says(key, "hello", "ada")
        await ada.offer(key, "operator", "ada")
        await ada.refused("close_session", session_key="nobody-knows")
        await ada.ok("get_context", session_key=key)
    this = stack.instance()
    for query in QUERIES:

        def alike(query: str = query % this) -> bool:
            pushed = answer(stack, query, "PROMETHEUS_PORT")
            return bool(pushed) and pushed == answer(stack, query, "PROMETHEUS_SCRAPE_PORT")

        def both(query: str = query % this) -> str:
            return f"{query}: {[answer(stack, query, port) for port in ('PROMETHEUS_PORT', 'PROMETHEUS_SCRAPE_PORT')]}"

        stack.eventually(alike, show=both)


async def test_records_dropped_during_a_collector_outage_are_counted_exactly(
    stack: Stack, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, ops = "handoff-dropping", free_port()
    monkeypatch.setenv("OTEL_SERVICE_NAME", name)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", stack.url("OTLP_PORT"))
    monkeypatch.setenv("OTEL_BLRP_MAX_QUEUE_SIZE", "100")
    stack.compose("stop", "otel-collector")
    service = start(database_url=database_url, telemetry="true", ops_port=ops)
    try:
        wait_until_ready(service)
        with httpx2.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=ANSWER_S) as http:
            for _ in range(1_500):
                request = body("tools/call", name="get_inbox", arguments={"agent": "alice"})
                http.post("/mcp", json=request, headers=headers("tools/call", "get_inbox")).raise_for_status()
    finally:
        stack.compose("start", "otel-collector")

    def figure(which: str) -> float:
        text = httpx2.get(f"http://127.0.0.1:{ops}/metrics", timeout=ANSWER_S).text
        lines: list[Any] = [
            it for it in text.splitlines() if it.startswith(f"handoff_telemetry_{which}") and 'signal="logs"' in it
        ]
        return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0

    stack.eventually(lambda: figure("queue") == 0 and figure("sent_total") > 0)
    sent, dropped = figure("sent_total"), figure("dropped_total")
    printed = stop(service)
    written = sum(line.startswith('{"time"') for line in printed.splitlines())
    said_later = written - sent - dropped  # written while it stopped, after the counters were read
    assert dropped > 500, "nothing was dropped, so the test proves nothing"
    assert 0 <= said_later <= 3
    count = f'sum(count_over_time({{service_name="{name}"}} [1h]))'

    def arrived() -> int:
        found = stack.get("LOKI_PORT", "/loki/api/v1/query", query=count)["data"]["result"]
        return int(found[0]["value"][1]) if found else 0

    stack.eventually(lambda: sent <= arrived() <= sent + said_later, show=lambda: (arrived(), sent, said_later))
    print(f"{written} lines written, {sent:.0f} sent, {arrived()} received, {dropped:.0f} dropped and counted")
