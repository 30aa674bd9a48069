"""Findings: what the detector has to say to people about one point of one series."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np

from handoff.analytics import features
from handoff.analytics.detector import Verdict
from handoff.analytics.kinds import Kind

SILENCE: Final = "silence"  # the name of what `silence` found, beside those of the features
_NOTHING: Final = 1e-12
_SPOKE_MIN: Final = 1.301  # rarity: one in twenty
_REASONS_MAX: Final = 3
_SURE_POINTS: Final = 2 * 288  # two days of five-minute points: what is known of the day has been seen to repeat
_CONFIDENCE_MAX: Final = 0.99
ABSENT_STRENGTH: Final = 2.0  # whoever declares that an absence alerts means it: critical, unless told to be less sensitive

# What each feature says if it is among the rarest. Those with two say the first above, the second below what is expected.
_SAYS: Final[dict[int, tuple[str, ...]]] = {
    features.LEVEL_OF_HOURS: ("the mean of the last hour has risen", "the mean of the last hour has fallen"),
    features.LEVEL_OF_DAYS: ("the level has been rising for hours", "the level has been falling for hours"),
    features.SEASONAL_LEVEL: (
        "the last hour is above what its time of day explains",
        "the last hour is below what its time of day explains",
    ),
    features.RANGE: ("it has never been this high", "it has never been this low"),
    features.NOISE_CHANGE: ("it varies differently than before",),
    features.THREE: ("its last three values form a new pattern",),
    features.TWO: ("its last two values form a new pattern",),
    features.TIME_OF_DAY: ("it is usually lower at this time of day", "it is usually higher at this time of day"),
    features.BAND_OF_DAY: ("nothing like it has been seen at this time of day lately",),
    features.STEP: ("it rose suddenly", "it fell suddenly"),
    features.SMOOTHED_RANGE: (
        "the last two hours together are higher than ever",
        "the last two hours together are lower than ever",
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One onset. `value`, `expected`, `lower` and `upper` are in the unit of the series."""

    value: float
    expected: float
    lower: float
    upper: float
    strength: float  # 1 and above should alert
    confidence: float  # 0 to 1: how often a finding this strong is real, as far as the history tells
    spoke: tuple[tuple[str, float], ...]  # the features that found it rare, with -log10 p, the rarest first
    sentence: str


def explain(verdict: Verdict, number: int, level: float, name: str, kind: Kind = Kind.LEVEL) -> Finding:
    """Say what was found about the series at this position, which is called `name` and has this level."""
    rarity = verdict.rarity[:, number]
    order = [int(it) for it in np.argsort(-rarity, kind="stable") if rarity[it] >= _SPOKE_MIN]
    levels = (level, *(float(it[number]) for it in (verdict.expected, verdict.lower, verdict.upper)))
    value, expected, lower, upper = in_units(levels, kind)
    strength = float(verdict.strength[number])
    spoke = [(features.FEATURES[it], round(float(rarity[it]), 2)) for it in order]
    said = [_SAYS[it][-1 if value < expected else 0] for it in order]
    silence = verdict.silence
    if silence.rarity[number] > 0:
        spoke.insert(0, (SILENCE, round(float(silence.rarity[number]), 2)))
        longest = silence.longest[number]
        said.insert(
            0, f"it has been 0 for {silence.points[number]} points in a row, and never before for more than {longest}"
        )
    reasons = list(dict.fromkeys(said))[:_REASONS_MAX]
    because = f": {'; '.join(reasons)}" if reasons else ""
    shown = readable((value, expected, lower, upper))
    return Finding(
        value=value,
        expected=expected,
        lower=lower,
        upper=upper,
        strength=strength,
        confidence=_confidence(strength, int(verdict.seen[number])),
        spoke=tuple(spoke),
        sentence=f"{name} is {shown[0]}; {shown[1]} was expected, {shown[2]} to {shown[3]} would be usual{because}.",
    )


def absent(name: str, since: int) -> Finding:
    """Say that nothing has been measured of a series since this time, although it declares that this is an alert.

    There is no value, and any value would end it: NaN, and a band without ends.
    """
    begins = f"{datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M} UTC"
    return Finding(
        value=math.nan,
        expected=math.nan,
        lower=-math.inf,
        upper=math.inf,
        strength=ABSENT_STRENGTH,
        confidence=1.0,
        spoke=(),
        sentence=f"{name} has had no value since {begins}, and its absence is an alert.",
    )


def readable(values: Sequence[float]) -> list[str]:
    """Numbers that are compared, to four digits; what is nothing beside the largest is 0."""
    largest = max(map(abs, values))
    return ["0" if abs(it) <= _NOTHING * largest else f"{float(f'{it:.4g}'):,.15g}" for it in values]


def in_units(levels: Sequence[float], kind: Kind) -> Sequence[float]:
    """Levels in the unit of a series of this kind."""
    return [math.exp(it) for it in levels] if kind is Kind.DURATION else levels


def _confidence(strength: float, seen: int) -> float:
    """Grow with how far the finding is above what alerts, and with how much of the series has been seen."""
    return round(_CONFIDENCE_MAX * (1 - 2.0 ** -max(strength, 0.0)) * min(1.0, seen / _SURE_POINTS), 2)
