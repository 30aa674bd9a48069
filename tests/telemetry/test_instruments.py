"""Instruments record exact values, and their number of series is bounded."""

import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff.telemetry.instruments import OTHER, Attribute, Counter, Gauge, Histogram

KIND = Attribute("kind", ("a", "b"))


def points(instrument: Counter | Gauge | Histogram) -> dict[tuple[tuple[str, str], ...], Any]:
    metric = instrument.metric()
    found: list[Any] = [] if metric is None else list(metric.data.data_points)
    return {tuple(point.attributes.items()): point for point in found}


@given(st.lists(st.floats(min_value=0, max_value=100, allow_nan=False)))
def test_a_histogram_counts_the_values_per_bucket_including_its_upper_bound(values: list[float]) -> None:
    bounds = (1.0, 2.5, 50.0)
    histogram = Histogram("h", "s", "", bounds, KIND)
    for value in values:
        histogram.record(value, "a")

    edges = [0.0, *bounds, float("inf")]
    expected = [sum(low < value <= high or (low == value == 0.0) for value in values) for low, high in pairwise(edges)]
    found = points(histogram)
    if not values:
        assert found == {}
        return
    point = found[("kind", "a"),]
    assert (point.bucket_counts, point.count) == (expected, len(values))
    assert (point.min, point.max) == (min(values), max(values))
    assert abs(point.sum - sum(values)) < 1e-6 * (1 + abs(point.sum))


def test_label_values_that_are_not_allowed_become_other_and_create_no_series() -> None:
    counter = Counter("c", "", "", KIND)
    for number in range(1_000):
        counter.add(1, f"hostile-{number}")
    counter.add(1, "a")

    assert {labels: point.value for labels, point in points(counter).items()} == {
        (("kind", OTHER),): 1_000,
        (("kind", "a"),): 1,
    }
    assert counter.series_max == 4


def test_label_values_learned_at_run_time_are_bounded() -> None:
    counter = Counter("c", "", "", Attribute("code", learned_max=5))
    for number in range(100):
        counter.add(1, f"code-{number}")

    found = {dict(labels)["code"]: point.value for labels, point in points(counter).items()}
    assert found == {"code-0": 1, "code-1": 1, "code-2": 1, OTHER: 97}


def test_an_empty_label_is_left_out() -> None:
    gauge = Gauge("g", "", "", KIND)
    gauge.set(3, "")

    assert list(points(gauge)) == [()]


def test_a_gauge_calls_its_source_when_it_is_collected() -> None:
    gauge = Gauge("g", "", "", KIND)
    gauge.source = lambda: [(7.0, ("a",)), (1.0, ("hostile",))]

    assert {labels: point.value for labels, point in points(gauge).items()} == {(("kind", "a"),): 7, (("kind", OTHER),): 1}


def test_an_exemplar_is_the_latest_of_its_bucket() -> None:
    histogram = Histogram("h", "s", "", (1.0,), KIND)
    for value, trace in ((0.5, 1), (0.7, 2), (3.0, 3)):
        histogram.record(value, "a")
        histogram.exemplify(value, trace, 9, "a")

    exemplars = points(histogram)[("kind", "a"),].exemplars
    assert [(exemplar.trace_id, exemplar.value) for exemplar in exemplars] == [(2, 0.7), (3, 3.0)]


def test_an_exemplar_is_exported_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    histogram = Histogram("h", "s", "", (1.0,), KIND)
    histogram.record(0.5, "a")
    histogram.exemplify(0.5, 1, 9, "a")
    later = time.time_ns() + 61_000_000_000
    monkeypatch.setattr("handoff.telemetry.instruments.time_ns", lambda: later)

    assert points(histogram)[("kind", "a"),].exemplars == []


def test_a_series_starts_when_it_is_first_recorded_so_that_its_first_value_is_an_increase() -> None:
    counter, histogram = Counter("c", "", "", KIND), Histogram("h", "s", "", (1.0,), KIND)
    begun: dict[str, tuple[int, int]] = {}
    for kind in ("a", "b"):
        before = time.time_ns()
        counter.add(1, kind)
        histogram.record(1, kind)
        begun[kind] = before, time.time_ns()
    counter.add(1, "a")
    histogram.record(1, "a")

    for found in (points(counter), points(histogram)):
        for kind, (before, after) in begun.items():
            assert before <= found[("kind", kind),].start_time_unix_nano <= after


def test_a_series_from_a_source_starts_at_the_last_collection_that_did_not_include_it() -> None:
    kept: list[tuple[float, tuple[str, ...]]] = [(1, ("a",))]
    made = time.time_ns()
    counter = Counter("c", "", "", KIND)
    counter.source = lambda: kept
    first = points(counter)[("kind", "a"),]
    kept.append((5, ("b",)))
    later = points(counter)

    assert made <= first.start_time_unix_nano < first.time_unix_nano
    assert later[("kind", "a"),].start_time_unix_nano == first.start_time_unix_nano
    assert later[("kind", "b"),].start_time_unix_nano == first.time_unix_nano
