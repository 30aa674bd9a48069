"""Whether the service can answer calls, as `/readyz` reports it."""

import asyncio
from typing import Final

import asyncpg

from handoff.errors import Unavailable
from handoff.store.connect import Pool, connection
from handoff.store.migrate import MigrationError, pending

_TIMEOUT_S: Final = 1.0


async def problem(pool: Pool) -> str | None:
    """What keeps the service from answering calls, or None if the database answers within a second and has our schema."""
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            async with connection(pool) as conn:
                missing = await pending(conn)
    except (Unavailable, TimeoutError, asyncpg.InternalClientError):  # the last: the connection was lost during the query
        return "the database does not answer"
    except MigrationError as error:
        return str(error)
    except asyncpg.PostgresError as error:
        return f"the database refuses the query: {type(error).__name__}"
    return f"the database lacks migrations: {', '.join(missing)}; run `handoff migrate`" if missing else None
