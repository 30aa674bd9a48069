"""A fake collector: an OTLP receiver over HTTP that can be made slow or failing. The real one is tested in tests/stack."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import DataPointFlags


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
        """The value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def spans(self) -> list[Any]:
        """Return all received spans, as protobuf messages."""
        return [
            span
            for body in list(self.bodies["traces"])
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def lines(self) -> list[dict[str, Any]]:
        """Return all received log lines, parsed from the bodies of the log records."""
        return [
            orjson.loads(record.body.string_value)
            for body in list(self.bodies["logs"])
            for resource in ExportLogsServiceRequest.FromString(body).resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of the newest export that has values, by name."""
        return next(
            found for found in map(_metrics, reversed(self.bodies["metrics"])) if not all(map(has_ended, found.values()))
        )

    def last_metrics(self) -> dict[str, Any]:
        """Return the metrics of the newest export, by name."""
        return _metrics(self.bodies["metrics"][-1])


def _metrics(body: bytes) -> dict[str, Any]:
    request = ExportMetricsServiceRequest.FromString(body)
    found = [metric for resource in request.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics]
    return {metric.name: metric for metric in found}


def has_ended(metric: Any) -> bool:
    """Whether all points of a metric say that their series have ended."""
    points = getattr(metric, metric.WhichOneof("data")).data_points
    return all(point.flags & DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK for point in points)


class _Server(ThreadingHTTPServer):
    collector: Collector


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride] - always our own server

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
    """Run a collector until the end of the block."""
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
    """Return the attributes of a span, a link or a data point."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in of.attributes}
