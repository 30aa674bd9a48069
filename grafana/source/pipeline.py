"""Can what we see be trusted: do metrics, traces, logs and alerts arrive, and do the jobs run?"""

from typing import Final

from grafana.source.page import Page, link_to
from grafana.source.panels import BAD, GOOD, WARN, Prom, higher_is_worse, limit, stat_panel, table_panel, time_series
from grafana.source.promql import gauge, label, quantile, rate, series
from handoff import telemetry as t

_JOB: Final = label(t.JOB)
_SINCE: Final = f"time() - max by ({_JOB}) ({series(t.JOB_LAST_SUCCESS)})"
_QUEUES: Final = "handoff:collector_queue:ratio"


def _signals(summed: str, counter: str) -> str:
    """What the collector counts of each signal by a counter of its own, told apart by a label."""
    return " or ".join(
        f'label_replace({summed} (rate(otelcol_{counter}_{it}_total[$__rate_interval])), "signal", "{it}", "", "")'
        for it in ("spans", "metric_points", "log_records")
    )


PAGE: Final = Page(
    "pipeline",
    "Telemetry pipeline",
    "Can what we see be trusted: do metrics, traces, logs and alerts arrive, and do the jobs run?",
    rows=[
        (
            "Is it well?",
            [
                stat_panel(
                    "Targets that are down",
                    "Programs that Prometheus can't scrape.",
                    "short",
                    Prom("count(up == 0) or vector(0)"),
                    steps=higher_is_worse(1),
                    width=4,
                ),
                stat_panel(
                    "Fullest queue",
                    "Of the collector's, one for each back end.",
                    "percentunit",
                    Prom(f"max({_QUEUES})"),
                    steps=higher_is_worse(limit("collector_queue_ratio") / 2, limit("collector_queue_ratio")),
                    width=4,
                ),
                stat_panel(
                    "Dropped",
                    "Records that service and worker gave up, in the time shown.",
                    "short",
                    Prom(f"sum(increase({series(t.SIGNAL_DROPPED)}[$__range]))"),
                    steps=higher_is_worse(1),
                    width=4,
                ),
                stat_panel(
                    "Heartbeat",
                    "How long ago the rules were evaluated of which Alertmanager told us last.",
                    "s",
                    Prom(gauge(t.WATCHDOG_AGE, aggregate="min")),
                    steps=higher_is_worse(180, 240),
                    width=4,
                ),
                stat_panel(
                    "Rules that fail",
                    "Evaluations in the time shown that failed.",
                    "short",
                    Prom("sum(increase(prometheus_rule_evaluation_failures_total[$__range]))"),
                    steps=higher_is_worse(1),
                    width=4,
                ),
                stat_panel(
                    "Oldest job",
                    "How long ago the job was last done that is furthest behind, of those that run all the time.",
                    "s",
                    Prom(
                        f'max(time() - max by ({_JOB}) ({series(t.JOB_LAST_SUCCESS)}{{{_JOB}=~"settle|measure|heartbeat"}}))'
                    ),
                    steps=higher_is_worse(60, limit("jobs_age_seconds")),
                    width=4,
                ),
            ],
        ),
        (
            "From service and worker to the collector",
            [
                time_series(
                    "Sent",
                    "Records a second, by signal.",
                    "recps",
                    Prom(f"sum by (signal) (rate({series(t.SIGNAL_SENT)}[$__rate_interval]))", "{{signal}}"),
                ),
                time_series(
                    "Waiting to be sent",
                    "Records, by signal.",
                    "short",
                    Prom(gauge(t.SIGNAL_QUEUE, t.SIGNAL, aggregate="sum"), "{{signal}}"),
                ),
                time_series(
                    "Dropped",
                    "Records a second, by signal: each should be 0.",
                    "recps",
                    Prom(f"sum by (signal) (rate({series(t.SIGNAL_DROPPED)}[$__rate_interval]))", "{{signal}}"),
                ),
                time_series(
                    "Not answered for",
                    "How long the collector has not answered, by signal.",
                    "s",
                    Prom(gauge(t.SIGNAL_AWAY, t.SIGNAL), "{{signal}}"),
                    width=12,
                ),
                time_series(
                    "Traces",
                    "Calls a second, by whether their trace is kept: all that fail or are slow, and a sample of the rest.",
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
                    "Received",
                    "Spans, points and lines a second.",
                    "recps",
                    Prom(_signals("sum", "receiver_accepted"), "{{signal}}"),
                    width=6,
                ),
                time_series(
                    "Sent on",
                    "A second, by back end.",
                    "recps",
                    Prom(_signals("sum by (exporter)", "exporter_sent"), "{{exporter}}"),
                    width=6,
                ),
                time_series(
                    "Queues",
                    "How full each is. It is on disk, and outlives a restart.",
                    "percentunit",
                    Prom(_QUEUES, "{{exporter}} {{data_type}}"),
                    steps=[(None, GOOD), (limit("collector_queue_ratio"), WARN)],
                    axis_max=1,
                    width=6,
                ),
                time_series(
                    "Refused",
                    "Records a second that the collector could not take, by signal: senders keep them and come again.",
                    "recps",
                    Prom(_signals("sum", "receiver_refused"), "{{signal}}"),
                    width=6,
                ),
            ],
        ),
        (
            "Prometheus and Alertmanager",
            [
                table_panel(
                    "Targets",
                    "What Prometheus scrapes: 1 answers, 0 does not. The service and worker are scraped only to see whether they answer.",
                    Prom("max by (job, instance, kind) (up)"),
                    width=8,
                    height=9,
                    columns={"job": "job", "kind": "kind", "instance": "instance", "Value": "up"},
                    steps={"up": [(None, BAD), (1, GOOD)]},
                ),
                time_series(
                    "Samples",
                    "Taken in, a second.",
                    "recps",
                    Prom("sum(rate(prometheus_tsdb_head_samples_appended_total[$__rate_interval]))", "samples"),
                    Prom("max(prometheus_tsdb_head_series)", "series", unit="short"),
                    width=8,
                    height=9,
                ),
                time_series(
                    "Notifications",
                    "That Alertmanager sent, and those that failed, a second.",
                    "mps",
                    Prom("sum(rate(alertmanager_notifications_total[$__rate_interval]))", "sent"),
                    Prom("sum(rate(alertmanager_notifications_failed_total[$__rate_interval]))", "failed"),
                    width=8,
                    height=9,
                ),
                time_series(
                    "Alerts that were stored",
                    "From notifications, after commit, in the time of a point. Empty until one was.",
                    "short",
                    Prom(f"sum by (status) (increase({series(t.ALERT_NOTIFICATIONS)}[$__rate_interval]))", "{{status}}"),
                    width=8,
                ),
                time_series(
                    "Evaluation of rules",
                    "How long each group's last took.",
                    "s",
                    Prom(
                        'max by (group) (label_replace(prometheus_rule_group_last_duration_seconds, "group", "$1", "rule_group", ".*;(.*)"))',
                        "{{group}}",
                    ),
                    width=8,
                ),
                time_series(
                    "Age of the heartbeat",
                    "It comes every minute; at the limit the worker tells of the silence by another way.",
                    "s",
                    Prom(gauge(t.WATCHDOG_AGE, aggregate="min"), "age"),
                    steps=[(None, GOOD), (240, BAD)],
                    width=8,
                ),
            ],
        ),
        (
            "The worker's jobs",
            [
                time_series(
                    "Since a job was done",
                    "How long ago each last was.",
                    "s",
                    Prom(_SINCE, f"{{{{{_JOB}}}}}"),
                    steps=[(None, GOOD), (limit("jobs_age_seconds"), BAD)],
                ),
                time_series(
                    "Jobs",
                    "A second, by how they went.",
                    "ops",
                    Prom(rate(t.JOB_DURATION, t.OUTCOME), "{{outcome}}"),
                    names=["ok", "error"],
                    links={"Log lines": link_to("logs", service="handoff-worker")},
                ),
                time_series(
                    "Duration of jobs",
                    "What 95 of 100 stay below.",
                    "s",
                    Prom(quantile(0.95, t.JOB_DURATION, t.JOB), f"{{{{{_JOB}}}}}"),
                ),
                time_series(
                    "Leaders",
                    "Processes that do the jobs: exactly 1.",
                    "short",
                    Prom(gauge(t.LEADER, aggregate="sum"), "leaders"),
                    width=8,
                ),
                time_series(
                    "Age of the measurements",
                    "Of sessions, handoffs and inboxes: how long ago the database was measured.",
                    "s",
                    Prom(f"time() - max({series(t.MEASURED_AT)})", "age"),
                    width=8,
                ),
                time_series(
                    "Health changes",
                    "Of components, in the time of a point. Empty until one changed.",
                    "short",
                    Prom(f"sum by (component) (increase({series(t.HEALTH_CHANGES)}[$__rate_interval]))", "{{component}}"),
                    width=8,
                ),
            ],
        ),
    ],
)
