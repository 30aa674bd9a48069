"""Prometheus's heartbeat, which its rule Watchdog sends through Alertmanager: how long it has been missing."""

from datetime import datetime
from time import monotonic
from typing import NamedTuple

from handoff.settings import Settings
from handoff.store import alerts
from handoff.store.connect import Connection


class HeartbeatState(NamedTuple):
    """What is known of the heartbeat now.

    `age_s` is for how long it has been missing, `received_s` the age of the newest one (None if there never was one),
    `silent_since` when the worker found that it had stopped, and `reported` the status last sent to the webhook.
    """

    age_s: float
    received_s: float | None
    silent_since: datetime | None
    reported: str


class Heartbeat:
    """Judges the heartbeat for the whole process: the worker's watchdog job and the health check `alerting` both ask here.

    A heartbeat can't have been missing for longer than this process could have received it. It is read at least every
    `heartbeat_interval_s`; a gap of three intervals is time in which nothing could be known, because the database or the
    process itself was away.
    """

    def __init__(self, settings: Settings) -> None:
        self.timeout_s = settings.watchdog_timeout_s
        self._gap_s = 3 * settings.heartbeat_interval_s
        self._listening_since = self._read_at = monotonic()

    @property
    def is_expected(self) -> bool:
        """Whether the settings say that a heartbeat must arrive."""
        return self.timeout_s > 0

    async def read(self, conn: Connection) -> HeartbeatState:
        """Read the newest heartbeat from the database and judge its age."""
        row = await alerts.watchdog(conn)
        now = monotonic()
        if now - self._read_at > self._gap_s:
            self._listening_since = now
        self._read_at = now
        listened_s = now - self._listening_since
        received_s: float | None = row["age_s"]
        age_s = listened_s if received_s is None else min(max(received_s, 0.0), listened_s)
        return HeartbeatState(age_s, received_s, row["silent_since"], row["told"])
