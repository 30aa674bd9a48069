"""How long Prometheus's heartbeat has been missing, which its rule Watchdog sends through Alertmanager."""

from datetime import datetime
from time import monotonic, time
from typing import NamedTuple

from handoff.settings import Settings
from handoff.store import alerts
from handoff.store.connect import Connection


class HeartbeatState(NamedTuple):
    """What is known of the heartbeat now.

    `age_s` says for how long it has been missing. `received_s` is the age of the newest one (None if there was none),
    `silent_since` the time at which the worker noticed that it had stopped, and `reported` the status last sent to the
    webhook.
    """

    age_s: float
    received_s: float | None
    silent_since: datetime | None
    reported: str


class Heartbeat:
    """Judges the heartbeat for the whole process: for the worker's job `watchdog` and the health check `alerting`.

    A heartbeat counts as missing only for as long as this process could have received it. It is read at least every
    `heartbeat_interval_s`. After a gap of three intervals, the time starts again, because the database or the process itself
    was down, the machine slept (the monotonic clock stands still then), or its clock was set.
    """

    def __init__(self, settings: Settings) -> None:
        self.timeout_s = settings.watchdog_timeout_s
        self._gap_s = 3 * settings.heartbeat_interval_s
        self._listening_since = self._read_at = monotonic()
        self._wall_at = time()

    @property
    def is_expected(self) -> bool:
        """Whether a heartbeat must arrive, according to the settings."""
        return self.timeout_s > 0

    async def read(self, conn: Connection) -> HeartbeatState:
        """Read the newest heartbeat from the database and judge its age."""
        row = await alerts.watchdog(conn)
        now, wall = monotonic(), time()
        if max(now - self._read_at, abs(wall - self._wall_at)) > self._gap_s:
            self._listening_since = now
        self._read_at, self._wall_at = now, wall
        listened_s = now - self._listening_since
        received_s: float | None = row["age_s"]
        age_s = listened_s if received_s is None else min(max(received_s, 0.0), listened_s)
        return HeartbeatState(age_s, received_s, row["silent_since"], row["told"])
