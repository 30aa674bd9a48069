"""`handoff serve --stdio`: the service for one client, from its first line to its end.

There is no operations port, since any number of clients may start a process each.
"""

import asyncio
from typing import Final

from handoff.cli.light import loaded
from handoff.cli.serve import migrate_when_up
from handoff.cli.start import fail
from handoff.model import Caller
from handoff.server.wire import Wire, end_at_signals, open_wire
from handoff.settings import Settings
from handoff.store.connect import address

_LAST_ANSWER_S: Final = 1.0  # for which a client without a database is still answered before the process ends


async def serve_client(settings: Settings, caller: Caller) -> None:
    """Serve until the client closes its end or goes away, or until a signal."""
    async with open_wire(settings.body_bytes_max) as wire:
        end_at_signals(wire)
        if not await _database_is_ready(settings, wire):
            return
        from handoff.app import open_app, open_telemetry
        from handoff.jobs.runner import jobs_beside
        from handoff.server.stdio import serve_stdio

        loaded()
        async with (
            open_telemetry(settings) as signals,
            open_app(settings, signals=signals) as app,
            jobs_beside(app),
        ):
            await serve_stdio(app, caller, wire)


async def _database_is_ready(settings: Settings, wire: Wire) -> bool:
    """Wait for the database; until it is there, every request is answered with an error that names it.

    Returns False if the client has gone first. Raises what Postgres said.
    """
    refusing: asyncio.Task[None] | None = None

    def tell_of(error: BaseException) -> None:
        nonlocal refusing
        if refusing is None:
            reason = (
                f"The database at {address(settings)} does not answer ({type(error).__name__}). Start it, or correct "
                "HANDOFF_DATABASE_URL. `handoff doctor` tells more."
            )
            fail(reason)
            refusing = asyncio.create_task(wire.refuse_all(reason))

    migrating = asyncio.create_task(migrate_when_up(settings, tell_of))
    ending = asyncio.create_task(wire.ending.wait())
    try:
        await asyncio.wait((migrating, ending), return_when=asyncio.FIRST_COMPLETED)
        if not migrating.done():
            return False
        if (error := migrating.exception()) is not None:
            tell_of(error)
            await asyncio.wait((ending,), timeout=_LAST_ANSWER_S)
            raise error
        return True
    finally:
        for task in (migrating, ending, *((refusing,) if refusing is not None else ())):
            task.cancel()
        await asyncio.gather(migrating, ending, return_exceptions=True)
