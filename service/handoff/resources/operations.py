"""The state of the service as resources: its health and, with the scope `admin`, its metrics."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any, Final

from pydantic import Field

from handoff.context import Call
from handoff.encoding import counted
from handoff.operations.health import HISTORY_MAX
from handoff.resources.contract import Query, Resource

METRICS_BYTES_MAX: Final = 32 << 10  # about 12,000 tokens


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
    """The metrics in Prometheus's text format, at most METRICS_BYTES_MAX."""
    from prometheus_client import generate_latest

    from handoff.telemetry.otlp import registry_alone  # loaded only where somebody asks

    registry = call.app.signals.registry if call.app.signals is not None else registry_alone()
    return selected(generate_latest(registry).decode().splitlines(keepends=True), query.name)


def selected(lines: Sequence[str], name: str) -> str:
    """The lines of the metrics whose names begin with `name`, and a last line that counts those left out.

    Left out are the buckets of histograms, unless `name` selects some metrics, and what would exceed METRICS_BYTES_MAX.
    """
    found = [line for line in lines if line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(name)]
    if not found:
        return f"# No metric has a name that begins with {name!r}. Read handoff://metrics for the names.\n"
    wanted = found if name else [line for line in found if 'le="' not in line]
    sizes = accumulate(len(line.encode()) for line in wanted)
    kept = wanted[: sum(size <= METRICS_BYTES_MAX for size in sizes)]
    if len(kept) < len(found):
        kept.append(
            f"# Left out: {counted(len(found) - len(kept), 'line')}. Read handoff://metrics?name=NAME for fewer metrics.\n"
        )
    return "".join(kept)


HEALTH = Resource(
    "handoff://health",
    "health",
    "Health of the service and of each component: figures, thresholds, remedies and the latest changes.",
    HealthQuery,
    read_health,
    ttl_ms=1_000,
)
METRICS = Resource(
    "handoff://metrics",
    "metrics",
    f"The service's metrics in Prometheus's text format, at most {METRICS_BYTES_MAX >> 10} KiB of those whose names begin "
    "with `name`. Without `name`, histograms have no buckets. Needs the scope admin.",
    MetricsQuery,
    read_metrics,
    scope="admin",
    mime_type="text/plain",
)
