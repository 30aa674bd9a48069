"""Figures about everything that is kept, as resources: `handoff://analytics/{type}`. Add a type to TYPES."""

from typing import Any, Final

from handoff.context import Call
from handoff.errors import Forbidden, Invalid, NotFound, scope_missing
from handoff.resources.analytics_anomalies import ANOMALIES
from handoff.resources.analytics_contract import AnalyticsQuery, Type
from handoff.resources.analytics_incidents import INCIDENTS
from handoff.resources.analytics_performance import PERFORMANCE, RESOURCES
from handoff.resources.analytics_recommendations import RECOMMENDATIONS
from handoff.resources.analytics_series import SERIES
from handoff.resources.analytics_statistics import CONTEXT, HANDOFFS, SESSIONS
from handoff.resources.analytics_trends import CAPACITY, TRENDS
from handoff.resources.contract import Resource

TYPES: Final[dict[str, Type]] = {
    "sessions": SESSIONS,
    "handoffs": HANDOFFS,
    "context": CONTEXT,
    "trends": TRENDS,
    "capacity": CAPACITY,
    "performance": PERFORMANCE,
    "resources": RESOURCES,
    "anomalies": ANOMALIES,
    "incidents": INCIDENTS,
    "recommendations": RECOMMENDATIONS,
    "series": SERIES,
}


async def read_analytics(call: Call, path: dict[str, str], query: AnalyticsQuery) -> dict[str, Any]:
    """The figures of one type. Raises NotFound, Forbidden or Invalid."""
    name = path["type"]
    kind = TYPES.get(name)
    if kind is None:
        raise NotFound(
            "analytics_not_found",
            "There are no analytics of this type.",
            f"Read handoff://analytics/{{type}} with one of the types {', '.join(sorted(TYPES))}.",
        )
    if kind.scope not in call.caller.scopes and "admin" not in call.caller.scopes:
        raise scope_missing(kind.scope)
    unknown = sorted(query.model_fields_set - kind.parameters)
    if unknown:
        takes = f"It takes {', '.join(sorted(kind.parameters))}." if kind.parameters else "It takes no parameters."
        raise Invalid(
            "invalid_arguments",
            f"handoff://analytics/{name} takes no {' and no '.join(unknown)}.",
            f"Repeat the call without. {takes}",
        )
    viewer = call.caller.viewer(None)
    if viewer is not None and query.agent not in (None, viewer):
        raise Forbidden(
            "agent_mismatch",
            f"The figures of {query.agent!r} are not yours; your token is for {viewer!r}.",
            f"Repeat the call with agent={viewer}, or without agent.",
        )
    answer = await kind.read(call, query, query.agent if viewer is None else viewer)
    return {"type": name, **answer}


ANALYTICS = Resource(
    "handoff://analytics/{type}",
    "analytics",
    "Figures without content, at most 5 minutes old or marked as stale. Types: sessions, handoffs and context, per hour, "
    "day, week or month (granularity) from since to until; series, their names or, with series=NAME, their history; "
    "anomalies and recommendations, newest first. You see your own; "
    "the scope admin sees all, and incidents, performance, resources, trends and capacity.",
    AnalyticsQuery,
    read_analytics,
)
