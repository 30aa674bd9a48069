"""The lifecycle of all sessions as a resource: states, what is due and when, storage, and legal holds."""

from datetime import timedelta
from typing import Any

from handoff.context import Call
from handoff.encoding import that_fit, to_json
from handoff.resources.contract import NoQuery, Resource
from handoff.store import archive, holds, integrity, lifecycle
from handoff.store.connect import snapshot


async def read_lifecycle(call: Call, _: dict[str, str], __: NoQuery) -> dict[str, Any]:
    """Sessions by status, due changes, bytes, quarantine and holds; the lists share the size of a page."""
    settings = call.app.settings
    async with snapshot(call.app.pool) as conn:
        found = await lifecycle.overview(conn, timedelta(seconds=settings.archive_after_s))
        held = await holds.all_holds(conn)
        damaged = await integrity.listed(conn)
        failures = await archive.failures(conn)
    room = settings.page_bytes_max
    for name, whole in (("archive", found["archive"]), ("quarantine", damaged), ("not_archived", failures), ("holds", held)):
        totals = [row.pop("total") for row in whole if "total" in row]  # each row of some lists says how many there are
        total = max([len(whole), *totals])
        found[name] = that_fit(whole, room)
        if len(found[name]) < total:
            found[f"{name}_left_out"] = total - len(found[name])
        room = max(room - len(to_json(found[name])), 1)
    return found


LIFECYCLE = Resource(
    "handoff://lifecycle",
    "lifecycle",
    "All sessions by status, which changes are due and when, bytes, legal holds and quarantine. Needs the scope admin.",
    NoQuery,
    read_lifecycle,
    scope="admin",
)
