"""Rollups: what the raw rows of handoffs and sessions say about each minute, as points of series."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from handoff.store.connect import Connection
from handoff.store.series import Absence, Kind, Point, Spec

# The kinds of events that are counted, and the names of their series.
COUNTED: Final[Mapping[str, str]] = {
    "session.created": "sessions.registered",
    "session.expired": "sessions.expired",
    "handoff.offered": "handoffs.offered",
    "handoff.accepted": "handoffs.accepted",
    "handoff.rejected": "handoffs.rejected",
    "handoff.completed": "handoffs.completed",
    "handoff.blocked": "handoffs.blocked",
    "handoff.lapsed": "handoffs.lapsed",
    "handoff.expired": "handoffs.expired",
}
# Those of a route from sender to target, and of an agent, because they say whose work is unusual.
OF_ROUTES: Final = ("handoff.offered", "handoff.rejected", "handoff.lapsed")
OF_AGENTS: Final = ("session.created", "handoff.offered", "handoff.accepted", "handoff.completed")

READ_S_MAX: Final = 30.0  # per statement
LIMIT = "SELECT set_config('statement_timeout', $1, true)"
EVENTS = """
    SELECT date_trunc('minute', at, 'UTC') AS bucket, kind, count(*)::float8 AS value
      FROM event WHERE at >= $1 AND at < $2 AND kind = ANY ($3) GROUP BY 1, 2
"""
AGENTS = """
    SELECT date_trunc('minute', at, 'UTC') AS bucket, kind, agent, count(*)::float8 AS value
      FROM event WHERE at >= $1 AND at < $2 AND kind = ANY ($3) AND agent IS NOT NULL GROUP BY 1, 2, 3
"""
ROUTES = """
    SELECT date_trunc('minute', e.at, 'UTC') AS bucket, e.kind, h.sender,
           coalesce(h.target_agent, 'any agent with ' || h.target_capability) AS target, count(*)::float8 AS value
      FROM event e JOIN handoff h ON h.id = e.handoff_id
     WHERE e.at >= $1 AND e.at < $2 AND e.kind = ANY ($3) GROUP BY 1, 2, 3, 4
"""
# From the offer to its acceptance, and from there to the end. Of several acceptances, the last one before the end counts.
WAITS = """
    SELECT date_trunc('minute', e.at, 'UTC') AS bucket, e.kind,
           avg(extract(epoch FROM e.at - before.at))::float8 AS value
      FROM event e
      JOIN LATERAL (
        SELECT b.at FROM event b
         WHERE b.handoff_id = e.handoff_id AND b.id < e.id
           AND b.kind = CASE e.kind WHEN 'handoff.accepted' THEN 'handoff.offered' ELSE 'handoff.accepted' END
         ORDER BY b.id DESC LIMIT 1) before ON true
     WHERE e.at >= $1 AND e.at < $2 AND e.kind IN ('handoff.accepted', 'handoff.completed')
     GROUP BY 1, 2
"""
_WAITS: Final = {"handoff.accepted": "handoffs.time_to_accept", "handoff.completed": "handoffs.time_to_complete"}


async def allow_time(conn: Connection) -> None:
    """Let the statements of this transaction take READ_S_MAX: minutes can have any number of events."""
    await conn.execute(LIMIT, f"{READ_S_MAX:.0f}s")


async def from_events(conn: Connection, since: datetime, until: datetime) -> list[Point]:
    """The points of the minutes from `since` to before `until`.

    Events of all, by agent and by route, and waiting times.
    Series of all come first: they are registered before the limit on series is reached.
    """
    found: list[Point] = []
    specs: dict[tuple[str, ...], Spec] = {}  # one for all points of a series

    def add(name: str, kind: Kind, absence: Absence, bucket: datetime, value: float, **labels: str) -> None:
        key = (name, *labels.values())
        if key not in specs:
            specs[key] = Spec(name, kind, absence, labels)
        found.append(Point(specs[key], bucket, value))

    for row in await conn.fetch(EVENTS, since, until, list(COUNTED), timeout=READ_S_MAX):
        add(COUNTED[row["kind"]], "count", "zero", row["bucket"], row["value"])
    for row in await conn.fetch(WAITS, since, until, timeout=READ_S_MAX):
        add(_WAITS[row["kind"]], "duration", "gap", row["bucket"], row["value"])
    for row in await conn.fetch(ROUTES, since, until, OF_ROUTES, timeout=READ_S_MAX):
        labels = {"from": row["sender"], "to": row["target"]}
        add(COUNTED[row["kind"]], "count", "zero", row["bucket"], row["value"], **labels)
    for row in await conn.fetch(AGENTS, since, until, OF_AGENTS, timeout=READ_S_MAX):
        add(COUNTED[row["kind"]], "count", "zero", row["bucket"], row["value"], agent=row["agent"])
    return found
