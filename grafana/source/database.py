"""Is Postgres keeping up, is Redis helping, and what does each statement cost?"""

from typing import Final

from grafana.source.page import Page, label_variable
from grafana.source.panels import (
    GOOD,
    WARN,
    heatmap_panel,
    higher_is_worse,
    limit,
    stat_panel,
    table_panel,
    time_series,
)
from grafana.source.promql import bucket_counts, gauge, increase, label, matcher, quantile, rate, ratio, series
from grafana.source.queries import Prom, percentiles
from handoff.telemetry import metrics as t

_INSTANCE: Final = ('service_instance_id=~"$instance"',)
_STATEMENTS: Final = (matcher(t.STATEMENT, "$statement"), *_INSTANCE)
_FAILED: Final = (*_STATEMENTS, matcher(t.ERROR, "", "!="))
_STATEMENT_NAME: Final = label(t.STATEMENT)
_RESULT: Final = label(t.CACHE_RESULT)
_REDIS: Final = matcher(t.CACHE, "redis", "=")


def _status(component: str) -> Prom:
    return Prom(gauge(t.COMPONENT_STATUS, only=(f'component="{component}"', 'service_name="handoff"')))


PAGE: Final = Page(
    "database",
    "Database and cache",
    "Is Postgres keeping up, is Redis helping, and what does each statement cost?",
    variables=[
        label_variable(
            "statement",
            "Statement",
            "The SQL statements to show, by their names in the code.",
            t.STATEMENT,
            series(t.STATEMENT_DURATION, "count"),
        ),
        label_variable(
            "instance",
            "Process",
            "The processes of the service and the worker to show.",
            "service_instance_id",
            series(t.BUILD_INFO),
        ),
    ],
    rows=[
        (
            "At a glance",
            [
                stat_panel(
                    "Postgres",
                    "Status of Postgres as seen by the service.",
                    "short",
                    _status("database"),
                    statuses=True,
                    width=3,
                ),
                stat_panel(
                    "Redis",
                    "Status of Redis as seen by the service. Without Redis everything still works, a little slower.",
                    "short",
                    _status("cache"),
                    statuses=True,
                    width=3,
                ),
                stat_panel(
                    "Failed statements",
                    "Share of SQL statements in the selected time range that failed. Beside it, the number of statements.",
                    "percentunit",
                    Prom(
                        ratio(
                            increase(t.STATEMENT_DURATION, only=_FAILED), increase(t.STATEMENT_DURATION, only=_STATEMENTS)
                        ),
                        "failed",
                    ),
                    Prom(increase(t.STATEMENT_DURATION, only=_STATEMENTS), "statements", unit="short"),
                    steps=higher_is_worse(limit("statement_error_ratio") / 5, limit("statement_error_ratio")),
                    width=6,
                ),
                stat_panel(
                    "Statement p95",
                    "95th percentile of the duration of SQL statements in the selected time range.",
                    "s",
                    Prom(quantile(0.95, t.STATEMENT_DURATION, only=_STATEMENTS, over="$__range")),
                    steps=higher_is_worse(1),
                    width=3,
                ),
                stat_panel(
                    "Connections",
                    "Connections in use, by any client, as a share of the number that Postgres allows.",
                    "percentunit",
                    Prom("handoff:database_connections:ratio"),
                    steps=higher_is_worse(limit("database_connections_ratio")),
                    width=3,
                ),
                stat_panel(
                    "Pool waits",
                    "Number of requests waiting now for a connection from the pool.",
                    "short",
                    Prom(gauge(t.POOL_PENDING, aggregate="sum", only=_INSTANCE)),
                    steps=higher_is_worse(1),
                    width=3,
                ),
                stat_panel(
                    "Cache hits",
                    "Share of cache reads in the last hour that were hits. A brief is rebuilt once its session has changed, so a few per cent is normal. Empty if nothing was read in that hour.",
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
                    "Number of runs, total time, percentiles of the duration and failures of each SQL statement in the selected time range, by its name in the code.",
                    Prom(increase(t.STATEMENT_DURATION, t.STATEMENT, only=_STATEMENTS)),
                    Prom(
                        f"sum by ({_STATEMENT_NAME}) (increase({series(t.STATEMENT_DURATION, 'sum')}{{{', '.join(_STATEMENTS)}}}[$__range]))"
                    ),
                    *(
                        Prom(quantile(q, t.STATEMENT_DURATION, t.STATEMENT, only=_STATEMENTS, over="$__range"))
                        for q in (0.5, 0.95, 0.99)
                    ),
                    Prom(
                        f"{increase(t.STATEMENT_DURATION, t.STATEMENT, only=_FAILED)} or {increase(t.STATEMENT_DURATION, t.STATEMENT, only=_STATEMENTS)} * 0"
                    ),
                    width=24,
                    height=9,
                    columns={
                        _STATEMENT_NAME: "statement",
                        "Value #A": "runs",
                        "Value #B": "total time",
                        "Value #C": "p50",
                        "Value #D": "p95",
                        "Value #E": "p99",
                        "Value #F": "failed",
                    },
                    widths={
                        "statement": 0,
                        "runs": 130,
                        "total time": 130,
                        "p50": 110,
                        "p95": 110,
                        "p99": 110,
                        "failed": 110,
                    },
                    sort=["-total time"],
                    units={"total time": "s", "p50": "s", "p95": "s", "p99": "s"},
                    steps={"failed": [(None, GOOD), (0.5, WARN)]},
                    links={
                        "statement": {
                            "Show only this statement": "/d/handoff-database?${__url_time_range}&var-statement=${__value.raw}"
                        }
                    },
                ),
                time_series(
                    "Statements",
                    "SQL statements per second: all of them and, in red, those that failed, if any did.",
                    "ops",
                    Prom(rate(t.STATEMENT_DURATION, only=_STATEMENTS), "all"),
                    Prom(rate(t.STATEMENT_DURATION, only=_FAILED) + " > 0", "failed"),
                ),
                time_series(
                    "Statement duration",
                    "Duration of SQL statements: 50th, 95th and 99th percentile.",
                    "s",
                    *percentiles(t.STATEMENT_DURATION, only=_STATEMENTS),
                ),
                heatmap_panel(
                    "Statement duration: distribution",
                    "Number of SQL statements, by duration.",
                    "s",
                    Prom(bucket_counts(t.STATEMENT_DURATION, _STATEMENTS), "{{le}}"),
                    width=8,
                ),
                time_series(
                    "Slow statements",
                    "SQL statements per second that took longer than 1 s, by name. Empty while there are none.",
                    "ops",
                    Prom(rate(t.SLOW_STATEMENTS, t.STATEMENT, only=_STATEMENTS), f"{{{{{_STATEMENT_NAME}}}}}"),
                    many=True,
                ),
                time_series(
                    "Failed statements",
                    "Failed SQL statements per second, by type of error. Empty while there are none.",
                    "ops",
                    Prom(rate(t.STATEMENT_DURATION, t.ERROR, only=_FAILED), f"{{{{{label(t.ERROR)}}}}}"),
                ),
                time_series(
                    "Most frequent statements",
                    "Runs per second of the six SQL statements that run most often.",
                    "ops",
                    Prom(
                        f"topk(6, {rate(t.STATEMENT_DURATION, t.STATEMENT, only=_STATEMENTS)})", f"{{{{{_STATEMENT_NAME}}}}}"
                    ),
                    many=True,
                ),
            ],
        ),
        (
            "Connection pool",
            [
                time_series(
                    "Pool connections",
                    "Number of used and of idle connections in the pool, and the maximum.",
                    "short",
                    Prom(
                        gauge(t.POOL_CONNECTIONS, t.POOL_STATE, aggregate="sum", only=_INSTANCE),
                        f"{{{{{label(t.POOL_STATE)}}}}}",
                    ),
                    Prom(gauge(t.POOL_MAX, aggregate="sum", only=_INSTANCE), "max"),
                    names=["used", "idle"],
                ),
                time_series(
                    "Pool wait time",
                    "Time that requests waited for a connection from the pool: 50th, 95th and 99th percentile.",
                    "s",
                    *percentiles(t.POOL_WAIT, only=_INSTANCE),
                ),
                time_series(
                    "Pool waits and timeouts",
                    "Number of requests waiting for a connection. Dotted, on the right axis: requests per second that timed out waiting.",
                    "short",
                    Prom(gauge(t.POOL_PENDING, aggregate="sum", only=_INSTANCE), "waiting"),
                    Prom(rate(t.POOL_TIMEOUTS, only=_INSTANCE) + " or vector(0)", "timeouts per second", unit="eps"),
                ),
            ],
        ),
        (
            "Postgres",
            [
                time_series(
                    "Postgres connections",
                    "Number of connections in use, by any client, and the maximum that Postgres allows.",
                    "short",
                    Prom("sum(postgresql_backends)", "used"),
                    Prom("max(postgresql_connection_max)", "max"),
                    width=6,
                ),
                time_series(
                    "Transactions",
                    "Commits and rollbacks per second.",
                    "ops",
                    Prom("sum(rate(postgresql_commits_total[$__rate_interval]))", "commits"),
                    Prom("sum(rate(postgresql_rollbacks_total[$__rate_interval]))", "rollbacks"),
                    width=6,
                ),
                time_series(
                    "Blocks read",
                    "Blocks read per second, by source. Sources ending in _hit are Postgres's own memory; those ending in _read are the operating system, from its cache or from disk.",
                    "iops",
                    Prom("sum by (source) (rate(postgresql_blocks_read_total[$__rate_interval]))", "{{source}}"),
                    width=6,
                ),
                time_series(
                    "Deadlocks and temporary files",
                    "Number of each in the interval of each point. Both should be 0.",
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
                    "Redis operations",
                    "Cache operations on Redis per second, by result.",
                    "ops",
                    Prom(rate(t.CACHE_DURATION, t.CACHE_RESULT, only=[_REDIS, *_INSTANCE]), f"{{{{{_RESULT}}}}}"),
                    names=["hit", "miss", "stored", "error", "skipped"],
                    width=6,
                ),
                time_series(
                    "Redis latency",
                    "Duration of cache operations on Redis: 50th, 95th and 99th percentile.",
                    "s",
                    *percentiles(t.CACHE_DURATION, only=[_REDIS, *_INSTANCE]),
                    width=6,
                ),
                time_series(
                    "Redis memory",
                    "Memory in use by Redis, and the most it has used since it started. Dotted, on the right axis: values of more than 1 MB stored per second.",
                    "bytes",
                    Prom("max(redis_memory_used_bytes)", "used"),
                    Prom("max(redis_memory_peak_bytes)", "peak"),
                    Prom(rate(t.CACHE_LARGE, only=[_REDIS, *_INSTANCE]) + " or vector(0)", "values above 1 MB", unit="ops"),
                    width=6,
                ),
                time_series(
                    "Redis keys",
                    "Number of keys in Redis. Dotted, on the right axis: keys per second evicted for lack of memory.",
                    "short",
                    Prom("sum(redis_db_keys)", "keys"),
                    Prom("sum(rate(redis_keys_evicted_total[$__rate_interval]))", "evicted per second", unit="eps"),
                    width=6,
                ),
            ],
        ),
    ],
)
