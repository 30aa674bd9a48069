"""What exactly happened, and in what order?"""

from typing import Final

from grafana.source.calls import SERVER_FAULTS
from grafana.source.page import Page, choice_variable, text_variable
from grafana.source.panels import higher_is_worse, log_panel, stat_panel, table_panel, time_series
from grafana.source.queries import Loki, Prom, Traces

_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_MATCHING_LINES: Final = '{service_name=~"$service"} |= `$find` |= `$trace` | json | level=~"$level"'
_SPAN_NAME: Final = "span_name"
_OF_TRACES: Final = {"Trace ID": 150, "Trace name": 0, "Start time": 190, "Duration": 110}  # the names that Grafana gives
_NEWEST_TRACES: Final = ("-Start time",)

PAGE: Final = Page(
    "logs",
    "Logs and traces",
    "What exactly happened, and in what order?",
    variables=[
        choice_variable("service", "Service", "The services whose lines to show.", ("handoff", "handoff-worker")),
        choice_variable("level", "Level", "The severity of the lines to show.", _LEVELS),
        text_variable(
            "find",
            "Text",
            "Text that the line must contain, such as the name of a tool or an agent, a session or an error code.",
        ),
        text_variable("trace", "Trace", "A trace ID, to show only the lines of that trace."),
    ],
    rows=[
        (
            "At a glance",
            [
                stat_panel(
                    "Errors",
                    "Number of log lines of level error or critical in the selected time range.",
                    "short",
                    Loki(
                        'sum(count_over_time({service_name=~"$service"} | json | level=~"error|critical" [$__range])) or vector(0)'
                    ),
                    steps=higher_is_worse(1),
                    width=6,
                ),
                stat_panel(
                    "Warnings",
                    "Number of log lines of level warning in the selected time range.",
                    "short",
                    Loki(
                        'sum(count_over_time({service_name=~"$service"} | json | level="warning" [$__range])) or vector(0)'
                    ),
                    steps=higher_is_worse(1),
                    width=6,
                ),
                time_series(
                    "Log lines",
                    "Log lines per second that match the filters above, by level.",
                    "recps",
                    Loki(f"sum by (level) (rate({_MATCHING_LINES} [$__auto]))", "{{level}}"),
                    names=_LEVELS,
                    stacked=True,
                    width=12,
                    height=4,
                ),
            ],
        ),
        (
            "Log lines",
            [
                log_panel(
                    "Log lines",
                    "Log lines that match the filters above, newest first, at most 500. Open the line of a call to follow its trace to Jaeger.",
                    Loki(_MATCHING_LINES),
                    height=14,
                )
            ],
        ),
        (
            "Traces",
            [
                table_panel(
                    "Failed calls",
                    "The 50 newest traces of calls that failed through a fault of the service. Empty if there are none in the selected time range.",
                    *(Traces("handoff", tags=f"handoff.error.code={code}") for code in SERVER_FAULTS),
                    width=12,
                    height=10,
                    nothing="no failed calls",
                    widths=_OF_TRACES,
                    sort=_NEWEST_TRACES,
                ),
                table_panel(
                    "Calls",
                    "The 50 newest traces kept in the selected time range.",
                    Traces("handoff"),
                    width=12,
                    height=10,
                    widths=_OF_TRACES,
                    sort=_NEWEST_TRACES,
                ),
                time_series(
                    "Spans",
                    "Spans per second of the eight most frequent names. Counts only traces that were kept: calls that failed, were slow or changed a handoff, and a sample of the rest.",
                    "recps",
                    Prom(
                        f"topk(8, sum by ({_SPAN_NAME}) (rate(traces_span_metrics_calls_total[$__rate_interval])))",
                        f"{{{{{_SPAN_NAME}}}}}",
                    ),
                    many=True,
                    width=8,
                ),
                time_series(
                    "Span duration p95",
                    "95th percentile of the duration of spans, for the eight slowest names. Counts only traces that were kept, so it is higher than over all calls.",
                    "s",
                    Prom(
                        f"topk(8, histogram_quantile(0.95, sum by ({_SPAN_NAME}, le) (rate(traces_span_metrics_duration_seconds_bucket[$__rate_interval]))))",
                        f"{{{{{_SPAN_NAME}}}}}",
                    ),
                    many=True,
                    width=8,
                ),
                time_series(
                    "Requests between services",
                    "Requests per second from one service to another. Counts only traces that were kept.",
                    "reqps",
                    Prom(
                        "sum by (client, server) (rate(traces_service_graph_request_total[$__rate_interval]))",
                        "{{client}} to {{server}}",
                    ),
                    width=8,
                ),
            ],
        ),
    ],
)
