"""What exactly happened, in which order?"""

from typing import Final

from grafana.source.page import Page, choice_variable, text_variable
from grafana.source.panels import Loki, Prom, Traces, higher_is_worse, log_panel, stat_panel, table_panel, time_series

_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_LINES: Final = '{service_name=~"$service"} |= `$find` |= `$trace` | json | level=~"$level"'
_SPAN: Final = "span_name"

PAGE: Final = Page(
    "logs",
    "Logs and traces",
    "What exactly happened, in which order?",
    variables=[
        choice_variable("service", "Service", "Who wrote the line.", ("handoff", "handoff-worker")),
        choice_variable("level", "Level", "How grave it is.", _LEVELS),
        text_variable("find", "Find", "Part of a line: a tool, an agent, a session, a code."),
        text_variable("trace", "Trace", "A trace's number: only what belongs to it."),
    ],
    rows=[
        (
            "Is it well?",
            [
                stat_panel(
                    "Errors",
                    "Lines of level error or worse, in the time shown.",
                    "short",
                    Loki(
                        'sum(count_over_time({service_name=~"$service"} | json | level=~"error|critical" [$__range])) or vector(0)'
                    ),
                    steps=higher_is_worse(1, 10),
                    width=6,
                ),
                stat_panel(
                    "Warnings",
                    "Lines of level warning, in the time shown.",
                    "short",
                    Loki(
                        'sum(count_over_time({service_name=~"$service"} | json | level="warning" [$__range])) or vector(0)'
                    ),
                    steps=higher_is_worse(1, 100),
                    width=6,
                ),
                time_series(
                    "Lines",
                    "A second, by level, of those chosen.",
                    "recps",
                    Loki(f"sum by (level) (rate({_LINES} [$__auto]))", "{{level}}"),
                    names=_LEVELS,
                    stacked=True,
                    width=12,
                    height=4,
                ),
            ],
        ),
        (
            "Lines",
            [
                log_panel(
                    "Lines",
                    "The newest first. A line of a call has its trace: open the line and follow it to Jaeger.",
                    Loki(_LINES),
                    height=14,
                )
            ],
        ),
        (
            "Traces",
            [
                table_panel(
                    "Calls that failed",
                    "Their newest traces. Empty while none failed in the time shown.",
                    Traces("handoff", tags="error=true"),
                    width=12,
                    height=10,
                    no_value="none failed",
                ),
                table_panel("Calls", "The newest traces that were kept.", Traces("handoff"), width=12, height=10),
                time_series(
                    "Spans",
                    "A second, by name, of the traces that were kept: every failed or slow call, and a sample of the rest.",
                    "recps",
                    Prom(
                        f"topk(8, sum by ({_SPAN}) (rate(traces_span_metrics_calls_total[$__rate_interval])))",
                        f"{{{{{_SPAN}}}}}",
                    ),
                    width=8,
                ),
                time_series(
                    "p95 of spans",
                    "Of the traces that were kept, so slower than all calls.",
                    "s",
                    Prom(
                        f"topk(8, histogram_quantile(0.95, sum by ({_SPAN}, le) (rate(traces_span_metrics_duration_seconds_bucket[$__rate_interval]))))",
                        f"{{{{{_SPAN}}}}}",
                    ),
                    width=8,
                ),
                time_series(
                    "Who calls whom",
                    "Requests a second of the traces that were kept.",
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
