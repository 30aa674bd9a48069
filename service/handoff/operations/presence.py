"""The registry of running processes: each records in the database that it is alive, and reads which others are.

Those that serve agents also keep the leases running.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

import structlog

from handoff import __version__
from handoff.settings import Settings
from handoff.store import instances, lease_clock
from handoff.store.connect import LOST, Connection, StandbyConnection

log = structlog.get_logger(__name__)

MISSED_MAX: Final = 3  # intervals that all serving processes may miss before leases stand still; a busy machine misses one


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifies this process. `operations` is the host:port of its operations port, None without one."""

    id: str
    kind: Literal["service", "worker"]
    operations: str | None
    runs_jobs: bool


class Presence:
    """Registers this process. `alive` are the processes, itself included, that were alive within six intervals."""

    def __init__(self, settings: Settings, identity: Identity) -> None:
        self.identity = identity
        self.alive: list[dict[str, Any]] = []
        self._interval_s = settings.heartbeat_interval_s

    async def run(self, database: StandbyConnection) -> None:
        """Every `heartbeat_interval_s`, record that this process is alive and read which ones are, until cancelled."""
        me = self.identity
        while True:
            with suppress(*LOST):
                async with database.use() as conn:
                    await instances.seen(conn, me.id, me.kind, __version__, me.operations, does_jobs=me.runs_jobs)
                    if me.kind == "service":
                        await self._keep_leases_running(conn)
                    self.alive = [dict(row) for row in await instances.alive(conn, 6 * self._interval_s)]
            await asyncio.sleep(self._interval_s)

    async def _keep_leases_running(self, conn: Connection) -> None:
        clock = await lease_clock.keep_running(conn, MISSED_MAX * self._interval_s)
        if clock is not None and clock["stood_still_s"] > 0:
            log.info("leases.kept", stood_still_s=round(clock["stood_still_s"], 1), leases=clock["moved"])

    async def leave(self, database: StandbyConnection) -> None:
        """Remove this process from the registry, if the database answers."""
        with suppress(*LOST):
            async with database.use() as conn:
                await instances.gone(conn, self.identity.id)
