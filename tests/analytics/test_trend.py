"""Trends and forecasts: right about generated series, and no more certain than they were on them before."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kendalltau, theilslopes

from handoff.analytics.forecast import CONFIDENCE, forecast
from handoff.analytics.trend import POINTS_MIN, slope_of, trend_of
from tests.bench.forecast import FLAT, GROWING

series = arrays(np.float64, st.integers(POINTS_MIN, 40), elements=st.integers(-1_000, 1_000).map(float))


@given(series)
def test_slope_and_tau_are_those_of_scipy(x: np.ndarray) -> None:
    t = np.arange(len(x), dtype=np.float64)
    assert slope_of(t, x) == pytest.approx(theilslopes(x, t)[0])
    found = trend_of(x)
    assert found is not None
    pairs = len(x) * (len(x) - 1) / 2
    ties = np.unique(x, return_counts=True)[1]
    unequal = pairs - (ties * (ties - 1) / 2).sum()
    if unequal:  # scipy's tau-b counts ties out
        assert found.tau * pairs == pytest.approx(kendalltau(t, x)[0] * np.sqrt(pairs * unequal))


@given(series, st.integers(-10, 10))
def test_a_trend_depends_neither_on_the_unit_nor_on_the_sign(x: np.ndarray, power: int) -> None:
    found, scaled, negated = trend_of(x), trend_of(x * 2.0**power), trend_of(-x)  # exactly: rounding would break ties
    assert found is not None
    assert scaled is not None
    assert negated is not None
    assert (scaled.p_value, scaled.change) == (pytest.approx(found.p_value), pytest.approx(found.change))
    assert (negated.p_value, negated.tau, negated.slope) == (pytest.approx(found.p_value), -found.tau, -found.slope)


def test_trends_are_found_in_series_that_have_one_and_in_no_others() -> None:
    def share(name: str, points: int) -> float:
        made = ({**FLAT, **GROWING}[name](np.random.default_rng(seed), points) for seed in range(100))
        found = [trend_of(x, 7) for x in made]
        return float(np.mean([it is not None and it.direction != "steady" for it in found]))

    assert {name: share(name, 28) for name in FLAT if share(name, 28) > 0.06} == {}
    assert {name: share(name, 60) for name in GROWING if share(name, 60) < 0.95} == {}


@pytest.mark.parametrize(("per_day", "days"), [(1.06, 28), (1.06, 50), (0.95, 28), (0.95, 50)])
def test_what_grows_or_shrinks_by_so_much_per_cent_is_a_trend_however_far_from_a_line(per_day: float, days: int) -> None:
    found = [
        trend_of(10 * per_day ** np.arange(days) * np.random.default_rng(seed).lognormal(0, 0.1, days), 7)
        for seed in range(60)
    ]
    assert np.mean([it is not None and it.direction != "steady" for it in found]) > 0.9


def test_an_outlier_is_no_trend_and_gaps_are_left_out() -> None:
    chance = np.random.default_rng(1)
    x = 100 + chance.normal(size=28)
    spoilt = x.copy()
    spoilt[-1] = 1e9
    found = trend_of(spoilt)
    assert found is not None
    assert found.direction == "steady"
    rising = x + 5 * np.arange(28)
    rising[3:9] = np.nan
    gappy = trend_of(rising)
    assert gappy is not None
    assert (gappy.direction, gappy.points, gappy.slope) == ("rising", 22, pytest.approx(5, abs=0.2))
    assert trend_of(rising[:18]) is None  # 12 points
    assert (constant := trend_of(np.full(20, 3.0))) is not None
    assert (constant.direction, constant.p_value) == ("steady", 1.0)


@pytest.mark.parametrize("name", ["noise", "week", "counts", "line", "sum of days", "slow growth"])
def test_a_forecast_holds_what_comes_as_often_as_it_says(name: str) -> None:
    hits: list[bool] = []
    for seed in range(25):
        x = {**FLAT, **GROWING}[name](np.random.default_rng(seed), 75)
        found = forecast(x[:45], 30)
        assert found is not None
        hits += list((found.low <= x[45:]) & (x[45:] <= found.high))
        assert found.coverage >= CONFIDENCE - 0.05
        assert np.all(np.diff(found.high - found.low) >= -1e-9)
    assert np.mean(hits) > CONFIDENCE - 0.1


def test_nothing_is_forecast_from_too_few_points_or_across_a_gap() -> None:
    assert forecast(np.arange(13.0), 7) is None
    assert forecast(np.array([*range(20), np.nan, *range(20)], np.float64), 7) is None
    straight = forecast(np.arange(14.0), 3)
    assert straight is not None
    assert straight.expected == pytest.approx([14, 15, 16])
    assert straight.high == pytest.approx(straight.low)
