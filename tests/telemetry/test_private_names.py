"""The telemetry uses three private names of OpenTelemetry's packages, which no version promises to keep."""

import inspect
from importlib.metadata import version

from opentelemetry import context
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader

from tests.processes import free_port


def test_the_exporters_client_still_says_whether_a_failure_may_pass() -> None:
    found = f"opentelemetry-exporter-otlp-proto-http {version('opentelemetry-exporter-otlp-proto-http')}"
    for exporter in (OTLPSpanExporter, OTLPLogExporter):
        client = getattr(exporter(endpoint=f"http://127.0.0.1:{free_port()}", timeout=0.2), "_client", None)
        assert client is not None, f"{found} has no {exporter.__name__}._client: adapt _post in telemetry/otlp.py"
        result = client.export(b"")
        assert (getattr(result, "success", None), getattr(result, "status_code", 0)) == (False, None), (
            f"{found}: {exporter.__name__}._client.export answers differently: adapt _post in telemetry/otlp.py"
        )


def test_the_prometheus_reader_still_takes_its_metrics_by_the_method_that_we_override() -> None:
    found = f"opentelemetry-exporter-prometheus {version('opentelemetry-exporter-prometheus')}"
    method = getattr(PrometheusMetricReader, "_receive_metrics", None)
    assert method is not None, f"{found} has no _receive_metrics: adapt _ScrapedMetrics in telemetry/otlp.py"
    assert list(inspect.signature(method).parameters)[:3] == ["self", "metrics_data", "timeout_millis"], (
        f"{found}: _receive_metrics takes other arguments: adapt _ScrapedMetrics in telemetry/otlp.py"
    )


def test_the_api_still_asks_the_runtime_context_that_we_replace() -> None:
    found = f"opentelemetry-api {version('opentelemetry-api')}"
    now = getattr(context, "_RUNTIME_CONTEXT", None)
    assert now is not None, f"{found} has no _RUNTIME_CONTEXT: adapt telemetry/context.py"
    assert {"attach", "detach", "get_current"} <= set(dir(now)), f"{found}: adapt _WithCalls in telemetry/context.py"
