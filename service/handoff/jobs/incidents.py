"""Puts anomalies that belong together into incidents with their likely causes, and closes those that are over."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, Final, get_args

import structlog
from asyncpg import Record

from handoff.context import App
from handoff.model import Part, Severity
from handoff.store import incidents, series
from handoff.store.connect import Connection, after_commit, connection, transact
from handoff.store.incidents import Verdict
from handoff.telemetry import metrics

if TYPE_CHECKING:
    from handoff.analytics.grouping import Cluster, Sign, Suspect

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 15.0  # after the detector has found something, until somebody is told
# That are unusual together: chance hardly finds two of hundreds within minutes, so this many mean something.
CRITICAL_SERIES: Final = 5


async def run(app: App) -> None:
    """Group the anomalies that are new, and close what is over."""
    while await transact(app.pool, _group_some):
        pass
    async with connection(app.pool) as conn:
        rows = await incidents.count_open(conn)
    if rows is None:
        return
    counts = {(row["severity"], row["component"]): row["n"] for row in rows}
    for severity, part in product(get_args(Severity), get_args(Part)):
        metrics.INCIDENTS_OPEN.set(counts.get((severity, part), 0), severity, part)


async def _group_some(conn: Connection) -> bool:
    """Group a batch of anomalies in the caller's transaction; return whether there may be more."""
    from handoff.analytics.grouping import Cluster, gather  # only the process that leads loads it

    await incidents.lock(conn)
    judged_to = await series.progress(conn, "judged")
    if judged_to is None:
        return False
    waiting = await incidents.waiting(conn, judged_to)
    if waiting:
        opened, signs = await incidents.still_open(conn)
        known = {row["id"]: Cluster(incident=row["id"]) for row in opened}
        for row in signs:
            known[row["incident_id"]].signs.append(_sign(row))
        rows = {(row["series_id"], int(row["bucket"].timestamp()), row["version"]): row for row in waiting}
        new = {id(sign := _sign(row)): (sign, row) for row in rows.values()}
        severities: dict[int, Severity] = {row["id"]: row["severity"] for row in opened}
        for cluster in await asyncio.to_thread(gather, known.values(), [sign for sign, _ in new.values()]):
            added = [new[id(sign)][1] for sign in cluster.signs if id(sign) in new]
            await _write(conn, cluster, added, severities)
    for row in await incidents.close(conn, judged_to):
        after_commit(partial(log.info, "incident.closed", incident=row["id"], component=row["component"]))
    return len(waiting) == incidents.BATCH


async def _write(conn: Connection, cluster: "Cluster", added: Sequence[Record], severities: Mapping[int, Severity]) -> None:
    from handoff.analytics.grouping import suspects

    causes = await asyncio.to_thread(suspects, cluster.signs)
    before = severities.get(cluster.incident or 0, "warning")
    is_critical = (
        before == "critical"
        or any(row["severity"] == "critical" for row in added)
        or len({sign.series_id for sign in cluster.signs}) >= CRITICAL_SERIES
    )
    verdict = Verdict(
        "critical" if is_critical else "warning",
        causes[0].place.part,
        _summary(cluster.signs, causes[0]),
        [_cause(it) for it in causes],
        max(row["bucket"] for row in added),
    )
    if cluster.incident is None:
        number = await incidents.add(conn, min(row["bucket"] for row in added), verdict, added)
        event = "incident.opened"
    else:
        number = cluster.incident
        await incidents.extend(conn, number, verdict, added)
        event = "incident.escalated" if is_critical and before != "critical" else "incident.extended"
    after_commit(partial(log.warning, event, incident=number, severity=verdict.severity, component=verdict.component))


def _sign(row: Record) -> "Sign":
    from handoff.analytics.grouping import Sign, place_of

    return Sign(
        series_id=row["series_id"],
        name=row["name"],
        kind=row["kind"],
        place=place_of(row["name"], row["labels"]),
        at=int(row["bucket"].timestamp()),
        strength=row["strength"],
        value=row["value"],
        expected=row["expected"],
        sentence=row["sentence"],
        of=row["of"],
    )


def _summary(signs: Sequence["Sign"], cause: "Suspect") -> str:
    """What happened: the strongest finding of the likeliest cause, how much else there is, and that cause."""
    first = (cause.signs or sorted(signs, key=lambda it: -it.strength))[0]
    more = len(signs) - 1
    rest = f" {more} more {'anomaly' if more == 1 else 'anomalies'} with it." if more else ""
    return f"{first.sentence}{rest} Likeliest cause: {cause.place}."


def _cause(it: "Suspect") -> dict[str, Any]:
    from handoff.analytics.grouping import SIGNS_SHOWN

    return {
        "component": it.place.part,
        "names": list(it.place.names),
        "score": it.score,
        "sentence": it.sentence,
        "evidence": [sign.sentence for sign in it.signs[:SIGNS_SHOWN]],
    }
