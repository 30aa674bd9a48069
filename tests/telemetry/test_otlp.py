"""Telemetry never delays or fails an answer, whatever the collector does, and dropped records are counted."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from handoff.app import open_app, open_telemetry
from handoff.context import App
from handoff.settings import Settings
from handoff.telemetry import metrics
from handoff.telemetry.logs import configure_logs, forward_logs
from tests.agents import until
from tests.collector import Collector, attributes, has_ended
from tests.processes import PATIENCE_S, Service, free_port, serving, start, stop, wait_until_ready
from tests.requests import body, headers

ENTRY = {"type": "message", "content": "rosebud"}


def calls(service: Service, count: int) -> None:
    with httpx2.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=PATIENCE_S) as http:
        for number in range(count):
            arguments = {"agent": "alice"} if number == 0 else {"agent": "alice", "session_key": "s", "entries": [ENTRY]}
            tool = "register_session" if number == 0 else "update_context"
            if number == 0:
                arguments["session_key"] = "s"
            request = body("tools/call", name=tool, arguments=arguments)
            answer = http.post("/mcp", json=request, headers=headers("tools/call", tool))
            assert answer.status_code == 200


def lines_until(service: Service, words: str, count: int) -> str:
    """What the service prints up to the line in which some words come for the last of so many times."""
    assert service.process.stdout is not None
    printed = ""
    while printed.count(words) < count:
        line = service.process.stdout.readline()
        assert line, f"it ended: {printed}"
        printed += line
    return printed


def figures(ops: int) -> dict[str, float]:
    """What the service says of its signals: sent and dropped, by signal."""
    text = httpx2.get(f"http://127.0.0.1:{ops}/metrics", timeout=PATIENCE_S).text
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


def test_a_process_that_is_shut_down_ends_its_gauges_and_keeps_its_totals(database_url: str, collector: Collector) -> None:
    service = start(database_url=database_url, telemetry="true", ops_port=0)
    wait_until_ready(service)
    calls(service, 3)
    stop(service)

    pushed, ended = collector.metrics(), collector.last_metrics()
    gauges = {
        name for name, it in pushed.items() if it.HasField("gauge") or (it.HasField("sum") and not it.sum.is_monotonic)
    }
    assert {"handoff.health.status", "handoff.build.info", "db.client.connection.count", "process.memory.usage"} <= gauges
    assert ended.keys() == gauges
    assert all(has_ended(it) for it in ended.values())
    assert not any(has_ended(it) for it in pushed.values())
    name = "db.client.connection.count"
    points = [{str(attributes(point)): point for point in it[name].gauge.data_points} for it in (pushed, ended)]
    assert points[0].keys() == points[1].keys()
    assert all(points[1][key].time_unix_nano > it.time_unix_nano for key, it in points[0].items())


@pytest.mark.parametrize("status", [200, 503])
async def test_at_the_level_debug_an_export_logs_nothing_that_would_be_exported_in_turn(
    settings: Settings, collector: Collector, logged: list[dict[str, Any]], status: int
) -> None:
    collector.status = status
    configure_logs("debug")
    watched = settings.model_copy(update={"telemetry": True})
    async with open_telemetry(watched) as signals, open_app(watched, signals=signals):
        assert signals is not None
        forward_logs(lambda line: logged.append(orjson.loads(line[3])))
        await until(lambda: collector.answers >= 10)
    said = {line["logger"].partition(".")[0] for line in logged if line["event"] == "library.logged"}
    assert said <= {"asyncio"}


@pytest.mark.parametrize("fault", ["down", "hanging", "refusing", "unavailable"])
async def test_a_collector_that_fails_costs_no_answer_and_is_not_waited_for_at_the_end(
    database_url: str, collector: Collector, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "down":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    if fault == "hanging":
        collector.answering.clear()
    collector.status = {"refusing": 400, "unavailable": 503}.get(fault, 200)
    ops = free_port()
    service = start(database_url=database_url, telemetry="true", ops_port=ops)
    wait_until_ready(service)

    calls(service, 100)
    if fault == "refusing":
        await until(lambda: figures(ops)["dropped logs"] >= 100)
    assert figures(ops)["sent logs"] == 0
    printed = stop(service)
    assert service.process.returncode == 0
    assert fault != "hanging" or collector.answers == 0, "calls or the stop waited until the collector answered"
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
        await until(lambda: len([it for it in collector.lines() if it["event"] == "tool.call"]) == 50)
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
    new.write_text("* info\ntool.call error  # too many\nnonsense\n")
    new.replace(file)
    printed = lines_until(service, "logging.changed", 2)
    calls(service, 5)
    printed += stop(service)

    assert printed.count('"event":"tool.call"') == 3
    changed: list[Any] = [line for line in printed.splitlines() if "logging.changed" in line]
    assert len(changed) == 2
    assert '"lines_wrong":1' in changed[1]


def test_the_exporters_and_the_sdk_are_loaded_only_where_telemetry_is_on() -> None:
    loads = (
        "import sys, handoff.app, handoff.jobs.runner, handoff.server.http, handoff.server.stdio\n"
        "print([it for it in sys.modules if it == 'handoff.telemetry.otlp' or it.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", loads], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


async def test_metrics_whose_export_raises_are_away_until_it_works_again(
    observed: App, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert observed.signals is not None
    shipments = observed.signals.shipments
    await until(lambda: shipments()["metrics"].sent)

    def broken() -> list[Any]:
        raise RuntimeError("rosebud")

    monkeypatch.setattr(metrics.POOL_MAX, "source", broken)
    await until(lambda: shipments()["metrics"].away_s > 0)
    monkeypatch.undo()
    await until(lambda: shipments()["metrics"].away_s == 0)
