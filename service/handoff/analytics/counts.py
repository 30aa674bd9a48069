"""Sparse counts: how many errors there were when there are hardly any. Judged by their probability, not by their looks.

A series that is zero nearly always makes every 1 look rare. What is unusual is more of them than the rate explains: at this
point, within the last hours, or within the last days.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import gammainc

from handoff.analytics.columns import Columns, Double, Index, Single, column

_POINTS_MIN: Final = 40
_SHARE_MAX: Final = 0.25  # of points that are not zero
_MEAN_MAX: Final = 5.0  # of those
_CAP: Final = np.float32(20.0)  # a larger count says no more about what is usual
_VALUE_MAX: Final = 3e38  # a float32 ends at 3.4e38
_ROUNDING: Final = 1e-6
_WINDOWS: Final = np.array([[12.0], [96.0]], np.float32)
RARITY_OF_ALERT: Final = 5.0  # 40 series of Poisson(.02) pass 4.94 five times in 1.7 weeks
_LEAST: Final = 1e-30
# The cumulants of the leaky sums at `_TILTS`, for a rate of one event per point: what Chernoff's bound takes.
_TILTS: Final = np.geomspace(0.05, 20, 32)
_CUMULANTS: Final = np.stack(
    [np.expm1(_TILTS[:, None] * (1 - 1 / window) ** np.arange(40 * window)).sum(axis=1) for window in _WINDOWS[:, 0]]
)
_LN10: Final = np.log(10)


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
    alerts. A series with anything but whole numbers is no longer looked at.
    """
    at = np.nonzero(counts.is_integer)[0]
    if len(at):
        unusual = unusual.copy()
        unusual[at] = _cap(counts, raw[at], seen[at], unusual[at], alert_at, at)
    return unusual


def _cap(counts: Counts, raw: Double, seen: np.ndarray, unusual: Single, alert_at: float, at: Index) -> Single:
    whole = np.round(raw)
    is_integer = (whole >= 0) & (np.abs(raw - whole) < _ROUNDING)
    value = np.clip(whole, 0, _VALUE_MAX).astype(np.float32)
    lately = (counts.lately[:, at] * (1 - 1 / _WINDOWS) + value).astype(np.float32)
    positive, total, squares = counts.positive[at], counts.total[at], counts.squares[at]
    sparse = is_integer & (seen > _POINTS_MIN) & (positive < _SHARE_MAX * seen) & (total < _MEAN_MAX * positive)
    sparse &= (value > 0) | (unusual >= 1)
    if sparse.any():
        rarity = _rarity(value[sparse], lately[:, sparse], seen[sparse], total[sparse], squares[sparse])
        unusual[sparse] = np.minimum(unusual[sparse], alert_at * rarity / RARITY_OF_ALERT)
    capped = np.minimum(value, _CAP)
    counts.is_integer[at] = is_integer
    counts.lately[:, at] = lately
    counts.positive[at] = positive + (value > 0)
    counts.total[at] = total + capped
    counts.squares[at] = squares + capped * capped
    return unusual


def _rarity(value: Single, lately: Single, seen: np.ndarray, total: Single, squares: Single) -> Double:
    """-log10 of the probability of as many or more, the rarest of the three windows.

    Of the leaky sums it is at most that (Chernoff): one event, however long nothing has happened before, is as rare as one
    event in a point, and no rarer for the hours in which there was no other.
    """
    rate = (total + 0.5) / (seen + 10.0)
    wider = np.maximum(1.0, squares / np.maximum(total, 1) - rate)  # than a Poisson distribution
    upper = gammainc(np.maximum(value, 1e-9) / wider, rate / wider)
    rarest = np.where(value > 0, -np.log10(np.maximum(upper, _LEAST)), 0)
    for weighed, cumulants in zip(lately.astype(np.float64), _CUMULANTS, strict=True):
        for tilt, cumulant in zip(_TILTS.tolist(), cumulants.tolist(), strict=True):
            np.maximum(rarest, (tilt * weighed - cumulant * rate) / (wider * _LN10), out=rarest)
    return rarest
