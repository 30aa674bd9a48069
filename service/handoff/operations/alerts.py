"""Receives what Alertmanager sends: stores notifications, and records the Watchdog's heartbeat.

A notification is acknowledged once it is stored. While the database is down, it is refused, so that Alertmanager sends it
again. It is also kept in memory, because an alert about the database itself may be resolved before it is sent again.
"""

import asyncio
from collections import deque
from datetime import datetime
from typing import Any, Final

import structlog
from asyncpg import Record

from handoff.errors import HandoffError, Unavailable
from handoff.operations import notification
from handoff.operations.notification import Alert
from handoff.store import alerts
from handoff.store.connect import Connection, Pool, connection, transact
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

WAITING_MAX: Final = 1_000  # alerts in memory while the database is down
BODY_BYTES_MAX: Final = 4 << 20
VALUES_MAX: Final = 100_000  # of JSON in a notification, names included; an alert of the bundle has about 40
_RETRY_S: Final = 1.0


class Alerts:
    """The receiver of Alertmanager's notifications."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: deque[Alert] = deque()

    async def store(self, body: bytes) -> int:
        """Store a notification; return the number of alerts. Raises Invalid, and Unavailable while the database is down."""
        received = notification.read(body)
        try:
            return await self._store(received)
        except Unavailable:
            self._keep(received)
            raise

    async def store_heartbeat(self, body: bytes) -> int:
        """Record the Watchdog's heartbeat; return the number of alerts in the notification. Raises as `store` does."""
        received = notification.read(body)
        refused: HandoffError | None = None
        for alert in received:
            if alert.status == "firing":
                try:
                    evaluated_at = notification.evaluated_at(alert)
                except HandoffError as error:  # others in the group still count
                    refused = error
                    continue
                async with connection(self._pool) as conn:
                    await alerts.heard(conn, evaluated_at)
        if refused is not None:
            raise refused
        return len(received)

    async def run(self) -> None:
        """Store what arrived while the database was down, until cancelled."""
        while True:
            await asyncio.sleep(_RETRY_S)
            waiting, self._waiting = list(self._waiting), deque()
            try:
                await self._store(waiting, unconfirmed=True)
            except Unavailable:
                self._keep(waiting)
            except Exception:  # alerts that can't be stored must not block later ones
                log.exception("alert.not_stored", alerts=len(waiting))

    def _keep(self, received: list[Alert]) -> None:
        kept = {_identity(alert): alert for alert in (*self._waiting, *received)}
        dropped = max(0, len(kept) - WAITING_MAX)
        self._waiting = deque(list(kept.values())[dropped:])
        if dropped:
            log.warning("alert.dropped", alerts=dropped)

    async def _store(self, received: list[Alert], *, unconfirmed: bool = False) -> int:
        newest: dict[tuple[str, datetime], Alert] = {}
        for alert in sorted(received, key=lambda alert: alert.status):  # firing before resolved
            newest[alert.fingerprint, alert.starts_at] = alert

        async def work(conn: Connection) -> list[Record]:
            return await alerts.record(conn, [_row(alert, unconfirmed=unconfirmed) for alert in newest.values()])

        for row in await transact(self._pool, work) if newest else ():
            metrics.ALERT_NOTIFICATIONS.add(1, row["status"])
            if row["was"] != row["status"]:
                labels = {name: row["labels"].get(name, "") for name in ("alertname", "severity", "component")}
                log.info("alert.received", **labels, status=row["status"])
                if adjusted := newest[row["fingerprint"], row["starts_at"]].adjusted:
                    log.warning("alert.adjusted", **labels, status=row["status"], adjusted=sorted(adjusted))
        return len(newest)


def _identity(alert: Alert) -> tuple[str, datetime, str]:
    return alert.fingerprint, alert.starts_at, alert.status


def _row(alert: Alert, *, unconfirmed: bool) -> dict[str, Any]:
    return {
        "fingerprint": alert.fingerprint,
        "starts_at": alert.starts_at,
        "ends_at": alert.ends_at,
        "status": alert.status,
        "labels": alert.labels,
        "annotations": alert.annotations,
        "unconfirmed": unconfirmed and alert.status == "firing",
    }
