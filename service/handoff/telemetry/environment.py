"""Which of OpenTelemetry's standard variables this service does not heed, and why.

It makes its own spans, metrics and log records, because the SDK's cost too much per call. Those variables that configure
what it does not use therefore have no effect, and an operator who sets one has to be told.
"""

from collections.abc import Mapping
from typing import Final

_OWN_SAMPLING: Final = "traces are kept as docs/signals.md describes; HANDOFF_TRACES_PER_S_MAX sets how many"
_OWN_BATCHES: Final = "the size and the interval of batches are fixed; only the size of the queue can be set"
_ONLY_HTTP: Final = "the export is always OTLP over HTTP with protobuf; a collector takes that on port 4318"
_ONLY_OTLP: Final = "metrics, traces and logs are always exported by OTLP; HANDOFF_TELEMETRY=false turns that off"
_ONLY_W3C: Final = "the context of a trace is always read in the form of W3C Trace Context"
_CUMULATIVE: Final = "metrics are always cumulative, with the buckets that docs/signals.md lists"
# What each variable may be without being unheeded, and why anything else is.
_UNHEEDED: Final[dict[str, tuple[frozenset[str], str]]] = {
    "OTEL_TRACES_SAMPLER": (frozenset(), _OWN_SAMPLING),
    "OTEL_TRACES_SAMPLER_ARG": (frozenset(), _OWN_SAMPLING),
    "OTEL_BSP_SCHEDULE_DELAY": (frozenset(), _OWN_BATCHES),
    "OTEL_BSP_EXPORT_TIMEOUT": (frozenset(), _OWN_BATCHES),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": (frozenset(), _OWN_BATCHES),
    "OTEL_BLRP_SCHEDULE_DELAY": (frozenset(), _OWN_BATCHES),
    "OTEL_BLRP_EXPORT_TIMEOUT": (frozenset(), _OWN_BATCHES),
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": (frozenset(), _OWN_BATCHES),
    "OTEL_EXPORTER_OTLP_PROTOCOL": (frozenset({"http/protobuf"}), _ONLY_HTTP),
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": (frozenset({"http/protobuf"}), _ONLY_HTTP),
    "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": (frozenset({"http/protobuf"}), _ONLY_HTTP),
    "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": (frozenset({"http/protobuf"}), _ONLY_HTTP),
    "OTEL_TRACES_EXPORTER": (frozenset({"otlp"}), _ONLY_OTLP),
    "OTEL_METRICS_EXPORTER": (frozenset({"otlp"}), _ONLY_OTLP),
    "OTEL_LOGS_EXPORTER": (frozenset({"otlp"}), _ONLY_OTLP),
    "OTEL_PROPAGATORS": (frozenset({"tracecontext", "tracecontext,baggage"}), _ONLY_W3C),
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": (frozenset({"cumulative"}), _CUMULATIVE),
    "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": (frozenset({"explicit_bucket_histogram"}), _CUMULATIVE),
}


def unheeded(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are set to something that has no effect, each with the reason."""
    return {
        name: why
        for name, (heeded, why) in _UNHEEDED.items()
        if (value := environment.get(name, "").strip()) and value not in heeded
    }
