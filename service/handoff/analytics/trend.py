"""Whether a series rises or falls: a test by ranks, and a slope, that neither outliers nor a weekly cycle mislead."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.stats import norm, rankdata

from handoff.analytics.columns import Double

Direction = Literal["rising", "falling", "steady"]

POINTS_MIN: Final = 14  # two weeks of days: with fewer, even a straight line would hardly be significant
POINTS_MAX: Final = 400  # all pairs are compared
SIGNIFICANT: Final = 0.01  # p; docs/analytics.md says how often series without a trend get below it
CHANGE_MIN: Final = 0.1  # of the median, over the whole series: less does not matter to anybody
_CORRELATION_MAX: Final = 0.95  # above, a walk at random is not told from a trend
_CYCLES_MIN: Final = 4  # of which a median says more than noise


@dataclass(frozen=True, slots=True)
class Trend:
    """What is known of a series' trend.

    `p_value` is that of the two-sided test of Mann and Kendall. `tau`, from -1 to 1, is how much more pairs of points rise
    than fall. `slope` is per point, after Theil and Sen; `change` is what it amounts to over the series, relative to the
    median.
    """

    direction: Direction
    p_value: float
    tau: float
    slope: float
    change: float
    points: int


def trend_of(x: Double, season: int = 1) -> Trend | None:
    """The trend of a series of evenly spaced points; NaN where nothing was measured. None if too few were.

    `season` is the length of its cycle in points; it is left in until it has come round four times.
    """
    x = x[-POINTS_MAX:]
    t = np.flatnonzero(np.isfinite(x)).astype(np.float64)
    x = x[np.isfinite(x)]
    if len(x) < POINTS_MIN:
        return None
    if season > 1 and len(x) >= _CYCLES_MIN * season:
        x = _without_cycle(t, x, season)
    slope = slope_of(t, x)
    s, variance = _kendall(x, [x - slope * t, *_without_growth(t, x)])
    z = (s - np.sign(s)) / np.sqrt(variance) if variance > 0 else 0.0
    p_value = float(2 * norm.sf(abs(z)))
    pairs = len(x) * (len(x) - 1) / 2
    level = abs(float(np.median(x)))
    over_all = slope * (t[-1] - t[0])
    change = float(over_all / level) if level > 0 else float(np.sign(over_all))
    is_clear = p_value < SIGNIFICANT and abs(change) >= CHANGE_MIN
    direction: Direction = "steady" if not is_clear else "rising" if slope > 0 else "falling"
    return Trend(direction, p_value, float(s / pairs), slope, change, len(x))


def slope_of(t: Double, x: Double) -> float:
    """The median of the slopes between all pairs of points, after Theil and Sen."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((x[second] - x[first]) / (t[second] - t[first])))


def _without_cycle(t: Double, x: Double, season: int) -> Double:
    """The series less the median of each place in the cycle, measured without the trend."""
    level = x - slope_of(t, x) * t
    phase = t.astype(np.int64) % season
    cycle = np.zeros(len(x))
    for place in range(season):
        if np.any(phase == place):
            cycle[phase == place] = np.median(level[phase == place])
    return x - cycle + np.median(level)


def _without_growth(t: Double, x: Double) -> list[Double]:
    """The series divided by its steady growth, if it has one sign: what grows by so much per cent is no line."""
    if not (np.all(x > 0) or np.all(x < 0)):
        return []
    first, second = np.triu_indices(len(x), 1)
    rate = np.median(np.log(x[second] / x[first]) / (t[second] - t[first]))
    return [x * np.exp(-rate * t)]


def _kendall(x: Double, without_trend: Sequence[Double]) -> tuple[float, float]:
    """S, and its variance with ties, after Hamed and Rao (1998) for autocorrelated points.

    The correlation is taken to fall with the lag as that of an autoregression of order 1, because those of single lags are
    too uncertain in so few points. It is corrected for the bias that it has after a trend was removed. The trend may be a
    line or growth: whichever leaves less correlation, because what is left of the wrong one hides the trend.
    """
    n = len(x)
    first, second = np.triu_indices(n, 1)
    s = float(np.sign(x[second] - x[first]).sum())
    _, ties = np.unique(x, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    correlation = min(_correlation(it) for it in without_trend)
    lags = np.arange(1, n - 2)
    weights = (n - lags) * (n - lags - 1) * (n - lags - 2)
    return s, variance * (1 + 2 / (n * (n - 1) * (n - 2)) * float((weights * correlation**lags).sum()))


def _correlation(residuals: Double) -> float:
    """That of the ranks of neighbours, between 0 and _CORRELATION_MAX; 0 if all are equal."""
    n = len(residuals)
    ranks = rankdata(residuals) - (n + 1) / 2
    power = float(ranks @ ranks)
    if power == 0:
        return 0.0
    return float(np.clip((float(ranks[1:] @ ranks[:-1]) / power * n + 2) / (n - 4), 0, _CORRELATION_MAX))
