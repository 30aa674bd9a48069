"""What the database takes on disk, as a resource."""

from typing import Any, Final

from handoff.context import Call
from handoff.encoding import that_fit
from handoff.resources.contract import NoQuery, Resource
from handoff.store import storage
from handoff.store.connect import snapshot

_DAY_S: Final = 86_400


async def read_storage(call: Call, _: dict[str, str], _query: NoQuery) -> dict[str, Any]:
    """Bytes and growth of each table, days until the limit, and the change of a policy that would save most."""
    limit = call.app.settings.storage_bytes_max
    async with snapshot(call.app.pool) as conn:
        found = await storage.read(conn, limit)
    return {
        "bytes": found.bytes,
        "bytes_per_day": round(found.bytes_per_day),
        "bytes_max": limit or None,
        "full_in_days": None if found.full_in_s is None else round(found.full_in_s / _DAY_S, 1),
        "advice": found.advice,
        "tables": that_fit(
            [{**table, "bytes_per_day": round(table["bytes_per_day"])} for table in found.tables],
            call.app.settings.page_bytes_max,
        ),
    }


STORAGE = Resource(
    "handoff://storage",
    "storage",
    "Bytes and growth of each table, days until HANDOFF_STORAGE_BYTES_MAX, and the change of a retention policy that would "
    "save most. Needs the scope admin.",
    NoQuery,
    read_storage,
    scope="admin",
    ttl_ms=60_000,  # it is measured once an hour
)
