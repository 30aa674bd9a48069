"""Counters, histograms and gauges that cost well under a microsecond a record, as OpenTelemetry's points when asked.

The SDK's own instruments cost 9 to 14 µs a record, a tenth of a whole call. These keep plain lists, and become the SDK's
data model when a reader collects (signals.py). Each is written by one thread, the event loop's; any thread may collect it.

A sum's start is when its series was first recorded, not when the process started: so a back end knows that it was nothing
just before, and what happens for the first time is a rise.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import time_ns
from typing import Final, Generic, TypeVar

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics import export as sdk

OTHER: Final = "other"
_EXEMPLAR_NS: Final = 60_000_000_000  # how long an exemplar is shown: what Prometheus has seen it need not see again
Labels = tuple[str, ...]
Source = Callable[[], Iterable[tuple[float, Labels]]]
Cell = TypeVar("Cell")


class Attribute:
    """A label: its name, and the values that it may take. Any other value is recorded as `other`; "" leaves the label out.

    Values that are words of the domain are given here. Names of things in the code (tools, jobs, health components) are
    admitted by the module that defines them. Names that are met only as the code runs (statements, error codes) are
    learned: the first `learned_max` are kept.
    """

    def __init__(self, name: str, values: Iterable[str] = (), *, learned_max: int = 0) -> None:
        self.name = name
        self._values = {*values, OTHER, ""}
        self._learned_max = learned_max

    @property
    def values_max(self) -> int:
        """How many values it can take."""
        return max(len(self._values), self._learned_max)

    @property
    def values(self) -> frozenset[str]:
        """The values that it takes now, without `other` and ""."""
        return frozenset(self._values - {OTHER, ""})

    def admit(self, *values: str) -> None:
        """Allow further values: names that the calling module defines, never anything that a caller of the service chose."""
        self._values.update(values)

    def allowed(self, value: str) -> str:
        """The value if it may be recorded, otherwise `other`."""
        if value in self._values:
            return value
        if len(self._values) < self._learned_max:
            self._values.add(value)
            return value
        return OTHER


class _Instrument(ABC, Generic[Cell]):
    """A cell for each combination of labels that was seen."""

    source: Source | None = None  # asked, when it is collected, for what is kept elsewhere

    def __init__(self, name: str, unit: str, description: str, *attributes: Attribute) -> None:
        self.name = name
        self.unit = unit
        self.description = description
        self.attributes = attributes
        self._cells: dict[Labels, Cell] = {}
        self._began_ns: dict[Labels, int] = {}
        self._asked_ns = time_ns()  # when its source was asked last

    @property
    def series_max(self) -> int:
        """How many combinations of labels there can be."""
        count = 1
        for it in self.attributes:
            count *= it.values_max
        return count

    def reset(self) -> None:
        """Forget everything."""
        self._cells.clear()
        self._began_ns.clear()
        self._asked_ns = time_ns()

    @abstractmethod
    def metric(self) -> sdk.Metric | None:
        """What it holds now, or None if nothing was recorded."""

    @abstractmethod
    def _new(self) -> Cell:
        """An empty cell."""

    def _cell(self, labels: Labels) -> Cell:
        """The cell of these labels. Labels that are not allowed are never kept, so callers can't make cells."""
        found = self._cells.get(labels)
        if found is not None:
            return found
        allowed = self._allowed(labels)
        found = self._cells.get(allowed)
        if found is None:
            self._began_ns[allowed] = time_ns()
            found = self._cells[allowed] = self._new()
        return found

    def _allowed(self, labels: Labels) -> Labels:
        return tuple(it.allowed(value) for it, value in zip(self.attributes, labels, strict=True))

    def _named(self, labels: Labels) -> dict[str, str]:
        return {it.name: value for it, value in zip(self.attributes, labels, strict=True) if value}


class _Number(_Instrument[list[float]]):
    """One number for each combination of labels."""

    def add(self, amount: float, *labels: str) -> None:
        """Move it by `amount`."""
        self._cell(labels)[0] += amount

    def value(self, *labels: str) -> float:
        """What it is now."""
        found = self._cells.get(labels)
        return found[0] if found else 0.0

    def _numbers(self, *, summed: bool) -> list[sdk.NumberDataPoint]:
        now = time_ns()
        if self.source is not None:
            values = [(self._allowed(labels), value) for value, labels in self.source()]
            for labels, _ in values:
                self._began_ns.setdefault(labels, self._asked_ns)
            self._asked_ns = now
        else:
            values = [(labels, cell[0]) for labels, cell in list(self._cells.items())]
        return [
            sdk.NumberDataPoint(self._named(labels), self._began_ns[labels] if summed else 0, now, float(value))
            for labels, value in values
        ]

    def _new(self) -> list[float]:
        return [0.0]


class Counter(_Number):
    """A sum that only grows."""

    def metric(self) -> sdk.Metric | None:
        points = self._numbers(summed=True)
        data = sdk.Sum(points, sdk.AggregationTemporality.CUMULATIVE, is_monotonic=True)
        return sdk.Metric(self.name, self.description, self.unit, data) if points else None


class Gauge(_Number):
    """A value as it is now."""

    def set(self, value: float, *labels: str) -> None:
        """What it is now."""
        self._cell(labels)[0] = value

    def metric(self) -> sdk.Metric | None:
        points = self._numbers(summed=False)
        return sdk.Metric(self.name, self.description, self.unit, sdk.Gauge(points)) if points else None


@dataclass(slots=True)
class _Distribution:
    counts: list[int]
    sum: float
    least: float
    most: float
    exemplars: dict[int, Exemplar]  # the last of each bucket


class Histogram(_Instrument[_Distribution]):
    """How values are spread over buckets; `bounds` are upper, inclusive, ascending."""

    def __init__(self, name: str, unit: str, description: str, bounds: tuple[float, ...], *attributes: Attribute) -> None:
        super().__init__(name, unit, description, *attributes)
        self.bounds = bounds

    def record(self, value: float, *labels: str) -> None:
        """Add a value."""
        cell = self._cell(labels)
        cell.counts[bisect_left(self.bounds, value)] += 1
        cell.sum += value
        cell.least = min(cell.least, value)
        cell.most = max(cell.most, value)

    def exemplify(self, value: float, trace_id: int, span_id: int, *labels: str) -> None:
        """Name a trace in which a value that was recorded can be seen."""
        exemplar = Exemplar({}, value, time_ns(), span_id, trace_id)
        self._cell(labels).exemplars[bisect_left(self.bounds, value)] = exemplar

    def count(self, *labels: str) -> int:
        """How many values were recorded."""
        found = self._cells.get(labels)
        return sum(found.counts) if found else 0

    def metric(self) -> sdk.Metric | None:
        now = time_ns()
        points: list[sdk.HistogramDataPoint] = []
        for labels, cell in list(self._cells.items()):
            counts = list(cell.counts)  # one step under the interpreter's lock; the count follows from it
            exemplars = [it for it in list(cell.exemplars.values()) if it.time_unix_nano > now - _EXEMPLAR_NS]
            names, began_ns = self._named(labels), self._began_ns[labels]
            points.append(
                sdk.HistogramDataPoint(
                    names, began_ns, now, sum(counts), cell.sum, counts, self.bounds, cell.least, cell.most, exemplars
                )
            )
        if not points:
            return None
        data = sdk.Histogram(points, sdk.AggregationTemporality.CUMULATIVE)
        return sdk.Metric(self.name, self.description, self.unit, data)

    def _new(self) -> _Distribution:
        return _Distribution([0] * (len(self.bounds) + 1), 0.0, float("inf"), float("-inf"), {})


Instrument = Counter | Gauge | Histogram
