"""The tables of metrics and of their labels."""

from collections.abc import Mapping
from importlib import import_module
from typing import Final

from docs.source.markdown import code, escaped, table
from grafana.source.promql import label, series
from handoff.telemetry import metrics
from handoff.telemetry.environment import VARIABLES
from handoff.telemetry.instruments import Attribute, Histogram, Instrument
from handoff.telemetry.metrics import INSTRUMENTS

for _module in ("jobs.table", "operations.checks", "server.catalog", "server.http"):  # they name the values of labels
    import_module(f"handoff.{_module}")

_UNITS: Final = {"": "none", "s": "seconds", "By": "bytes", "{entry}": "entries"}
_ADMITTED: Final[Mapping[Attribute, str]] = {  # elsewhere in the code, some as it runs
    metrics.METHOD: "the MCP methods that the service answers",
    metrics.TOOL: "the tools; left out for other methods",
}


def metrics_table() -> str:
    """Every metric, in the order of its declaration."""
    rows = [
        (
            code(_name(it)),
            type(it).__name__.lower(),
            _unit(it.unit),
            ", ".join(code(label(attribute)) for attribute in it.attributes),
            escaped(it.description),
        )
        for it in INSTRUMENTS
    ]
    return table(("Metric in Prometheus", "Type", "Unit", "Labels", "What it measures"), rows)


def variables() -> str:
    """OpenTelemetry's standard variables, and what each does here."""
    rows = [(", ".join(map(code, it.names)), it.does + (f" Otherwise: {it.why}." if it.why else "")) for it in VARIABLES]
    return table(("Variable", "What it does here"), rows)


def labels() -> str:
    """Every label, with its values."""
    attributes = dict.fromkeys(attribute for it in INSTRUMENTS for attribute in it.attributes)
    return table(("Label", "Values"), [(code(label(it)), _values(it)) for it in attributes])


def _name(instrument: Instrument) -> str:
    name = series(instrument, "count") if isinstance(instrument, Histogram) else series(instrument)
    return name.removesuffix("_count") if isinstance(instrument, Histogram) else name


def _unit(unit: str) -> str:
    return _UNITS.get(unit) or f"{unit.strip('{}')}s"


def _values(attribute: Attribute) -> str:
    if attribute in _ADMITTED:
        return _ADMITTED[attribute]
    if attribute.chosen_max:
        return f"names that come and go: at most {attribute.chosen_max} at a time"
    if attribute._learned_max:
        return f"names from the code, learnt as it runs: at most {attribute.values_max}"
    return ", ".join(code(value) for value in sorted(attribute.values))
