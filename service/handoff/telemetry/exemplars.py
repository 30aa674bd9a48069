"""Exemplars on `/metrics`: the trace of a recent call in each bucket. Only the format of OpenMetrics can show them."""

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Exemplar, Sample

from handoff.telemetry import metrics

_CALLS: Final = "mcp_server_operation_duration_seconds"


class RegistryWithExemplars(CollectorRegistry):
    """A registry that adds the exemplars of calls, which OpenTelemetry's reader leaves out."""

    def collect(self) -> Iterable[Family]:
        """The families of metrics."""
        for family in super().collect():
            if family.name == _CALLS:
                family.samples = list(_with_exemplars(family.samples))
            yield family


def _with_exemplars(samples: Sequence[Sample]) -> Iterable[Sample]:
    """The samples, those of buckets with the latest exemplar of their bucket."""
    latest = metrics.OPERATION_DURATION.exemplars()
    names = [attribute.name.replace(".", "_") for attribute in metrics.OPERATION_DURATION.attributes]
    for sample in samples:
        bound = sample.labels.get("le")
        found = latest.get((tuple(sample.labels.get(name, "") for name in names), float(bound))) if bound else None
        if found is None:
            yield sample
        else:
            labels = {"trace_id": f"{found.trace_id:032x}"}
            yield sample._replace(exemplar=Exemplar(labels, found.value, found.time_unix_nano / 1e9))
