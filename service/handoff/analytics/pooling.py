"""Pooling: rarities are pooled over time before they are summed. This matters more than anything else here.

A single odd point is noise far more often than not; a fault lasts. So each feature counts by its present value, by the
second largest of the last three, and by its mean over the last 10 and 30. Hourly points are their own pool: an hour is long.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Single, column, sum_rows, to_half
from handoff.analytics.features import (
    BAND_OF_DAY,
    FEATURES,
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

# Means of five sets of weights, each found on half of the labelled series, rounded. Set by hand they did nearly as well.
_POINT: Final = {THREE: 0.3, BAND_OF_DAY: 0.4, RANGE: 0.5, LEVEL_OF_HOURS: 0.9, LEVEL_OF_DAYS: 0.7, NOISE_CHANGE: 0.6}
_OF_THREE: Final = {THREE: 1.0, BAND_OF_DAY: 1.0, RANGE: 0.8, SMOOTHED_RANGE: 0.6, SEASONAL_LEVEL: 0.6, LEVEL_OF_DAYS: 0.2}
_OF_TEN: Final = {
    THREE: 0.8,
    BAND_OF_DAY: 0.8,
    RANGE: 0.6,
    LEVEL_OF_HOURS: 0.2,
    LEVEL_OF_DAYS: 0.4,
    TIME_OF_DAY: 0.2,
}
_OF_THIRTY: Final = {BAND_OF_DAY: 0.2}
_SCORED: Final = {TWO: 1.0, THREE: 1.0, STEP: 1.0, TIME_OF_DAY: 1.0}
_TEN: Final = 10
_THIRTY: Final = 30
_HOURLY_TEN: Final = 3
_HOURLY_THIRTY: Final = 10
_HOURLY_FROM_S: Final = 1_200.0  # from this step on a point is its own pool
_SCORE_RATES: Final = np.array([[0.3], [0.05]], np.float32)


def _weights(of: dict[int, float]) -> Single:
    return np.array([[of.get(it, 0.0)] for it in range(len(FEATURES))], np.float32)


_KEPT: Final = list(_OF_THREE)
_KEPT_WEIGHTS: Final = np.array([[it] for it in _OF_THREE.values()], np.float32)
_POINT_WEIGHTS, _TEN_WEIGHTS, _THIRTY_WEIGHTS, _SCORE_WEIGHTS = (
    _weights(it) for it in (_POINT, _OF_TEN, _OF_THIRTY, _SCORED)
)


@dataclass(slots=True)
class Pools(Columns):
    """The last rarities, newest first. Those that only enter a mean are kept as their weighted sum."""

    recent: Single = column("half", 2, len(_OF_THREE))
    ten: Single = column("half", _TEN)
    thirty: Single = column("half", _THIRTY)
    scores: Single = column("single", 2)  # the score's two running means


def is_hourly(step_s: np.ndarray) -> Flags:
    """Whether a series' points are so far apart that each is its own pool."""
    return step_s >= _HOURLY_FROM_S


def pool(pools: Pools, rarity: Single, hourly: Flags) -> Single:
    """Take in the rarities of one point (features, series); how unusual the series is now, shape (series,)."""
    kept = to_half(rarity[_KEPT])
    newer, older = pools.recent
    second = np.maximum(np.minimum(kept, newer), np.minimum(np.maximum(kept, newer), older))
    if hourly.any():
        second = np.where(hourly, kept, second)
    pools.recent[1] = newer
    pools.recent[0] = kept
    _push(pools.ten, _sum(rarity, _TEN_WEIGHTS))
    _push(pools.thirty, _sum(rarity, _THIRTY_WEIGHTS))
    total = _sum(rarity, _POINT_WEIGHTS) + _sum(second, _KEPT_WEIGHTS)
    return total + _mean(pools.ten, _HOURLY_TEN, hourly) + _mean(pools.thirty, _HOURLY_THIRTY, hourly)


def score(pools: Pools, rarity: Single, measured: Flags) -> Single:
    """How anomalous this point is, for ranking points; smoothed, because faults last. Apart from `pool` on purpose."""
    now = _sum(rarity, _SCORE_WEIGHTS)
    pools.scores += (_SCORE_RATES * measured) * (now - pools.scores)
    return np.where(measured, now + pools.scores[0] + pools.scores[1], np.float32(0))


def _push(ring: Single, values: Single) -> None:
    ring[1:] = ring[:-1]
    ring[0] = to_half(values)


def _sum(rarity: Single, weights: Single) -> Single:
    return sum_rows(rarity * weights)


def _mean(ring: Single, hourly_points: int, hourly: Flags) -> Single:
    mean = sum_rows(ring) / np.float32(len(ring))
    if not hourly.any():
        return mean
    return np.where(hourly, sum_rows(ring[:hourly_points]) / np.float32(hourly_points), mean)
