"""Scores the detector on labelled series: `make bench-anomaly DATA=folder`, where the folder holds score.py and its data.

`detect` is what the scorer calls; its interface is explained there.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from handoff.analytics.detector import Detector
from handoff.analytics.profile import bin_of, bins_per_day

Labelled = Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]]
_GAP_STEPS = 3.5


def detect(series: Labelled) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """The score of each point, and the strength of each onset, of series of (seconds since 1970, values)."""
    steps = np.array([max(1.0, float(np.median(np.diff(t[:40])))) for t, _ in series])
    bins_of = bins_per_day(steps)
    longest, count = max(len(t) for t, _ in series), len(series)
    values = np.full((longest, count), np.nan)
    bins = np.zeros((longest, count), np.int64)
    gaps = np.zeros((longest, count), np.bool_)
    for number, (t, x) in enumerate(series):
        values[: len(x), number] = x
        bins[: len(x), number] = bin_of(t % 86_400, bins_of[number])
        measured = np.nonzero(np.isfinite(x))[0]
        gaps[measured[1:], number] = np.diff(t[measured]) > _GAP_STEPS * steps[number]
    detector = Detector(steps)
    scores, strengths = np.zeros((longest, count)), np.zeros((longest, count))
    for at in range(longest):
        verdict = detector.step(values[at], bins[at], gaps[at])
        scores[at], strengths[at] = verdict.score, verdict.strength
    return [(scores[: len(t), number], strengths[: len(t), number]) for number, (t, _) in enumerate(series)]
