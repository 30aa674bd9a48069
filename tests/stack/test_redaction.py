"""The collector is a second line of defence: it masks what looks like a secret or is named like one, whoever sends it."""

import time
from typing import Any
from uuid import uuid4

import httpx2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.stack.bundle import ANSWER_S, Stack

SECRET = "plantedplanted42"
ATTRIBUTES = {
    "authorization": f"Basic {SECRET}",
    "http.request.header.cookie": f"session={SECRET}",
    "db.password": SECRET,
    "some.api_key": SECRET,
    "url.query": f"token={SECRET}",
    "url.full": f"https://example.org/?x={SECRET}",
    "db.query.text": f"SELECT '{SECRET}'",
    "gen_ai.tool.call.arguments": f'{{"content": "{SECRET}"}}',
    "harmless.name": f"sent Bearer {SECRET}",
    "harmless.address": f"postgresql://handoff:{SECRET}@postgres/handoff",
}


def pairs(more: dict[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in {**ATTRIBUTES, **more}.items()]


def send(stack: Stack, signal: str, request: Any) -> None:
    headers = {"content-type": "application/x-protobuf"}
    answer = httpx2.post(
        stack.url("OTLP_PORT", f"/v1/{signal}"), content=request.SerializeToString(), headers=headers, timeout=ANSWER_S
    )
    answer.raise_for_status()


def test_secrets_in_telemetry_reach_no_back_end_whoever_sends_them(stack: Stack) -> None:
    trace_id, now, name = uuid4(), time.time_ns(), f"planted-{uuid4().hex[:8]}"
    resource = {"service.name": name}
    spans = ExportTraceServiceRequest()
    group = spans.resource_spans.add()
    group.resource.attributes.extend(pairs(resource))
    span = group.scope_spans.add().spans.add(trace_id=trace_id.bytes, span_id=b"12345678", name="call", kind=2)
    span.start_time_unix_nano, span.end_time_unix_nano = now, now + 1_000_000
    span.attributes.extend(pairs({}))
    span.events.add(name="event", time_unix_nano=now).attributes.extend(pairs({}))
    span.status.code, span.status.message = Status.STATUS_CODE_ERROR, f"refused: token={SECRET}"
    send(stack, "traces", spans)

    logs = ExportLogsServiceRequest()
    lines = logs.resource_logs.add()
    lines.resource.attributes.extend(pairs(resource))
    record = lines.scope_logs.add().log_records.add(time_unix_nano=now, severity_text="info", trace_id=trace_id.bytes)
    record.body.string_value = f'{{"event":"x","password":"{SECRET}","content":"{SECRET}","detail":"Bearer {SECRET}"}}'
    record.attributes.extend(pairs({}))
    send(stack, "logs", logs)

    metrics = ExportMetricsServiceRequest()
    points = metrics.resource_metrics.add()
    points.resource.attributes.extend(pairs(resource))
    metric = points.scope_metrics.add().metrics.add(name="planted")
    point = metric.gauge.data_points.add(time_unix_nano=now, as_double=1)
    point.attributes.extend(pairs({}))
    send(stack, "metrics", metrics)

    trace = str(stack.eventually(lambda: stack.trace(trace_id.hex)))
    line = str(stack.eventually(lambda: stack.logql(f'{{service_name="{name}"}}')))
    series = str(stack.eventually(lambda: stack.promql(f'planted{{service_name="{name}"}}')))
    for shown in (trace, line, series):
        assert "harmless" in shown.replace("harmless_", "harmless."), "other attributes must not be lost"
        assert SECRET not in shown
