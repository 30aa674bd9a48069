"""What Alertmanager tells: its notifications are stored, and the Watchdog's heartbeat is listened for.

A notification is acknowledged once it is stored. While the database is away it is refused, so that it comes again, and kept
here besides: one about the database itself may be over before it could be told again.
"""

import asyncio
from collections import deque
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Annotated, Any, Final, Literal

import structlog
from asyncpg import Record
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from handoff.errors import Invalid, Unavailable
from handoff.store import alerts as store
from handoff.store.connect import Connection, Pool, connection, transact
from handoff.telemetry import metrics

log = structlog.get_logger(__name__)

ALERTS_MAX: Final = 1_000  # in a notification, and kept while the database is away
BODY_BYTES_MAX: Final = 4 << 20
_AGAIN_S: Final = 1.0
_AHEAD: Final = timedelta(minutes=1)  # how far another clock may be ahead
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_text)]
Value = Annotated[str, Field(max_length=8_000), AfterValidator(_text)]


class Alert(BaseModel):
    """An alert as Alertmanager's webhook shows it; further fields are ignored."""

    model_config = ConfigDict(frozen=True)

    status: Literal["firing", "resolved"]
    fingerprint: Annotated[str, Field(min_length=1, max_length=64, pattern="^[0-9a-f]+$")]
    startsAt: AwareDatetime  # noqa: N815 - the field's name
    endsAt: AwareDatetime | None = None  # noqa: N815 - the same; the year 1 while it fires
    labels: Annotated[dict[Name, Value], Field(max_length=64)]
    annotations: Annotated[dict[Name, Value], Field(max_length=32)] = {}


class Notification(BaseModel):
    """A notification of Alertmanager's webhook, version 4."""

    version: Literal["4"]
    alerts: Annotated[list[Alert], Field(max_length=ALERTS_MAX)]


class Alerts:
    """The receiver of notifications."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: deque[dict[str, Any]] = deque()

    async def take(self, body: bytes) -> int:
        """Store a notification; how many alerts it had. Raises Invalid, and Unavailable while the database is away."""
        rows = [_row(it) for it in _read(body).alerts]
        try:
            return await self._store(rows)
        except Unavailable:
            self._keep(rows)
            raise

    async def heartbeat(self, body: bytes) -> int:
        """Note the Watchdog's heartbeat; how many alerts the notification had. Raises as `take` does."""
        alerts = _read(body).alerts
        for it in alerts:
            if it.status == "firing":
                evaluated_at = _evaluated_at(it)
                async with connection(self._pool) as conn:
                    await store.heard(conn, evaluated_at)
        return len(alerts)

    async def run(self) -> None:
        """Store what came while the database was away, until cancelled."""
        while True:
            await asyncio.sleep(_AGAIN_S)
            rows, self._waiting = list(self._waiting), deque()
            try:
                await self._store(rows)
            except Unavailable:
                self._keep(rows)
            except Exception:  # what can't be stored must not keep back what is to come
                log.exception("alert.not_stored", alerts=len(rows))

    def _keep(self, rows: list[dict[str, Any]]) -> None:
        kept = {(it["fingerprint"], it["starts_at"], it["status"]) for it in self._waiting}
        self._waiting += [it for it in rows if (it["fingerprint"], it["starts_at"], it["status"]) not in kept]
        dropped = len(self._waiting) - ALERTS_MAX
        if dropped > 0:
            for _ in range(dropped):
                self._waiting.popleft()
            log.warning("alert.dropped", alerts=dropped)

    async def _store(self, rows: list[dict[str, Any]]) -> int:
        each: dict[tuple[str, datetime], dict[str, Any]] = {}
        for it in sorted(rows, key=lambda it: it["status"]):  # firing before resolved
            each[it["fingerprint"], it["starts_at"]] = it

        async def work(conn: Connection) -> list[Record]:
            return await store.record(conn, list(each.values()))

        for row in await transact(self._pool, work) if each else ():
            metrics.ALERT_NOTIFICATIONS.add(1, row["status"])
            if row["was"] != row["status"]:
                said = {name: row["labels"].get(name, "") for name in ("alertname", "severity", "component")}
                log.info("alert.received", **said, status=row["status"])
        return len(each)


class Listening:
    """How long a heartbeat has been missing: not for longer than it could have been heard.

    `every_s` is how often `age_s` is asked; a longer gap is time in which nothing could be known.
    """

    def __init__(self, every_s: float) -> None:
        self._gap_s = 3 * every_s
        self._since = self._asked = monotonic()

    def age_s(self, heard_s: float | None) -> float:
        """Seconds that count: `heard_s` are those since the newest heartbeat, None if there never was one."""
        now = monotonic()
        if now - self._asked > self._gap_s:
            self._since = now
        self._asked = now
        listened = now - self._since
        return listened if heard_s is None else min(max(heard_s, 0.0), listened)


def _read(body: bytes) -> Notification:
    try:
        return Notification.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise Invalid(
            "invalid_notification", f"{where}: {first['msg']}.", "Send what Alertmanager's webhook sends, version 4."
        ) from None


def _row(alert: Alert) -> dict[str, Any]:
    starts_at, now = alert.startsAt.astimezone(UTC), datetime.now(UTC)
    ends_at = None
    if alert.status == "resolved":
        ends_at = (alert.endsAt or now).astimezone(UTC)
    if not _EARLIEST <= starts_at <= now + _AHEAD or (ends_at is not None and ends_at > now + _AHEAD):
        raise Invalid("invalid_notification", "An alert begins or ends in the future, or long ago.", "Set the clocks.")
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
            "The annotation evaluated_at is no Unix time, or lies in the future.",
            "The rule Watchdog writes it at each evaluation; see that the clocks agree.",
        )
    return at
