"""Pooling: rarities are pooled over time before they are summed. This matters more than anything else here.

A single odd point is noise far more often than not; a fault lasts. So each feature counts by its present value, by the
second largest of the last three, and by its running means over some 10 and 30 points. An hour is long, so one hourly point
may alert on its own; it has to be odder than a point of five minutes that the next two confirm.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Index, Single, column
from handoff.analytics.features import (
    BAND_OF_DAY,
    LEVEL_OF_DAYS,
    LEVEL_OF_HOURS,
    NOISE_CHANGE,
    RANGE,
    SEASONAL_LEVEL,
    SMOOTHED_RANGE,
    STEP,
    THREE,
    TIME_OF_DAY,
    TWO,
)

_SCORED: Final = (TWO, THREE, STEP, TIME_OF_DAY)
_KEPT: Final = (THREE, BAND_OF_DAY, RANGE, SMOOTHED_RANGE, SEASONAL_LEVEL, LEVEL_OF_DAYS)
_RATES: Final = np.array([[0.11], [0.05]], np.float32)  # of the running means
_HOURLY_RATES: Final = np.array([[0.08], [0.05]], np.float32)
_SCORE_RATES: Final = np.array([[0.3], [0.05]], np.float32)
_HOURLY_FROM_S: Final = 1_200.0


@dataclass(frozen=True, slots=True)
class _Weights:
    """Of each feature in each pool; of the second largest of the last three in the order of `_KEPT`."""

    point: dict[int, float]
    second: tuple[float, ...]
    ten: dict[int, float]
    thirty: dict[int, float]


# Means of five sets of weights, each found on half of the labelled series, rounded. Set by hand they did nearly as well.
_FINE: Final = _Weights(
    {THREE: 0.3, BAND_OF_DAY: 0.4, RANGE: 0.5, LEVEL_OF_HOURS: 0.9, LEVEL_OF_DAYS: 0.7, NOISE_CHANGE: 0.6},
    (1.0, 1.0, 0.8, 0.6, 0.6, 0.2),
    {THREE: 0.8, BAND_OF_DAY: 0.8, RANGE: 0.6, LEVEL_OF_HOURS: 0.2, LEVEL_OF_DAYS: 0.4, TIME_OF_DAY: 0.2},
    {BAND_OF_DAY: 0.2},
)
# Found on made series and on half of the labelled ones, so that quiet ones stay quiet; a plateau: a tenth more or less of
# any of them changes little.
_HOURLY: Final = _Weights(
    {
        THREE: 0.65,
        BAND_OF_DAY: 0.65,
        RANGE: 0.45,
        LEVEL_OF_HOURS: 0.65,
        LEVEL_OF_DAYS: 0.65,
        NOISE_CHANGE: 0.45,
        SMOOTHED_RANGE: 0.3,
        SEASONAL_LEVEL: 0.2,
    },
    (1.1, 1.1, 0.4, 0.0, 0.0, 0.0),
    {
        THREE: 0.85,
        BAND_OF_DAY: 0.95,
        RANGE: 0.4,
        LEVEL_OF_HOURS: 0.1,
        LEVEL_OF_DAYS: 0.2,
        NOISE_CHANGE: 0.2,
        TWO: 0.4,
        TIME_OF_DAY: 0.3,
    },
    {},
)


@dataclass(slots=True)
class Pools(Columns):
    """The last rarities, newest first. Those that only enter a mean are kept as their weighted sum."""

    recent: Single = column("single", 2, len(_KEPT))
    means: Single = column("single", 2)  # over some 10 and 30 points
    scores: Single = column("single", 2)  # the score's two running means


@dataclass(frozen=True, slots=True)
class Pace:
    """What follows from the sampling steps."""

    hourly: Index  # the series whose points are far apart
    rates: Single

    @classmethod
    def of(cls, step_s: np.ndarray) -> "Pace":
        """For series with these steps in seconds."""
        is_hourly = step_s >= _HOURLY_FROM_S
        return cls(np.nonzero(is_hourly)[0], np.where(is_hourly, _HOURLY_RATES, _RATES))


def pool(pools: Pools, rarity: Single, pace: Pace) -> Single:
    """Take in the rarities of one point (features, series); how unusual the series is now, shape (series,)."""
    kept = np.take(rarity, _KEPT, axis=0)
    newer, older = pools.recent
    second = np.maximum(np.minimum(kept, newer), np.minimum(np.maximum(kept, newer), older))
    pools.recent[1] = newer
    pools.recent[0] = kept
    total, means = _total(rarity, second, _FINE)
    if len(pace.hourly):
        total[pace.hourly], means[:, pace.hourly] = _total(rarity[:, pace.hourly], second[:, pace.hourly], _HOURLY)
    pools.means += pace.rates * (means - pools.means)
    total += pools.means[0]
    total += pools.means[1]
    return total


def score(pools: Pools, rarity: Single, measured: Flags) -> Single:
    """How anomalous this point is, for ranking points; smoothed, because faults last. Apart from `pool` on purpose."""
    now = rarity[_SCORED[0]].copy()
    for feature in _SCORED[1:]:
        now += rarity[feature]
    pools.scores += (_SCORE_RATES * measured) * (now - pools.scores)
    return np.where(measured, now + pools.scores[0] + pools.scores[1], np.float32(0))


def _total(rarity: Single, second: Single, weights: _Weights) -> tuple[Single, Single]:
    """What the present point and the second largest say, and what goes into the two running means."""
    now = _sum(rarity, weights.point) + _sum(second, dict(enumerate(weights.second)))
    return now, np.stack((_sum(rarity, weights.ten), _sum(rarity, weights.thirty)))


def _sum(rarity: Single, weights: dict[int, float]) -> Single:
    """The weighted sum of some features, one after the other: the same bits for one series as for many."""
    total = np.zeros_like(rarity[0])
    for feature, weight in weights.items():
        total += np.float32(weight) * rarity[feature]
    return total
