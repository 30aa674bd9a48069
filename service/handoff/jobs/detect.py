"""Judges the minutes that have been rolled up, and writes what is unusual about them.

The state of the detector is written every KEPT_EVERY, as it was some minutes before; each run goes on from there. So a run
that is killed, or that is repeated by another process, finds the same again and changes nothing, and points that come late
are judged. Every worker runs this job, and they share the series: each claims one shard after the other, and takes over what
another one has left (store/shards.py).
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final
from uuid import UUID, uuid4

import structlog
from asyncpg import Record

from handoff.context import App
from handoff.errors import HandoffError
from handoff.jobs import bands
from handoff.jobs.judging import RELEARNT, judge, unknown
from handoff.store import anomalies, series, shards
from handoff.store.anomalies import Anomaly
from handoff.store.connect import Connection, connection, transact
from handoff.store.shards import ShardLost
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
_RUN_MAX: Final = timedelta(hours=6)  # that are judged at a time, in bounded memory
_POINTS_MAX: Final = 720_000  # judged at a time
_OTHERS_S: Final = 0.5  # until it is looked again whether another process has finished what it claimed


async def run(app: App) -> None:
    """Judge every minute up to now, shard by shard, until none is behind: what another process leaves is done here.

    A shard that can't be judged holds up no other. Raises what the first of them raised, when the others are done.
    """
    async with connection(app.pool) as conn:
        rolled_up = await series.progress(conn, "rolled_up")
        if rolled_up is None:
            return
        await shards.appear(conn)
    end, holder = rolled_up - SETTLED, uuid4()
    failed: dict[int, Exception] = {}
    renewing = asyncio.create_task(_renew(app, holder))
    try:
        while await _claim_one(app, holder, end, failed):
            pass
        if failed:
            raise next(iter(failed.values()))
    finally:
        renewing.cancel()
        with suppress(HandoffError):  # else the claims lapse by themselves
            async with connection(app.pool) as conn:
                await shards.release(conn, holder)


async def _renew(app: App, holder: UUID) -> None:
    while True:
        await asyncio.sleep(shards.RENEWED_S)
        with suppress(HandoffError):  # whether it was renewed is found out when something is written
            async with connection(app.pool) as conn:
                await shards.renew(conn, holder)


async def _claim_one(app: App, holder: UUID, end: datetime, failed: dict[int, Exception]) -> bool:
    """Claim a shard and judge it up to `end`, or wait a while if others judge the rest; return whether any was behind.

    One that can't be judged is added to `failed`; those that are there are left out.
    """
    async with connection(app.pool) as conn:
        claimed = await shards.claim(conn, holder, end, failed)
        if claimed is None and not await shards.is_behind(conn, end, failed):
            return False
    if claimed is None:
        await asyncio.sleep(_OTHERS_S)
        return True
    shard, judged = claimed["shard"], claimed["at"]
    try:
        while judged is None or judged < end:
            judged = await _judge_some(app, shard, holder, judged, end)
    except ShardLost:
        log.warning("detector.shard_lost", shard=shard)
    except HandoffError:  # the database is away
        raise
    except Exception as error:
        log.exception("detector.shard_failed", shard=shard)
        failed[shard] = error
    async with connection(app.pool) as conn:
        await shards.release(conn, holder)
    return True


async def _judge_some(app: App, shard: int, holder: UUID, judged: datetime | None, end: datetime) -> datetime:
    """Judge the next minutes of the series of a shard; return up to where.

    Raises:
        ShardLost: another process has claimed the shard meanwhile. Nothing was written.
    """
    async with connection(app.pool) as conn:
        rows = await series.watched(conn, shard * shards.SERIES, (shard + 1) * shards.SERIES)
    stands_at = partial(_stands_at, judged)
    oldest = min(map(stands_at, rows), default=end)
    until = min(end, max(oldest, judged or oldest) + _RUN_MAX)
    settled = min(until, end - series.LATE)
    is_kept = settled > oldest and (until - oldest >= KEPT_EVERY or until < end)
    if is_kept:
        until = settled  # the rest is judged from there, now and again next time
    found: list[Anomaly] = []
    kept: list[tuple[list[int], Watch]] = []
    judged_last: list[tuple[Record, Band]] = []
    for first, group in groupby(sorted(rows, key=stands_at), key=stands_at):
        of_time = list(group)
        size = max(1, _POINTS_MAX // max(1, (until - first) // series.MINUTE))
        for start in range(0, len(of_time), size):
            batch = of_time[start : start + size]
            if first < until:
                told_at = [_told_at(app, row, until) for row in batch]
                watch = await _judge(app, batch, told_at, first, until)
                found += _anomalies(app, batch, told_at, watch.found)
                kept.append(([row["id"] for row in batch], watch))
                judged_last += zip(batch, watch.bands, strict=True)
    at = max(until, judged or until)
    newest = await bands.chosen(app, judged_last) if until == end else None

    async def work(conn: Connection) -> list[Record]:
        await shards.advance(conn, shard, holder, at, newest)
        added = await anomalies.add(conn, found)
        if is_kept:
            for ids, watch in kept:
                await series.keep(conn, ids, watch.states, watch.carried, version=_version(), judged_to=until)
        return added

    _count(await transact(app.pool, work))
    return at


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
    """Judge some series that stand at the same minute, from what is known of them."""
    given = [unknown(row, limit) for row, limit in zip(rows, told_at, strict=True)]
    for place, row in enumerate(rows):
        if row["version"] == _version():
            given[place] = replace(given[place], state=row["state"], carried=tuple(row["carried"]))
    return await judge(app, [row["id"] for row in rows], given, at, until)


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
