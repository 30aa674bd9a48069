"""What the detector expected of the newest minute, as metrics: value, expectation and band of a bounded number of series.

Whoever judges a shard stores those of its most important series; the leader shows the most important of all. Those of the
whole service come first, then those that open incidents are about, then those by operation and by kind of process, then
those by route, by agent and from PromQL.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from time import time
from typing import TYPE_CHECKING, Final

from asyncpg import Record

from handoff.context import App
from handoff.store import anomalies, incidents, series, shards
from handoff.store.connect import connection
from handoff.telemetry import metrics
from handoff.telemetry.instruments import Gauge

if TYPE_CHECKING:
    from handoff.analytics.watch import Band

_OURS: Final = frozenset({"operation", "kind"})  # labels whose values the code names; those of others may be a caller's
_FIGURES: Final[dict[str, Gauge]] = {
    "value": metrics.SERIES_VALUE,
    "expected": metrics.SERIES_EXPECTED,
    "lower": metrics.SERIES_LOWER,
    "upper": metrics.SERIES_UPPER,
}


async def chosen(app: App, judged: "Sequence[tuple[Record, Band]]") -> list[dict[str, float | None]]:
    """The newest minute of the most important of these series, in the form in which a shard keeps it. NaN becomes None."""
    async with connection(app.pool) as conn:
        concerned = await incidents.concerned(conn, app.settings.series_max)
    first = sorted(judged, key=lambda it: (_rank(it[0], concerned), it[0]["id"]))[: metrics.SERIES_NAME.chosen_max]
    return [
        {"id": row["id"]} | {name: figure if math.isfinite(figure) else None for name, figure in asdict(band).items()}
        for row, band in first
    ]


async def show(app: App) -> None:
    """Show the most important series, as many as the label may name, and no others any more; and how far the detector is.

    What is not known is not shown: a value that was not measured, or the band of a series that is too young.
    """
    async with connection(app.pool) as conn:
        judged_to = await series.progress(conn, "judged")
        count = await series.count(conn)
        rows = await shards.newest(conn)
        concerned = await incidents.concerned(conn, app.settings.series_max)
        told, series_weeks = await anomalies.told(conn)
    metrics.SERIES.set(count)
    budget = app.policies.analytics.alerts_per_series_week
    metrics.ALERT_BUDGET.set(budget)
    metrics.ALERT_BUDGET_USED.set(told / (budget * series_weeks) if series_weeks else 0.0)
    if judged_to is None:
        return
    metrics.DETECTOR_LAG.set(max(0.0, time() - judged_to.timestamp()))
    first = sorted(rows, key=lambda it: (_rank(it, concerned), it["id"]))[: metrics.SERIES_NAME.chosen_max]
    named = {public_name(row): row for row in first}
    metrics.SERIES_NAME.choose(named)
    for figure, gauge in _FIGURES.items():
        gauge.replace({(name,): row[figure] for name, row in named.items() if row[figure] is not None})
    metrics.SERIES_LEFT_OUT.set(max(0, count - len(named)))


def public_name(row: Record) -> str:
    """The name of a series without what callers have written: one of an agent, for instance, has its number instead."""
    return " ".join([row["name"], *(row["labels"].values() if _is_ours(row) else [f"#{row['id']}"])])


def _rank(row: Record, concerned: set[int]) -> int:
    if _is_ours(row) and not row["labels"]:
        return 0
    if row["id"] in concerned:
        return 1
    return 2 if _is_ours(row) else 3


def _is_ours(row: Record) -> bool:
    return _OURS.issuperset(row["labels"]) and not row["name"].startswith("promql.")
