"""How much context is written, how large is it, and what do briefs leave out?"""

from typing import Final, get_args

from grafana.source.page import Page, choice_variable
from grafana.source.panels import (
    BAD,
    GOOD,
    WARN,
    Prom,
    Sql,
    heatmap_panel,
    limit,
    percentiles,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import bucket_counts, gauge, increase, label, matcher, quantile, rate, series
from handoff import telemetry as t
from handoff.model import EntryType

_TYPE: Final = (matcher(t.ENTRY_TYPE, "$entry"),)
_ENTRY: Final = label(t.ENTRY_TYPE)
_LARGEST: Final = """
    SELECT id AS session, owner, status, last_sequence AS entries, content_bytes AS bytes, last_activity_at AS "last used"
      FROM reporting.session ORDER BY content_bytes DESC LIMIT 50"""
_WRITTEN: Final = """
    SELECT $__timeGroupAlias(created_at, $__interval), type AS metric, sum(size_bytes)::float8 AS value
      FROM reporting.context_entry WHERE $__timeFilter(created_at) AND type IN (${entry:sqlstring})
     GROUP BY 1, 2 ORDER BY 1"""
_TABLES: Final = "postgresql_table_name"

PAGE: Final = Page(
    "context",
    "Context and storage",
    "How much context is written, how large is it, and what do briefs leave out?",
    variables=[choice_variable("entry", "Entry", "Types of entries.", get_args(EntryType))],
    rows=[
        (
            "Is it well?",
            [
                stat_panel(
                    "Entries a second", "Entries appended, after commit.", "recps", Prom(rate(t.ENTRIES, only=_TYPE))
                ),
                stat_panel("Bytes a second", "Content appended.", "Bps", Prom(rate(t.ENTRY_SIZE, only=_TYPE, part="sum"))),
                stat_panel(
                    "p95 of an entry",
                    "What 95 of 100 entries appended in the time shown stay below.",
                    "bytes",
                    Prom(quantile(0.95, t.ENTRY_SIZE, only=_TYPE, over="$__range")),
                    steps=[(None, GOOD), (100_000, WARN), (500_000, BAD)],
                ),
                stat_panel("Database", "What Postgres's files take.", "bytes", Prom("sum(postgresql_db_size_bytes)")),
                stat_panel(
                    "Disk",
                    "How much of the disk under the volumes is used.",
                    "percentunit",
                    Prom("max(handoff:disk:ratio)"),
                    steps=[(None, GOOD), (limit("disk_ratio"), WARN), (limit("disk_critical_ratio"), BAD)],
                ),
                stat_panel(
                    "p95 of a brief",
                    "What 95 of 100 briefs given in the time shown stay below, in tokens. Empty while none was.",
                    "short",
                    Prom(quantile(0.95, t.BRIEF_SIZE, over="$__range")),
                ),
            ],
        ),
        (
            "What is written",
            [
                time_series(
                    "Entries",
                    "A second, by type.",
                    "recps",
                    Prom(rate(t.ENTRIES, t.ENTRY_TYPE, only=_TYPE), f"{{{{{_ENTRY}}}}}"),
                    stacked=True,
                ),
                time_series(
                    "Size of entries",
                    "What 50, 95 and 99 of 100 stay below.",
                    "bytes",
                    *percentiles(t.ENTRY_SIZE, only=_TYPE),
                ),
                heatmap_panel(
                    "Sizes, all of them",
                    "How many entries had which size.",
                    "bytes",
                    Prom(bucket_counts(t.ENTRY_SIZE, _TYPE), "{{le}}"),
                    width=8,
                ),
                time_series(
                    "Content in the database",
                    "Bytes written that are still there, by type and when they came.",
                    "bytes",
                    Sql(_WRITTEN),
                    width=12,
                ),
                time_series(
                    "Appends that shared a statement",
                    "What 50, 95 and 99 of 100 appends shared theirs with at most: above 1 under load.",
                    "short",
                    *percentiles(t.APPEND_BATCH),
                    width=6,
                ),
                time_series(
                    "Appends that wait",
                    "For a statement to take them along.",
                    "short",
                    Prom(gauge(t.APPENDS_WAITING, aggregate="sum"), "waiting"),
                    width=6,
                ),
            ],
        ),
        (
            "What is read",
            [
                time_series("Briefs", "Given out, a second.", "recps", Prom(rate(t.BRIEF_SIZE), "briefs"), width=8),
                time_series(
                    "Size of briefs",
                    "In tokens: what 50, 95 and 99 of 100 stay below. Empty while none is given.",
                    "short",
                    *percentiles(t.BRIEF_SIZE),
                    width=8,
                ),
                time_series(
                    "Left out of briefs",
                    "Entries a second for which there was no room.",
                    "recps",
                    Prom(rate(t.BRIEF_OMITTED), "entries"),
                    width=8,
                ),
            ],
        ),
        (
            "Where it is kept",
            [
                time_series(
                    "Tables",
                    "What the largest take.",
                    "bytes",
                    Prom(f"topk(6, max by ({_TABLES}) (postgresql_table_size_bytes))", f"{{{{{_TABLES}}}}}"),
                    width=8,
                ),
                time_series(
                    "Rows",
                    "Live rows of the largest tables.",
                    "short",
                    Prom(f'topk(6, max by ({_TABLES}) (postgresql_rows{{state="live"}}))', f"{{{{{_TABLES}}}}}"),
                    width=8,
                ),
                time_series(
                    "Disk, as it goes on",
                    "Free now, and in a day if it goes on as in the last 6 hours.",
                    "bytes",
                    Prom('min(system_filesystem_usage_bytes{service_name="host", state="free"})', "free"),
                    Prom(
                        'min(predict_linear(system_filesystem_usage_bytes{service_name="host", state="free"}[6h], 86400))',
                        "in a day",
                    ),
                    width=8,
                ),
                table_panel(
                    "Largest sessions",
                    "By their content.",
                    Sql(_LARGEST),
                    width=16,
                    units={"bytes": "bytes", "last used": "dateTimeAsLocal"},
                ),
                stat_panel(
                    "Entries in the time shown",
                    "Appended, after commit.",
                    "short",
                    Prom(increase(t.ENTRIES, only=_TYPE)),
                    width=4,
                    height=8,
                ),
                stat_panel(
                    "Mean of an entry",
                    "Of those appended in the time shown.",
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
