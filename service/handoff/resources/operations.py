"""How the service is, for agents: its health, and its metrics for those with the admin scope."""

from typing import Annotated, Any

from pydantic import Field

from handoff.context import Call
from handoff.errors import Conflict
from handoff.operations.health import HISTORY_MAX
from handoff.resources.contract import NoQuery, Query, Resource


class HealthQuery(Query):
    history: Annotated[int, Field(ge=0, le=HISTORY_MAX)] = 20


async def read_health(call: Call, _: dict[str, str], query: HealthQuery) -> dict[str, Any]:
    await call.app.health.check()
    return call.app.health.report(query.history)


async def read_metrics(call: Call, _: dict[str, str], __: NoQuery) -> str:
    if call.app.signals is None:
        raise Conflict(
            "telemetry_off", "This service keeps no metrics to show.", "Its operator sets HANDOFF_TELEMETRY=true."
        )
    return call.app.signals.exposition().decode()


HEALTH = Resource(
    "handoff://health",
    "health",
    "How the service and what it needs are, with figures, thresholds, what to do, and the last changes.",
    HealthQuery,
    read_health,
)
METRICS = Resource(
    "handoff://metrics",
    "metrics",
    "The service's metrics in Prometheus's text format (scope admin).",
    NoQuery,
    read_metrics,
    scope="admin",
    mime_type="text/plain",
)
