"""Sparse counts: how many errors there were when there are hardly any. Judged by their probability, not by their looks.

A series that is zero nearly always makes every 1 look rare. What is unusual is more of them than the rate explains: at this
point, within the last hours, or within the last days.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import gammainc

from handoff.analytics.columns import Columns, Double, Single, column

_POINTS_MIN: Final = 40
_SHARE_MAX: Final = 0.25  # of points that are not zero
_MEAN_MAX: Final = 5.0  # of those
_CAP: Final = 20.0  # a larger count says no more about what is usual
_WINDOWS: Final = np.array([[12.0], [96.0]], np.float32)
RARITY_OF_ALERT: Final = 5.0  # 40 series of Poisson(.02) pass 4.94 five times in 1.7 weeks
_LEAST: Final = 1e-30


@dataclass(slots=True)
class Counts(Columns):
    """What a Poisson or a wider distribution of counts needs."""

    is_integer: np.ndarray = column("byte", fill=1)  # nothing but whole numbers of 0 and above so far
    positive: np.ndarray = column("long")
    total: Single = column("single")
    squares: Single = column("single")
    lately: Single = column("single", len(_WINDOWS))  # leaky sums


def cap(counts: Counts, raw: Double, seen: np.ndarray, unusual: Single, alert_at: float) -> Single:
    """Limit how unusual a sparse count may be said to be to what its probability allows; then learn it.

    `raw` has the values as measured, 0 where nothing was; `unusual` is what `pooling.pool` gave, and `alert_at` which of it
    alerts.
    """
    whole = np.where(np.abs(raw - np.round(raw)) < 1e-6, np.round(raw), raw)
    value = np.clip(whole, -3e38, 3e38).astype(np.float32)
    counts.lately *= 1 - 1 / _WINDOWS
    counts.lately += value
    sparse = (counts.is_integer > 0) & (seen > _POINTS_MIN)
    sparse &= (counts.positive < _SHARE_MAX * seen) & (counts.total < _MEAN_MAX * counts.positive)
    sparse &= (value > 0) | (unusual >= 1)
    if sparse.any():
        at = np.nonzero(sparse)[0]
        unusual = unusual.copy()
        unusual[at] = np.minimum(unusual[at], alert_at * _rarity(counts, value, seen, at) / RARITY_OF_ALERT)
    counts.is_integer &= (whole >= 0) & (whole == np.floor(whole))
    capped = np.clip(value, 0, _CAP)
    counts.positive += value > 0
    counts.total += capped
    counts.squares += capped * capped
    return unusual


def _rarity(counts: Counts, value: Single, seen: np.ndarray, at: np.ndarray) -> Double:
    """-log10 of the probability of as many or more, the rarest of the three windows."""
    rate = (counts.total[at] + 0.5) / (seen[at] + 10.0)
    wider = np.maximum(1.0, counts.squares[at] / np.maximum(counts.total[at], 1) - rate)  # than a Poisson distribution
    rarest = np.zeros(len(at))
    observed = [value[at], *(2 * counts.lately[:, at])]
    windows = [1.0, *(2.0 * _WINDOWS[:, 0])]
    for count, window in zip(observed, windows, strict=True):
        upper = gammainc(np.maximum(count, 1e-9) / wider, window * rate / wider)
        rarest = np.maximum(rarest, np.where(count > 0, -np.log10(np.maximum(upper, _LEAST)), 0))
    return rarest
