"""Can what we see be trusted: do metrics, traces, logs and alerts arrive, and do the jobs run?"""

from typing import Final

from grafana.source.page import Page, to
from grafana.source.panels import BAD, GOOD, WATCH, Prom, figure, limit, lines, rising, rows
from grafana.source.promql import label, now, quantile, rate, series
from handoff.telemetry import metrics as t

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
                figure(
                    "Targets that are down",
                    "Programs that Prometheus can't scrape.",
                    "short",
                    Prom("count(up == 0) or vector(0)"),
                    steps=rising(1),
                    width=4,
                ),
                figure(
                    "Fullest queue",
                    "Of the collector's, one for each back end.",
                    "percentunit",
                    Prom(f"max({_QUEUES})"),
                    steps=rising(limit("collector_queue_ratio") / 2, limit("collector_queue_ratio")),
                    width=4,
                ),
                figure(
                    "Dropped",
                    "Records that service and worker gave up, in the time shown.",
                    "short",
                    Prom(f"sum(increase({series(t.SIGNAL_DROPPED)}[$__range]))"),
                    steps=rising(1),
                    width=4,
                ),
                figure(
                    "Heartbeat",
                    "How long ago the rules were evaluated of which Alertmanager told us last.",
                    "s",
                    Prom(now(t.WATCHDOG_AGE, how="min")),
                    steps=rising(180, 240),
                    width=4,
                ),
                figure(
                    "Rules that fail",
                    "Evaluations in the time shown that failed.",
                    "short",
                    Prom("sum(increase(prometheus_rule_evaluation_failures_total[$__range]))"),
                    steps=rising(1),
                    width=4,
                ),
                figure(
                    "Oldest job",
                    "How long ago the job was last done that is furthest behind, of those that run all the time.",
                    "s",
                    Prom(
                        f'max(time() - max by ({_JOB}) ({series(t.JOB_LAST_SUCCESS)}{{{_JOB}=~"settle|measure|heartbeat"}}))'
                    ),
                    steps=rising(60, limit("jobs_age_seconds")),
                    width=4,
                ),
            ],
        ),
        (
            "From service and worker to the collector",
            [
                lines(
                    "Sent",
                    "Records a second, by signal.",
                    "recps",
                    Prom(f"sum by (signal) (rate({series(t.SIGNAL_SENT)}[$__rate_interval]))", "{{signal}}"),
                ),
                lines(
                    "Waiting to be sent",
                    "Records, by signal.",
                    "short",
                    Prom(now(t.SIGNAL_QUEUE, t.SIGNAL, how="sum"), "{{signal}}"),
                ),
                lines(
                    "Dropped",
                    "Records a second, by signal: each should be 0.",
                    "recps",
                    Prom(f"sum by (signal) (rate({series(t.SIGNAL_DROPPED)}[$__rate_interval]))", "{{signal}}"),
                ),
                lines(
                    "Not answered for",
                    "How long the collector has not answered, by signal.",
                    "s",
                    Prom(now(t.SIGNAL_AWAY, t.SIGNAL), "{{signal}}"),
                    width=12,
                ),
                lines(
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
                lines(
                    "Received",
                    "Spans, points and lines a second.",
                    "recps",
                    Prom(_signals("sum", "receiver_accepted"), "{{signal}}"),
                    width=6,
                ),
                lines(
                    "Sent on",
                    "A second, by back end.",
                    "recps",
                    Prom(_signals("sum by (exporter)", "exporter_sent"), "{{exporter}}"),
                    width=6,
                ),
                lines(
                    "Queues",
                    "How full each is. It is on disk, and outlives a restart.",
                    "percentunit",
                    Prom(_QUEUES, "{{exporter}} {{data_type}}"),
                    steps=[(None, GOOD), (limit("collector_queue_ratio"), WATCH)],
                    top=1,
                    width=6,
                ),
                lines(
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
                rows(
                    "Targets",
                    "What Prometheus scrapes: 1 answers, 0 does not. The service and worker are scraped only to see whether they answer.",
                    Prom("max by (job, instance, kind) (up)"),
                    width=8,
                    height=9,
                    columns={"job": "job", "kind": "kind", "instance": "instance", "Value": "up"},
                    steps={"up": [(None, BAD), (1, GOOD)]},
                ),
                lines(
                    "Samples",
                    "Taken in, a second.",
                    "recps",
                    Prom("sum(rate(prometheus_tsdb_head_samples_appended_total[$__rate_interval]))", "samples"),
                    Prom("max(prometheus_tsdb_head_series)", "series", unit="short"),
                    width=8,
                    height=9,
                ),
                lines(
                    "Notifications",
                    "That Alertmanager sent, and those that failed, a second.",
                    "mps",
                    Prom("sum(rate(alertmanager_notifications_total[$__rate_interval]))", "sent"),
                    Prom("sum(rate(alertmanager_notifications_failed_total[$__rate_interval]))", "failed"),
                    width=8,
                    height=9,
                ),
                lines(
                    "Alerts that were stored",
                    "From notifications, after commit, in the time of a point. Empty until one was.",
                    "short",
                    Prom(f"sum by (status) (increase({series(t.ALERT_NOTIFICATIONS)}[$__rate_interval]))", "{{status}}"),
                    width=8,
                ),
                lines(
                    "Evaluation of rules",
                    "How long each group's last took.",
                    "s",
                    Prom(
                        'max by (group) (label_replace(prometheus_rule_group_last_duration_seconds, "group", "$1", "rule_group", ".*;(.*)"))',
                        "{{group}}",
                    ),
                    width=8,
                ),
                lines(
                    "Age of the heartbeat",
                    "It comes every minute; at the limit the worker tells of the silence by another way.",
                    "s",
                    Prom(now(t.WATCHDOG_AGE, how="min"), "age"),
                    steps=[(None, GOOD), (240, BAD)],
                    width=8,
                ),
            ],
        ),
        (
            "The worker's jobs",
            [
                lines(
                    "Since a job was done",
                    "How long ago each last was.",
                    "s",
                    Prom(_SINCE, f"{{{{{_JOB}}}}}"),
                    steps=[(None, GOOD), (limit("jobs_age_seconds"), BAD)],
                ),
                lines(
                    "Jobs",
                    "A second, by how they went.",
                    "ops",
                    Prom(rate(t.JOB_DURATION, t.OUTCOME), "{{outcome}}"),
                    names=["ok", "error"],
                    links={"Log lines": to("logs", service="handoff-worker")},
                ),
                lines(
                    "Duration of jobs",
                    "What 95 of 100 stay below.",
                    "s",
                    Prom(quantile(0.95, t.JOB_DURATION, t.JOB), f"{{{{{_JOB}}}}}"),
                ),
                lines(
                    "Leaders",
                    "Processes that do the jobs: exactly 1.",
                    "short",
                    Prom(now(t.LEADER, how="sum"), "leaders"),
                    width=8,
                ),
                lines(
                    "Age of the measurements",
                    "Of sessions, handoffs and inboxes: how long ago the database was measured.",
                    "s",
                    Prom(f"time() - max({series(t.MEASURED_AT)})", "age"),
                    width=8,
                ),
                lines(
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
