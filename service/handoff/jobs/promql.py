"""Reads the series that operators named in the configuration (`monitoring.promql`) from Prometheus."""

import math
from datetime import UTC, datetime

import structlog

from handoff.context import App
from handoff.operations.prometheus import PrometheusFailed, ask
from handoff.store import series
from handoff.store.connect import transact
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
    points: list[Point] = []
    failures: dict[str, str] = {}
    for name, it in wanted.items():
        try:
            # The value at the end of a minute is that minute's. Read again each time: a short absence leaves no gap.
            found = await ask(url.get_secret_value(), it.expression, end - series.LATE + series.MINUTE, end)
        except PrometheusFailed as error:
            failures[name] = str(error)
            continue
        for values in found:
            spec = Spec(f"promql.{name}", it.kind, it.absence, values.labels)
            points += [
                Point(spec, datetime.fromtimestamp(at, UTC) - series.MINUTE, value)
                for at, value in values.points
                if math.isfinite(value)
            ]
    await transact(app.pool, lambda conn: series.put(conn, points, app.settings.series_max))
    if failures and not metrics.PROMQL_FAILED.value():
        name, error = next(iter(failures.items()))
        log.warning("promql.failed", series=name, failed=len(failures), of=len(wanted), error=error)
    if not failures and metrics.PROMQL_FAILED.value():
        log.info("promql.read", series=len(wanted))
    metrics.PROMQL_FAILED.set(len(failures))
