"""The dead man's switch: when the Watchdog's heartbeat stops, nobody is told of anything any more, so the worker says that,
by log, metric, the history of alerts, and a webhook that is neither Prometheus's nor Alertmanager's.
"""

from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
import structlog

from handoff.app import App
from handoff.operations.alerts import Listening
from handoff.store import alerts as store
from handoff.store.connect import Connection, connection, transact
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

ALERTNAME: Final = "WatchdogSilent"
FINGERPRINT: Final = "dead"
TELL_TIMEOUT_S: Final = 5.0
_SUMMARY: Final = "Alerting is down: Prometheus's heartbeat does not arrive"
_LABELS: Final = {"alertname": ALERTNAME, "severity": "critical", "component": "pipeline"}


class Watch:
    """Looks at the heartbeat each time it is called, as long as this process leads."""

    def __init__(self) -> None:
        self._listening: Listening | None = None

    async def __call__(self, app: App) -> None:
        """Notice that it stopped, or that it is heard again; tell what was not yet told."""
        timeout_s = app.settings.watchdog_timeout_s
        if not timeout_s:
            return
        if self._listening is None:
            self._listening = Listening(app.settings.heartbeat_interval_s)
        async with connection(app.pool) as conn:
            await store.forget(conn, FINGERPRINT)
            row = await store.watchdog(conn)
        age_s = self._listening.age_s(row["age_s"])
        metrics.WATCHDOG_AGE.set(age_s)
        since: datetime | None = row["silent_since"]
        heard = row["age_s"] is not None and row["age_s"] <= timeout_s
        if since is None and age_s > timeout_s:
            since = await _fell_silent(app, age_s)
        elif since is not None and heard:
            await _is_back(app, since)
            since = None
        status = "resolved" if since is None else "firing"
        if status != row["told"]:
            await _tell(app, status, since)


async def _fell_silent(app: App, age_s: float) -> datetime | None:
    timeout_s = app.settings.watchdog_timeout_s
    description = f"No heartbeat of the Watchdog for {age_s:.0f} s; {timeout_s:.0f} s are allowed."

    async def work(conn: Connection) -> datetime | None:
        since = await store.silent(conn)
        if since is not None:
            await store.record(conn, [_alert(since, None, description)])
        return since

    since = await transact(app.pool, work)
    if since is not None:
        log.error("watchdog.silent", age_s=round(age_s, 1), timeout_s=timeout_s)
    return since


async def _is_back(app: App, since: datetime) -> None:
    async def work(conn: Connection) -> datetime | None:
        at = await store.back(conn, since)
        if at is not None:
            await store.record(conn, [_alert(since, at, "The heartbeat arrives again.")])
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


async def _tell(app: App, status: str, since: datetime | None) -> None:
    """POST it; what is not taken is told again at the next look. The address is a secret, and never shown."""
    url = app.settings.watchdog_webhook()
    if url is None:
        return
    text = f"{_SUMMARY}. See {ALERTNAME} in the runbook." if status == "firing" else "Alerting works again."
    said = {"text": f"[{status}] {text}", "status": status, "alertname": ALERTNAME}
    said["since"] = (since or datetime.now(UTC)).isoformat()
    try:
        timeout = aiohttp.ClientTimeout(total=TELL_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as http, http.post(url, json=said) as answer:
            taken = answer.ok
            problem = str(answer.status)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        taken, problem = False, type(error).__name__
    if not taken:
        log.warning("watchdog.not_told", status=status, error=problem)
        return
    async with connection(app.pool) as conn:
        await store.told(conn, status)
    log.info("watchdog.told", status=status)
