"""Minutes of series through the detector, in a thread: the event loop goes on. For the job `detect` and for backtests."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncpg import Record

from handoff.configuration import BUDGET
from handoff.context import App
from handoff.store import series
from handoff.store.connect import connection

if TYPE_CHECKING:
    from handoff.analytics.watch import Series, Watch

# Of a series of which nothing is known: what is learnt of it. All of its past at once would fill memory.
RELEARNT: Final = timedelta(days=2)
_PIECE: Final = timedelta(days=1)  # judged at a time of what is judged anew: where a call that has ended stops


class Told(NamedTuple):
    """What was found of a series in a minute; `strength` is a multiple of what the series needs to alert."""

    at: datetime
    row: Record
    strength: float
    confidence: float  # 0 to 1
    sentence: str


def unknown(row: Record, told_at: float) -> "Series":
    """A watched series of which the detector knows nothing yet; findings are told from this strength on."""
    from handoff.analytics.kinds import Absence, Kind  # only the processes that judge load it
    from handoff.analytics.watch import Series

    return Series(series.shown(row), Kind(row["kind"]), Absence(row["absence"]), told_at=told_at, looked=_looked(row))


async def judge(app: App, ids: Sequence[int], given: "Sequence[Series]", at: datetime, until: datetime) -> "Watch":
    """Judge the minutes from `at` to before `until` of series with these ids, as they are given: all stand at `at`."""
    async with connection(app.pool) as conn:  # not held while they are judged: Postgres ends what idles in a transaction
        points = await series.points(conn, ids, at, until)
    places = {series_id: place for place, series_id in enumerate(ids)}
    minutes = int((until - at) / series.MINUTE)
    budget = app.policies.analytics.alerts_per_series_week / BUDGET
    return await asyncio.to_thread(_go_on, given, int(at.timestamp()), minutes, places, points, budget)


async def judge_anew(app: App, rows: Sequence[Record], first: datetime, until: datetime, told_at: float) -> list[Told]:
    """Judge minutes of watched series as if nothing had been known of them before the first one.

    Returns what has at least `told_at` of the strength that alerts, in the order of time.
    """
    ids = [row["id"] for row in rows]
    given = [unknown(row, row["threshold"] * told_at) for row in rows]
    told: list[Told] = []
    while first < until:
        end = min(first + _PIECE, until)
        watch = await judge(app, ids, given, first, end)
        for it in watch.found:
            at, row, finding = datetime.fromtimestamp(it.t, UTC), rows[it.place], it.finding
            told.append(Told(at, row, finding.strength / row["threshold"], finding.confidence, finding.sentence))
        known = zip(given, watch.states, watch.carried, strict=True)
        given = [replace(it, state=state, carried=carried) for it, state, carried in known]
        first = end
    return told


def _looked(row: Record) -> tuple[float, float]:
    """Between which times somebody looked for points of a series: what Prometheus was not asked about is not absent."""
    if row["read_to"] is not None:
        return row["read_from"].timestamp(), row["read_to"].timestamp()
    return (0.0, 0.0) if row["name"].startswith("promql.") else (-math.inf, math.inf)


def _go_on(
    given: "Sequence[Series]",
    first: int,
    minutes: int,
    places: Mapping[int, int],
    points: Sequence[Record],
    budget: float,
) -> "Watch":
    import numpy as np

    from handoff.analytics.watch import go_on

    values, of = np.full((minutes, len(given)), np.nan), np.full((minutes, len(given)), np.nan)
    for row in points:
        place = places[row["series_id"]]
        values[row["minutes"], place] = row["values"]
        if row["of"] is not None:
            of[row["minutes"], place] = np.array(row["of"], np.float64)  # None is NaN
    return go_on(given, first, values, of, budget)
