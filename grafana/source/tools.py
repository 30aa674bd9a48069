"""Which tool is slow or failing, since when, and why?"""

from typing import Final

from grafana.source.calls import EXCEPT_GET_INBOX, FAILED, OK, REFUSED, SELECTED, TOOL_CALLS
from grafana.source.page import Page, label_variable, link_to
from grafana.source.panels import (
    BAD,
    GOOD,
    WARN,
    heatmap_panel,
    higher_is_worse,
    limit,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import bucket_counts, gauge, increase, label, live, quantile, rate, ratio, series
from grafana.source.queries import Prom, percentiles
from handoff.telemetry import metrics as t

_CALLS: Final = (TOOL_CALLS, *SELECTED)
_TIMED: Final = (*_CALLS, EXCEPT_GET_INBOX)
_INBOX_NOTE: Final = "get_inbox is left out because its calls may wait by design. Empty while only get_inbox is selected."
_ON_INSTANCE: Final = ('service_instance_id=~"$instance"',)
_MEMORY_USED: Final = 'process_memory_usage_bytes{service_name="handoff", service_instance_id=~"$instance"}'
_TOOL: Final = label(t.TOOL)
_CODE: Final = label(t.CODE)

PAGE: Final = Page(
    "tools",
    "Tools",
    "Which tool is slow or failing, since when, and why?",
    variables=[
        label_variable("tool", "Tool", "The tools to show.", t.TOOL, series(t.OPERATION_DURATION, "count")),
        label_variable(
            "instance",
            "Process",
            "The processes of the service to show.",
            "service_instance_id",
            f'{series(t.BUILD_INFO)}{{service_name="handoff"}}',
        ),
    ],
    rows=[
        (
            "At a glance",
            [
                stat_panel(
                    "Calls per second",
                    "Calls of the selected tools answered per second, whatever their outcome.",
                    "reqps",
                    Prom(rate(t.OPERATION_DURATION, only=_CALLS)),
                    width=4,
                ),
                stat_panel(
                    "Failed calls",
                    "Share of calls in the selected time range that failed through a fault of the service (error code internal, unavailable or overloaded). Beside it, the number of calls.",
                    "percentunit",
                    Prom(
                        ratio(
                            increase(t.OPERATION_DURATION, only=[*_CALLS, FAILED]),
                            increase(t.OPERATION_DURATION, only=_CALLS),
                        ),
                        "failed",
                    ),
                    Prom(increase(t.OPERATION_DURATION, only=_CALLS), "calls", unit="short"),
                    steps=higher_is_worse(limit("error_ratio") / 5, limit("error_ratio")),
                    width=5,
                ),
                stat_panel(
                    "Refused calls",
                    "Share of calls in the selected time range that were refused because of a mistake by the caller (any other error code). Beside it, the number of calls.",
                    "percentunit",
                    Prom(
                        ratio(
                            increase(t.OPERATION_DURATION, only=[*_CALLS, REFUSED]),
                            increase(t.OPERATION_DURATION, only=_CALLS),
                        ),
                        "refused",
                    ),
                    Prom(increase(t.OPERATION_DURATION, only=_CALLS), "calls", unit="short"),
                    steps=higher_is_worse(limit("refusal_ratio")),
                    width=5,
                ),
                *(
                    stat_panel(
                        name,
                        f"{q * 100:.0f}th percentile of the duration of calls in the selected time range. {_INBOX_NOTE}",
                        "s",
                        Prom(quantile(q, t.OPERATION_DURATION, only=_TIMED, over="$__range")),
                        steps=higher_is_worse(limit("tool_slow_seconds"), limit("tool_very_slow_seconds")),
                        width=2,
                    )
                    for q, name in ((0.5, "Latency p50"), (0.95, "Latency p95"), (0.99, "Latency p99"))
                ),
                stat_panel(
                    "Calls in progress",
                    "Number of calls in progress now. All tools are counted, but calls that wait by design are left out.",
                    "short",
                    Prom(gauge(t.ACTIVE_CALLS, aggregate="sum", only=_ON_INSTANCE)),
                    steps=higher_is_worse(limit("concurrent_calls"), limit("concurrent_calls_critical")),
                    width=4,
                ),
            ],
        ),
        (
            "By tool",
            [
                table_panel(
                    "Tools",
                    "Calls, failures, refusals and percentiles of the duration of each tool's calls in the selected time range. Click a name for its log lines. Durations of get_inbox include the time that it waits by design.",
                    Prom(increase(t.OPERATION_DURATION, t.TOOL, only=_CALLS)),
                    Prom(
                        f"{increase(t.OPERATION_DURATION, t.TOOL, only=[*_CALLS, FAILED])} or {increase(t.OPERATION_DURATION, t.TOOL, only=_CALLS)} * 0"
                    ),
                    Prom(
                        f"{increase(t.OPERATION_DURATION, t.TOOL, only=[*_CALLS, REFUSED])} or {increase(t.OPERATION_DURATION, t.TOOL, only=_CALLS)} * 0"
                    ),
                    *(
                        Prom(quantile(q, t.OPERATION_DURATION, t.TOOL, only=_CALLS, over="$__range"))
                        for q in (0.5, 0.95, 0.99)
                    ),
                    width=24,
                    height=9,
                    columns={
                        _TOOL: "tool",
                        "Value #A": "calls",
                        "Value #B": "failed",
                        "Value #C": "refused",
                        "Value #D": "p50",
                        "Value #E": "p95",
                        "Value #F": "p99",
                    },
                    widths={"tool": 0, "calls": 130, "failed": 110, "refused": 110, "p50": 110, "p95": 110, "p99": 110},
                    sort=["-failed", "-calls"],
                    units={"p50": "s", "p95": "s", "p99": "s"},
                    steps={"failed": [(None, GOOD), (0.5, WARN)], "refused": [(None, GOOD), (0.5, WARN)]},
                    links={
                        "tool": {
                            "Log lines": link_to("logs", find="${__value.raw}"),
                            "Show only this tool": link_to("tools", tool="${__value.raw}"),
                        }
                    },
                ),
            ],
        ),
        (
            "Over time",
            [
                time_series(
                    "Traffic",
                    "Calls per second, by outcome: ok, refused (mistake by the caller) or failed (fault of the service).",
                    "reqps",
                    Prom(rate(t.OPERATION_DURATION, only=[*_CALLS, OK]), "ok"),
                    Prom(rate(t.OPERATION_DURATION, only=[*_CALLS, REFUSED]) + " > 0", "refused"),
                    Prom(rate(t.OPERATION_DURATION, only=[*_CALLS, FAILED]) + " > 0", "failed"),
                    stacked=True,
                ),
                time_series(
                    "Latency",
                    f"50th, 95th and 99th percentile of the duration of calls. A diamond marks a single call and links to its trace. {_INBOX_NOTE}",
                    "s",
                    *percentiles(t.OPERATION_DURATION, only=_TIMED),
                ),
                heatmap_panel(
                    "Latency distribution",
                    f"Number of calls by duration, over time. A point marks a single call and links to its trace. {_INBOX_NOTE}",
                    "s",
                    Prom(bucket_counts(t.OPERATION_DURATION, _TIMED), "{{le}}"),
                    width=8,
                ),
                time_series(
                    "Traffic by tool",
                    "Calls per second, by tool.",
                    "reqps",
                    Prom(rate(t.OPERATION_DURATION, t.TOOL, only=_CALLS), f"{{{{{_TOOL}}}}}"),
                    many=True,
                ),
                time_series(
                    "Latency p95 by tool",
                    f"95th percentile of the duration of calls, by tool. {_INBOX_NOTE}",
                    "s",
                    Prom(quantile(0.95, t.OPERATION_DURATION, t.TOOL, only=_TIMED), f"{{{{{_TOOL}}}}}"),
                    many=True,
                    steps=[(None, GOOD), (limit("tool_slow_seconds"), WARN), (limit("tool_very_slow_seconds"), BAD)],
                ),
                time_series(
                    "Errors by code",
                    "Failed and refused calls per second, by the error code returned to the caller. Empty while there are none.",
                    "reqps",
                    Prom(rate(t.OPERATION_DURATION, t.CODE, only=[*_CALLS, f'{_CODE}!=""']), f"{{{{{_CODE}}}}}"),
                    links={"Log lines": link_to("logs", find="${__field.labels." + _CODE + "}")},
                ),
            ],
        ),
        (
            "Requests and process",
            [
                time_series(
                    "Calls in progress and waiting",
                    "Number of calls in progress. Dotted, on the right axis: calls that wait for something to happen because the caller asked them to; the limits are not for them. All tools are counted.",
                    "short",
                    Prom(gauge(t.ACTIVE_CALLS, aggregate="sum", only=_ON_INSTANCE), "in progress"),
                    Prom(
                        gauge(t.WAITING_CALLS, aggregate="sum", only=_ON_INSTANCE) + " or vector(0)", "waiting", unit="short"
                    ),
                    steps=[(None, GOOD), (limit("concurrent_calls"), WARN), (limit("concurrent_calls_critical"), BAD)],
                    width=6,
                ),
                time_series(
                    "Replayed calls",
                    "Calls per second that repeated an idempotency key and were answered with the first result. Empty while there are none.",
                    "reqps",
                    Prom(rate(t.REPLAYS, t.TOOL, only=SELECTED), f"{{{{{_TOOL}}}}}"),
                    width=6,
                ),
                time_series(
                    "HTTP requests refused",
                    "HTTP requests per second refused before they became a call, by reason, such as a missing token, a host that is not allowed or a body that is too large. Empty while there are none.",
                    "reqps",
                    Prom(rate(t.REFUSALS, t.REFUSAL, only=_ON_INSTANCE), "{{reason}}"),
                    width=6,
                ),
                time_series(
                    "HTTP responses",
                    "HTTP responses per second, by status code.",
                    "reqps",
                    Prom(rate(t.HTTP_DURATION, t.HTTP_STATUS, only=_ON_INSTANCE), f"{{{{{label(t.HTTP_STATUS)}}}}}"),
                    width=6,
                ),
                time_series(
                    "HTTP connections and bodies",
                    "Open HTTP connections, and how many may be open. Dotted, on the right axis: bytes of the bodies of requests in progress. With several processes selected, the most of each.",
                    "short",
                    Prom(gauge(t.HTTP_CONNECTIONS, only=_ON_INSTANCE), "open"),
                    Prom(gauge(t.HTTP_CONNECTIONS_MAX, only=_ON_INSTANCE), "max"),
                    Prom(gauge(t.HTTP_BODIES, only=_ON_INSTANCE), "bodies", unit="bytes"),
                    width=6,
                ),
                time_series(
                    "Event loop lag",
                    "How late timers ran: 99th percentile, by service. Above the limit, every call is delayed by about as much.",
                    "s",
                    Prom(quantile(0.99, t.EVENT_LOOP_LAG, "service_name", only=_ON_INSTANCE), "{{service_name}}"),
                    steps=[(None, GOOD), (limit("event_loop_lag_seconds"), WARN)],
                    width=6,
                ),
                time_series(
                    "Process memory",
                    "Memory in use by the service, and its limit. With several processes selected, the largest of each.",
                    "bytes",
                    Prom(f"max({live(_MEMORY_USED)})", "used"),
                    Prom(gauge(t.MEMORY_LIMIT, only=('service_name="handoff"', *_ON_INSTANCE)), "limit"),
                    width=6,
                ),
                time_series(
                    "Process CPU",
                    "Number of CPU cores in use, summed over the selected processes, by service.",
                    "none",
                    Prom(
                        'sum by (service_name) (rate(process_cpu_time_seconds_total{service_instance_id=~"$instance"}[$__rate_interval]))',
                        "{{service_name}}",
                    ),
                    width=6,
                ),
            ],
        ),
    ],
)
