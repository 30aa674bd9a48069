"""OpenTelemetry's standard variables: which of them this service heeds, and why it does not heed the others.

The service makes its own spans, metrics and log records, because the SDK's cost too much per call. So it has to read some of
the variables itself, others have no effect, and an operator who sets one of those has to be told.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

Environment = Mapping[str, str]


class Variable(NamedTuple):
    """A variable, or some that are alike, and what it does here.

    `heeds` says of a value, in lower case and without white space around it, whether it has its effect; `why` says what
    happens instead if it has not.
    """

    names: tuple[str, ...]
    does: str
    heeds: Callable[[str], bool]
    why: str = ""


def _any(_: str) -> bool:
    return True


def _none(_: str) -> bool:
    return False


def _one_of(*values: str) -> Callable[[str], bool]:
    return frozenset(values).__contains__


def _is_number(value: str) -> bool:
    return value.isascii() and value.isdigit() and int(value) > 0


def _is_ratio(value: str) -> bool:
    try:
        return 0 <= float(value) <= 1
    except ValueError:
        return False


def _listed(value: str) -> set[str]:
    return {part.strip() for part in value.split(",")}


def _list_of(*values: str) -> Callable[[str], bool]:
    return lambda value: value == "none" or _listed(value).issubset(values)


def _of_each(form: str) -> tuple[str, ...]:
    """The names of a variable of the OTLP exporters, for all signals and for each."""
    return tuple(f"OTEL_EXPORTER_OTLP_{signal}{form}" for signal in ("", "TRACES_", "METRICS_", "LOGS_"))


_SAMPLER: Final = "OTEL_TRACES_SAMPLER"
_RATIO: Final = "OTEL_TRACES_SAMPLER_ARG"
_SAMPLERS: Final = tuple(
    f"{parent}{name}" for parent in ("", "parentbased_") for name in ("always_on", "always_off", "traceidratio")
)
_LIMITED: Final = "the service's own spans and log records have few and short attributes, without limits to set"

VARIABLES: Final = (
    Variable(
        ("OTEL_SDK_DISABLED",), "`true` stops all three signals.", _one_of("true", "false"), "only true stops telemetry"
    ),
    Variable(
        ("OTEL_TRACES_EXPORTER", "OTEL_LOGS_EXPORTER"),
        "`otlp`, the default, or `none`, which stops that signal.",
        _one_of("otlp", "none"),
        "there is no exporter but otlp",
    ),
    Variable(
        ("OTEL_METRICS_EXPORTER",),
        "`otlp`, the default; `prometheus` or `none` stops the push. `/metrics` is always there.",
        _list_of("otlp", "prometheus"),
        "there is no exporter but otlp, and /metrics for Prometheus",
    ),
    Variable(
        _of_each("PROTOCOL"),
        "`http/protobuf` only.",
        _one_of("http/protobuf"),
        "the export is always OTLP over HTTP with protobuf; a collector takes that on port 4318",
    ),
    Variable(
        tuple(
            name
            for form in ("ENDPOINT", "HEADERS", "TIMEOUT", "COMPRESSION", "CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
            for name in _of_each(form)
        ),
        "Heeded, for all signals and for each. `TIMEOUT` is in seconds, 2 by default.",
        _any,
    ),
    Variable(_of_each("INSECURE"), "No effect.", _none, "it is for gRPC; here, the scheme of the endpoint decides"),
    Variable(
        ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"),
        "Heeded. The name is `handoff` or `handoff-worker` by default.",
        _any,
    ),
    Variable(
        (_SAMPLER,),
        f"Without it, traces are kept [as described below](#traces). {', '.join(f'`{name}`' for name in _SAMPLERS)} "
        "decide instead.",
        _one_of(*_SAMPLERS),
        "traces are kept as docs/signals.md describes, since no such sampler is known",
    ),
    Variable(
        (_RATIO,),
        "The ratio, from 0 to 1, of `traceidratio` and `parentbased_traceidratio`.",
        _is_ratio,
        "it must be a number from 0 to 1, so all traces are kept",
    ),
    Variable(
        ("OTEL_BSP_SCHEDULE_DELAY", "OTEL_BLRP_SCHEDULE_DELAY"),
        "Milliseconds between two exports of spans or log lines, 1000 by default.",
        _is_number,
        "it must be a whole number above 0, so the default of 1000 applies",
    ),
    Variable(
        ("OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BLRP_MAX_QUEUE_SIZE"),
        "Spans or log lines that may wait: 20,000 spans of about 2 KB, and 50,000 lines of about 0.5 KB.",
        _is_number,
        "it must be a whole number above 0, so the default applies",
    ),
    Variable(
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE"),
        "The most per request: 128 spans or 2,048 lines. Larger batches delay calls for longer while they are encoded.",
        _is_number,
        "it must be a whole number above 0, so the default applies",
    ),
    Variable(
        ("OTEL_BSP_EXPORT_TIMEOUT", "OTEL_BLRP_EXPORT_TIMEOUT"),
        "No effect.",
        _none,
        "OTEL_EXPORTER_OTLP_TIMEOUT limits every request",
    ),
    Variable(
        ("OTEL_METRIC_EXPORT_INTERVAL", "OTEL_METRIC_EXPORT_TIMEOUT"),
        "Milliseconds. The interval is 10000 by default.",
        _is_number,
        "it must be a whole number above 0, so the SDK's default applies",
    ),
    Variable(
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",),
        "`cumulative` only.",
        _one_of("cumulative"),
        "metrics are always cumulative, because Prometheus scrapes the same ones",
    ),
    Variable(
        ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",),
        "`explicit_bucket_histogram` only.",
        _one_of("explicit_bucket_histogram"),
        "histograms always have the buckets that rules and dashboards use",
    ),
    Variable(
        ("OTEL_METRICS_EXEMPLAR_FILTER",),
        "`trace_based` only.",
        _one_of("trace_based"),
        "exemplars are always those of calls whose trace is kept",
    ),
    Variable(
        ("OTEL_PROPAGATORS",),
        "Without `tracecontext` in the list, the trace context of callers is ignored. `baggage` is accepted, and ignored, "
        "because the service calls no other.",
        _list_of("tracecontext", "baggage"),
        "only W3C Trace Context is read",
    ),
    Variable(("OTEL_LOG_LEVEL",), "No effect.", _none, "HANDOFF_LOG_LEVEL sets the level of the log"),
    Variable(
        (
            *(f"OTEL_{of}ATTRIBUTE_COUNT_LIMIT" for of in ("", "SPAN_", "EVENT_", "LINK_", "LOGRECORD_")),
            *(f"OTEL_{of}ATTRIBUTE_VALUE_LENGTH_LIMIT" for of in ("", "SPAN_", "LOGRECORD_")),
            "OTEL_SPAN_EVENT_COUNT_LIMIT",
            "OTEL_SPAN_LINK_COUNT_LIMIT",
        ),
        "Only for the spans of installed instrumentors.",
        _none,
        _LIMITED,
    ),
    Variable(
        ("OTEL_EXPORTER_PROMETHEUS_HOST", "OTEL_EXPORTER_PROMETHEUS_PORT"),
        "No effect.",
        _none,
        "HANDOFF_OPS_HOST and HANDOFF_OPS_PORT set where /metrics is",
    ),
    Variable(
        ("OTEL_EXPORTER_ZIPKIN_ENDPOINT", "OTEL_EXPORTER_ZIPKIN_TIMEOUT"),
        "No effect.",
        _none,
        "there is no exporter but otlp",
    ),
    Variable(("OTEL_CONFIG_FILE",), "No effect.", _none, "telemetry is configured by variables only"),
)


def _value(environment: Environment, name: str) -> str:
    return environment.get(name, "").strip().lower()


def unheeded(environment: Environment) -> dict[str, str]:
    """The variables that are set to something that has no effect, each with the reason."""
    found = {
        name: variable.why
        for variable in VARIABLES
        for name in variable.names
        if (value := _value(environment, name)) and not variable.heeds(value)
    }
    if _value(environment, _RATIO) and not _value(environment, _SAMPLER).endswith("traceidratio"):
        found[_RATIO] = (
            f"only the samplers traceidratio and parentbased_traceidratio have an argument; {_SAMPLER} names them"
        )
    return found


def is_disabled(environment: Environment) -> bool:
    """Whether no signal may be exported."""
    return _value(environment, "OTEL_SDK_DISABLED") == "true"


def is_exported(environment: Environment, signal: str) -> bool:
    """Whether `traces`, `metrics` or `logs` are exported by OTLP."""
    value = _value(environment, f"OTEL_{signal.upper()}_EXPORTER")
    return value != "none" and not (signal == "metrics" and value == "prometheus")


def has_sampler(environment: Environment) -> bool:
    """Whether a standard sampler decides which traces are kept."""
    return _value(environment, _SAMPLER) in _SAMPLERS


def reads_parents(environment: Environment) -> bool:
    """Whether the trace context that callers send is read."""
    value = _value(environment, "OTEL_PROPAGATORS")
    return not value or "tracecontext" in _listed(value)


def number(environment: Environment, name: str, default: int) -> int:
    """The whole number above 0 in a variable, or the default without one."""
    value = _value(environment, name)
    return int(value) if _is_number(value) else default
