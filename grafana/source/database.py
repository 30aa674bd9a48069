"""Does Postgres keep up, does Redis help, and which statement costs what?"""

from typing import Final

from grafana.source.page import Page, label_variable
from grafana.source.panels import (
    BAD,
    GOOD,
    Prom,
    heatmap_panel,
    higher_is_worse,
    limit,
    percentiles,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import bucket_counts, gauge, increase, label, matcher, quantile, rate, ratio, series
from handoff import telemetry as t

_INSTANCE: Final = ('service_instance_id=~"$instance"',)
_THESE: Final = (matcher(t.STATEMENT, "$statement"), *_INSTANCE)
_FAILED: Final = (*_THESE, matcher(t.ERROR, "", "!="))
_STATEMENT: Final = label(t.STATEMENT)
_RESULT: Final = label(t.CACHE_RESULT)
_REDIS: Final = matcher(t.CACHE, "redis", "=")


def _status(component: str) -> Prom:
    return Prom(f'max({series(t.COMPONENT_STATUS)}{{component="{component}", service_name="handoff"}})')


PAGE: Final = Page(
    "database",
    "Database and cache",
    "Does Postgres keep up, does Redis help, and which statement costs what?",
    variables=[
        label_variable(
            "statement",
            "Statement",
            "Statements, by their name in the code.",
            t.STATEMENT,
            series(t.STATEMENT_DURATION, "count"),
        ),
        label_variable(
            "instance", "Process", "Processes of service and worker.", "service_instance_id", series(t.BUILD_INFO)
        ),
    ],
    rows=[
        (
            "Is it well?",
            [
                stat_panel("Postgres", "As the service finds it.", "short", _status("database"), statuses=True, width=3),
                stat_panel(
                    "Redis",
                    "As the service finds it; without it, all goes on a little slower.",
                    "short",
                    _status("cache"),
                    statuses=True,
                    width=3,
                ),
                stat_panel(
                    "Failed statements",
                    "Share of the statements in the time shown; beside it, how many there were.",
                    "percentunit",
                    Prom(
                        ratio(increase(t.STATEMENT_DURATION, only=_FAILED), increase(t.STATEMENT_DURATION, only=_THESE)),
                        "failed",
                    ),
                    Prom(increase(t.STATEMENT_DURATION, only=_THESE), "of statements", unit="short"),
                    steps=higher_is_worse(limit("statement_error_ratio") / 5, limit("statement_error_ratio")),
                    width=6,
                ),
                stat_panel(
                    "p95 of a statement",
                    "What 95 of 100 stayed below, in the time shown.",
                    "s",
                    Prom(quantile(0.95, t.STATEMENT_DURATION, only=_THESE, over="$__range")),
                    steps=higher_is_worse(0.25, 1),
                    width=3,
                ),
                stat_panel(
                    "Connections",
                    "How many of those that Postgres may have are taken, by anybody.",
                    "percentunit",
                    Prom("handoff:database_connections:ratio"),
                    steps=higher_is_worse(0.6, limit("database_connections_ratio")),
                    width=3,
                ),
                stat_panel(
                    "Wait for the pool",
                    "Requests that wait for a connection now.",
                    "short",
                    Prom(gauge(t.POOL_PENDING, aggregate="sum", only=_INSTANCE)),
                    steps=higher_is_worse(1, 10),
                    width=3,
                ),
                stat_panel(
                    "Cache hits",
                    "Share of reads that the cache answered, within an hour. A brief is made anew when its session has changed, so a few in a hundred is usual. Empty until one was read.",
                    "percentunit",
                    Prom("handoff:cache_hits:ratio_rate1h"),
                    width=3,
                ),
            ],
        ),
        (
            "Statements",
            [
                table_panel(
                    "Statements",
                    "Each in the time shown, by its name in the code.",
                    Prom(increase(t.STATEMENT_DURATION, t.STATEMENT, only=_THESE)),
                    Prom(
                        f"sum by ({_STATEMENT}) (increase({series(t.STATEMENT_DURATION, 'sum')}{{{', '.join(_THESE)}}}[$__range]))"
                    ),
                    *(
                        Prom(quantile(q, t.STATEMENT_DURATION, t.STATEMENT, only=_THESE, over="$__range"))
                        for q in (0.5, 0.95, 0.99)
                    ),
                    Prom(
                        f"{increase(t.STATEMENT_DURATION, t.STATEMENT, only=_FAILED)} or {increase(t.STATEMENT_DURATION, t.STATEMENT, only=_THESE)} * 0"
                    ),
                    width=24,
                    height=9,
                    columns={
                        _STATEMENT: "statement",
                        "Value #A": "times",
                        "Value #B": "in all",
                        "Value #C": "p50",
                        "Value #D": "p95",
                        "Value #E": "p99",
                        "Value #F": "failed",
                    },
                    units={"in all": "s", "p50": "s", "p95": "s", "p99": "s"},
                    steps={"failed": [(None, GOOD), (0.5, BAD)]},
                    links={
                        "statement": {
                            "Only this one": "/d/handoff-database?${__url_time_range}&var-statement=${__value.raw}"
                        }
                    },
                ),
                time_series(
                    "Statements",
                    "A second; red, those that failed.",
                    "ops",
                    Prom(rate(t.STATEMENT_DURATION, only=_THESE), "all"),
                    Prom(rate(t.STATEMENT_DURATION, only=_FAILED) + " or vector(0)", "failed"),
                ),
                time_series(
                    "Duration",
                    "What 50, 95 and 99 of 100 statements stay below.",
                    "s",
                    *percentiles(t.STATEMENT_DURATION, only=_THESE),
                ),
                heatmap_panel(
                    "Durations, all of them",
                    "How many statements took how long.",
                    "s",
                    Prom(bucket_counts(t.STATEMENT_DURATION, _THESE), "{{le}}"),
                    width=8,
                ),
                time_series(
                    "Slow statements",
                    "Above 1 s, a second, by name. Empty while there is none.",
                    "ops",
                    Prom(rate(t.SLOW_STATEMENTS, t.STATEMENT, only=_THESE), f"{{{{{_STATEMENT}}}}}"),
                ),
                time_series(
                    "Failed statements",
                    "A second, by what Postgres said. Empty while there is none.",
                    "ops",
                    Prom(rate(t.STATEMENT_DURATION, t.ERROR, only=_FAILED), f"{{{{{label(t.ERROR)}}}}}"),
                ),
                time_series(
                    "Busiest statements",
                    "A second.",
                    "ops",
                    Prom(f"topk(6, {rate(t.STATEMENT_DURATION, t.STATEMENT, only=_THESE)})", f"{{{{{_STATEMENT}}}}}"),
                ),
            ],
        ),
        (
            "The pool of connections",
            [
                time_series(
                    "Connections of the pool",
                    "Used and idle ones, and how many there may be.",
                    "short",
                    Prom(
                        gauge(t.POOL_CONNECTIONS, t.POOL_STATE, aggregate="sum", only=_INSTANCE),
                        f"{{{{{label(t.POOL_STATE)}}}}}",
                    ),
                    Prom(gauge(t.POOL_MAX, aggregate="sum", only=_INSTANCE), "max"),
                    names=["used", "idle"],
                ),
                time_series(
                    "Wait for a connection",
                    "What 50, 95 and 99 of 100 requests wait at most.",
                    "s",
                    *percentiles(t.POOL_WAIT, only=_INSTANCE),
                ),
                time_series(
                    "Who waits, and in vain",
                    "Requests that wait now, and waits that were given up, a second.",
                    "short",
                    Prom(gauge(t.POOL_PENDING, aggregate="sum", only=_INSTANCE), "waiting"),
                    Prom(rate(t.POOL_TIMEOUTS, only=_INSTANCE) + " or vector(0)", "in vain a second", unit="eps"),
                ),
            ],
        ),
        (
            "Postgres",
            [
                time_series(
                    "Sessions in Postgres",
                    "Taken by anybody, and how many it may have.",
                    "short",
                    Prom("sum(postgresql_backends)", "used"),
                    Prom("max(postgresql_connection_max)", "max"),
                    width=6,
                ),
                time_series(
                    "Transactions",
                    "Commits and rollbacks a second.",
                    "ops",
                    Prom("sum(rate(postgresql_commits_total[$__rate_interval]))", "ok"),
                    Prom("sum(rate(postgresql_rollbacks_total[$__rate_interval]))", "failed"),
                    width=6,
                ),
                time_series(
                    "Read from disk and from memory",
                    "Blocks a second.",
                    "iops",
                    Prom("sum by (source) (rate(postgresql_blocks_read_total[$__rate_interval]))", "{{source}}"),
                    width=6,
                ),
                time_series(
                    "Deadlocks and temporary files",
                    "In the time of a point; each should be 0.",
                    "short",
                    Prom("sum(increase(postgresql_deadlocks_total[$__rate_interval]))", "deadlocks"),
                    Prom("sum(increase(postgresql_temp_files_total[$__rate_interval]))", "temporary files"),
                    width=6,
                ),
            ],
        ),
        (
            "Redis",
            [
                time_series(
                    "Cache",
                    "Operations on Redis a second, by how they went.",
                    "ops",
                    Prom(rate(t.CACHE_DURATION, t.CACHE_RESULT, only=[_REDIS, *_INSTANCE]), f"{{{{{_RESULT}}}}}"),
                    names=["hit", "miss", "stored", "error", "skipped"],
                    width=6,
                ),
                time_series(
                    "Duration on Redis",
                    "Of operations: what 50, 95 and 99 of 100 stay below.",
                    "s",
                    *percentiles(t.CACHE_DURATION, only=[_REDIS, *_INSTANCE]),
                    width=6,
                ),
                time_series(
                    "Memory of Redis",
                    "What it uses, and its peak.",
                    "bytes",
                    Prom("max(redis_memory_used_bytes)", "used"),
                    Prom("max(redis_memory_peak_bytes)", "peak"),
                    width=6,
                ),
                time_series(
                    "Keys",
                    "That it holds, and those thrown out for want of room, a second.",
                    "short",
                    Prom("sum(redis_db_keys)", "keys"),
                    Prom("sum(rate(redis_keys_evicted_total[$__rate_interval]))", "thrown out a second", unit="eps"),
                    width=6,
                ),
            ],
        ),
    ],
)
