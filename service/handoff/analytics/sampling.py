"""Sampling: how often a series is measured, where points are missing, and finer points made into coarser ones."""

from typing import Final

import numpy as np

from handoff.analytics.columns import Double, Flags, Index

FINEST_S: Final = 60  # points that come more often are averaged into buckets of this length
_STEP_POINTS: Final = 40  # the first ones say what the step is
_GAP_STEPS: Final = 3.5


def step_of(t: Index) -> float:
    """The usual time between the first points of ascending `t`, in seconds; at least 1."""
    return max(1.0, float(np.median(np.diff(t[:_STEP_POINTS])))) if len(t) > 1 else 1.0


def gaps_in(t: Index, x: Double, step_s: float) -> Flags:
    """Where a measured point comes long after the one before it."""
    measured = np.nonzero(np.isfinite(x))[0]
    gaps = np.zeros(len(t), np.bool_)
    gaps[measured[1:]] = np.diff(t[measured]) > _GAP_STEPS * step_s
    return gaps


def fold(t: Index, x: Double, step_s: float, into_s: int) -> tuple[Index, Double, Index]:
    """Average the points of each bucket of `into_s` seconds.

    Returns the start of each bucket, its mean (NaN if nothing in it was measured), and the index of the point that closes
    it: the last that the step leaves room for or, if that one is missing, the first of a later bucket. A bucket that is
    still open is left out.
    """
    if not len(t):
        return t, x, np.zeros(0, np.int64)
    place = np.arange(len(t))
    bucket = t // into_s
    first = np.flatnonzero(np.diff(bucket, prepend=bucket[0] - 1))
    after = np.append(first[1:], len(t))
    is_last = t + step_s >= (bucket + 1) * into_s
    closes = np.minimum(np.minimum.reduceat(np.where(is_last, place, len(t)), first), after)
    counted = (place <= np.repeat(closes, after - first)) & np.isfinite(x)
    counts = np.add.reduceat(counted.astype(np.float64), first)
    sums = np.add.reduceat(np.where(counted, x, 0.0), first)
    means = np.divide(sums, counts, out=np.full(len(first), np.nan), where=counts > 0)
    closed = closes < len(t)
    return bucket[first][closed] * into_s, means[closed], closes[closed]
