"""Who takes signals in these tests: an OTLP receiver over HTTP that can be away, slow or refusing. The real collector is in
tests/stack; here it stands for the outside world.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """What was taken, and how it answers: with `status`, and while `answering` is not set, not at all."""

    def __init__(self) -> None:
        self.status = 200
        self.answering = threading.Event()
        self.answering.set()
        self.answers = 0
        self.bodies: dict[str, list[bytes]] = {"traces": [], "metrics": [], "logs": []}

        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.collector = self
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        """For OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def spans(self) -> list[Any]:
        """All spans, as protobuf messages."""
        return [
            span
            for body in list(self.bodies["traces"])
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def lines(self) -> list[dict[str, Any]]:
        """All log lines, from their bodies."""
        return [
            orjson.loads(record.body.string_value)
            for body in list(self.bodies["logs"])
            for resource in ExportLogsServiceRequest.FromString(body).resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def metrics(self) -> dict[str, Any]:
        """The newest push: metrics by name."""
        newest = ExportMetricsServiceRequest.FromString(self.bodies["metrics"][-1])
        return {
            metric.name: metric
            for resource in newest.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


class _Server(ThreadingHTTPServer):
    collector: Collector


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride] - what made this handler

    def do_POST(self) -> None:
        collector = self.server.collector
        body = self.rfile.read(int(self.headers["content-length"]))
        collector.answering.wait()
        if collector.status == 200:
            collector.bodies[self.path.rsplit("/", 1)[1]].append(body)
        collector.answers += 1
        self.send_response_only(collector.status)
        self.send_header("content-length", "0")
        self.end_headers()


@contextmanager
def collecting() -> Generator[Collector]:
    """A collector that runs until the end of the block."""
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.answering.set()
        collector.server.shutdown()
        collector.server.server_close()


def attributes(of: Any) -> dict[str, Any]:
    """The attributes of a span or a link."""
    return {it.key: getattr(it.value, it.value.WhichOneof("value")) for it in of.attributes}
