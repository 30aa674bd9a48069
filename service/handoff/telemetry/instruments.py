"""Counters, gauges and histograms that record in well under a microsecond.

The SDK's own instruments take 9 to 14 µs per record, a tenth of a whole call. These keep plain lists, and build the SDK's
data model when a reader collects them. Only the event loop's thread may record; any thread may collect.

The start time of a cumulative series is when it was first recorded, not when the process started. A back end therefore knows
that the value was zero just before, and shows the first event as an increase.

The SDK itself is only loaded when something collects: it is a twelfth of the time that the service takes to start, and a
stdio server that a desktop starts for each of its clients often exports nothing.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from time import time_ns
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import export as sdk

OTHER: Final = "other"
_NO_LABELS: Final[Mapping[str, str]] = {}
_EXEMPLAR_NS: Final = 60_000_000_000  # how long an exemplar is exported; Prometheus keeps it after the first scrape
Labels = tuple[str, ...]
Source = Callable[[], Iterable[tuple[float, Labels]]]
Implied = Callable[[Mapping[str, str]], Mapping[str, str]]
Cell = TypeVar("Cell")


class Exemplar(NamedTuple):
    """The span in which a value was measured."""

    value: float
    time_unix_nano: int
    span_id: int
    trace_id: int


class Attribute:
    """A label: its name and the values it may take.

    Any other value is recorded as `other` (or the word that a convention has for it), and "" leaves the label out. Values
    from the vocabulary of the domain are passed to the constructor. Names defined in code (tools, jobs, health components)
    are admitted by the module that defines them. Names known only at run time (statements, error codes) are learned until
    there are `learned_max` values. Of names that come and go, `chosen_max` at most are chosen at a time.
    """

    def __init__(
        self, name: str, values: Iterable[str] = (), *, learned_max: int = 0, chosen_max: int = 0, other: str = OTHER
    ) -> None:
        self.name = name
        self.chosen_max = chosen_max
        self._other = other
        self._values = {*values, other, ""}
        self._learned_max = learned_max

    @property
    def values_max(self) -> int:
        """The largest number of values that the label can take."""
        return max(len(self._values), self._learned_max, self.chosen_max)

    @property
    def values(self) -> frozenset[str]:
        """The values allowed so far, without `other` and ""."""
        return frozenset(self._values - {self._other, ""})

    def admit(self, *values: str) -> None:
        """Allow more values: only names that the calling module defines, never a string from a caller of the service."""
        self._values.update(values)

    def choose(self, values: Iterable[str]) -> None:
        """Allow the first `chosen_max` of these values, and no others any more. They are no caller's strings either."""
        self._values = {*islice(values, self.chosen_max), self._other, ""}

    def allowed(self, value: str) -> str:
        """Return the value if it may be recorded, otherwise `other`."""
        if value in self._values:
            return value
        if len(self._values) < self._learned_max:
            self._values.add(value)
            return value
        return self._other


class _Instrument(ABC, Generic[Cell]):
    """The base of all instruments: one cell per combination of label values."""

    source: Source | None = None  # if set, called on collection for values that are kept elsewhere

    def __init__(
        self,
        name: str,
        unit: str,
        description: str,
        *attributes: Attribute,
        always: Mapping[str, str] = _NO_LABELS,
        implied: Implied = lambda _: _NO_LABELS,
    ) -> None:
        """`always` are labels with the same value in every series; `implied` returns those that follow from the others."""
        self.name = name
        self._always = always
        self._implied = implied
        self.unit = unit
        self.description = description
        self.attributes = attributes
        self._cells: dict[Labels, Cell] = {}
        self._began_ns: dict[Labels, int] = {}
        self._asked_ns = time_ns()  # when the source was last called

    @property
    def series_max(self) -> int:
        """The largest number of label combinations."""
        count = 1
        for attribute in self.attributes:
            count *= attribute.values_max
        return count

    def reset(self) -> None:
        """Remove all recorded values."""
        self._cells.clear()
        self._began_ns.clear()
        self._asked_ns = time_ns()

    @abstractmethod
    def metric(self) -> "sdk.Metric | None":
        """Return the recorded values in the SDK's data model, or None if there are none."""

    @abstractmethod
    def _new(self) -> Cell:
        """Return an empty cell."""

    def _cell(self, labels: Labels) -> Cell:
        """Return the cell of these labels; values that are not allowed share the cell of `other`, so cells are bounded."""
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
        return tuple(attribute.allowed(value) for attribute, value in zip(self.attributes, labels, strict=True))

    def _named(self, labels: Labels) -> dict[str, str]:
        named = {attribute.name: value for attribute, value in zip(self.attributes, labels, strict=True) if value}
        return {**self._always, **named, **self._implied(named)}


class _Number(_Instrument[list[float]]):
    """One number per combination of labels."""

    def add(self, amount: float, *labels: str) -> None:
        """Add `amount`, which for a gauge may be negative."""
        (self._cells.get(labels) or self._cell(labels))[0] += amount

    def value(self, *labels: str) -> float:
        """Return the current value; 0 if none was recorded."""
        found = self._cells.get(labels)
        return found[0] if found else 0.0

    def _numbers(self, *, summed: bool) -> "list[sdk.NumberDataPoint]":
        from opentelemetry.sdk.metrics import export as sdk

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

    def metric(self) -> "sdk.Metric | None":
        """Return a cumulative monotonic sum, or None if nothing was recorded."""
        from opentelemetry.sdk.metrics import export as sdk

        points = self._numbers(summed=True)
        data = sdk.Sum(points, sdk.AggregationTemporality.CUMULATIVE, is_monotonic=True)
        return sdk.Metric(self.name, self.description, self.unit, data) if points else None


class Gauge(_Number):
    """A value that can go up and down."""

    def set(self, value: float, *labels: str) -> None:
        """Set the current value."""
        self._cell(labels)[0] = value

    def replace(self, values: Mapping[Labels, float]) -> None:
        """Set these values and remove all others, at once for whoever collects."""
        self._cells = {self._allowed(labels): [value] for labels, value in values.items()}

    def metric(self) -> "sdk.Metric | None":
        """Return the current values, or None if there are none."""
        from opentelemetry.sdk.metrics import export as sdk

        points = self._numbers(summed=False)
        return sdk.Metric(self.name, self.description, self.unit, sdk.Gauge(points)) if points else None


class UpDownCounter(Gauge):
    """A gauge whose values make a total when they are added up, over processes for instance."""

    def metric(self) -> "sdk.Metric | None":
        """Return a cumulative sum that is not monotonic, or None if nothing was recorded."""
        from opentelemetry.sdk.metrics import export as sdk

        points = self._numbers(summed=True)
        data = sdk.Sum(points, sdk.AggregationTemporality.CUMULATIVE, is_monotonic=False)
        return sdk.Metric(self.name, self.description, self.unit, data) if points else None


@dataclass(slots=True)
class _Distribution:
    counts: list[int]
    sum: float
    least: float
    most: float
    exemplars: dict[int, Exemplar]  # the latest one per bucket


class Histogram(_Instrument[_Distribution]):
    """Counts of values per bucket; `bounds` are the inclusive upper bounds, in ascending order."""

    def __init__(
        self,
        name: str,
        unit: str,
        description: str,
        bounds: tuple[float, ...],
        *attributes: Attribute,
        always: Mapping[str, str] = _NO_LABELS,
        implied: Implied = lambda _: _NO_LABELS,
    ) -> None:
        super().__init__(name, unit, description, *attributes, always=always, implied=implied)
        self.bounds = bounds

    def record(self, value: float, *labels: str) -> None:
        """Record a value."""
        cell = self._cells.get(labels) or self._cell(labels)
        cell.counts[bisect_left(self.bounds, value)] += 1
        cell.sum += value
        if value < cell.least:  # noqa: PLR1730 - min() and max() would cost more than all the rest
            cell.least = value
        if value > cell.most:  # noqa: PLR1730 - see above
            cell.most = value

    def exemplify(self, value: float, trace_id: int, span_id: int, *labels: str) -> None:
        """Attach an exemplar to a recorded value: the span in which the value was measured."""
        exemplar = Exemplar(value, time_ns(), span_id, trace_id)
        self._cell(labels).exemplars[bisect_left(self.bounds, value)] = exemplar

    def exemplars(self) -> dict[tuple[Labels, float], Exemplar]:
        """Return the recent exemplars, by labels and the upper bound of the bucket."""
        since = time_ns() - _EXEMPLAR_NS
        bounds = (*self.bounds, float("inf"))
        return {
            (labels, bounds[place]): each
            for labels, cell in list(self._cells.items())
            for place, each in list(cell.exemplars.items())
            if each.time_unix_nano > since
        }

    def buckets(self) -> dict[Labels, list[int]]:
        """Return a copy of the counts by bucket, for each combination of labels."""
        return {labels: list(cell.counts) for labels, cell in list(self._cells.items())}

    def count(self, *labels: str) -> int:
        """Return the number of recorded values."""
        found = self._cells.get(labels)
        return sum(found.counts) if found else 0

    def metric(self) -> "sdk.Metric | None":
        """Return a cumulative histogram with recent exemplars, or None if nothing was recorded."""
        from opentelemetry.sdk.metrics import Exemplar as OfTheSdk
        from opentelemetry.sdk.metrics import export as sdk

        now = time_ns()
        points: list[sdk.HistogramDataPoint] = []
        for labels, cell in list(self._cells.items()):
            counts = list(cell.counts)  # atomic under the interpreter's lock; the total is computed from this copy
            recent = [each for each in list(cell.exemplars.values()) if each.time_unix_nano > now - _EXEMPLAR_NS]
            exemplars = [OfTheSdk({}, each.value, each.time_unix_nano, each.span_id, each.trace_id) for each in recent]
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


def quantile(q: float, bounds: Sequence[float], counts: Sequence[int]) -> float:
    """The q-quantile of a histogram, interpolated within its bucket as Prometheus does; 0 if nothing was counted."""
    rank = q * sum(counts)
    below = 0
    for index, total in enumerate(accumulate(counts)):
        if counts[index] and total >= rank:
            if index == len(bounds):
                return bounds[-1]
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * (rank - below) / counts[index]
        below = total
    return 0.0
