"""Does the service look after itself: do the jobs run, is anything damaged, and how long will the storage last?"""

from typing import Final, get_args

from grafana.source.page import Page, link_to
from grafana.source.panels import GOOD, WARN, higher_is_worse, limit, stat_panel, table_panel, time_series
from grafana.source.promql import gauge, increase, label, rate
from grafana.source.queries import Prom, Sql
from handoff.model import SessionStatus
from handoff.telemetry import metrics as t

_FULL_IN: Final = gauge(t.STORAGE_FULL_IN, aggregate="min")
_JOBS: Final = """
    SELECT name AS job, runs, failures, mean_s AS "mean", last_s AS "last", last_success_at AS "last success", last_error AS "last error",
           next_run_at AS "next run", paused_by AS "paused by"
      FROM reporting.job ORDER BY name LIMIT 100"""
_QUARANTINE: Final = """
    SELECT session_id AS session, reason, sequence AS entry, found_at AS "found"
      FROM reporting.quarantine ORDER BY found_at DESC LIMIT 100"""

PAGE: Final = Page(
    "lifecycle",
    "Lifecycle",
    "Does the service look after itself: do the jobs run, is anything damaged, and how long will the storage last?",
    rows=[
        (
            "At a glance",
            [
                stat_panel(
                    "Failed runs",
                    "Number of job runs that failed in the selected time range.",
                    "short",
                    Prom(increase(t.JOB_DURATION, only=('outcome!="ok"',)) + " or vector(0)"),
                    steps=higher_is_worse(1),
                    width=5,
                ),
                stat_panel(
                    "Jobs paused",
                    "Number of jobs that an operator has paused.",
                    "short",
                    Prom(gauge(t.JOBS_PAUSED)),
                    steps=higher_is_worse(1),
                    width=5,
                ),
                stat_panel(
                    "In quarantine",
                    "Number of sessions that were set aside because something in them does not fit.",
                    "short",
                    Prom(gauge(t.QUARANTINED, aggregate="sum")),
                    steps=higher_is_worse(1),
                    width=5,
                ),
                stat_panel(
                    "Storage",
                    "What all tables take on disk, with their indexes; measured once an hour.",
                    "bytes",
                    Prom(gauge(t.STORAGE_SIZE, aggregate="sum")),
                    width=5,
                ),
                stat_panel(
                    "Limit reached in",
                    "Time until the tables reach HANDOFF_STORAGE_BYTES_MAX at the growth of the last 7 days. Empty without a limit, without growth, and in the first day.",
                    "s",
                    Prom(_FULL_IN),
                    steps=[(None, WARN), (limit("storage_forecast_seconds"), GOOD)],
                    width=4,
                ),
            ],
        ),
        (
            "Sessions",
            [
                time_series(
                    "Sessions by status",
                    "Number of sessions, by status.",
                    "short",
                    Prom(gauge(t.SESSIONS, t.STATUS, aggregate="sum"), f"{{{{{label(t.STATUS)}}}}}"),
                    names=get_args(SessionStatus),
                    width=24,
                ),
            ],
        ),
        (
            "Jobs",
            [
                table_panel(
                    "All jobs",
                    "What each job did since it first ran, and when it runs next. Empty until a job has run.",
                    Sql(_JOBS),
                    widths={
                        "job": 120,
                        "runs": 90,
                        "failures": 90,
                        "mean": 90,
                        "last": 90,
                        "last success": 170,
                        "last error": 0,
                        "next run": 170,
                        "paused by": 120,
                    },
                    units={"mean": "s", "last": "s"},
                    nothing="no job has run yet",
                    width=24,
                ),
                time_series(
                    "Failed runs by job",
                    "Number of failed runs in the interval of each point, by job. Empty until a run fails.",
                    "short",
                    Prom(
                        increase(t.JOB_DURATION, t.JOB, only=('outcome!="ok"',), over="$__rate_interval"),
                        f"{{{{{label(t.JOB)}}}}}",
                    ),
                    many=True,
                    links={"Log lines": link_to("logs", service="handoff-worker")},
                    width=12,
                ),
                time_series(
                    "Rows deleted",
                    "Rows that were deleted because their time was over, per second, by table. Empty until one is deleted.",
                    "ops",
                    Prom(rate(t.ROWS_DELETED, t.TABLE), f"{{{{{label(t.TABLE)}}}}}"),
                    many=True,
                    width=12,
                ),
            ],
        ),
        (
            "Webhooks",
            [
                time_series(
                    "Attempts by outcome",
                    "Attempts to deliver a webhook, per second, by outcome; dead is the last one. Empty without endpoints.",
                    "ops",
                    Prom(rate(t.WEBHOOK_DELIVERIES, t.DELIVERY), f"{{{{{label(t.DELIVERY)}}}}}"),
                    many=True,
                ),
                time_series(
                    "Pending and given up",
                    "Webhooks that are yet to be delivered, and those given up in the last 30 days. Empty without endpoints.",
                    "short",
                    Prom(gauge(t.WEBHOOKS_PENDING), "pending"),
                    Prom(gauge(t.WEBHOOKS_DEAD), "given up"),
                    many=True,
                ),
                time_series(
                    "Oldest pending webhook",
                    "Age of the oldest webhook that is yet to be delivered. Empty without endpoints.",
                    "s",
                    Prom(gauge(t.WEBHOOK_OLDEST), "age"),
                ),
            ],
        ),
        (
            "Damage",
            [
                table_panel(
                    "Quarantine",
                    "Sessions that were set aside, the newest first, and the entry at which the damage was found. Empty while nothing is damaged.",
                    Sql(_QUARANTINE),
                    widths={"session": 120, "reason": 0, "entry": 90, "found": 170},
                    nothing="nothing is damaged",
                ),
                time_series(
                    "Entries checked",
                    "Entries compared with their hash, sequence number and receipt, per second.",
                    "ops",
                    Prom(rate(t.ENTRIES_CHECKED), "entries"),
                    width=12,
                ),
            ],
        ),
        (
            "Storage",
            [
                time_series(
                    "Size by table",
                    "What each table takes on disk, with its indexes; the archive counts as one.",
                    "bytes",
                    Prom(gauge(t.STORAGE_SIZE, t.TABLE), f"{{{{{label(t.TABLE)}}}}}"),
                    many=True,
                ),
                time_series(
                    "Growth per day",
                    "Growth of all tables per day, over the last 7 days. Below 0 they shrink.",
                    "bytes",
                    Prom(gauge(t.STORAGE_GROWTH), "growth"),
                ),
                time_series(
                    "Forecast",
                    "What all tables take now and, at the present growth, in 14 days, and the limit. The limit is 0 if there is none.",
                    "bytes",
                    Prom(gauge(t.STORAGE_SIZE, aggregate="sum"), "now"),
                    Prom(f"{gauge(t.STORAGE_SIZE, aggregate='sum')} + 14 * {gauge(t.STORAGE_GROWTH)}", "in 14 days"),
                    Prom(gauge(t.STORAGE_LIMIT), "limit"),
                    many=True,
                ),
            ],
        ),
    ],
    time_from="now-24h",
)
