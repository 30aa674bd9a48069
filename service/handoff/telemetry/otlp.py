"""Exports traces, metrics and logs by OTLP, and keeps the registry behind `/metrics`. Configure an exporter here.

Exporters run in threads of their own. A collector that is down, slow or refuses records delays no call, and dropped records
are counted. The standard OTEL_* variables set the destination and the service's name. The providers are set up here rather
than by opentelemetry-instrument, because metrics have two readers, the queues of spans and logs are measured, and the
shutdown has a time limit.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from time import monotonic, time_ns
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import structlog
from opentelemetry.distro import OpenTelemetryDistro
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.instrumentation.system_metrics.environment_variables import OTEL_PYTHON_SYSTEM_METRICS_EXCLUDED_METRICS
from opentelemetry.metrics import Observation
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import DataPointFlags, Metric
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_LOGS_ENDPOINT,
    OTEL_EXPORTER_OTLP_METRICS_ENDPOINT,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TIMEOUT,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_METRIC_EXPORT_INTERVAL,
    OTEL_SERVICE_NAME,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from prometheus_client import CollectorRegistry, generate_latest

from handoff import __version__
from handoff.settings import Misconfigured, Settings
from handoff.telemetry import calls, metrics
from handoff.telemetry.context import show_calls
from handoff.telemetry.environment import has_sampler, is_exported, number
from handoff.telemetry.exemplars import RegistryWithExemplars
from handoff.telemetry.logs import LogLine, flush_logs, forward_logs, log_shipper
from handoff.telemetry.scope import SCHEMA_URL, SCOPE
from handoff.telemetry.shipper import Shipment, Shipper, Verdict
from handoff.telemetry.spans import Tracer

log = structlog.get_logger(__name__)
T = TypeVar("T")

STOP_S: Final = 2.0
# The same labels on pushed and on scraped series, so that one query serves both (prometheus.yml promotes these).
LABELS: Final = frozenset({"service.name", "service.instance.id", "service.version", "deployment.environment.name"})
_DEFAULTS: Final = {  # for OTEL_* variables that are not set
    OTEL_EXPORTER_OTLP_PROTOCOL: "http/protobuf",
    OTEL_EXPORTER_OTLP_TIMEOUT: "2",
    OTEL_METRIC_EXPORT_INTERVAL: "10000",
    # The collector measures the machine; of the process we report what the conventions define.
    OTEL_PYTHON_SYSTEM_METRICS_EXCLUDED_METRICS: "system.*,process.runtime.*,process.disk.io",
}
_ENDPOINTS: Final = (
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_EXPORTER_OTLP_METRICS_ENDPOINT,
    OTEL_EXPORTER_OTLP_LOGS_ENDPOINT,
)
# A batch costs a request, about 1 ms; but while a thread encodes one, the event loop waits for the interpreter's lock.
_SPANS_BATCH, _LINES_BATCH = 128, 2_048
_SPANS_MAX, _LINES_MAX = 20_000, 50_000  # that may wait; a span has about 2 KB, a line 0.5 KB
_EVERY_MS = 1_000
_SWITCH_S = 0.001  # how long a thread may hold the interpreter's lock; the default of 5 ms is longer than a call takes
_INSTRUMENTORS: Final = "opentelemetry_instrumentor"
_RETRYABLE: Final = frozenset({408, 429, 500, 502, 503, 504})
_SEVERITIES: Final = {"debug": 5, "info": 9, "warning": 13, "error": 17}


@dataclass(frozen=True, slots=True)
class Signals:
    """The process's exporters, and the tracer that feeds them. A signal that is not exported has none."""

    resource: Resource
    tracer: Tracer | None
    shippers: tuple[Shipper[Any], ...]
    push: "_PushedMetrics | None"
    meters: MeterProvider
    registry: CollectorRegistry

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def shipments(self) -> dict[str, Shipment]:
        """The state of each signal's shipper: what waits, was sent and was dropped."""
        sending = {shipper.name: shipper.state() for shipper in self.shippers}
        writer = log_shipper()
        if self.push is not None:
            sending["metrics"] = self.push.state()
        if writer is not None:
            sending["stdout"] = writer.state()
        return sending

    def stop(self) -> None:
        """Send what is left and stop the exporters, within STOP_S in total."""
        forward_logs(None)
        show_calls(shown=False)
        flush_logs(0.2)
        endings = [threading.Thread(target=shipper.stop, args=(STOP_S - 0.3,), daemon=True) for shipper in self.shippers]
        endings.append(threading.Thread(target=self._stop_meters, daemon=True))
        give_up = monotonic() + STOP_S
        for ending in endings:
            ending.start()
        for ending in endings:
            ending.join(max(0.0, give_up - monotonic()))
        for instrumentor in entry_points(group=_INSTRUMENTORS):
            instrumentor.load()().uninstrument()
        for gauge in (metrics.SIGNAL_QUEUE, metrics.SIGNAL_SENT, metrics.SIGNAL_DROPPED, metrics.SIGNAL_AWAY):
            gauge.source = None

    def _stop_meters(self) -> None:
        with suppress(Exception):  # it raises no other when the last push has taken all of the time
            self.meters.shutdown(1_000 * (STOP_S - 0.3))


def check_environment() -> None:
    """Set the variables OTEL_* that are not set. Raises Misconfigured, which names one that the exporters could not use."""
    for name, value in _DEFAULTS.items():
        os.environ[name] = os.environ.get(name) or value  # a variable that is empty counts as not set
    try:
        is_positive = float(os.environ[OTEL_EXPORTER_OTLP_TIMEOUT]) > 0
    except ValueError:
        is_positive = False
    if not is_positive:
        raise Misconfigured(f"{OTEL_EXPORTER_OTLP_TIMEOUT}: must be a number of seconds greater than 0.")
    for name in _ENDPOINTS:
        try:
            url = urlsplit(os.environ.get(name, "http://localhost"))
            is_usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            is_usable = False
        if not is_usable:
            raise Misconfigured(f"{name}: must be a URL that begins with http:// or https://.")


def start_signals(settings: Settings, service_name: str) -> Signals:
    """Set up the exporters and start them. Does not wait for a collector. Raises Misconfigured."""
    check_environment()
    sys.setswitchinterval(_SWITCH_S)
    distro = OpenTelemetryDistro()
    distro.configure()
    named = {} if OTEL_SERVICE_NAME in os.environ else {"service.name": service_name}
    resource = Resource.create(
        {
            **named,
            "service.version": __version__,
            "service.instance.id": uuid4().hex,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        },
        SCHEMA_URL,
    )
    shippers: list[Shipper[Any]] = []
    spans: Shipper[ReadableSpan] | None = None
    if is_exported(os.environ, "traces"):
        send_spans = partial(_send_spans, OTLPSpanExporter())
        spans = _shipper("traces", send_spans, "OTEL_BSP", queue_max=_SPANS_MAX, batch_max=_SPANS_BATCH)
        shippers.append(spans)
    if is_exported(os.environ, "logs"):
        send_lines = partial(_send_lines, OTLPLogExporter(), resource)
        lines = _shipper("logs", send_lines, "OTEL_BLRP", queue_max=_LINES_MAX, batch_max=_LINES_BATCH)
        shippers.append(lines)
        forward_logs(lines.put)
    registry = RegistryWithExemplars()
    push = _PushedMetrics() if is_exported(os.environ, "metrics") else None
    scraped = _ScrapedMetrics(scope_info_enabled=False, resource_attribute_filter=LABELS.__contains__, registry=registry)
    readers: list[sdk.MetricReader] = [scraped] if push is None else [sdk.PeriodicExportingMetricReader(push), scraped]
    meters = MeterProvider(readers, resource, shutdown_on_exit=False)
    spans_of_others = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracer: Tracer | None = None
    if spans is not None:
        spans_of_others.add_span_processor(_Forwarded(spans.put))
        show_calls(shown=True)
        sampler = spans_of_others.sampler if has_sampler(os.environ) else None
        tracer = Tracer(
            resource, spans.put, per_s_max=settings.traces_per_s_max, sampler=sampler, database=_database(settings)
        )
    for instrumentor in entry_points(group=_INSTRUMENTORS):  # as opentelemetry-instrument does
        distro.load_instrumentor(instrumentor, meter_provider=meters, tracer_provider=spans_of_others)
    signals = Signals(resource, tracer, tuple(shippers), push, meters, registry)
    _observe(signals)
    return signals


def _database(settings: Settings) -> str:
    """The database's name, empty where the driver takes it from elsewhere than the URL."""
    return urlsplit(settings.database_url.get_secret_value()).path.strip("/") if settings.database_url is not None else ""


def _shipper(
    signal: str, send: Callable[[Sequence[T]], Verdict], prefix: str, *, queue_max: int, batch_max: int
) -> Shipper[T]:
    """The shipper of a signal. The standard variables with this prefix replace its limits."""
    return Shipper(
        signal,
        send,
        queue_max=number(os.environ, f"{prefix}_MAX_QUEUE_SIZE", queue_max),
        batch_max=number(os.environ, f"{prefix}_MAX_EXPORT_BATCH_SIZE", batch_max),
        every_s=number(os.environ, f"{prefix}_SCHEDULE_DELAY", _EVERY_MS) / 1_000,
        on_change=_log_change,
    )


@cache
def registry_alone() -> CollectorRegistry:
    """The metrics in a process that exports nothing, for whoever reads them."""
    registry = CollectorRegistry()
    reader = _ScrapedMetrics(scope_info_enabled=False, registry=registry)
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter(SCOPE.name)
    began = monotonic()
    # The SDK asks a reader only if there is an instrument of its own; ours join what that one says.
    meter.create_observable_gauge("process.uptime", [lambda _: [Observation(monotonic() - began)]], "s")
    return registry


def _observe(signals: Signals) -> None:
    """Make the metrics about telemetry read the state of the shippers whenever they are collected."""

    def values(field: str) -> Iterable[tuple[float, tuple[str, ...]]]:
        return [(getattr(shipment, field), (signal,)) for signal, shipment in signals.shipments().items()]

    metrics.SIGNAL_QUEUE.source = partial(values, "waiting")
    metrics.SIGNAL_SENT.source = partial(values, "sent")
    metrics.SIGNAL_DROPPED.source = partial(values, "dropped")
    metrics.SIGNAL_AWAY.source = partial(values, "away_s")


def _log_change(signal: str, away: bool, dropped: int) -> None:  # noqa: FBT001 - a callback's state
    if away:
        log.warning("telemetry.away", signal=signal, dropped=dropped)
    else:
        log.info("telemetry.back", signal=signal, dropped=dropped)


def _with_ours(data: sdk.MetricsData) -> sdk.MetricsData:
    """The SDK's metrics together with those of metrics.py, under the same resource."""
    ours = [metric for instrument in metrics.INSTRUMENTS if (metric := instrument.metric()) is not None]
    first = data.resource_metrics[0]
    scope = sdk.ScopeMetrics(SCOPE, ours, SCHEMA_URL)
    return sdk.MetricsData([sdk.ResourceMetrics(first.resource, [*first.scope_metrics, scope], first.schema_url)])


class _PushedMetrics(OTLPMetricExporter):
    """Pushes all metrics by OTLP. They are cumulative, so a failed push loses only the values of that moment.

    After the last push, it ends the gauges. Otherwise a back end would count what this process held as if it still did:
    Prometheus for five minutes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pushes = 0
        self._away_since: float | None = None
        self._last: sdk.MetricsData | None = None

    def state(self) -> Shipment:
        """The number of pushes so far. A failed one does not count as dropped, because the next one includes its values."""
        away = self._away_since
        return Shipment(0, self._pushes, 0, 0.0 if away is None else monotonic() - away)

    def export(
        self, metrics_data: sdk.MetricsData, timeout_millis: float | None = 10_000, **_: Any
    ) -> sdk.MetricExportResult:
        """Push the SDK's metrics together with ours."""
        try:
            self._last = _with_ours(metrics_data)
            result = super().export(self._last, timeout_millis)
        except Exception as error:  # noqa: BLE001 - the reader would log it and go on, and nobody would know
            log.warning("telemetry.export_failed", signal="metrics", error=type(error).__name__)
            result = sdk.MetricExportResult.FAILURE
        taken = result is sdk.MetricExportResult.SUCCESS
        was_away = self._away_since is not None
        if taken:
            self._pushes += 1
            self._away_since = None
        elif not was_away:
            self._away_since = monotonic()
        if was_away == taken:
            _log_change("metrics", not taken, 0)
        return result

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """End the gauges that were pushed last, if the receiver answers, and stop."""
        last, self._last = self._last, None
        if last is not None and self._away_since is None:
            try:
                _post(self, _ended(encode_metrics(last)).SerializeToString())
            except Exception as error:  # noqa: BLE001 - the process ends either way
                log.warning("telemetry.export_failed", signal="metrics", error=type(error).__name__)
        super().shutdown(timeout_millis)


def _ended(request: ExportMetricsServiceRequest) -> ExportMetricsServiceRequest:
    """Turn gauges into points without a value, which say that their series have ended. Totals keep their last value."""
    now = time_ns()
    for scope in (scope for group in request.resource_metrics for scope in group.scope_metrics):
        gauges = [metric for metric in scope.metrics if metric.HasField("gauge") or _goes_up_and_down(metric)]
        for metric in gauges:
            for point in metric.gauge.data_points if metric.HasField("gauge") else metric.sum.data_points:
                point.ClearField("value")
                point.flags = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
                point.time_unix_nano = now
        del scope.metrics[:]
        scope.metrics.extend(gauges)
    return request


def _goes_up_and_down(metric: Metric) -> bool:
    return metric.HasField("sum") and not metric.sum.is_monotonic


class _Forwarded(SpanProcessor):
    """Exports the spans of installed instrumentors together with ours: those of a call only if its trace is kept."""

    def __init__(self, export: Callable[[ReadableSpan], None]) -> None:
        self._export = export

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        record = calls.current()
        if record is not None and record.trace_id == context.trace_id:
            record.hold(span)
        else:
            self._export(span)


class _ScrapedMetrics(PrometheusMetricReader):
    """Makes all metrics available in a Prometheus registry.

    The reader has no public way to add data that is not the SDK's, so this overrides a private method. pyproject.toml caps
    the exporter's version at the one that this is tested with.
    """

    def _receive_metrics(self, metrics_data: sdk.MetricsData, timeout_millis: float = 10_000, **_: Any) -> None:
        super()._receive_metrics(_with_ours(metrics_data), timeout_millis)


def _send_spans(exporter: OTLPSpanExporter, spans: Sequence[ReadableSpan]) -> Verdict:
    return _post(exporter, encode_spans(spans).SerializeToString())


def _send_lines(exporter: OTLPLogExporter, resource: Resource, lines: Sequence[LogLine]) -> Verdict:
    """Send each line, which is JSON already, as the body of a log record. The SDK's own records cost ten times as much."""
    request = ExportLogsServiceRequest()
    group = request.resource_logs.add()
    for name, value in resource.attributes.items():
        any_value = AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=str(value))
        group.resource.attributes.append(KeyValue(key=name, value=any_value))
    group.schema_url = resource.schema_url
    scope = group.scope_logs.add(scope=InstrumentationScope(name=SCOPE.name, version=__version__), schema_url=SCHEMA_URL)
    add = scope.log_records.add
    for at_ns, level, event, text, trace_id, span_id in lines:
        record = add()
        record.time_unix_nano = record.observed_time_unix_nano = at_ns
        record.severity_text = level
        record.severity_number = _SEVERITIES.get(level, 0)  # pyright: ignore[reportAttributeAccessIssue] - an enum, which takes numbers
        record.event_name = event
        record.body.string_value = text
        if trace_id:
            record.trace_id = trace_id.to_bytes(16, "big")
            record.span_id = span_id.to_bytes(8, "big")
    return _post(exporter, request.SerializeToString())


def _post(exporter: OTLPSpanExporter | OTLPLogExporter | OTLPMetricExporter, body: bytes) -> Verdict:
    """Send with the exporter's own client, which honours the OTEL_* variables.

    The public `export` does not say whether a retry can help, so this uses a private attribute. pyproject.toml caps the
    exporter's version at the one that this is tested with.
    """
    result = exporter._client.export(body)  # noqa: SLF001 - see above
    if result.success:
        return "taken"
    return "away" if result.status_code is None or result.status_code in _RETRYABLE else "refused"
