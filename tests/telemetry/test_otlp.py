"""Telemetry never delays or fails an answer, whatever the collector does, and dropped records are counted."""

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.agents import until
from tests.collector import Collector
from tests.processes import Service, free_port, serving, start, stop, wait_until_ready
from tests.requests import body, headers

ENTRY = {"type": "message", "content": "rosebud"}


def calls(service: Service, count: int) -> float:
    """Make calls one after the other; return the duration of the slowest, in seconds."""
    slowest = 0.0
    with httpx2.Client(base_url=f"http://127.0.0.1:{service.port}") as http:
        for number in range(count):
            arguments = {"agent": "alice"} if number == 0 else {"agent": "alice", "session_key": "s", "entries": [ENTRY]}
            tool = "register_session" if number == 0 else "update_context"
            if number == 0:
                arguments["session_key"] = "s"
            began = time.monotonic()
            request = body("tools/call", name=tool, arguments=arguments)
            answer = http.post("/mcp", json=request, headers=headers("tools/call", tool))
            slowest = max(slowest, time.monotonic() - began)
            assert answer.status_code == 200
    return slowest


def figures(ops: int) -> dict[str, float]:
    """Return the service's metrics about its own telemetry, by metric and signal."""
    text = httpx2.get(f"http://127.0.0.1:{ops}/metrics").text
    return {
        f"{sample.name.removeprefix('handoff_telemetry_').removesuffix('_total')} {sample.labels['signal']}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("handoff_telemetry_") and not sample.name.endswith("_created")
    }


def test_all_three_signals_arrive_and_agree(database_url: str, collector: Collector) -> None:
    service = start(database_url=database_url, telemetry="true", ops_port=0)
    wait_until_ready(service)
    calls(service, 20)
    stop(service)

    lines = [line for line in collector.lines() if line["event"] == "tool.call"]
    spans = [span for span in collector.spans() if span.name.startswith("tools/call")]
    points = collector.metrics()["mcp.server.operation.duration"].histogram.data_points
    assert (len(lines), len(spans), sum(point.count for point in points)) == (20, 20, 20)
    assert {line["trace_id"] for line in lines} == {span.trace_id.hex() for span in spans}
    assert {line["span_id"] for line in lines} == {span.span_id.hex() for span in spans}
    exemplars = {exemplar.trace_id.hex() for point in points for exemplar in point.exemplars}
    assert exemplars
    assert exemplars <= {line["trace_id"] for line in lines}
    wrote = lines[-1]
    assert (wrote["tool"], wrote["agent"], wrote["session"], wrote["outcome"]) == ("update_context", "alice", "s", "ok")
    assert {"duration_ms", "request_bytes", "response_bytes"} <= set(wrote)
    assert b"rosebud" not in b"".join(collector.bodies["logs"] + collector.bodies["traces"] + collector.bodies["metrics"])


@pytest.mark.parametrize("fault", ["down", "hanging", "refusing", "unavailable"])
def test_a_failing_collector_delays_neither_answers_nor_shutdown(
    database_url: str, collector: Collector, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "down":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    collector.delay_s = 30 if fault == "hanging" else 0
    collector.status = {"refusing": 400, "unavailable": 503}.get(fault, 200)
    ops = free_port()
    service = start(database_url=database_url, telemetry="true", ops_port=ops)
    wait_until_ready(service)

    assert calls(service, 100) < 1
    if fault == "refusing":
        give_up = time.monotonic() + 10
        while figures(ops)["dropped logs"] < 100:
            assert time.monotonic() < give_up
            time.sleep(0.1)
    assert figures(ops)["sent logs"] == 0
    began = time.monotonic()
    printed = stop(service)
    assert time.monotonic() - began < 4  # 2 s to send the remaining records, and the rest of the shutdown
    assert service.process.returncode == 0
    assert printed.count('"event":"tool.call"') == 100


async def test_records_are_delivered_when_the_collector_is_back(
    database_url: str, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector.status = 503
    ops = free_port()
    with serving(database_url=database_url, telemetry="true", ops_port=ops) as service:
        calls(service, 50)
        await until(lambda: figures(ops)["away logs" if "away logs" in figures(ops) else "away_seconds logs"] > 0)
        assert collector.lines() == []
        collector.status = 200
        await until(lambda: len([line for line in collector.lines() if line["event"] == "tool.call"]) == 50, within_s=25)
        assert figures(ops)["dropped logs"] == 0
        events = [line["event"] for line in collector.lines()]
        assert events.count("telemetry.away") <= 3  # once per signal, not once per attempt


def test_levels_change_while_the_service_runs(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "logging"
    file.write_text("* info\n")
    service = start(database_url=database_url, logging_file=file, settle_interval_s=0.1)
    wait_until_ready(service)
    calls(service, 3)
    new = tmp_path / "new"
    new.write_text("* info\ntool.call warning  # too many\nnonsense\n")
    new.replace(file)
    time.sleep(0.5)
    calls(service, 5)
    printed = stop(service)

    assert printed.count('"event":"tool.call"') == 3
    changed: list[Any] = [line for line in printed.splitlines() if "logging.changed" in line]
    assert len(changed) == 2
    assert '"lines_wrong":1' in changed[1]
