"""Series to detect something in, and a detector run over them."""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from handoff.analytics.detector import Detector, Verdict
from handoff.analytics.profile import bin_of, bins_per_day
from handoff.analytics.state import pack, unpack

STEP_S = 300
DAY = 288  # points


def stamps(points: int) -> NDArray[np.int64]:
    """Every five minutes from a Monday's midnight on."""
    return np.arange(points, dtype=np.int64) * STEP_S + 1_700_438_400


def daily(points: int, count: int, seed: int) -> NDArray[np.float64]:
    """Quiet series with a daily wave and noise, shape (points, count)."""
    rng = np.random.default_rng(seed)
    wave = 100 + 20 * np.sin(2 * np.pi * (stamps(points)[:, None] / 86_400 + rng.random(count)))
    return wave + rng.gamma(2, 3, (points, count))


def watch(
    values: NDArray[np.float64],
    *,
    restart_at: Collection[int] = (),
    offset_s: Any = 0,
    step_s: int = STEP_S,
    detector: Detector | None = None,
    count_events: bool = False,
) -> tuple[list[Verdict], Detector]:
    """The verdicts on series of shape (points, count), and the detector as they leave it.

    Before the points `restart_at` it is stored and read again. Local time is UTC plus `offset_s`. A `detector` that is given
    goes on.
    """
    points, count = values.shape
    steps = np.full(count, float(step_s))
    t = (stamps(points) - 1_700_438_400) // STEP_S * step_s + 1_700_438_400 + offset_s
    bins = bin_of(t[:, None] % 86_400, bins_per_day(steps))
    events = np.full(count, count_events)
    detector, gap = detector or Detector(steps, count_events=events), np.zeros(count, np.bool_)
    missing_since = np.zeros(count, np.int64)
    verdicts: list[Verdict] = []
    for at in range(points):
        if at in restart_at:
            detector = unpack(pack(detector), steps, events)
        gap = missing_since > 2
        verdicts.append(detector.step(values[at], bins[at], gap))
        missing_since = np.where(np.isfinite(values[at]), 0, missing_since + 1)
    return verdicts, detector


def strengths(verdicts: list[Verdict]) -> NDArray[np.float32]:
    return np.array([it.strength for it in verdicts])


def scores(verdicts: list[Verdict]) -> NDArray[np.float32]:
    return np.array([it.score for it in verdicts])
