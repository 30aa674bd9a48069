"""The detector over a series whose points are all known: what it would have said at each of them."""

from dataclasses import dataclass

import numpy as np

from handoff.analytics.columns import Double, Index
from handoff.analytics.detector import Detector
from handoff.analytics.findings import Finding, explain
from handoff.analytics.profile import bin_of, bins_per_day
from handoff.analytics.sampling import FINEST_S, fold, gaps_in, step_of


@dataclass(frozen=True, slots=True)
class Replay:
    """What the detector would have said, and on what it judged: points every `step_s` seconds.

    `lower` and `upper` are the band in which each point would have been usual, NaN while it is not known yet.
    """

    step_s: float
    t: Index
    x: Double
    lower: Double
    upper: Double
    onsets: tuple[tuple[int, Finding], ...]  # each with the time at which it would have been told, if it is strong enough

    def alerts(self, sensitivity: float = 1.0) -> tuple[tuple[int, Finding], ...]:
        """The onsets that would have alerted; at a sensitivity of 2, half the strength is enough."""
        return tuple((at, it) for at, it in self.onsets if it.strength * sensitivity >= 1)


def replay(t: Index, x: Double, local_s: Index, name: str) -> Replay:
    """Replay one series of (seconds since 1970 in ascending order, level).

    `local_s` is what to add to each time for local time, whose days the profile follows. Points that come more often than
    every FINEST_S are averaged first, as they are in operation.
    """
    step_s = step_of(t)
    told_at = t
    if step_s < FINEST_S:
        at, x, closes = fold(t, x, step_s, FINEST_S)
        told_at, local_s = t[closes], local_s[closes]
        t, step_s = at, float(FINEST_S)
    step = np.array([step_s])
    bins = bin_of((t + local_s) % 86_400, bins_per_day(step))
    gaps = gaps_in(t, x, step_s)
    detector = Detector(step)
    onsets: list[tuple[int, Finding]] = []
    band = np.full((2, len(t)), np.nan)
    for number in range(len(t)):
        _, lower, upper = detector.usual(bins[number : number + 1])
        band[:, number] = lower[0], upper[0]
        verdict = detector.step(x[number : number + 1], bins[number : number + 1], gaps[number : number + 1])
        if verdict.strength[0] > 0:
            onsets.append((int(told_at[number]), explain(verdict, 0, float(x[number]), name)))
    return Replay(step_s, t, x, band[0], band[1], tuple(onsets))
