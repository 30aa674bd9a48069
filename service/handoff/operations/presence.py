"""Which processes there are: each leaves a sign of life in the database, and sees the others'."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from handoff import __version__
from handoff.settings import Settings
from handoff.store import instances
from handoff.store.connect import LOST, StandbyConnection


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process is. `operations` is the host:port of its operations port, None without one."""

    id: str
    kind: Literal["service", "worker"]
    operations: str | None
    runs_jobs: bool


class Presence:
    """This process's sign of life, and the processes that were seen lately."""

    def __init__(self, settings: Settings, identity: Identity) -> None:
        self.identity = identity
        self.alive: list[dict[str, Any]] = []
        self._interval_s = settings.heartbeat_interval_s

    async def run(self, database: StandbyConnection) -> None:
        """Leave a sign of life every `heartbeat_interval_s`, and read the others', until cancelled."""
        me = self.identity
        while True:
            with suppress(*LOST):
                async with database.use() as conn:
                    await instances.seen(conn, me.id, me.kind, __version__, me.operations, does_jobs=me.runs_jobs)
                    self.alive = [dict(row) for row in await instances.alive(conn, 6 * self._interval_s)]
            await asyncio.sleep(self._interval_s)

    async def leave(self, database: StandbyConnection) -> None:
        """Remove this process from the registry, within a second; a database that is away is left alone."""
        with suppress(*LOST):
            async with asyncio.timeout(1), database.use() as conn:
                await instances.gone(conn, self.identity.id)
