"""The state of the service as resources: its health and, with the scope `admin`, its metrics."""

from typing import Annotated, Any

from pydantic import Field

from handoff.context import Call
from handoff.errors import Conflict
from handoff.operations.health import HISTORY_MAX
from handoff.resources.contract import NoQuery, Query, Resource


class HealthQuery(Query):
    """Says how many of the latest changes to include."""

    history: Annotated[int, Field(ge=0, le=HISTORY_MAX)] = 20


async def read_health(call: Call, _: dict[str, str], query: HealthQuery) -> dict[str, Any]:
    """The health report, checked anew unless that was done less than a second ago."""
    await call.app.health.check()
    return call.app.health.report(query.history)


async def read_metrics(call: Call, _: dict[str, str], __: NoQuery) -> str:
    """The metrics in Prometheus's text format. Raises Conflict where telemetry is off."""
    if call.app.signals is None:
        raise Conflict(
            "telemetry_off",
            "There are no metrics, because telemetry is off in this process.",
            "Continue without them. The operator can turn them on with HANDOFF_TELEMETRY=true.",
        )
    return call.app.signals.exposition().decode()


HEALTH = Resource(
    "handoff://health",
    "health",
    "Health of the service and of each component: figures, thresholds, remedies and the latest changes.",
    HealthQuery,
    read_health,
)
METRICS = Resource(
    "handoff://metrics",
    "metrics",
    "The service's metrics in Prometheus's text format. Needs the scope admin.",
    NoQuery,
    read_metrics,
    scope="admin",
    mime_type="text/plain",
)
