"""Can the telemetry be trusted: do metrics, traces, logs and alerts arrive, and are the worker's jobs running?"""

from typing import Final

from grafana.source.page import Page, link_to
from grafana.source.panels import (
    BAD,
    GOOD,
    WARN,
    higher_is_worse,
    limit,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import gauge, label, quantile, rate, series
from grafana.source.queries import Prom
from handoff.telemetry import metrics as t

_JOB_NAME: Final = label(t.JOB)
_STEADY_JOBS: Final = "settle|measure|heartbeat"  # the alert on stalled jobs is about these
_QUEUE_RATIO: Final = "handoff:collector_queue:ratio"


def _since_success(jobs: str) -> str:
    return f"time() - max by ({_JOB_NAME}) ({series(t.JOB_LAST_SUCCESS)}{{{jobs}}})"


def _by_signal(aggregation: str, counter: str) -> str:
    """Rate of a collector counter that exists once per signal, with the signal added as a label."""
    return " or ".join(
        f'label_replace({aggregation} (rate(otelcol_{counter}_{signal}_total[$__rate_interval])), "signal", "{signal}", "", "")'
        for signal in ("spans", "metric_points", "log_records")
    )


PAGE: Final = Page(
    "pipeline",
    "Telemetry pipeline",
    "Can the telemetry be trusted: do metrics, traces, logs and alerts arrive, and are the worker's jobs running?",
    rows=[
        (
            "At a glance",
            [
                stat_panel(
                    "Targets down",
                    "Number of scrape targets that Prometheus can't reach.",
                    "short",
                    Prom("count(up == 0) or vector(0)"),
                    steps=higher_is_worse(1),
                    width=4,
                ),
                stat_panel(
                    "Fullest queue",
                    "How full the fullest of the collector's export queues is.",
                    "percentunit",
                    Prom(f"max({_QUEUE_RATIO})"),
                    steps=higher_is_worse(limit("collector_queue_ratio")),
                    width=4,
                ),
                stat_panel(
                    "Records dropped",
                    "Number of telemetry records that the service and the worker dropped in the selected time range.",
                    "short",
                    Prom(f"sum(increase({series(t.SIGNAL_DROPPED)}[$__range]))"),
                    steps=higher_is_worse(1),
                    width=4,
                ),
                stat_panel(
                    "Heartbeat age",
                    "Time since Prometheus evaluated the Watchdog rule whose notification the service received last.",
                    "s",
                    Prom(gauge(t.WATCHDOG_AGE, aggregate="min")),
                    steps=higher_is_worse(180, 240),
                    width=4,
                ),
                stat_panel(
                    "Rule failures",
                    "Number of rule evaluations in Prometheus that failed in the selected time range.",
                    "short",
                    Prom("sum(increase(prometheus_rule_evaluation_failures_total[$__range]))"),
                    steps=higher_is_worse(1),
                    width=4,
                ),
                stat_panel(
                    "Job furthest behind",
                    "Longest time since one of the jobs that run all the time (settle, measure, heartbeat) last succeeded.",
                    "s",
                    Prom(f"""max({_since_success(f'{_JOB_NAME}=~"{_STEADY_JOBS}"')})"""),
                    steps=higher_is_worse(limit("jobs_age_seconds") / 2, limit("jobs_age_seconds")),
                    width=4,
                ),
            ],
        ),
        (
            "From the service and the worker to the collector",
            [
                time_series(
                    "Records sent",
                    "Telemetry records sent per second by the service and the worker, by signal.",
                    "recps",
                    Prom(f"sum by (signal) (rate({series(t.SIGNAL_SENT)}[$__rate_interval]))", "{{signal}}"),
                ),
                time_series(
                    "Records waiting",
                    "Number of telemetry records waiting to be sent, by signal.",
                    "short",
                    Prom(gauge(t.SIGNAL_QUEUE, t.SIGNAL, aggregate="sum"), "{{signal}}"),
                ),
                time_series(
                    "Records dropped",
                    "Telemetry records dropped per second, by signal, and minutes of the processes' history that the database did not take within three hours. Should be 0.",
                    "recps",
                    Prom(f"sum by (signal) (rate({series(t.SIGNAL_DROPPED)}[$__rate_interval]))", "{{signal}}"),
                    Prom(f"sum(rate({series(t.MINUTES_DROPPED)}[$__rate_interval])) or vector(0)", "minutes of history"),
                ),
                time_series(
                    "Time without an answer",
                    "How long the receiver of each signal has not been answering; 0 while it answers. The receiver is the collector, except for stdout.",
                    "s",
                    Prom(gauge(t.SIGNAL_AWAY, t.SIGNAL), "{{signal}}"),
                    width=12,
                ),
                time_series(
                    "Traces kept",
                    "Calls per second, by the reason why their trace was kept: asked (the caller samples it), noteworthy (the call failed, was slow or changed a handoff) or ordinary (a sample of the rest); no means not kept.",
                    "reqps",
                    Prom(rate(t.CALLS_TRACED, t.KEPT), "{{kept}}"),
                    names=["asked", "noteworthy", "ordinary", "no"],
                    width=12,
                ),
            ],
        ),
        (
            "From the collector to the back ends",
            [
                time_series(
                    "Records received",
                    "Spans, metric points and log records received per second by the collector.",
                    "recps",
                    Prom(_by_signal("sum", "receiver_accepted"), "{{signal}}"),
                    width=6,
                ),
                time_series(
                    "Records exported",
                    "Spans, metric points and log records exported per second, by back end.",
                    "recps",
                    Prom(_by_signal("sum by (exporter)", "exporter_sent"), "{{exporter}}"),
                    width=6,
                ),
                time_series(
                    "Export queues",
                    "How full each export queue is, by back end and signal. The queues are on disk and survive a restart.",
                    "percentunit",
                    Prom(_QUEUE_RATIO, "{{exporter}} {{data_type}}"),
                    steps=[(None, GOOD), (limit("collector_queue_ratio"), WARN)],
                    axis_max=1,
                    width=6,
                ),
                time_series(
                    "Records refused",
                    "Records per second that the collector refused, by signal. The senders keep them and try again.",
                    "recps",
                    Prom(_by_signal("sum", "receiver_refused"), "{{signal}}"),
                    width=6,
                ),
            ],
        ),
        (
            "Prometheus and Alertmanager",
            [
                table_panel(
                    "Targets",
                    "Scrape targets of Prometheus: 1 is up, 0 is down. The service and the worker push their metrics; they are scraped only to see whether they answer.",
                    Prom("max by (job, instance, kind) (up)"),
                    width=8,
                    height=9,
                    columns={"Value": "up", "job": "job", "kind": "kind", "instance": "instance"},
                    widths={"up": 60, "job": 120, "kind": 90, "instance": 0},
                    sort=["up", "job"],
                    steps={"up": [(None, WARN), (1, GOOD)]},
                ),
                time_series(
                    "Samples and series",
                    "Samples stored per second by Prometheus. Dotted, on the right axis: number of series in memory.",
                    "recps",
                    Prom("sum(rate(prometheus_tsdb_head_samples_appended_total[$__rate_interval]))", "samples"),
                    Prom("max(prometheus_tsdb_head_series)", "series", unit="short"),
                    width=8,
                    height=9,
                ),
                time_series(
                    "Notifications",
                    "Notifications that Alertmanager attempted per second, and those that failed.",
                    "mps",
                    Prom("sum(rate(alertmanager_notifications_total[$__rate_interval]))", "attempted"),
                    Prom("sum(rate(alertmanager_notifications_failed_total[$__rate_interval]))", "failed"),
                    width=8,
                    height=9,
                ),
                time_series(
                    "Alerts stored",
                    "Number of alerts that the service stored from notifications, by status, counted after commit in the interval of each point. Empty until one is stored.",
                    "short",
                    Prom(f"sum by (status) (increase({series(t.ALERT_NOTIFICATIONS)}[$__rate_interval]))", "{{status}}"),
                    width=8,
                ),
                time_series(
                    "Rule evaluation time",
                    "Duration of the last evaluation of each rule group in Prometheus.",
                    "s",
                    Prom(
                        'max by (group) (label_replace(prometheus_rule_group_last_duration_seconds, "group", "$1", "rule_group", ".*;(.*)"))',
                        "{{group}}",
                    ),
                    many=True,
                    width=8,
                ),
                time_series(
                    "Heartbeat age",
                    "Time since the rule behind the last heartbeat was evaluated. A heartbeat arrives every minute; at the limit, the worker itself reports that alerting is down.",
                    "s",
                    Prom(gauge(t.WATCHDOG_AGE, aggregate="min"), "age"),
                    steps=[(None, GOOD), (240, BAD)],
                    width=8,
                ),
            ],
        ),
        (
            "Worker jobs",
            [
                time_series(
                    "Time since last success",
                    "Time since each of the jobs that run all the time (settle, measure, heartbeat) last succeeded.",
                    "s",
                    Prom(_since_success(f'{_JOB_NAME}=~"{_STEADY_JOBS}"'), f"{{{{{_JOB_NAME}}}}}"),
                    steps=[(None, GOOD), (limit("jobs_age_seconds"), BAD)],
                ),
                time_series(
                    "Time since last success: other jobs",
                    "Time since each of the other jobs last succeeded. They run at longer intervals or only when there is something to do.",
                    "s",
                    Prom(_since_success(f'{_JOB_NAME}!~"{_STEADY_JOBS}"'), f"{{{{{_JOB_NAME}}}}}"),
                    many=True,
                ),
                time_series(
                    "Job runs",
                    "Runs of jobs per second, by outcome.",
                    "ops",
                    Prom(rate(t.JOB_DURATION, t.OUTCOME), "{{outcome}}"),
                    names=["ok", "error"],
                    links={"Log lines": link_to("logs", service="handoff-worker")},
                ),
                time_series(
                    "Job duration p95",
                    "95th percentile of the duration of runs, by job.",
                    "s",
                    Prom(quantile(0.95, t.JOB_DURATION, t.JOB), f"{{{{{_JOB_NAME}}}}}"),
                    many=True,
                    width=6,
                ),
                time_series(
                    "Leaders",
                    "Number of processes that run the jobs. Should be exactly 1.",
                    "short",
                    Prom(gauge(t.LEADER, aggregate="sum"), "leaders"),
                    width=6,
                ),
                time_series(
                    "Age of measurements",
                    "Time since the worker last measured the sessions, handoffs and inboxes in the database.",
                    "s",
                    Prom("time() - " + gauge(t.MEASURED_AT), "age"),
                    width=6,
                ),
                time_series(
                    "Health changes",
                    "Number of changes of health, by component, in the interval of each point. Empty until one changes.",
                    "short",
                    Prom(f"sum by (component) (increase({series(t.HEALTH_CHANGES)}[$__rate_interval]))", "{{component}}"),
                    width=6,
                ),
            ],
        ),
    ],
)
