"""How much context is written, how large is it, and what is left out of briefs?"""

from typing import Final, get_args

from grafana.source.page import Page, choice_variable
from grafana.source.panels import (
    BAD,
    GOOD,
    WARN,
    heatmap_panel,
    limit,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import bucket_counts, gauge, increase, label, matcher, quantile, rate, series
from grafana.source.queries import Prom, Sql, percentiles
from handoff.model import EntryType
from handoff.telemetry import metrics as t

_TYPE: Final = (matcher(t.ENTRY_TYPE, "$entry"),)
_ENTRY_TYPE: Final = label(t.ENTRY_TYPE)
_LARGEST_SESSIONS: Final = """
    SELECT id AS session, owner, status, last_sequence AS entries, content_bytes AS bytes, last_activity_at AS "last used"
      FROM reporting.session ORDER BY content_bytes DESC LIMIT 50"""
_WRITTEN: Final = """
    SELECT $__timeGroupAlias(created_at, $__interval), type AS metric, sum(size_bytes)::float8 AS value
      FROM reporting.context_entry WHERE $__timeFilter(created_at) AND type IN (${entry:sqlstring})
     GROUP BY 1, 2 ORDER BY 1"""
_FREE: Final = 'system_filesystem_usage_bytes{service_name="host", state="free"}'
_DISK_SIZE: Final = 'sum by (mountpoint) (system_filesystem_usage_bytes{service_name="host"})'
_TABLE_NAME: Final = "postgresql_table_name"

PAGE: Final = Page(
    "context",
    "Context and storage",
    "How much context is written, how large is it, and what is left out of briefs?",
    variables=[choice_variable("entry", "Entry type", "The types of entry to show.", get_args(EntryType))],
    rows=[
        (
            "At a glance",
            [
                stat_panel(
                    "Entries per second",
                    "Entries appended per second, counted after commit.",
                    "recps",
                    Prom(rate(t.ENTRIES, only=_TYPE)),
                ),
                stat_panel(
                    "Bytes per second",
                    "Content appended, in bytes per second.",
                    "Bps",
                    Prom(rate(t.ENTRY_SIZE, only=_TYPE, part="sum")),
                ),
                stat_panel(
                    "Entry size p95",
                    "95th percentile of the size of entries appended in the selected time range.",
                    "bytes",
                    Prom(quantile(0.95, t.ENTRY_SIZE, only=_TYPE, over="$__range")),
                    steps=[(None, GOOD), (100_000, WARN)],
                ),
                stat_panel(
                    "Database size",
                    "Size of the database on disk, as reported by Postgres.",
                    "bytes",
                    Prom("sum(postgresql_db_size_bytes)"),
                ),
                stat_panel(
                    "Disk usage",
                    "Used share of the disk that holds the volumes.",
                    "percentunit",
                    Prom("max(handoff:disk:ratio)"),
                    steps=[(None, GOOD), (limit("disk_ratio"), WARN), (limit("disk_critical_ratio"), BAD)],
                ),
                stat_panel(
                    "Brief size p95",
                    "95th percentile of the size of briefs returned in the selected time range, in tokens. Empty if none was returned.",
                    "short",
                    Prom(quantile(0.95, t.BRIEF_SIZE, over="$__range")),
                ),
            ],
        ),
        (
            "Writes",
            [
                time_series(
                    "Entries",
                    "Entries appended per second, by type.",
                    "recps",
                    Prom(rate(t.ENTRIES, t.ENTRY_TYPE, only=_TYPE), f"{{{{{_ENTRY_TYPE}}}}}"),
                    stacked=True,
                ),
                time_series(
                    "Entry size",
                    "Size of entries appended: 50th, 95th and 99th percentile. Dotted, on the right axis: entries with more than 100 KB of content per second.",
                    "bytes",
                    *percentiles(t.ENTRY_SIZE, only=_TYPE),
                    Prom(rate(t.LARGE_ENTRIES, only=_TYPE) + " or vector(0)", "above 100 KB", unit="recps"),
                ),
                heatmap_panel(
                    "Entry size: distribution",
                    "Number of entries appended, by size.",
                    "bytes",
                    Prom(bucket_counts(t.ENTRY_SIZE, _TYPE), "{{le}}"),
                    width=8,
                ),
                time_series(
                    "Content written",
                    "Size of the content written in each interval of the graph, by type. Content that has since been deleted is not counted.",
                    "bytes",
                    Sql(_WRITTEN),
                    width=6,
                ),
                time_series(
                    "Appends per statement",
                    "Number of appends written by one SQL statement: 50th, 95th and 99th percentile. Above 1 under load.",
                    "short",
                    *percentiles(t.APPEND_BATCH),
                    width=6,
                ),
                time_series(
                    "Appends waiting",
                    "Number of appends waiting to be written by the next statement.",
                    "short",
                    Prom(gauge(t.APPENDS_WAITING, aggregate="sum"), "waiting"),
                    width=6,
                ),
                time_series(
                    "Secrets redacted",
                    "Secrets that were redacted in what agents wrote, by kind. Empty if there were none. An agent that has them often pastes what it should refer to.",
                    "short",
                    Prom(increase(t.SECRETS_REDACTED, t.SECRET, over="$__interval"), "{{handoff_secret_kind}}"),
                    width=6,
                ),
            ],
        ),
        (
            "Briefs",
            [
                time_series("Briefs", "Briefs returned per second.", "recps", Prom(rate(t.BRIEF_SIZE), "briefs"), width=8),
                time_series(
                    "Brief size",
                    "Size of briefs returned, in tokens: 50th, 95th and 99th percentile. Empty while none is returned.",
                    "short",
                    *percentiles(t.BRIEF_SIZE),
                    width=8,
                ),
                time_series(
                    "Entries left out of briefs",
                    "Entries per second for which a brief had no room.",
                    "recps",
                    Prom(rate(t.BRIEF_OMITTED), "entries"),
                    width=8,
                ),
            ],
        ),
        (
            "Storage",
            [
                time_series(
                    "Table size",
                    "Size on disk of the six largest tables.",
                    "bytes",
                    Prom(f"topk(6, max by ({_TABLE_NAME}) (postgresql_table_size_bytes))", f"{{{{{_TABLE_NAME}}}}}"),
                    many=True,
                    width=8,
                ),
                time_series(
                    "Table rows",
                    "Number of live rows in the six tables with the most.",
                    "short",
                    Prom(f'topk(6, max by ({_TABLE_NAME}) (postgresql_rows{{state="live"}}))', f"{{{{{_TABLE_NAME}}}}}"),
                    many=True,
                    width=8,
                ),
                time_series(
                    "Free disk space",
                    "Disk space that is free, and that would be free 24 hours later if the trend of the previous 6 hours continued; for this the disk must have been watched for an hour.",
                    "bytes",
                    Prom(f"min({_FREE})", "free"),
                    Prom(
                        f"min(clamp(predict_linear({_FREE}[6h], 86400) and {_FREE} offset 1h, 0, scalar(max({_DISK_SIZE}))))",
                        "in 24 hours",
                    ),
                    width=8,
                ),
                table_panel(
                    "Largest sessions",
                    "The 50 sessions with the most content, in bytes.",
                    Sql(_LARGEST_SESSIONS),
                    width=16,
                    widths={"session": 100, "owner": 0, "status": 100, "entries": 100, "bytes": 110, "last used": 190},
                    units={"bytes": "bytes", "last used": "dateTimeAsLocal"},
                ),
                stat_panel(
                    "Entries appended",
                    "Number of entries appended in the selected time range, counted after commit.",
                    "short",
                    Prom(increase(t.ENTRIES, only=_TYPE)),
                    width=4,
                    height=8,
                ),
                stat_panel(
                    "Mean entry size",
                    "Mean size of the entries appended in the selected time range.",
                    "bytes",
                    Prom(
                        f"sum(increase({series(t.ENTRY_SIZE, 'sum')}{{{_TYPE[0]}}}[$__range])) / {increase(t.ENTRY_SIZE, only=_TYPE)}"
                    ),
                    width=4,
                    height=8,
                ),
            ],
        ),
    ],
)
