"""Judges the minutes that have been rolled up, and writes what is unusual about them.

The state of the detector is written every KEPT_EVERY; each run goes on from there. So a run that is killed, or that is
repeated by another process, finds the same again and changes nothing.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from time import time
from typing import TYPE_CHECKING, Final

import structlog
from asyncpg import Record

from handoff.context import App
from handoff.store import anomalies, series
from handoff.store.anomalies import Anomaly
from handoff.store.connect import Connection, snapshot, transact
from handoff.telemetry import metrics

if TYPE_CHECKING:
    from handoff.analytics.watch import Found, Watch

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 60.0
LIMIT_S: Final = 600.0
KEPT_EVERY: Final = timedelta(minutes=15)
SETTLED: Final = timedelta(minutes=1)  # how long a minute has been over before it is judged: transactions end late
CRITICAL_AT: Final = 1.5  # times the strength that alerts
NEWS_S: Final = 3_600.0  # what is older when it is found, after an outage or a start with a past, wakes nobody
_RUN_MAX: Final = timedelta(hours=6)  # that are judged at a time, in bounded memory
_BATCH: Final = 2_000  # series judged at a time


async def run(app: App) -> None:
    """Judge every minute up to now, piece by piece."""
    while await _judge_some(app):
        pass


async def _judge_some(app: App) -> bool:
    """Judge the next minutes of all series; return whether there are more."""
    async with snapshot(app.pool) as conn:
        rolled_up = await series.progress(conn, "rolled_up")
        judged = await series.progress(conn, "judged")
        rows = await series.watched(conn)
        metrics.SERIES.set(len(rows))
        if rolled_up is None or not rows:
            return False
        end = rolled_up - SETTLED
        oldest = min((_stands_at(row) for row in rows), default=end)
        until = min(end, max(oldest, judged or oldest) + _RUN_MAX)
        found: list[Anomaly] = []
        kept: list[tuple[list[int], Watch]] = []
        for at, group in groupby(sorted(rows, key=_stands_at), key=_stands_at):
            of_time = list(group)
            for start in range(0, len(of_time), _BATCH):
                batch = of_time[start : start + _BATCH]
                if at < until:
                    watch = await _judge(conn, batch, at, until)
                    found += _anomalies(batch, watch.found, app.settings.series_warm_up_s)
                    kept.append(([row["id"] for row in batch], watch))
    is_kept = until - oldest >= KEPT_EVERY or until < end

    async def work(conn: Connection) -> list[Record]:
        added = await anomalies.add(conn, found)
        await series.advance(conn, "judged", until)
        if is_kept:
            for ids, watch in kept:
                await series.keep(conn, ids, watch.states, watch.carried, version=_version(), judged_to=until)
        return added

    for row in await transact(app.pool, work):
        if not row["shadow"] and row["age_s"] < NEWS_S:
            metrics.ANOMALIES.add(1, row["kind"], row["severity"])
            log.warning("anomaly.found", kind=row["kind"], severity=row["severity"])
    metrics.DETECTOR_LAG.set(max(0.0, time() - until.timestamp()))
    return until < end


def _stands_at(row: Record) -> datetime:
    """The first minute of a series that the kept state does not know. A state of another version is learnt anew."""
    return row["judged_to"] if row["version"] == _version() else row["begins_at"]


async def _judge(conn: Connection, rows: Sequence[Record], at: datetime, until: datetime) -> "Watch":
    """Judge some series that stand at the same minute, in a thread: the event loop goes on."""
    import numpy as np  # only the process that leads loads it

    from handoff.analytics.kinds import Absence, Kind
    from handoff.analytics.watch import Series, go_on

    minutes = int((until - at) / series.MINUTE)
    values, of = np.full((minutes, len(rows)), np.nan), np.full((minutes, len(rows)), np.nan)
    places = {row["id"]: place for place, row in enumerate(rows)}
    for point in await series.points(conn, at, until):
        place = places.get(point["series_id"])
        if place is not None:
            minute = int((point["bucket"] - at) / series.MINUTE)
            values[minute, place] = point["value"]
            of[minute, place] = np.nan if point["of"] is None else point["of"]
    given = [Series(_name(row), Kind(row["kind"]), Absence(row["absence"])) for row in rows]
    for place, row in enumerate(rows):
        if row["version"] == _version():
            given[place] = replace(given[place], state=row["state"], carried=tuple(row["carried"]))
    return await asyncio.to_thread(go_on, given, int(at.timestamp()), values, of)


def _name(row: Record) -> str:
    labels = ", ".join(f"{name} {value}" for name, value in row["labels"].items())
    return f"{row['name']} ({labels})" if labels else row["name"]


def _anomalies(rows: Sequence[Record], found: "Sequence[Found]", warm_up_s: float) -> list[Anomaly]:
    return [
        Anomaly(
            series_id=rows[it.place]["id"],
            bucket=datetime.fromtimestamp(it.t, UTC),
            version=_version(),
            severity="critical" if it.finding.strength >= CRITICAL_AT else "warning",
            shadow=it.t - rows[it.place]["begins_at"].timestamp() < warm_up_s,
            value=it.finding.value,
            expected=it.finding.expected,
            lower=it.finding.lower,
            upper=it.finding.upper,
            strength=it.finding.strength,
            confidence=it.finding.confidence,
            spoke=dict(it.finding.spoke),
            sentence=it.finding.sentence,
        )
        for it in found
    ]


def _version() -> int:
    from handoff.analytics.watch import VERSION

    return VERSION
