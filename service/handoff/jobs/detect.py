"""Judges the minutes that have been rolled up, and writes what is unusual about them.

The state of the detector is written every KEPT_EVERY; each run goes on from there. So a run that is killed, or that is
repeated by another process, finds the same again and changes nothing.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from time import time
from typing import TYPE_CHECKING, Final

import structlog
from asyncpg import Record

from handoff.context import App
from handoff.jobs import bands
from handoff.store import anomalies, series
from handoff.store.anomalies import Anomaly
from handoff.store.connect import Connection, connection, snapshot, transact
from handoff.telemetry import metrics

if TYPE_CHECKING:
    from handoff.analytics.watch import Band, Found, Watch

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 60.0
LIMIT_S: Final = 600.0
KEPT_EVERY: Final = timedelta(minutes=15)
SETTLED: Final = timedelta(minutes=1)  # how long a minute has been over before it is judged: transactions end late
CRITICAL_AT: Final = 1.5  # times the strength that alerts
NEWS_S: Final = 3_600.0  # what is older when it is found, after an outage or a start with a past, wakes nobody
RELEARNT: Final = timedelta(
    days=2
)  # of a series whose state can't be read any more: all of its past at once would fill memory
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
    stands_at = partial(_stands_at, judged)
    oldest = min(map(stands_at, rows))
    until = min(end, max(oldest, judged or oldest) + _RUN_MAX)
    found: list[Anomaly] = []
    kept: list[tuple[list[int], Watch]] = []
    judged_last: list[tuple[Record, Band]] = []
    for at, group in groupby(sorted(rows, key=stands_at), key=stands_at):
        of_time = list(group)
        for start in range(0, len(of_time), _BATCH):
            batch = of_time[start : start + _BATCH]
            if at < until:
                told_at = [_told_at(app, row, until) for row in batch]
                watch = await _judge(app, batch, told_at, at, until)
                found += _anomalies(app, batch, told_at, watch.found)
                kept.append(([row["id"] for row in batch], watch))
                judged_last += zip(batch, watch.bands, strict=True)
    is_kept = until - oldest >= KEPT_EVERY or until < end

    async def work(conn: Connection) -> list[Record]:
        added = await anomalies.add(conn, found)
        await series.advance(conn, "judged", until)
        if is_kept:
            for ids, watch in kept:
                await series.keep(conn, ids, watch.states, watch.carried, version=_version(), judged_to=until)
        return added

    _count(await transact(app.pool, work))
    metrics.DETECTOR_LAG.set(max(0.0, time() - until.timestamp()))
    if until == end:
        await bands.show(app, judged_last)
    return until < end


def _count(added: Sequence[Record]) -> None:
    """Count and log what is new and should be told."""
    for row in added:
        if not row["shadow"] and not row["muted"] and row["age_s"] < NEWS_S:
            metrics.ANOMALIES.add(1, row["kind"], row["severity"])
            log.warning("anomaly.found", kind=row["kind"], severity=row["severity"])


def _stands_at(judged: datetime | None, row: Record) -> datetime:
    """The first minute of a series that the kept state does not know. A state of another version is learnt anew."""
    if row["version"] == _version():
        return row["judged_to"]
    return row["begins_at"] if judged is None else max(row["begins_at"], judged - RELEARNT)


def _told_at(app: App, row: Record, at: datetime) -> float:
    """The strength from which a series is told: what feedback made of it, over what the configuration says."""
    return row["threshold"] / app.policies.analytics.watching(row["name"], row["labels"], at).sensitivity


async def _judge(app: App, rows: Sequence[Record], told_at: Sequence[float], at: datetime, until: datetime) -> "Watch":
    """Judge some series that stand at the same minute, in a thread: the event loop goes on."""
    import numpy as np  # only the process that leads loads it

    from handoff.analytics.kinds import Absence, Kind
    from handoff.analytics.watch import Series, go_on

    minutes = int((until - at) / series.MINUTE)
    values, of = np.full((minutes, len(rows)), np.nan), np.full((minutes, len(rows)), np.nan)
    places = {row["id"]: place for place, row in enumerate(rows)}
    async with connection(app.pool) as conn:  # not held while they are judged: Postgres ends what idles in a transaction
        points = await series.points(conn, at, until)
    for point in points:
        place = places.get(point["series_id"])
        if place is not None:
            minute = int((point["bucket"] - at) / series.MINUTE)
            values[minute, place] = point["value"]
            of[minute, place] = np.nan if point["of"] is None else point["of"]
    given = [
        Series(series.shown(row), Kind(row["kind"]), Absence(row["absence"]), told_at=limit)
        for row, limit in zip(rows, told_at, strict=True)
    ]
    for place, row in enumerate(rows):
        if row["version"] == _version():
            given[place] = replace(given[place], state=row["state"], carried=tuple(row["carried"]))
    return await asyncio.to_thread(go_on, given, int(at.timestamp()), values, of)


def _anomalies(app: App, rows: Sequence[Record], told_at: Sequence[float], found: "Sequence[Found]") -> list[Anomaly]:
    made: list[Anomaly] = []
    for it in found:
        row, bucket, finding = rows[it.place], datetime.fromtimestamp(it.t, UTC), it.finding
        watching = app.policies.analytics.watching(row["name"], row["labels"], bucket)
        is_learnt = bucket - row["begins_at"] >= timedelta(seconds=app.settings.series_warm_up_s)
        strength = finding.strength / told_at[it.place]
        made.append(
            Anomaly(
                series_id=row["id"],
                bucket=bucket,
                version=_version(),
                severity="critical" if strength >= CRITICAL_AT else "warning",
                shadow=not is_learnt and watching.tell == "learnt",
                muted=watching.muted,
                value=finding.value,
                expected=finding.expected,
                lower=finding.lower,
                upper=finding.upper,
                strength=strength,
                confidence=finding.confidence,
                spoke=dict(finding.spoke),
                sentence=finding.sentence,
            )
        )
    return made


def _version() -> int:
    from handoff.analytics.watch import VERSION

    return VERSION
