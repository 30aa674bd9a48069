"""Which tool is slow or fails, since when, and for what reason?"""

from typing import Final

from grafana.source.calls import EXCEPT_GET_INBOX, FAILED, OK, REFUSED, SELECTED, TOOL_CALLS
from grafana.source.page import Page, label_variable, link_to
from grafana.source.panels import (
    BAD,
    GOOD,
    WARN,
    Prom,
    heatmap_panel,
    higher_is_worse,
    limit,
    percentiles,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import bucket_counts, gauge, increase, label, quantile, rate, ratio, series
from handoff import telemetry as t

_THESE: Final = (TOOL_CALLS, *SELECTED)
_TIMED: Final = (*_THESE, EXCEPT_GET_INBOX)
_LEFT_OUT: Final = "get_inbox, which may wait by design, is left out. Empty while only that is chosen."
_ON_INSTANCE: Final = ('service_instance_id=~"$instance"',)
_TOOL: Final = label(t.TOOL)
_CODE: Final = label(t.CODE)

PAGE: Final = Page(
    "tools",
    "Tools",
    "Which tool is slow or fails, since when, and for what reason?",
    variables=[
        label_variable("tool", "Tool", "Tools of the service.", t.TOOL, series(t.OPERATION_DURATION, "count")),
        label_variable(
            "instance",
            "Process",
            "Processes of the service.",
            "service_instance_id",
            f'{series(t.BUILD_INFO)}{{service_name="handoff"}}',
        ),
    ],
    rows=[
        (
            "Is it well?",
            [
                stat_panel(
                    "Calls a second",
                    "Calls of the chosen tools.",
                    "reqps",
                    Prom(rate(t.OPERATION_DURATION, only=_THESE)),
                    width=4,
                ),
                stat_panel(
                    "Failed",
                    "Share of calls that failed by our fault, in the time shown; beside it, how many calls that is of.",
                    "percentunit",
                    Prom(
                        ratio(
                            increase(t.OPERATION_DURATION, only=[*_THESE, FAILED]),
                            increase(t.OPERATION_DURATION, only=_THESE),
                        ),
                        "failed",
                    ),
                    Prom(increase(t.OPERATION_DURATION, only=_THESE), "of calls", unit="short"),
                    steps=higher_is_worse(limit("error_ratio") / 5, limit("error_ratio")),
                    width=5,
                ),
                stat_panel(
                    "Refused",
                    "Share of calls that were the caller's mistake, in the time shown; beside it, how many calls that is of.",
                    "percentunit",
                    Prom(
                        ratio(
                            increase(t.OPERATION_DURATION, only=[*_THESE, REFUSED]),
                            increase(t.OPERATION_DURATION, only=_THESE),
                        ),
                        "refused",
                    ),
                    Prom(increase(t.OPERATION_DURATION, only=_THESE), "of calls", unit="short"),
                    steps=higher_is_worse(limit("refusal_ratio") / 2, limit("refusal_ratio")),
                    width=5,
                ),
                *(
                    stat_panel(
                        name,
                        f"What {q * 100:.0f} of 100 calls stayed below, in the time shown. {_LEFT_OUT}",
                        "s",
                        Prom(quantile(q, t.OPERATION_DURATION, only=_TIMED, over="$__range")),
                        steps=higher_is_worse(0.5, limit("tool_slow_seconds")),
                        width=2,
                    )
                    for q, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
                ),
                stat_panel(
                    "Under way",
                    "Calls that are being worked on; those that wait by design are left out.",
                    "short",
                    Prom(gauge(t.ACTIVE_CALLS, aggregate="sum", only=_ON_INSTANCE)),
                    steps=higher_is_worse(limit("concurrent_calls"), limit("concurrent_calls_critical")),
                    width=4,
                ),
            ],
        ),
        (
            "Each tool",
            [
                table_panel(
                    "Tools",
                    "Each tool in the time shown. Its name leads to its log lines.",
                    Prom(increase(t.OPERATION_DURATION, t.TOOL, only=_THESE)),
                    Prom(
                        f"{increase(t.OPERATION_DURATION, t.TOOL, only=[*_THESE, FAILED])} or {increase(t.OPERATION_DURATION, t.TOOL, only=_THESE)} * 0"
                    ),
                    Prom(
                        f"{increase(t.OPERATION_DURATION, t.TOOL, only=[*_THESE, REFUSED])} or {increase(t.OPERATION_DURATION, t.TOOL, only=_THESE)} * 0"
                    ),
                    *(
                        Prom(quantile(q, t.OPERATION_DURATION, t.TOOL, only=_THESE, over="$__range"))
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
                    units={"calls": "short", "p50": "s", "p95": "s", "p99": "s"},
                    steps={"failed": [(None, GOOD), (0.5, BAD)], "refused": [(None, GOOD), (0.5, WARN)]},
                    links={
                        "tool": {
                            "Its log lines": link_to("logs", find="${__value.raw}"),
                            "Only this tool": link_to("tools", tool="${__value.raw}"),
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
                    "Calls a second, by how they went.",
                    "reqps",
                    Prom(rate(t.OPERATION_DURATION, only=[*_THESE, OK]), "ok"),
                    Prom(rate(t.OPERATION_DURATION, only=[*_THESE, REFUSED]) + " or vector(0)", "refused"),
                    Prom(rate(t.OPERATION_DURATION, only=[*_THESE, FAILED]) + " or vector(0)", "failed"),
                    stacked=True,
                ),
                time_series(
                    "Latency",
                    f"What 50, 95 and 99 of 100 calls stay below. {_LEFT_OUT}",
                    "s",
                    *percentiles(t.OPERATION_DURATION, only=_TIMED),
                ),
                heatmap_panel(
                    "Durations",
                    f"How many calls took how long. Points lead to the trace of a call. {_LEFT_OUT}",
                    "s",
                    Prom(bucket_counts(t.OPERATION_DURATION, _TIMED), "{{le}}"),
                    width=8,
                ),
                time_series(
                    "Traffic by tool",
                    "Calls a second.",
                    "reqps",
                    Prom(rate(t.OPERATION_DURATION, t.TOOL, only=_THESE), f"{{{{{_TOOL}}}}}"),
                ),
                time_series(
                    "p95 by tool",
                    "What 95 of 100 calls stay below. get_inbox may wait by design.",
                    "s",
                    Prom(quantile(0.95, t.OPERATION_DURATION, t.TOOL, only=_THESE), f"{{{{{_TOOL}}}}}"),
                    steps=[(None, GOOD), (limit("tool_slow_seconds"), WARN), (limit("tool_very_slow_seconds"), BAD)],
                ),
                time_series(
                    "Why calls are refused or fail",
                    "By the code that the caller was told, a second. Empty while no call is.",
                    "reqps",
                    Prom(rate(t.OPERATION_DURATION, t.CODE, only=[*_THESE, f'{_CODE}!=""']), f"{{{{{_CODE}}}}}"),
                    links={"Log lines": link_to("logs", find="${__field.labels." + _CODE + "}")},
                ),
            ],
        ),
        (
            "Around the calls",
            [
                time_series(
                    "Under way and waiting",
                    "Calls that are worked on, and those that wait for something to happen, as they were asked to.",
                    "short",
                    Prom(gauge(t.ACTIVE_CALLS, aggregate="sum", only=_ON_INSTANCE), "under way"),
                    Prom(gauge(t.WAITING_CALLS, aggregate="sum", only=_ON_INSTANCE) + " or vector(0)", "waiting"),
                    steps=[(None, GOOD), (limit("concurrent_calls"), WARN), (limit("concurrent_calls_critical"), BAD)],
                    width=6,
                ),
                time_series(
                    "Replays",
                    "Calls a second that were answered with their first result, since they came twice with one key. Empty while none did.",
                    "reqps",
                    Prom(rate(t.REPLAYS, t.TOOL, only=SELECTED), f"{{{{{_TOOL}}}}}"),
                    width=6,
                ),
                time_series(
                    "Refused before they were a call",
                    "HTTP requests a second without a token, with a wrong host, too large. Empty while there is none.",
                    "reqps",
                    Prom(rate(t.REFUSALS, t.REFUSAL, only=_ON_INSTANCE), "{{reason}}"),
                    width=6,
                ),
                time_series(
                    "HTTP responses",
                    "A second, by status.",
                    "reqps",
                    Prom(rate(t.HTTP_DURATION, t.HTTP_STATUS, only=_ON_INSTANCE), f"{{{{{label(t.HTTP_STATUS)}}}}}"),
                    width=6,
                ),
                time_series(
                    "Event loop lag",
                    "How late timers ran: what 99 of 100 stay below. Above its limit every call is late by as much.",
                    "s",
                    Prom(quantile(0.99, t.EVENT_LOOP_LAG, "service_name", only=_ON_INSTANCE), "{{service_name}}"),
                    steps=[(None, GOOD), (limit("event_loop_lag_seconds"), WARN)],
                    width=8,
                ),
                time_series(
                    "Memory of the process",
                    "What it uses, and what it may use.",
                    "bytes",
                    Prom(
                        'max(process_memory_usage_bytes{service_name="handoff", service_instance_id=~"$instance"})', "used"
                    ),
                    Prom(
                        f'max({series(t.MEMORY_LIMIT)}{{service_name="handoff", service_instance_id=~"$instance"}})', "limit"
                    ),
                    width=8,
                ),
                time_series(
                    "Processor of the process",
                    "Processors that it keeps busy.",
                    "short",
                    Prom(
                        'sum by (service_name) (rate(process_cpu_time_seconds_total{service_instance_id=~"$instance"}[$__rate_interval]))',
                        "{{service_name}}",
                    ),
                    width=8,
                ),
            ],
        ),
    ],
)
