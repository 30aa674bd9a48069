"""The state of the service as resources: its health and, with the scope `admin`, its metrics."""

import re
from typing import Annotated, Any, Final

from pydantic import Field

from handoff.context import Call
from handoff.operations.health import HISTORY_MAX
from handoff.resources.contract import Query, Resource

METRICS_BYTES_MAX: Final = 32 << 10  # about 10,000 tokens
_HEAD: Final = re.compile(r"^(?=# HELP )", re.MULTILINE)


class HealthQuery(Query):
    """Says how many of the latest changes to include."""

    history: Annotated[int, Field(ge=0, le=HISTORY_MAX)] = 20


async def read_health(call: Call, _: dict[str, str], query: HealthQuery) -> dict[str, Any]:
    """The health report, checked anew unless that was done less than a second ago."""
    await call.app.health.check()
    return call.app.health.report(query.history)


class MetricsQuery(Query):
    """Selects metrics by the beginning of their names in Prometheus."""

    name: Annotated[str, Field(max_length=100)] = ""


async def read_metrics(call: Call, _: dict[str, str], query: MetricsQuery) -> str:
    """Metrics in Prometheus's text format, at most METRICS_BYTES_MAX. The last line says what was left out."""
    if call.app.signals is not None:
        text = call.app.signals.exposition().decode()
    else:
        from prometheus_client import generate_latest

        from handoff.telemetry.otlp import registry_alone  # loaded only where somebody asks

        text = generate_latest(registry_alone()).decode()
    families = [family for family in _HEAD.split(text) if family.startswith(f"# HELP {query.name}")]
    kept: list[str] = []
    size_bytes = 0
    for place, family in enumerate(families):
        size_bytes += len(family.encode())
        if size_bytes > METRICS_BYTES_MAX:
            missing = ", ".join(dict.fromkeys(left.split(" ", 3)[2] for left in families[place:]))
            kept.append(f"# Left out, to keep this short: {missing}. Read handoff://metrics?name=NAME for one of them.\n")
            break
        kept.append(family)
    return (
        "".join(kept) or f"# No metric has a name that begins with {query.name!r}. Read handoff://metrics for the names.\n"
    )


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
    "The service's metrics in Prometheus's text format, those whose names begin with `name`. Needs the scope admin.",
    MetricsQuery,
    read_metrics,
    scope="admin",
    mime_type="text/plain",
)
