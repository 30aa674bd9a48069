"""Receives what Alertmanager sends: stores notifications, and records the Watchdog's heartbeat.

A notification is acknowledged once it is stored. While the database is down, it is refused, so that Alertmanager sends it
again. It is also kept in memory, because an alert about the database itself may be resolved before it is sent again.
"""

import asyncio
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import structlog
from asyncpg import Record
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from handoff.errors import Invalid, Unavailable
from handoff.store import alerts
from handoff.store.connect import Connection, Pool, connection, transact
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

ALERTS_MAX: Final = 1_000  # in a notification, and in memory while the database is down
BODY_BYTES_MAX: Final = 4 << 20
VALUES_MAX: Final = 100 * ALERTS_MAX  # of JSON in a notification, names included; an alert of the bundle has about 40
_RETRY_S: Final = 1.0
_AHEAD: Final = timedelta(minutes=1)  # by which another machine's clock may be ahead
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_text)]
Value = Annotated[str, Field(max_length=8_000), AfterValidator(_text)]


class Alert(BaseModel):
    """An alert as Alertmanager's webhook sends it. Other fields are ignored."""

    model_config = ConfigDict(frozen=True)

    status: Literal["firing", "resolved"]
    fingerprint: Annotated[str, Field(min_length=1, max_length=64, pattern="^[0-9a-f]+$")]
    startsAt: AwareDatetime  # noqa: N815 - Alertmanager's name
    endsAt: AwareDatetime | None = None  # noqa: N815 - the same; in the year 1 while the alert is firing
    labels: Annotated[dict[Name, Value], Field(max_length=64)]
    annotations: Annotated[dict[Name, Value], Field(max_length=32)] = {}


class Notification(BaseModel):
    """A notification as Alertmanager's webhook sends it, version 4."""

    version: Literal["4"]
    alerts: Annotated[list[Alert], Field(max_length=ALERTS_MAX)]


class Alerts:
    """The receiver of Alertmanager's notifications."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: deque[dict[str, Any]] = deque()

    async def store(self, body: bytes) -> int:
        """Store a notification; return the number of alerts. Raises Invalid, and Unavailable while the database is down."""
        rows = [_row(alert) for alert in _read(body).alerts]
        try:
            return await self._store(rows)
        except Unavailable:
            self._keep(rows)
            raise

    async def store_heartbeat(self, body: bytes) -> int:
        """Record the Watchdog's heartbeat; return the number of alerts in the notification. Raises as `store` does."""
        notified = _read(body).alerts
        for alert in notified:
            if alert.status == "firing":
                evaluated_at = _evaluated_at(alert)
                async with connection(self._pool) as conn:
                    await alerts.heard(conn, evaluated_at)
        return len(notified)

    async def run(self) -> None:
        """Store what arrived while the database was down, until cancelled."""
        while True:
            await asyncio.sleep(_RETRY_S)
            rows, self._waiting = list(self._waiting), deque()
            try:
                await self._store(rows)
            except Unavailable:
                self._keep(rows)
            except Exception:  # alerts that can't be stored must not block later ones
                log.exception("alert.not_stored", alerts=len(rows))

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        kept = {_identity(row) for row in self._waiting}
        self._waiting += [row for row in rows if _identity(row) not in kept]
        dropped = len(self._waiting) - ALERTS_MAX
        if dropped > 0:
            for _ in range(dropped):
                self._waiting.popleft()
            log.warning("alert.dropped", alerts=dropped)

    async def _store(self, rows: list[dict[str, Any]]) -> int:
        newest: dict[tuple[str, datetime], dict[str, Any]] = {}
        for row in sorted(rows, key=lambda row: row["status"]):  # firing before resolved
            newest[row["fingerprint"], row["starts_at"]] = row

        async def work(conn: Connection) -> list[Record]:
            return await alerts.record(conn, list(newest.values()))

        for row in await transact(self._pool, work) if newest else ():
            metrics.ALERT_NOTIFICATIONS.add(1, row["status"])
            if row["was"] != row["status"]:
                labels = {name: row["labels"].get(name, "") for name in ("alertname", "severity", "component")}
                log.info("alert.received", **labels, status=row["status"])
        return len(newest)


def _identity(row: dict[str, Any]) -> tuple[str, datetime, str]:
    return row["fingerprint"], row["starts_at"], row["status"]


def _read(body: bytes) -> Notification:
    try:
        return Notification.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise Invalid(
            "invalid_notification",
            f"{where}: {first['msg'].removeprefix('Value error, ')}.",
            "Send notifications in the format of Alertmanager's webhook, version 4.",
        ) from None


def _row(alert: Alert) -> dict[str, Any]:
    starts_at, now = alert.startsAt.astimezone(UTC), datetime.now(UTC)
    ends_at = None
    if alert.status == "resolved":
        ends_at = (alert.endsAt or now).astimezone(UTC)
    if not _EARLIEST <= starts_at <= now + _AHEAD or (ends_at is not None and ends_at > now + _AHEAD):
        raise Invalid(
            "invalid_notification",
            "An alert starts before the year 2000, or starts or ends in the future.",
            "Correct the clock of this machine or of Alertmanager's.",
        )
    return {
        "fingerprint": alert.fingerprint,
        "starts_at": starts_at,
        "ends_at": max(ends_at, starts_at) if ends_at is not None else None,
        "status": alert.status,
        "labels": alert.labels,
        "annotations": alert.annotations,
    }


def _evaluated_at(alert: Alert) -> datetime:
    try:
        at = datetime.fromtimestamp(float(alert.annotations["evaluated_at"]), UTC)
    except (KeyError, ValueError, OverflowError, OSError):
        at = None
    if at is None or not _EARLIEST <= at <= datetime.now(UTC) + _AHEAD:
        raise Invalid(
            "invalid_notification",
            "The annotation evaluated_at is missing, is not a Unix time, or is in the future.",
            "Send only alerts of the rule Watchdog here, and make the clocks of this machine and Prometheus's agree.",
        )
    return at
