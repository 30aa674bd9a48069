"""Is it well, and if not, where?"""

from typing import Final

from grafana.source.calls import EXCEPT_GET_INBOX, FAILED, OK, REFUSED, TOOL_CALLS
from grafana.source.page import Page, link_to
from grafana.source.panels import (
    BAD,
    GOOD,
    WARN,
    Prom,
    Sql,
    higher_is_worse,
    limit,
    lower_is_worse,
    percentiles,
    stat_panel,
    status_timeline,
    table_panel,
    time_series,
)
from grafana.source.promql import gauge, label, quantile, rate, series
from handoff import telemetry as t

_WORST: Final = f"max by ({label(t.COMPONENT)}) ({series(t.COMPONENT_STATUS)})"
_FIRING: Final = 'ALERTS{alertstate="firing", alertname!="Watchdog"}'
_SEVERITIES: Final = ("critical", "warning", "info")
_CHANGES: Final = """
    SELECT at, what, detail FROM (
        SELECT starts_at AS at, 'alert' AS what, alertname || ' (' || severity || '): ' || summary AS detail
          FROM reporting.alert WHERE $__timeFilter(starts_at)
        UNION ALL
        SELECT ends_at, 'alert over', alertname || ': ' || summary FROM reporting.alert WHERE $__timeFilter(ends_at)
        UNION ALL
        SELECT at, 'health', component || ': ' || was || ' to ' || status || ' ' || detail
          FROM reporting.health_event WHERE $__timeFilter(at)
        UNION ALL
        SELECT started_at, 'start', kind || ' ' || version FROM reporting.instance WHERE $__timeFilter(started_at)
    ) AS change ORDER BY at DESC LIMIT 50"""

PAGE: Final = Page(
    "overview",
    "Overview",
    "Is it well, and if not, where?",
    rows=[
        (
            "Is it well?",
            [
                stat_panel(
                    "Health",
                    "The worst component of the service and the worker, as they judge themselves.",
                    "short",
                    Prom(f"max({series(t.COMPONENT_STATUS)})"),
                    statuses=True,
                    width=3,
                    links={"Components": link_to("overview")},
                ),
                stat_panel(
                    "Firing",
                    "Alerts that fire now, the heartbeat left out; what they are stands below.",
                    "short",
                    Prom(f"count({_FIRING}) or vector(0)"),
                    steps=higher_is_worse(1),
                    width=3,
                ),
                stat_panel(
                    "Calls a second",
                    "Tool calls that were answered, one way or the other.",
                    "reqps",
                    Prom(rate(t.OPERATION_DURATION, only=[TOOL_CALLS])),
                    width=3,
                    links={"Tools": link_to("tools")},
                ),
                stat_panel(
                    "Failed",
                    "Share of tool calls that failed by our fault within 5 minutes; beside it, how many calls that is of.",
                    "percentunit",
                    Prom("handoff:tool_calls_failed:ratio_rate5m", "failed"),
                    Prom("sum(handoff:tool_calls:increase5m)", "of calls", unit="short"),
                    steps=higher_is_worse(limit("error_ratio") / 5, limit("error_ratio")),
                    width=6,
                    links={"Tools": link_to("tools")},
                ),
                stat_panel(
                    "p95",
                    "What 95 of 100 tool calls stay below, calls of get_inbox left out: they may wait by design.",
                    "s",
                    Prom(quantile(0.95, t.OPERATION_DURATION, only=[TOOL_CALLS, EXCEPT_GET_INBOX], over="5m")),
                    steps=higher_is_worse(0.5, limit("tool_slow_seconds")),
                    width=3,
                    links={"Tools": link_to("tools")},
                ),
                stat_panel(
                    "Oldest offer",
                    "How long the handoff has waited that has waited longest for somebody to take it.",
                    "s",
                    Prom(gauge(t.OLDEST_OFFER)),
                    steps=higher_is_worse(limit("offer_age_seconds") / 2, limit("offer_age_seconds")),
                    width=3,
                    links={"Handoffs": link_to("handoffs")},
                ),
                stat_panel(
                    "Heartbeat",
                    "How long ago Prometheus evaluated the rules of which Alertmanager told us last: alerting works end to end.",
                    "s",
                    Prom(gauge(t.WATCHDOG_AGE, aggregate="min")),
                    steps=higher_is_worse(180, 240),
                    width=3,
                    links={"Pipeline": link_to("pipeline")},
                ),
            ],
        ),
        (
            "What is left of the error budgets, of 30 days",
            [
                *(
                    stat_panel(
                        title,
                        f"{said} 100 %: all of it is left; below 0 it is overspent.",
                        "percentunit",
                        Prom(f'slo:budget_remaining:ratio{{slo="{slo}"}}'),
                        steps=lower_is_worse(0, 0.25),
                        width=4,
                        height=6,
                    )
                    for slo, title, said in (
                        ("availability", "Availability", "Tool calls that did not fail by our fault."),
                        ("latency", "Latency", "Tool calls that took less than 0.5 s."),
                        (
                            "accept",
                            "Time to accept",
                            "Handoffs that were taken within 5 minutes. Empty until one was taken.",
                        ),
                    )
                ),
                time_series(
                    "Burn rate",
                    "How many times faster than planned each budget is spent, over an hour. At 1 it lasts exactly 30 days.",
                    "short",
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
                    "Tool calls a second, by how they went.",
                    "reqps",
                    Prom(rate(t.OPERATION_DURATION, only=[TOOL_CALLS, OK]), "ok"),
                    Prom(rate(t.OPERATION_DURATION, only=[TOOL_CALLS, REFUSED]), "refused"),
                    Prom(rate(t.OPERATION_DURATION, only=[TOOL_CALLS, FAILED]) + " or vector(0)", "failed"),
                    stacked=True,
                    width=6,
                    links={"Tools": link_to("tools")},
                ),
                time_series(
                    "Errors",
                    "Shares of tool calls that failed by our fault and that were the caller's mistake; dotted, calls a second.",
                    "percentunit",
                    Prom("handoff:tool_calls_failed:ratio_rate5m", "failed"),
                    Prom("handoff:tool_calls_refused:ratio_rate5m", "refused"),
                    Prom(rate(t.OPERATION_DURATION, only=[TOOL_CALLS]), "calls a second", unit="reqps"),
                    steps=[(None, GOOD), (limit("error_ratio"), BAD)],
                    width=6,
                ),
                time_series(
                    "Latency",
                    "What 50, 95 and 99 of 100 tool calls stay below, calls of get_inbox left out.",
                    "s",
                    *percentiles(t.OPERATION_DURATION, only=[TOOL_CALLS, EXCEPT_GET_INBOX]),
                    width=6,
                    links={"Tools": link_to("tools")},
                ),
                time_series(
                    "Saturation",
                    "How much of what there is is used: of memory, of Postgres's connections, of the disk, of the collector's queue.",
                    "percentunit",
                    Prom("max(handoff:memory:ratio)", "memory"),
                    Prom("handoff:database_connections:ratio", "connections"),
                    Prom("max(handoff:disk:ratio)", "disk"),
                    Prom("max(handoff:collector_queue:ratio)", "collector's queue"),
                    axis_max=1,
                    width=6,
                    links={"Database and cache": link_to("database")},
                ),
            ],
        ),
        (
            "What is firing, and what changed",
            [
                table_panel(
                    "Firing now",
                    "Alerts that fire, as Prometheus has them. Empty while all is well.",
                    Prom(f"{_FIRING} == 1"),
                    width=10,
                    height=9,
                    no_value="nothing fires",
                    columns={
                        "severity": "severity",
                        "alertname": "alert",
                        "component": "component",
                        "service_name": "service",
                        "exporter": "exporter",
                    },
                    links={"alert": {"What it means": "/d/handoff-runbook?${__url_time_range}"}},
                ),
                table_panel(
                    "What changed",
                    "Alerts that came and went, components that changed, processes that started, in the time shown.",
                    Sql(_CHANGES),
                    width=14,
                    height=9,
                    no_value="nothing changed",
                    units={"at": "dateTimeAsLocal"},
                ),
                time_series(
                    "Alerts",
                    "How many fire, by severity. Empty while none does.",
                    "short",
                    Prom(f"count by (severity) ({_FIRING})", "{{severity}}"),
                    names=_SEVERITIES,
                    width=8,
                    stacked=True,
                ),
                status_timeline(
                    "Components", "The worst that a process says of each.", Prom(_WORST, "{{component}}"), width=16, height=8
                ),
            ],
        ),
        (
            "The machine",
            [
                time_series(
                    "Disk",
                    "How much of the disk under the volumes is used.",
                    "percentunit",
                    Prom("handoff:disk:ratio", "{{mountpoint}}"),
                    steps=[(None, GOOD), (limit("disk_ratio"), WARN), (limit("disk_critical_ratio"), BAD)],
                    axis_max=1,
                    width=6,
                ),
                time_series(
                    "Processors",
                    "How busy they are, all of them together.",
                    "percentunit",
                    Prom('1 - avg(sum by (cpu) (system_cpu_utilization_ratio{state="idle"}))', "used"),
                    axis_max=1,
                    width=6,
                ),
                time_series(
                    "Memory",
                    "What the machine has, and what is left of it.",
                    "bytes",
                    Prom("max(system_linux_memory_available_bytes)", "available"),
                    Prom("sum(system_memory_usage_bytes)", "of"),
                    width=6,
                ),
                stat_panel(
                    "First certificate expires in",
                    "Of the addresses in CERTIFICATES. Empty while none is named there.",
                    "s",
                    Prom(f"min({series(t.CERTIFICATE_EXPIRY)}) - time()"),
                    width=6,
                    height=8,
                    no_value="none is looked at",
                    steps=lower_is_worse(limit("certificate_critical_seconds"), limit("certificate_seconds")),
                ),
            ],
        ),
    ],
)
