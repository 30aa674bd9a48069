"""PromQL over the metrics that the service and the worker export.

Names come from handoff.telemetry.metrics, so a dashboard can't query a metric that nothing emits.
"""

from collections.abc import Sequence
from typing import Final, Literal

from handoff.telemetry import metrics
from handoff.telemetry.instruments import Attribute, Counter, Histogram, Instrument

_UNITS: Final = {"s": "_seconds", "By": "_bytes"}
WINDOW: Final = "$__rate_interval"  # at least four scrape intervals; longer when zoomed out


def series(instrument: Instrument, part: Literal["", "bucket", "count", "sum"] = "") -> str:
    """The instrument's metric name in Prometheus; for a histogram, the name of one of its parts."""
    name = instrument.name.replace(".", "_") + _UNITS.get(instrument.unit, "")
    if isinstance(instrument, Histogram):
        assert part, f"{name} is a histogram: name the part"
        return f"{name}_{part}"
    return f"{name}_total" if isinstance(instrument, Counter) else name


def label(attribute: Attribute | str) -> str:
    """The attribute's label name in Prometheus."""
    return attribute if isinstance(attribute, str) else attribute.name.replace(".", "_")


def matcher(attribute: Attribute | str, value: str, operator: Literal["=", "!=", "=~", "!~"] = "=~") -> str:
    """A label matcher, such as `gen_ai_tool_name=~"$tool"`."""
    return f'{label(attribute)}{operator}"{value}"'


def _by(labels: Sequence[Attribute | str]) -> str:
    return f" by ({', '.join(map(label, labels))})" if labels else ""


def _selector(instrument: Instrument, matchers: Sequence[str], part: Literal["", "bucket", "count", "sum"] = "count") -> str:
    name = series(instrument, part if isinstance(instrument, Histogram) else "")
    return f"{name}{{{', '.join(matchers)}}}" if matchers else name


def rate(
    instrument: Instrument, *by: Attribute | str, only: Sequence[str] = (), part: Literal["count", "sum"] = "count"
) -> str:
    """Events per second; with `part="sum"`, the sum of a histogram's values per second."""
    return f"sum{_by(by)} (rate({_selector(instrument, only, part)}[{WINDOW}]))"


def increase(instrument: Instrument, *by: Attribute | str, only: Sequence[str] = (), over: str = "$__range") -> str:
    """Number of events, by default in the page's time range."""
    return f"sum{_by(by)} (increase({_selector(instrument, only)}[{over}]))"


def ratio(part: str, whole: str) -> str:
    """`part` / `whole`, from 0 to 1; no value where `whole` is 0."""
    return f"({part} or vector(0)) / ({whole} > 0)"


def quantile(q: float, histogram: Histogram, *by: Attribute | str, only: Sequence[str] = (), over: str = WINDOW) -> str:
    """The `q` quantile of a histogram, in the histogram's unit."""
    labels = ", ".join([*map(label, by), "le"])
    return f"histogram_quantile({q}, sum by ({labels}) (rate({_selector(histogram, only, 'bucket')}[{over}])))"


def bucket_counts(histogram: Histogram, only: Sequence[str] = ()) -> str:
    """Number of events per bucket; buckets are cumulative."""
    return f"sum by (le) (increase({_selector(histogram, only, 'bucket')}[{WINDOW}]))"


def live(vector: str, *, leader: bool = False) -> str:
    """Only what processes say that are alive; with `leader`, only what the one that runs the jobs says."""
    return f"{vector} and on (service_instance_id) handoff:{'leader' if leader else 'process'}:live"


def gauge(
    instrument: Instrument,
    *by: Attribute | str,
    aggregate: Literal["max", "sum", "min"] = "max",
    only: Sequence[str] = (),
) -> str:
    """Current value of a gauge, aggregated over all live processes; what only the leader knows, from the leader."""
    leader = instrument in metrics.LEADERS
    found = live(_selector(instrument, only), leader=leader)
    if leader and aggregate == "sum":  # while one leader follows another, both may be alive
        found = f"max{_by(instrument.attributes)} ({found})"
    return f"{aggregate}{_by(by)} ({found})"
