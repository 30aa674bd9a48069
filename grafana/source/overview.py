"""Is everything healthy and, if not, where is the problem?"""

from typing import Final

from grafana.source.calls import EXCEPT_GET_INBOX, FAILED, OK, REFUSED, TOOL_CALLS
from grafana.source.page import CRITICAL_ALERTS, Page, link_to
from grafana.source.panels import (
    BAD,
    GOOD,
    WARN,
    higher_is_worse,
    limit,
    lower_is_worse,
    stat_panel,
    status_timeline,
    table_panel,
    time_series,
)
from grafana.source.promql import gauge, quantile, rate
from grafana.source.queries import Prom, Sql, percentiles
from handoff.telemetry import metrics as t

_WORST_STATUS: Final = gauge(t.COMPONENT_STATUS, t.COMPONENT)
_FIRING: Final = 'ALERTS{alertstate="firing", alertname!="Watchdog"}'
_CRITICAL: Final = 'ALERTS{alertstate="firing", severity="critical"}'
_NOT_CRITICAL: Final = 'ALERTS{alertstate="firing", severity!="critical", alertname!="Watchdog"}'
_SEVERITIES: Final = ("critical", "warning", "info")
_CHANGES: Final = """
    SELECT at AS "when", what AS "change", detail FROM (
        SELECT starts_at AS at, 'alert firing' AS what, alertname || ' (' || severity || '): ' || summary AS detail
          FROM reporting.alert WHERE $__timeFilter(starts_at)
        UNION ALL
        SELECT ends_at, 'alert resolved', alertname || ': ' || summary FROM reporting.alert WHERE $__timeFilter(ends_at)
        UNION ALL
        SELECT at, 'health changed', component || ' changed from ' || was || ' to ' || status || ' ' || detail
          FROM reporting.health_event WHERE $__timeFilter(at)
        UNION ALL
        SELECT started_at, 'process started', kind || ' ' || version FROM reporting.instance WHERE $__timeFilter(started_at)
    ) AS change ORDER BY at DESC LIMIT 50"""

PAGE: Final = Page(
    "overview",
    "Overview",
    "Is everything healthy and, if not, where is the problem?",
    marks=CRITICAL_ALERTS,
    rows=[
        (
            "At a glance",
            [
                stat_panel(
                    "Health",
                    "Worst status of any component, as reported by the service and the worker.",
                    "short",
                    Prom(gauge(t.COMPONENT_STATUS)),
                    statuses=True,
                    width=3,
                    links={"Component health, below": link_to("overview")},
                ),
                stat_panel(
                    "Alerts firing",
                    "Number of critical alerts that are firing now and, beside it, of all others, not counting the Watchdog heartbeat. They are listed below.",
                    "short",
                    Prom(f"count({_CRITICAL}) or vector(0)", "critical", steps=[(None, GOOD), (1, BAD)]),
                    Prom(f"count({_NOT_CRITICAL}) or vector(0)", "others", steps=[(None, GOOD), (1, WARN)]),
                    width=4,
                ),
                stat_panel(
                    "Calls per second",
                    "Tool calls answered per second, whatever their outcome.",
                    "reqps",
                    Prom(rate(t.OPERATION_DURATION, only=[TOOL_CALLS])),
                    width=3,
                    links={"Tools": link_to("tools")},
                ),
                stat_panel(
                    "Failed calls",
                    "Share of tool calls in the last 5 minutes that failed through a fault of the service (error code internal, unavailable or overloaded). Beside it, the number of calls in those 5 minutes.",
                    "percentunit",
                    Prom("handoff:tool_calls_failed:ratio_rate5m", "failed"),
                    Prom("sum(handoff:tool_calls:increase5m)", "calls", unit="short"),
                    steps=higher_is_worse(limit("error_ratio") / 5, limit("error_ratio")),
                    decimals=2,
                    width=5,
                    links={"Tools": link_to("tools")},
                ),
                stat_panel(
                    "Latency p95",
                    "95th percentile of the duration of tool calls in the last 5 minutes. get_inbox is left out because its calls may wait by design.",
                    "s",
                    Prom(quantile(0.95, t.OPERATION_DURATION, only=[TOOL_CALLS, EXCEPT_GET_INBOX], over="5m")),
                    steps=higher_is_worse(limit("tool_slow_seconds"), limit("tool_very_slow_seconds")),
                    width=3,
                    links={"Tools": link_to("tools")},
                ),
                stat_panel(
                    "Oldest offer",
                    "Time that the oldest open offer has been waiting to be accepted; 0 while there is no open offer.",
                    "s",
                    Prom(gauge(t.OLDEST_OFFER)),
                    steps=higher_is_worse(limit("offer_age_seconds")),
                    width=3,
                    links={"Handoffs and sessions": link_to("handoffs")},
                ),
                stat_panel(
                    "Heartbeat age",
                    "Time since Prometheus evaluated the Watchdog rule whose notification the service received last. A low value shows that alerting works end to end.",
                    "s",
                    Prom(gauge(t.WATCHDOG_AGE, aggregate="min")),
                    steps=higher_is_worse(180, 240),
                    width=3,
                    links={"Telemetry pipeline": link_to("pipeline")},
                ),
            ],
        ),
        (
            "Error budgets remaining, over 30 days",
            [
                *(
                    stat_panel(
                        title,
                        f"Share of the 30-day error budget that remains. The budget is spent by {spent_by} 100 % means that nothing is spent; below 0 the objective is missed.",
                        "percentunit",
                        Prom(f'slo:budget_remaining:ratio{{slo="{slo}"}}'),
                        steps=lower_is_worse(0, 0.25),
                        width=4,
                        height=6,
                    )
                    for slo, title, spent_by in (
                        ("availability", "Availability", "tool calls that fail through a fault of the service."),
                        ("latency", "Latency", "tool calls that take longer than 0.5 s, not counting get_inbox."),
                        (
                            "accept",
                            "Time to accept",
                            "handoffs that take longer than 5 minutes to be accepted. Empty until a handoff is accepted.",
                        ),
                    )
                ),
                time_series(
                    "Burn rate",
                    "How fast each error budget was spent in the hour before each point. At 1 it would last exactly 30 days; at 2, half as long.",
                    "none",
                    Prom("slo:burn_rate:ratio_rate1h", "{{slo}}"),
                    steps=[(None, GOOD), (1, WARN), (limit("burn_1h"), BAD)],
                    width=12,
                    height=6,
                ),
            ],
        ),
        (
            "Golden signals",
            [
                time_series(
                    "Traffic",
                    "Tool calls per second, by outcome: ok, refused (mistake by the caller) or failed (fault of the service).",
                    "reqps",
                    Prom(rate(t.OPERATION_DURATION, only=[TOOL_CALLS, OK]), "ok"),
                    Prom(rate(t.OPERATION_DURATION, only=[TOOL_CALLS, REFUSED]) + " > 0", "refused"),
                    Prom(rate(t.OPERATION_DURATION, only=[TOOL_CALLS, FAILED]) + " > 0", "failed"),
                    stacked=True,
                    width=6,
                    links={"Tools": link_to("tools")},
                ),
                time_series(
                    "Errors",
                    "Share of tool calls that failed (fault of the service) and that were refused (mistake by the caller), over 5 minutes. The dashed line is the limit of failed calls. Dotted, on the right axis: calls per second.",
                    "percentunit",
                    Prom("handoff:tool_calls_failed:ratio_rate5m", "failed"),
                    Prom("handoff:tool_calls_refused:ratio_rate5m", "refused"),
                    Prom(rate(t.OPERATION_DURATION, only=[TOOL_CALLS]), "calls per second", unit="reqps"),
                    steps=[(None, GOOD), (limit("error_ratio"), BAD)],
                    width=6,
                ),
                time_series(
                    "Latency",
                    "50th, 95th and 99th percentile of the duration of tool calls. get_inbox is left out because its calls may wait by design.",
                    "s",
                    *percentiles(t.OPERATION_DURATION, only=[TOOL_CALLS, EXCEPT_GET_INBOX]),
                    width=6,
                    links={"Tools": link_to("tools")},
                ),
                time_series(
                    "Saturation",
                    "Share in use of the processes' memory limits, Postgres's connections, the disk and the collector's queues. Each line is the fullest of its kind.",
                    "percentunit",
                    Prom("max(handoff:memory:ratio)", "memory"),
                    Prom("handoff:database_connections:ratio", "connections"),
                    Prom("max(handoff:disk:ratio)", "disk"),
                    Prom("max(handoff:collector_queue:ratio)", "collector queue"),
                    axis_max=1,
                    width=6,
                    links={"Database and cache": link_to("database")},
                ),
            ],
        ),
        (
            "Alerts and changes",
            [
                table_panel(
                    "Alerts firing",
                    "Alerts that are firing now, according to Prometheus. Empty while none is firing.",
                    Prom(f"{_FIRING} == 1"),
                    width=10,
                    height=9,
                    nothing="no alerts firing",
                    widths={"severity": 80, "alert": 0, "component": 100, "service": 110, "exporter": 110},
                    sort=["severity", "alert"],
                    columns={
                        "severity": "severity",
                        "alertname": "alert",
                        "component": "component",
                        "service_name": "service",
                        "exporter": "exporter",
                    },
                    links={"alert": {"Runbook": link_to("runbook")}},
                ),
                table_panel(
                    "Recent changes",
                    "Alerts that started or ended, components whose health changed and processes that started in the selected time range: the newest 50, newest first.",
                    Sql(_CHANGES),
                    width=14,
                    height=9,
                    nothing="no changes",
                    widths={"when": 180, "change": 120, "detail": 0},
                    units={"when": "dateTimeAsLocal"},
                ),
                time_series(
                    "Alerts firing",
                    "Number of alerts firing, by severity. Empty while none is firing.",
                    "short",
                    Prom(f"count by (severity) ({_FIRING})", "{{severity}}"),
                    names=_SEVERITIES,
                    width=8,
                    stacked=True,
                ),
                status_timeline(
                    "Component health",
                    "Worst status of each component over all processes of the service and the worker.",
                    Prom(_WORST_STATUS, "{{component}}"),
                    width=16,
                    height=8,
                ),
            ],
        ),
        (
            "Host",
            [
                time_series(
                    "Disk usage",
                    "Used share of the disk that holds the volumes.",
                    "percentunit",
                    Prom("handoff:disk:ratio", "{{mountpoint}}"),
                    steps=[(None, GOOD), (limit("disk_ratio"), WARN), (limit("disk_critical_ratio"), BAD)],
                    axis_max=1,
                    width=6,
                ),
                time_series(
                    "CPU usage",
                    "Share of the time that the host's CPUs are busy, averaged over all of them.",
                    "percentunit",
                    Prom('1 - avg(sum by (cpu) (system_cpu_utilization_ratio{state="idle"}))', "used"),
                    axis_max=1,
                    width=6,
                ),
                time_series(
                    "Memory",
                    "Total memory of the host, and how much of it is available.",
                    "bytes",
                    Prom("max(system_linux_memory_available_bytes)", "available"),
                    Prom("sum(system_memory_usage_bytes)", "total"),
                    width=6,
                ),
                stat_panel(
                    "Next certificate expiry",
                    "Time until the first certificate expires, of the addresses listed in CERTIFICATES. Empty while none is listed or none can be read.",
                    "s",
                    Prom(gauge(t.CERTIFICATE_EXPIRY, aggregate="min") + " - time()"),
                    width=6,
                    height=8,
                    no_value="none",
                    steps=lower_is_worse(limit("certificate_critical_seconds"), limit("certificate_seconds")),
                ),
            ],
        ),
    ],
)
