"""The dead man's switch: reports that the Watchdog's heartbeat has stopped, because then no other alert reaches anybody.

The worker reports it by a log line, a metric, the alert history, and a webhook, which depend on neither Prometheus nor
Alertmanager.
"""

from datetime import UTC, datetime
from typing import Any, Final

import structlog

from handoff.context import App
from handoff.store import alerts as store
from handoff.store.connect import Connection, connection, transact
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

ALERTNAME: Final = "WatchdogSilent"
FINGERPRINT: Final = "dead"
WEBHOOK_TIMEOUT_S: Final = 5.0
_SUMMARY: Final = "Alerting is down: no heartbeat arrives from Prometheus"
_LABELS: Final = {"alertname": ALERTNAME, "severity": "critical", "component": "pipeline"}


async def run(app: App) -> None:
    """Check whether the heartbeat has stopped or returned, and report a change that has not been reported yet."""
    heartbeat = app.heartbeat
    if not heartbeat.is_expected:
        return
    async with connection(app.pool) as conn:
        state = await heartbeat.read(conn)
    metrics.WATCHDOG_AGE.set(state.age_s)
    since = state.silent_since
    is_back = state.received_s is not None and state.received_s <= heartbeat.timeout_s
    if since is None and state.age_s > heartbeat.timeout_s:
        since = await _note_silence(app, state.age_s)
    elif since is not None and is_back:
        await _note_return(app, since)
        since = None
    status = "resolved" if since is None else "firing"
    if status != state.reported:
        await _report(app, status, since)


async def _note_silence(app: App, age_s: float) -> datetime | None:
    timeout_s = app.heartbeat.timeout_s
    description = f"The Watchdog's heartbeat has been missing for {age_s:.0f} s; the limit is {timeout_s:.0f} s."

    async def work(conn: Connection) -> datetime | None:
        since = await store.silent(conn)
        if since is not None:
            await store.record(conn, [_alert(since, None, description)])
        return since

    since = await transact(app.pool, work)
    if since is not None:
        log.error("watchdog.silent", age_s=round(age_s, 1), timeout_s=timeout_s)
    return since


async def _note_return(app: App, since: datetime) -> None:
    async def work(conn: Connection) -> datetime | None:
        at = await store.back(conn, since)
        if at is not None:
            await store.record(conn, [_alert(since, at, "The Watchdog's heartbeat arrives again.")])
        return at

    at = await transact(app.pool, work)
    if at is not None:
        log.info("watchdog.heard", silent_s=round((at - since).total_seconds(), 1))


def _alert(since: datetime, until: datetime | None, description: str) -> dict[str, Any]:
    return {
        "fingerprint": FINGERPRINT,
        "starts_at": since,
        "ends_at": until,
        "status": "firing" if until is None else "resolved",
        "labels": _LABELS,
        "annotations": {"summary": _SUMMARY, "description": description},
    }


async def _report(app: App, status: str, since: datetime | None) -> None:
    """POST the status to the webhook. Every run tries again until that succeeds. The URL is secret and never logged."""
    url = app.settings.watchdog_webhook()
    if url is None:
        return
    import aiohttp  # a large package, for what most processes never do

    text = f"{_SUMMARY}. See {ALERTNAME} in the runbook." if status == "firing" else "Alerting works again."
    message = {"text": f"[{status.upper()}] {text}", "status": status, "alertname": ALERTNAME}
    message["since"] = (since or datetime.now(UTC)).isoformat()
    try:
        timeout = aiohttp.ClientTimeout(total=WEBHOOK_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as http, http.post(url, json=message) as answer:
            accepted = answer.ok
            problem = str(answer.status)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        accepted, problem = False, type(error).__name__
    if not accepted:
        log.warning("watchdog.not_told", status=status, error=problem)
        return
    async with connection(app.pool) as conn:
        await store.told(conn, status)
    log.info("watchdog.told", status=status)
