"""PromQL over our instruments. Names come from handoff.telemetry, so that a dashboard can't name what is not emitted."""

from collections.abc import Sequence
from typing import Final, Literal

from handoff.telemetry.instruments import Attribute, Counter, Histogram, Instrument

_UNITS: Final = {"s": "_seconds", "By": "_bytes"}
WINDOW: Final = "$__rate_interval"  # as long as the scrape interval needs, and longer when zoomed out


def series(it: Instrument, part: Literal["", "bucket", "count", "sum"] = "") -> str:
    """What an instrument is called in Prometheus; of a histogram, one of its parts."""
    name = it.name.replace(".", "_") + _UNITS.get(it.unit, "")
    if isinstance(it, Histogram):
        assert part, f"{name} is a histogram: which part of it?"
        return f"{name}_{part}"
    return f"{name}_total" if isinstance(it, Counter) else name


def label(it: Attribute | str) -> str:
    """What an attribute is called in Prometheus."""
    return it if isinstance(it, str) else it.name.replace(".", "_")


def where(it: Attribute | str, matches: str, operator: Literal["=", "!=", "=~", "!~"] = "=~") -> str:
    """A matcher, `gen_ai_tool_name=~"$tool"`."""
    return f'{label(it)}{operator}"{matches}"'


def _by(labels: Sequence[Attribute | str]) -> str:
    return f" by ({', '.join(map(label, labels))})" if labels else ""


def _events(it: Instrument, matchers: Sequence[str], part: Literal["", "bucket", "count", "sum"] = "count") -> str:
    name = series(it, part if isinstance(it, Histogram) else "")
    return f"{name}{{{', '.join(matchers)}}}" if matchers else name


def rate(it: Instrument, *by: Attribute | str, only: Sequence[str] = (), part: Literal["count", "sum"] = "count") -> str:
    """Events a second; with `part="sum"`, of a histogram, what they add up to."""
    return f"sum{_by(by)} (rate({_events(it, only, part)}[{WINDOW}]))"


def count(it: Instrument, *by: Attribute | str, only: Sequence[str] = (), over: str = "$__range") -> str:
    """Events over the time that is shown."""
    return f"sum{_by(by)} (increase({_events(it, only)}[{over}]))"


def share(part: str, whole: str) -> str:
    """How much of it, from 0 to 1; nothing where there was nothing."""
    return f"({part} or vector(0)) / ({whole} > 0)"


def quantile(q: float, it: Histogram, *by: Attribute | str, only: Sequence[str] = (), over: str = WINDOW) -> str:
    """What a share `q` stays below."""
    return f"histogram_quantile({q}, sum by ({', '.join([*map(label, by), 'le'])}) (rate({_events(it, only, 'bucket')}[{over}])))"


def heat(it: Histogram, only: Sequence[str] = ()) -> str:
    """How many events fell into each bucket."""
    return f"sum by (le) (increase({_events(it, only, 'bucket')}[{WINDOW}]))"


def now(it: Instrument, *by: Attribute | str, how: Literal["max", "sum", "min"] = "max", only: Sequence[str] = ()) -> str:
    """A gauge's value, over all processes."""
    return f"{how}{_by(by)} ({_events(it, only)})"
