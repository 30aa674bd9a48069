"""Whether the service can answer calls, as `/readyz` reports it: its database answers and has our schema.

The question goes over a connection of its own, not the pool. Otherwise one agent that keeps the whole pool busy would make
every replica unready, and calls would be refused that are only slow. What calls experience is in the health report.
"""

import asyncio
from typing import Final

import asyncpg

from handoff.store.connect import AWAY, LOST, StandbyConnection
from handoff.store.migrate import MigrationError, pending

_TIMEOUT_S: Final = 1.0


class Readiness:
    """Asks the database, one question at a time: whoever asks meanwhile gets the same answer."""

    def __init__(self, database: StandbyConnection) -> None:
        self._database = database
        self._asking: asyncio.Task[str | None] | None = None

    async def problem(self) -> str | None:
        """What keeps the service from answering calls; None if the database answers within a second and has our schema."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> str | None:
        try:
            async with asyncio.timeout(_TIMEOUT_S), self._database.use() as conn:
                missing = await pending(conn)
        except MigrationError as error:
            return str(error)
        except LOST as error:
            if isinstance(error, asyncpg.PostgresError) and not isinstance(error, AWAY):
                return f"the database refuses the query: {type(error).__name__}"
            return "the database does not answer"
        return f"the database lacks migrations: {', '.join(missing)}; run `handoff migrate`" if missing else None
