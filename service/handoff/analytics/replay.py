"""The detector over series whose points are all known: what it would have said at each of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from handoff.analytics.columns import Double, Index
from handoff.analytics.detector import Detector
from handoff.analytics.findings import Finding, explain
from handoff.analytics.kinds import Kind
from handoff.analytics.profile import bin_of, bins_per_day
from handoff.analytics.sampling import FINEST_S, fold, gaps_in, step_of


@dataclass(frozen=True, slots=True)
class Replay:
    """What the detector would have said, and on what it judged: points every `step_s` seconds.

    `x`, `lower` and `upper` are in the unit of the series. The last two are the band in which each point would have been
    usual, NaN while it is not known yet.
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


def replay(t: Index, x: Double, local_s: Index, names: Sequence[str], kinds: Sequence[Kind]) -> list[Replay]:
    """Replay series that are measured at the same times.

    Points that come more often than every FINEST_S are averaged first, as they are in operation.

    Args:
        t: seconds since 1970, ascending.
        x: levels (points, series), NaN where nothing was measured.
        local_s: what to add to each time for local time, whose days the profile follows.
        names: of the series, for what is said about them.
        kinds: of the series, for the unit.
    """
    step_s = step_of(t)
    told_at = t
    if step_s < FINEST_S:
        folded = [fold(t, column, step_s, FINEST_S) for column in x.T]
        at, _, closes = folded[0]
        x = np.stack([means for _, means, _ in folded], axis=1)
        told_at, local_s = t[closes], local_s[closes]
        t, step_s = at, float(FINEST_S)
    steps = np.full(len(names), step_s)
    per_day = bins_per_day(steps)
    gaps = np.stack([gaps_in(t, column, step_s) for column in x.T], axis=1)
    detector = Detector(steps, count_events=np.array([it is Kind.COUNT for it in kinds], np.bool_))
    onsets: list[list[tuple[int, Finding]]] = [[] for _ in names]
    lower, upper = (np.full(x.shape, np.nan) for _ in range(2))
    for number in range(len(t)):
        bins = bin_of(np.full(len(names), (t[number] + local_s[number]) % 86_400), per_day)
        _, lower[number], upper[number] = detector.usual(bins)
        verdict = detector.step(x[number], bins, gaps[number])
        for place in np.flatnonzero(verdict.strength > 0).tolist():
            finding = explain(verdict, place, float(x[number, place]), names[place], kinds[place])
            onsets[place].append((int(told_at[number]), finding))
    shown = [[_shown(it[:, place], kind) for it in (x, lower, upper)] for place, kind in enumerate(kinds)]
    return [Replay(step_s, t, x_, low, high, tuple(found)) for (x_, low, high), found in zip(shown, onsets, strict=True)]


def _shown(levels: Double, kind: Kind) -> Double:
    """The levels of one series in its unit, without the others."""
    return np.exp(levels) if kind is Kind.DURATION else levels.copy()
