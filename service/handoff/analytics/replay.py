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
    """What the detector would have said, and on what it judged: points every `step_s` seconds."""

    step_s: float
    t: Index
    x: Double
    findings: tuple[tuple[int, Finding], ...]  # each with the time at which it would have been told


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
    findings: list[tuple[int, Finding]] = []
    for number in range(len(t)):
        verdict = detector.step(x[number : number + 1], bins[number : number + 1], gaps[number : number + 1])
        if verdict.strength[0] >= 1:
            findings.append((int(told_at[number]), explain(verdict, 0, float(x[number]), name)))
    return Replay(step_s, t, x, tuple(findings))
