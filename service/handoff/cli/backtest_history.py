"""`handoff backtest --since`: what the detector would have said of our own series, or of an expression on a Prometheus."""

import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Final, NamedTuple

from handoff.cli.backtest import Unreadable, zone_of
from handoff.cli.start import fail, read_settings, run_loop
from handoff.settings import Settings

if TYPE_CHECKING:
    from asyncpg import Connection, Record

    from handoff.operations.prometheus import Values

SINCE_MAX: Final = timedelta(days=366)
_POINTS_MAX: Final = 5_000_000  # in memory at a time, 16 bytes each; series are judged in groups that have no more
_UNITS: Final = {"h": "hours", "d": "days", "w": "weeks"}
_WEEK_S: Final = 7 * 86_400


class _Told(NamedTuple):
    at: int
    strength: float
    confidence: float
    sentence: str


def history_command(arguments: Namespace) -> int:
    """Print what would have been told, and how often that is."""
    settings = read_settings(arguments)
    try:
        zone, since = zone_of(arguments.timezone), _since(arguments.since or "30d")
        if arguments.promql is not None:
            told, count = _of_prometheus(arguments, settings, since, zone)
        else:
            if settings.database_url is None:
                return fail(
                    "HANDOFF_DATABASE_URL is not set. `handoff run` prints that of its own Postgres when it starts. "
                    "To judge a metric that is elsewhere, name a CSV file, or --promql with --prometheus."
                )
            told, count = run_loop(_of_database(settings, since, arguments.series))
    except Unreadable as error:
        print(error, file=sys.stderr)
        return 2
    weeks = (datetime.now(UTC) - since).total_seconds() / _WEEK_S
    for it in sorted(told):
        at = datetime.fromtimestamp(it.at, zone)
        print(f"{at:%Y-%m-%d %H:%M %Z}  strength {it.strength:.1f}  confidence {it.confidence:.0%}  {it.sentence}")
    rate = f", {len(told) / weeks:.1f} per week" if weeks >= 1 else ""
    print(
        f"{len(told)} {'alert' if len(told) == 1 else 'alerts'}{rate}, about {count} series since "
        f"{since.astimezone(zone):%Y-%m-%d %H:%M %Z}. Nothing is said about the first 40 points of each."
    )
    return 0


def _since(text: str) -> datetime:
    found = re.fullmatch(r"([1-9]\d{0,3})([hdw])", text)
    if found is None or (span := timedelta(**{_UNITS[found[2]]: int(found[1])})) > SINCE_MAX:
        raise Unreadable(
            f"--since {text!r} is not understood. Name a number of hours, days or weeks, at most 366 days: 12h, 30d, 4w."
        )
    return (datetime.now(UTC) - span).replace(second=0, microsecond=0)


async def _of_database(settings: Settings, since: datetime, wanted: str | None) -> tuple[list[_Told], int]:
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
        told: list[_Told] = []
        for group in _groups(rows, round((until - first) / series.MINUTE)):
            told += await _judged(conn, group, first, until)
    finally:
        await conn.close()
    return told, len(rows)


def _groups(rows: "list[Record]", minutes: int) -> "Iterator[list[Record]]":
    size = max(1, _POINTS_MAX // max(1, minutes))
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


async def _judged(conn: "Connection", rows: "list[Record]", first: datetime, until: datetime) -> list[_Told]:
    """What is said of some series, as the worker's job says it, but from nothing known before the first minute."""
    import numpy as np

    from handoff.analytics.kinds import Absence, Kind
    from handoff.analytics.watch import Series, go_on
    from handoff.store import series

    minutes = max(0, round((until - first) / series.MINUTE))
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
    given = [Series(series.shown(row), Kind(row["kind"]), Absence(row["absence"])) for row in rows]
    found = go_on(given, round(first.timestamp()), values, of).found
    return [_Told(it.t, it.finding.strength, it.finding.confidence, it.finding.sentence) for it in found]


def _of_prometheus(arguments: Namespace, settings: Settings, since: datetime, zone: tzinfo) -> tuple[list[_Told], int]:
    from handoff.operations.prometheus import PrometheusFailed, ask

    url = arguments.prometheus or (settings.prometheus_url.get_secret_value() if settings.prometheus_url else None)
    if url is None:
        raise Unreadable("--promql needs a Prometheus: name its address with --prometheus or HANDOFF_PROMETHEUS_URL.")
    try:
        found = run_loop(ask(url, arguments.promql, since, datetime.now(UTC)))
    except PrometheusFailed as error:
        raise Unreadable(f"Prometheus could not be asked: {error}.") from error
    return [it for values in found for it in _replayed(arguments, values, zone)], len(found)


def _replayed(arguments: Namespace, values: "Values", zone: tzinfo) -> Iterator[_Told]:
    import numpy as np

    from handoff.analytics.kinds import Absence, Kind, level_of
    from handoff.analytics.replay import replay

    if len(values.points) < 2:
        return
    t = np.array([at for at, _ in values.points], np.int64)
    offsets = [datetime.fromtimestamp(at, zone).utcoffset() or timedelta() for at, _ in values.points]
    x = level_of(
        Kind(arguments.kind), Absence(arguments.absence), t, np.array([value for _, value in values.points], np.float64)
    )
    labels = ", ".join(f"{name} {value}" for name, value in sorted(values.labels.items()))
    name = f"{arguments.promql} ({labels})" if labels else arguments.promql
    for at, it in replay(t, x, np.array([it.total_seconds() for it in offsets], np.int64), name).alerts():
        yield _Told(at, it.strength, it.confidence, it.sentence)
