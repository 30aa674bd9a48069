"""The admin tool that explains an incident, and takes what operators say of it."""

from functools import partial
from typing import Annotated, Any, Final, Literal

import structlog
from asyncpg import Record
from pydantic import Field

from handoff.context import Call
from handoff.encoding import that_fit
from handoff.errors import NotFound
from handoff.model import SEQUENCE_MAX
from handoff.store import audit, incidents
from handoff.store.connect import Connection, after_commit, snapshot, transact
from handoff.tools.contract import AgentArg, Arguments, Tool, acting_agent, result_with
from handoff.views import incident_view

log = structlog.get_logger(__name__)

_POINTS_OF: Final = 3  # series whose points are shown, those of the strongest anomalies
_EXACT: Final = 6  # digits


class ExplainAnomaly(Arguments):
    """Explain an incident of handoff://analytics/incidents: causes, anomalies, and the points around them.

    feedback makes its series alert later (noise) or sooner (useful).
    """

    agent: AgentArg = None
    incident: Annotated[int, Field(ge=1, le=SEQUENCE_MAX)]
    feedback: Literal["useful", "noise"] | None = None


async def explain_anomaly(call: Call, args: ExplainAnomaly) -> dict[str, Any]:
    """Return the incident with its evidence, and keep the feedback. Raises NotFound."""
    if args.feedback is not None:
        await _judge(call, args.incident, args.feedback, acting_agent(call.caller, args.agent))
    async with snapshot(call.app.pool) as conn:
        row = await incidents.find(conn, args.incident)
        if row is None:
            raise _not_found(args.incident)
        found, points = await incidents.evidence(conn, row)
    bytes_max = call.app.settings.page_bytes_max // 3
    return {
        "incident": incident_view(row),
        "series": that_fit(_thresholds(found), bytes_max),
        "found": that_fit([_anomaly(it) for it in found], bytes_max),
        "points": _points(found, points),
    }


async def _judge(call: Call, number: int, feedback: incidents.Feedback, actor: str | None) -> None:
    async def work(conn: Connection) -> None:
        moved = await incidents.judge(conn, number, feedback, actor or "unknown")
        if moved is None:
            raise _not_found(number)
        changes = [
            {"series": row["name"], "labels": row["labels"], "from": round(row["was"], 3), "to": round(row["threshold"], 3)}
            for row in moved
        ]
        details = {"feedback": feedback, "thresholds": changes[: incidents.SIGNS_MAX]}
        await audit.append(conn, actor=actor, action="incident.feedback", target=f"incident {number}", details=details)
        after_commit(partial(log.info, "incident.judged", incident=number, feedback=feedback, agent=actor))

    await transact(call.app.pool, work)


def _not_found(number: int) -> NotFound:
    return NotFound(
        "incident_not_found",
        f"There is no incident {number}.",
        "Read handoff://analytics/incidents, which lists those that are kept.",
    )


def _thresholds(found: list[Record]) -> list[dict[str, Any]]:
    """Each series once, with the strength from which it notifies people."""
    rows = {row["series_id"]: row for row in found}
    return [
        {"series": row["name"], "labels": row["labels"], "kind": row["kind"], "threshold": round(row["threshold"], 3)}
        for row in rows.values()
    ]


def _anomaly(row: Record) -> dict[str, Any]:
    numbers = ("value", "expected", "lower", "upper", "strength", "confidence")
    return {
        "at": row["at"],
        "series": row["name"],
        "labels": row["labels"],
        "severity": row["severity"],
        **{name: float(f"{row[name]:.{_EXACT}g}") for name in numbers},
        "spoke": row["spoke"],
        "sentence": row["sentence"],
    }


def _points(found: list[Record], points: list[Record]) -> list[dict[str, Any]]:
    """What was measured of the strongest series: minute by minute from the first one shown on; null is not measured."""
    shown: list[dict[str, Any]] = []
    for series_id in list(dict.fromkeys(row["series_id"] for row in found))[:_POINTS_OF]:
        row = next(it for it in found if it["series_id"] == series_id)
        mine = [it for it in points if it["series_id"] == series_id][: incidents.POINTS_MAX]
        if not mine:
            continue
        first = mine[0]["bucket"]
        values: list[float | None] = [None] * (int((mine[-1]["bucket"] - first).total_seconds() // 60) + 1)
        for it in mine:
            value = it["value"] / it["of"] if it["of"] else it["value"]
            values[int((it["bucket"] - first).total_seconds() // 60)] = float(f"{value:.{_EXACT}g}")
        shown.append({"series": row["name"], "labels": row["labels"], "since": first, "by_minute": values})
    return shown


EXPLAIN_ANOMALY = Tool(
    "explain_anomaly",
    ExplainAnomaly,
    explain_anomaly,
    result_with("incident", "object"),
    "admin",
    destructive=False,
)
