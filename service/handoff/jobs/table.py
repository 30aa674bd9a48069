"""The table of jobs, which one process at a time runs at intervals. Add a job here."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from handoff.context import App
from handoff.jobs import (
    alive,
    archive,
    audit,
    cache,
    certificates,
    delete,
    detect,
    dormant,
    expire,
    history,
    incidents,
    integrity,
    measure,
    promql,
    recommend,
    retention,
    rollup,
    settle,
    stale_alerts,
    storage,
    trends,
    watchdog,
    webhooks,
)
from handoff.settings import Settings
from handoff.telemetry import metrics

RUN_S_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """A job. `every_s` is its interval in seconds, from the settings. A run that takes longer than `limit_s` is ended."""

    name: str
    every_s: Callable[[Settings], float]
    run: Callable[[App], Awaitable[None]]
    limit_s: float = RUN_S_MAX
    is_shared: bool = False  # every worker runs it, and they share the work, whoever leads


JOBS: Final = (
    Job("settle", lambda settings: settings.settle_interval_s, settle.run),
    Job("expire", lambda settings: settings.expire_interval_s, expire.run),
    Job("dormant", lambda settings: settings.dormant_interval_s, dormant.run),
    Job("archive", lambda settings: settings.archive_interval_s, archive.run),
    Job("delete", lambda settings: settings.delete_interval_s, delete.run),
    Job("cache", lambda _: cache.INTERVAL_S, cache.run),
    Job("retention", lambda _: retention.INTERVAL_S, retention.run),
    Job("measure", lambda settings: settings.measure_interval_s, measure.run),
    Job("heartbeat", lambda settings: settings.heartbeat_interval_s, alive.run),
    Job("watchdog", lambda settings: settings.heartbeat_interval_s, watchdog.run),
    Job("stale_alerts", lambda settings: settings.heartbeat_interval_s, stale_alerts.run),
    Job("certificates", lambda settings: settings.certificates_interval_s, certificates.run),
    Job("audit", lambda _: audit.INTERVAL_S, audit.run),
    Job("integrity", lambda _: integrity.INTERVAL_S, integrity.run),
    Job("recommend", lambda _: recommend.INTERVAL_S, recommend.run),
    Job("storage", lambda _: storage.INTERVAL_S, storage.run),
    Job("trends", lambda _: trends.INTERVAL_S, trends.run),
    Job("rollup", lambda _: rollup.INTERVAL_S, rollup.run),
    Job("promql", lambda _: promql.INTERVAL_S, promql.run, promql.LIMIT_S),
    Job("detect", lambda _: detect.INTERVAL_S, detect.run, detect.LIMIT_S, is_shared=True),
    Job("history", lambda _: history.INTERVAL_S, history.run),
    Job("incidents", lambda _: incidents.INTERVAL_S, incidents.run),
    Job("webhooks", lambda _: webhooks.INTERVAL_S, webhooks.run),
)
metrics.JOB.admit(*(job.name for job in JOBS))
