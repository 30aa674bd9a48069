"""What is unusual, why, what should be changed, and can the detector be relied on?"""

from typing import Final

from grafana.source.page import Page, label_variable, link_to
from grafana.source.panels import higher_is_worse, limit, stat_panel, table_panel, time_series, with_range
from grafana.source.promql import gauge, increase, label, live, matcher, series
from grafana.source.queries import Prom, Sql
from grafana.source.runbook import link_to_entry
from handoff.telemetry import metrics as t

_CHOSEN: Final = [matcher(t.SERIES_NAME, "$series")]
_JOBS: Final = 'handoff_job=~"rollup|promql|detect|incidents|recommend|trends"'
_VALUE, _LOWER, _UPPER = map(series, (t.SERIES_VALUE, t.SERIES_LOWER, t.SERIES_UPPER))
_NOT_WITHIN: Final = f"({_VALUE} and {_LOWER} unless {_VALUE} >= {_LOWER} <= {_UPPER})"
_OUTSIDE: Final = f"max by ({label(t.SERIES_NAME)}) ({live(_NOT_WITHIN, leader=True)})"
_INCIDENTS: Final = """
    SELECT id AS incident, severity, component AS cause, summary, anomalies, opened_at AS "opened", last_at AS "last anomaly",
           closed_at AS "closed", feedback
      FROM reporting.incident WHERE closed_at IS NULL OR $__timeFilter(closed_at)
     ORDER BY closed_at IS NOT NULL, opened_at DESC LIMIT 100"""
_ANOMALIES: Final = """
    SELECT bucket AS minute, severity, strength, CASE WHEN muted THEN 'muted' WHEN shadow THEN 'still learning' ELSE 'yes' END AS told,
           incident_id AS incident, sentence
      FROM reporting.anomaly WHERE $__timeFilter(bucket) ORDER BY bucket DESC, strength DESC LIMIT 100"""
_RECOMMENDATIONS: Final = """
    SELECT kind, subject, opened_at AS "open since", measured_at AS "measured", figure AS "figure at opening", figure_now AS "figure now"
      FROM reporting.recommendation WHERE closed_at IS NULL ORDER BY opened_at DESC LIMIT 100"""
_CAPACITY: Final = """
    SELECT figure ->> 'figure' AS figure, (figure ->> 'latest')::float8 AS latest, (ahead ->> 'in_days')::int AS "days ahead",
           (ahead ->> 'low')::float8 AS low, (ahead ->> 'expected')::float8 AS expected, (ahead ->> 'high')::float8 AS high,
           (figure ->> 'coverage_measured')::float8 AS coverage, (figure ->> 'limit')::float8 AS "limit",
           figure -> 'limit_reached' ->> 'earliest' AS "earliest at limit", figure -> 'limit_reached' ->> 'latest' AS "latest at limit"
      FROM reporting.conclusion, jsonb_array_elements(document -> 'forecasts') AS figure,
           jsonb_array_elements(figure -> 'ahead') AS ahead
     WHERE type = 'capacity' ORDER BY 1, 3 LIMIT 100"""
_FROM_PROMQL: Final = """
    SELECT name AS expression, count(DISTINCT id) AS "series", max(bucket) AS "newest minute"
      FROM reporting.series LEFT JOIN reporting.series_point ON series_id = id AND bucket > now() - interval '1 hour'
     WHERE name LIKE 'promql.%' GROUP BY name ORDER BY name LIMIT 20"""

PAGE: Final = Page(
    "analytics",
    "Analytics",
    "What is unusual, why, what should be changed, and can the detector be relied on?",
    rows=[
        (
            "At a glance",
            [
                stat_panel(
                    "Open incidents",
                    "Number of critical incidents that are open and, beside it, of all other open ones. An incident is what was unusual at about the same time in one part of the system.",
                    "short",
                    Prom(
                        f"{gauge(t.INCIDENTS_OPEN, aggregate='sum', only=[matcher(t.SEVERITY, 'critical', '=')])} or vector(0)",
                        "critical",
                    ),
                    Prom(
                        f"{gauge(t.INCIDENTS_OPEN, aggregate='sum', only=[matcher(t.SEVERITY, 'warning', '=')])} or vector(0)",
                        "others",
                    ),
                    steps=higher_is_worse(1),
                ),
                stat_panel(
                    "Anomalies told",
                    "Number of anomalies in the selected time range, without those of series that are still being learnt or that are muted.",
                    "short",
                    Prom(increase(t.ANOMALIES) + " or vector(0)"),
                ),
                stat_panel(
                    "Alert budget used",
                    "Anomalies told in the last 7 days, as a share of the alert budget. Beside it, that budget: anomalies per series and week, as analytics.alerts_per_series_week says.",
                    "percentunit",
                    Prom(f"{gauge(t.ALERT_BUDGET_USED)} or vector(0)", "used"),
                    Prom(f"{gauge(t.ALERT_BUDGET)} or vector(0)", "budget", "short"),
                ),
                stat_panel(
                    "Detector lag",
                    "Age of the newest minute that the detector has judged. Empty until it has judged one.",
                    "s",
                    Prom(gauge(t.DETECTOR_LAG)),
                    steps=higher_is_worse(limit("detector_lag_seconds")),
                ),
                stat_panel(
                    "Series",
                    "Number of series that are watched and, beside it, of those that are refused because there are as many as HANDOFF_SERIES_MAX allows.",
                    "short",
                    Prom(f"{gauge(t.SERIES)} or vector(0)", "watched"),
                    Prom(f"{gauge(t.SERIES_REFUSED)} or vector(0)", "refused", steps=higher_is_worse(1)),
                ),
                stat_panel(
                    "Expressions not read",
                    "Number of the expressions in monitoring.promql that Prometheus did not answer when they were last asked and, beside it, of those that it answers but has never had a value for.",
                    "short",
                    Prom(f"{gauge(t.PROMQL_FAILED)} or vector(0)", "not answered"),
                    Prom(f"{gauge(t.PROMQL_EMPTY)} or vector(0)", "never a value"),
                    steps=higher_is_worse(1),
                ),
            ],
        ),
        (
            "Expected range",
            [
                with_range(
                    time_series(
                        "Value and expected range",
                        "The selected series by the minute, in its own unit (events per minute, a share from 0 to 1, seconds, bytes), what was expected, and the range that would have been usual. Empty until a minute has been judged; the range is there after 40 points.",
                        "none",
                        Prom(gauge(t.SERIES_VALUE, only=_CHOSEN), "value"),
                        Prom(gauge(t.SERIES_EXPECTED, only=_CHOSEN), "expected"),
                        Prom(gauge(t.SERIES_LOWER, only=_CHOSEN), "lower"),
                        Prom(gauge(t.SERIES_UPPER, only=_CHOSEN), "upper"),
                        width=16,
                        height=10,
                    ),
                    "lower",
                    "upper",
                ),
                table_panel(
                    "Outside of the expected range",
                    "Series whose newest minute is not in its usual range. One minute is often noise; an anomaly takes more. Empty while there is none.",
                    Prom(_OUTSIDE),
                    widths={"series": 0, "value": 120},
                    columns={label(t.SERIES_NAME): "series", "Value": "value"},
                    units={"value": "none"},
                    links={"series": {"Its values": link_to("analytics", series="${__data.fields.series:percentencode}")}},
                    nothing="all series are in their range",
                    sort=["series"],
                    width=8,
                    height=10,
                ),
            ],
        ),
        (
            "Incidents",
            [
                table_panel(
                    "Incidents",
                    "Those that are open, then those that closed in the selected time range. handoff://analytics/incidents has their ranked causes with evidence, and the admin tool explain_anomaly the points around them. Empty while there is none.",
                    Sql(_INCIDENTS),
                    widths={
                        "incident": 80,
                        "severity": 80,
                        "cause": 90,
                        "summary": 0,
                        "anomalies": 90,
                        "opened": 150,
                        "last anomaly": 150,
                        "closed": 150,
                        "feedback": 80,
                    },
                    links={"severity": {"Runbook": f"/d/handoff-runbook{link_to_entry('HandoffIncidentCritical')}"}},
                    nothing="no incident",
                    width=24,
                ),
                time_series(
                    "Open incidents by likeliest cause",
                    "Number of open incidents, by severity and by the part where the likeliest cause is. Empty while there is none.",
                    "short",
                    Prom(
                        f"{gauge(t.INCIDENTS_OPEN, t.SEVERITY, t.PART)} > 0",
                        f"{{{{{label(t.SEVERITY)}}}}}, {{{{{label(t.PART)}}}}}",
                    ),
                    many=True,
                    width=12,
                ),
                time_series(
                    "Anomalies by kind of series",
                    "Number of anomalies told in the interval of each point, by kind of series and severity. Empty until there is one.",
                    "short",
                    Prom(
                        increase(t.ANOMALIES, t.SERIES_KIND, t.SEVERITY, over="$__rate_interval"),
                        f"{{{{{label(t.SERIES_KIND)}}}}}, {{{{{label(t.SEVERITY)}}}}}",
                    ),
                    many=True,
                    width=12,
                ),
                table_panel(
                    "Anomalies",
                    "What was unusual in the selected time range, the newest first, including what notified nobody. Empty while there is nothing.",
                    Sql(_ANOMALIES),
                    widths={"minute": 150, "severity": 80, "strength": 80, "told": 110, "incident": 80, "sentence": 0},
                    units={"strength": "none"},
                    nothing="nothing was unusual",
                    width=24,
                ),
            ],
        ),
        (
            "Recommendations",
            [
                table_panel(
                    "Open recommendations",
                    "What to change, the newest first; the figures are worse the higher they are. handoff://analytics/recommendations has the evidence and what to do. Empty while there is none.",
                    Sql(_RECOMMENDATIONS),
                    widths={
                        "kind": 150,
                        "subject": 0,
                        "open since": 170,
                        "measured": 170,
                        "figure at opening": 140,
                        "figure now": 120,
                    },
                    nothing="nothing is recommended",
                    width=24,
                ),
                time_series(
                    "Open recommendations by kind",
                    "Number of recommendations that are open, by kind; measured every 10 minutes.",
                    "short",
                    Prom(gauge(t.RECOMMENDATIONS, t.RECOMMENDATION), f"{{{{{label(t.RECOMMENDATION)}}}}}"),
                    many=True,
                    width=24,
                ),
            ],
        ),
        (
            "Forecasts",
            [
                table_panel(
                    "Capacity",
                    "What is expected 7, 30 and 90 days ahead: bytes of all tables, the others per day; low and high are the ends of the interval. Coverage is the share of the past that was within it. Computed once an hour. Empty for the first 14 days.",
                    Sql(_CAPACITY),
                    widths={
                        "figure": 0,
                        "latest": 140,
                        "days ahead": 90,
                        "low": 140,
                        "expected": 140,
                        "high": 140,
                        "coverage": 90,
                        "limit": 140,
                        "earliest at limit": 140,
                        "latest at limit": 140,
                    },
                    units={"coverage": "percentunit"},
                    links={"limit": {"Lifecycle": link_to("lifecycle")}},
                    nothing="fewer than 14 days are known",
                    width=24,
                ),
            ],
        ),
        (
            "The detector",
            [
                time_series(
                    "Detector lag over time",
                    "Age of the newest minute that the detector has judged. Empty until it has judged one.",
                    "s",
                    Prom(gauge(t.DETECTOR_LAG), "lag"),
                    steps=higher_is_worse(limit("detector_lag_seconds")),
                ),
                time_series(
                    "Time since the last success",
                    "Time since each job of the analytics last succeeded. An hour is normal for trends, 10 minutes for recommend, and a minute for the others.",
                    "s",
                    Prom(
                        f"time() - max by ({label(t.JOB)}) ({series(t.JOB_LAST_SUCCESS)}{{{_JOBS}}})",
                        f"{{{{{label(t.JOB)}}}}}",
                    ),
                    many=True,
                    links={"Log lines": link_to("logs", service="handoff-worker")},
                ),
                time_series(
                    "Series over time",
                    "Number of series that are watched, refused, and left out of the expected ranges above.",
                    "short",
                    Prom(f"{gauge(t.SERIES)} or vector(0)", "watched"),
                    Prom(f"{gauge(t.SERIES_REFUSED)} or vector(0)", "refused"),
                    Prom(f"{gauge(t.SERIES_LEFT_OUT)} or vector(0)", "left out"),
                    many=True,
                ),
                time_series(
                    "Expressions not read, over time",
                    "Number of the expressions in monitoring.promql that Prometheus did not answer when they were last asked, and of those that it answers but has never had a value for.",
                    "short",
                    Prom(f"{gauge(t.PROMQL_FAILED)} or vector(0)", "not answered"),
                    Prom(f"{gauge(t.PROMQL_EMPTY)} or vector(0)", "never a value"),
                    links={"Log lines": link_to("logs", service="handoff-worker")},
                    width=12,
                ),
                table_panel(
                    "Series from Prometheus",
                    "The series that the expressions in monitoring.promql gave, and the newest minute that was read in the last hour. Empty until one was read.",
                    Sql(_FROM_PROMQL),
                    widths={"expression": 0, "series": 80, "newest minute": 170},
                    nothing="none was read",
                    width=12,
                ),
            ],
        ),
    ],
    variables=[
        label_variable(
            "series",
            "Series",
            "The series whose expected range is shown; of those with a number, reporting.series has the labels.",
            t.SERIES_NAME,
            series(t.SERIES_VALUE),
            first="handoffs.offered",
        )
    ],
    time_from="now-6h",
)
