"""Whether the service can answer calls: behind `/readyz`."""

import asyncio
from typing import Final

import asyncpg

from handoff.errors import Unavailable
from handoff.store.connect import Pool, connection
from handoff.store.migrate import MigrationError, pending

_TIMEOUT_S: Final = 1.0


async def problem(pool: Pool) -> str | None:
    """None if the database answers and has our schema, within a second; otherwise what is wrong."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            async with connection(pool) as conn:
                missing = await pending(conn)
    except (Unavailable, TimeoutError, asyncpg.InternalClientError):  # the last: cut off while we were asking
        return "the database does not answer"
    except MigrationError as error:
        return str(error)
    except asyncpg.PostgresError as error:
        return f"the database refuses: {type(error).__name__}"
    return f"the database lacks migrations: {', '.join(missing)}" if missing else None
