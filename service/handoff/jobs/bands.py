"""What the detector expected of the newest minute, as metrics: value, expectation and band of a bounded number of series.

Those of the whole service come first, then those that open incidents are about, then those by operation and by kind of
process, then those by route, by agent and from PromQL.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from asyncpg import Record

from handoff.context import App
from handoff.store import incidents
from handoff.store.connect import connection
from handoff.telemetry import metrics
from handoff.telemetry.instruments import Gauge

if TYPE_CHECKING:
    from handoff.analytics.watch import Band

_OURS: Final = frozenset({"operation", "kind"})  # labels whose values the code names; those of others may be a caller's
_FIGURES: Final[dict[Gauge, Callable[["Band"], float]]] = {
    metrics.SERIES_VALUE: lambda it: it.value,
    metrics.SERIES_EXPECTED: lambda it: it.expected,
    metrics.SERIES_LOWER: lambda it: it.lower,
    metrics.SERIES_UPPER: lambda it: it.upper,
}


async def show(app: App, judged: "Sequence[tuple[Record, Band]]") -> None:
    """Show the most important of these series, as many as the label may name, and no others any more.

    What is not known is not shown: a value that was not measured, or the band of a series that is too young. If nothing was
    judged, nothing changes.
    """
    if not judged:
        return
    async with connection(app.pool) as conn:
        concerned = await incidents.concerned(conn, app.settings.series_max)
    first = sorted(judged, key=lambda it: (_rank(it[0], concerned), it[0]["id"]))[: metrics.SERIES_NAME.chosen_max]
    named = {public_name(row): band for row, band in first}
    metrics.SERIES_NAME.choose(named)
    for gauge, figure in _FIGURES.items():
        figures = {(name,): figure(band) for name, band in named.items()}
        gauge.replace({labels: value for labels, value in figures.items() if math.isfinite(value)})
    metrics.SERIES_LEFT_OUT.set(len(judged) - len(named))


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
