"""Deletes what has outlived its time: results of calls, history of alerts, health, processes, incidents; idle agents."""

import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import Final

import structlog

from handoff.context import App
from handoff.jobs.pace import pause_after
from handoff.store import incidents, retention, series, webhooks
from handoff.store.connect import Connection, transact
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 300.0
_RUN_S: Final = 30.0  # after which a run begins no other batch; the next run goes on


async def run(app: App) -> None:
    """Delete what is due, in batches, each in its own transaction; count and log it."""
    until = monotonic() + _RUN_S
    kept_for = timedelta(seconds=app.settings.idempotency_kept_s)
    deletions: dict[str, Callable[[Connection], Awaitable[int]]] = {
        "alert": retention.alerts,
        "health_event": retention.health,
        "process_minute": retention.process_minutes,
        "call_minute": retention.call_minutes,
        "agent_minute": retention.agent_minutes,
        "process_period": retention.process_periods,
        "call_period": retention.call_periods,
        "incident": incidents.forget,
        "anomaly": incidents.forget_anomalies,
        "series_point": series.forget_points,
        "detector_state": series.rest,
        "series": series.forget,
        "webhook_delivery": webhooks.forget,
    }
    deleted = {table: await _batches(app, work, until, table) for table, work in deletions.items()}
    deleted["idempotency"] = await _results(app, kept_for, until)
    deleted["agent"] = await _agents(app, until)
    expired = await _batches(app, retention.expire_unused, until)
    if expired or any(deleted.values()):
        log.info("retention.done", sessions_expired=expired, **deleted)


async def _batches(app: App, work: Callable[[Connection], Awaitable[int]], until: float, table: str | None = None) -> int:
    total = 0
    while (began := monotonic()) < until:
        count = await transact(app.pool, work)
        total += count
        if table is not None:
            metrics.ROWS_DELETED.add(count, table)
        if count < retention.BATCH_MAX:
            break
        await pause_after(began)
    return total


async def _results(app: App, kept_for: timedelta, until: float) -> int:
    """Go through all kept results, from any block on, so that each of them has its turn even if the time is too short."""
    total = 0
    blocks = range(0, await transact(app.pool, retention.result_blocks), retention.RESULT_BLOCKS_MAX)
    first = random.randrange(len(blocks) or 1)  # noqa: S311 - no secret
    for block in (*blocks[first:], *blocks[:first]):
        if (began := monotonic()) > until:
            break
        count = await transact(app.pool, partial(retention.results, kept_for=kept_for, block=block))
        total += count
        metrics.ROWS_DELETED.add(count, "idempotency")
        await pause_after(began)
    return total


async def _agents(app: App, until: float) -> int:
    total, after = 0, ""
    while (began := monotonic()) < until:
        found = await transact(app.pool, partial(retention.agents, after=after))
        total, after = total + found.deleted, found.last
        metrics.ROWS_DELETED.add(found.deleted, "agent")
        if found.looked_at < retention.BATCH_MAX:
            break
        await pause_after(began)
    return total
