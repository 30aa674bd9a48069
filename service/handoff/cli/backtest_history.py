"""`handoff backtest --since`: what the detector would have said of our own series, or of an expression on a Prometheus."""

import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from heapq import nlargest
from typing import TYPE_CHECKING, Final

from handoff.cli import amounts
from handoff.cli.backtest import POINTS_MIN, Judged, Unreadable, judged, print_alerts, rate_of
from handoff.cli.start import read_settings, run_loop
from handoff.settings import Settings

if TYPE_CHECKING:
    from asyncpg import Connection, Record

    from handoff.analytics.findings import Finding
    from handoff.operations.prometheus import Values

_POINTS_MAX: Final = 2_000_000  # in memory at a time, some 60 bytes each; series are judged in groups that have no more
_CHARTS_MAX: Final = 100  # on a page


@dataclass(slots=True)
class _Past:
    """The alerts that all series would have raised, and the series that would have raised most, as many as a page shows."""

    sensitivity: float
    count: int = 0
    began_s: float = math.inf  # the first point and the last of any series
    ended_s: float = -math.inf
    told: "list[tuple[int, Finding]]" = field(default_factory=list)
    shown: list[Judged] = field(default_factory=list[Judged])

    def add(self, series: Sequence[Judged]) -> None:
        self.count += len(series)
        self.began_s = min(self.began_s, *(float(it.found.t[0]) for it in series))
        self.ended_s = max(self.ended_s, *(float(it.found.t[-1]) for it in series))
        self.told += [alert for it in series for alert in it.found.alerts(self.sensitivity)]
        alerts = {it.name: len(it.found.alerts(self.sensitivity)) for it in (*self.shown, *series)}
        self.shown = nlargest(_CHARTS_MAX, (*self.shown, *series), key=lambda it: alerts[it.name])


def of_history(arguments: Namespace, zone: tzinfo) -> tuple[list[Judged], int]:
    """Print what would have been told. Returns the series for a page, most alerts first, and how many there are.

    Raises:
        Unreadable: there is nothing to judge, or it can't be reached.
    """
    settings = read_settings(arguments)
    try:
        since = (datetime.now(UTC) - amounts.since(arguments.since or "30d")).replace(second=0, microsecond=0)
    except ValueError as error:
        raise Unreadable(str(error)) from error
    past = _Past(arguments.sensitivity)
    if arguments.promql is not None:
        _of_prometheus(arguments, settings, since, zone, past)
    elif settings.database_url is None:
        raise Unreadable(
            "HANDOFF_DATABASE_URL is not set. `handoff run` prints that of its own Postgres when it starts. "
            "To judge a metric that is elsewhere, name a CSV file, or --promql with --prometheus."
        )
    else:
        run_loop(_of_database(settings, since, arguments.series, zone, past))
    print_alerts(sorted(past.told, key=lambda it: (it[0], it[1].sentence)), arguments.sensitivity, zone)
    if not past.count:
        raise Unreadable("The expression has fewer than 2 points in this time. Name a longer one with --since.")
    rate, began = rate_of(len(past.told), past.ended_s - past.began_s), datetime.fromtimestamp(past.began_s, zone)
    print(
        f"{rate}. Judged: {past.count:,} series, from {began:%Y-%m-%d %H:%M %Z} on. Nothing is said about the first 40 "
        "points of each."
    )
    return past.shown, past.count


async def _of_database(settings: Settings, since: datetime, wanted: str | None, zone: tzinfo, past: _Past) -> None:
    from handoff.store import series
    from handoff.store.connect import connect_alone, prepare_connection

    conn = await connect_alone(settings)
    try:
        await prepare_connection(conn)
        until: datetime = (await conn.fetchval("SELECT now()")).replace(second=0, microsecond=0)
        rows = [row for row in await series.watched(conn) if wanted in (None, row["name"], series.shown(row))]
        if not rows:
            raise Unreadable(
                f"There is no series {wanted!r}. Without --series, all are judged."
                if wanted is not None
                else "There are no series yet. The worker writes them (its job `rollup`)."
            )
        first = max(since, min(row["begins_at"] for row in rows))
        minutes = round((until - first) / series.MINUTE)
        if minutes < POINTS_MIN:
            raise Unreadable("The series have fewer than 2 minutes in this time. Name a longer one with --since.")
        for group in _groups(rows, minutes):
            past.add(await _judged(conn, group, first, until, zone))
    finally:
        await conn.close()


def _groups(rows: "list[Record]", minutes: int) -> "Iterator[list[Record]]":
    size = max(1, _POINTS_MAX // max(1, minutes))
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


async def _judged(conn: "Connection", rows: "list[Record]", first: datetime, until: datetime, zone: tzinfo) -> list[Judged]:
    """Judge some series as the worker's job does, in days of UTC, but from nothing known before the first minute."""
    import numpy as np

    from handoff.analytics.kinds import Absence, Kind, level_of
    from handoff.store import series

    minutes = round((until - first) / series.MINUTE)
    values, of = np.full((minutes, len(rows)), np.nan), np.full((minutes, len(rows)), np.nan)
    places = {row["id"]: place for place, row in enumerate(rows)}
    day = first
    while day < until:
        end = min(until, day + timedelta(days=1))
        offset = round((day - first) / series.MINUTE)
        for row in await series.points(conn, list(places), day, end):
            at = np.array(row["minutes"]) + offset, places[row["series_id"]]
            values[at] = row["values"]
            if row["of"] is not None:
                of[at] = np.array(row["of"], np.float64)  # None is NaN
        day = end
    t = round(first.timestamp()) + 60 * np.arange(minutes)
    kinds = [Kind(row["kind"]) for row in rows]
    for place, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
        values[:, place] = level_of(kind, Absence(row["absence"]), t, values[:, place], of[:, place])
    return judged(t, values, zone, [series.shown(row) for row in rows], kinds, local=False)


def _of_prometheus(arguments: Namespace, settings: Settings, since: datetime, zone: tzinfo, past: _Past) -> None:
    from handoff.operations.prometheus import PrometheusFailed, ask

    url = arguments.prometheus or (settings.prometheus_url.get_secret_value() if settings.prometheus_url else None)
    if url is None:
        raise Unreadable("--promql needs a Prometheus: name its address with --prometheus or HANDOFF_PROMETHEUS_URL.")
    try:
        found = run_loop(ask(url, arguments.promql, since, datetime.now(UTC)))
    except PrometheusFailed as error:
        raise Unreadable(f"Prometheus could not be asked: {error}.") from error
    for values in found:
        if len(values.points) >= POINTS_MIN:
            past.add(_replayed(arguments, values, zone))


def _replayed(arguments: Namespace, values: "Values", zone: tzinfo) -> list[Judged]:
    import numpy as np

    from handoff.analytics.kinds import Absence, Kind, level_of

    kind, t = Kind(arguments.kind), np.array([at for at, _ in values.points], np.int64)
    x = level_of(kind, Absence(arguments.absence), t, np.array([value for _, value in values.points], np.float64))
    labels = ", ".join(f"{name} {value}" for name, value in sorted(values.labels.items()))
    name = f"{arguments.promql} ({labels})" if labels else arguments.promql
    return judged(t, x[:, np.newaxis], zone, [name], [kind])
