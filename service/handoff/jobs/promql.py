"""Reads the series that operators named in the configuration (`monitoring.promql`) from Prometheus."""

import math
from datetime import UTC, datetime

import structlog
from asyncpg import Record

from handoff.context import App
from handoff.operations.prometheus import PrometheusFailed, ask
from handoff.store import promql, series
from handoff.store.connect import Connection, transact
from handoff.store.series import Point, Spec
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

INTERVAL_S = 60.0
LIMIT_S = 300.0


async def run(app: App) -> None:
    """Write the values of the minutes that have ended lately. That Prometheus is away is said once, and fails nothing."""
    url, wanted = app.settings.prometheus_url, app.policies.monitoring.promql
    if url is None:
        return
    end = datetime.now(UTC).replace(second=0, microsecond=0)
    since = end - series.LATE
    points: list[Point] = []
    read: dict[str, tuple[str, bool]] = {}
    failures: dict[str, str] = {}
    for name, it in wanted.items():
        try:
            # The value at the end of a minute is that minute's. Read again each time: a short absence leaves no gap.
            found = await ask(url.get_secret_value(), it.expression, since + series.MINUTE, end)
        except PrometheusFailed as error:
            failures[name] = str(error)
            continue
        before = len(points)
        for values in found:
            spec = Spec(f"promql.{name}", it.kind, it.absence, values.labels)
            points += [
                Point(spec, datetime.fromtimestamp(at, UTC) - series.MINUTE, value)
                for at, value in values.points
                if math.isfinite(value)
            ]
        read[name] = it.expression, len(points) > before

    async def work(conn: Connection) -> list[Record]:
        await series.put(conn, points, app.settings.series_max)
        await promql.note(conn, read, since, end)
        await promql.forget(conn, list(wanted))
        return await promql.empty(conn)

    empty = await transact(app.pool, work)
    if failures and not metrics.PROMQL_FAILED.value():
        name, error = next(iter(failures.items()))
        log.warning("promql.failed", series=name, failed=len(failures), of=len(wanted), error=error)
    if not failures and metrics.PROMQL_FAILED.value():
        log.info("promql.read", series=len(wanted))
    metrics.PROMQL_FAILED.set(len(failures))
    if empty and not metrics.PROMQL_EMPTY.value():
        log.warning("promql.empty", series=empty[0]["name"], empty=len(empty), of=len(wanted))
    metrics.PROMQL_EMPTY.set(len(empty))
