"""The life of an incident: it opens, escalates only if it gets clearly worse, and holds."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from handoff.analytics.columns import Columns, Flags, Single, column

ALERT_AT: Final = np.float32(10.0)  # how unusual a series has to be: the smallest round value that keeps quiet series quiet
_OPEN_MIN: Final = np.float32(0.5)
_ESCALATION: Final = np.float32(1.2)  # times the worst so far
_HOLD: Final = np.float32(0.34)  # of the refractory period; then the barrier falls to nothing
_REFRACTORY_S: Final = (
    18 * 3_600.0
)  # shorter than a day, so that tomorrow's trouble is told; 3 h cost a quarter of the quality
_REFRACTORY_POINTS_MIN: Final = 20.0
_MEMORY_S: Final = 7 * 86_400.0
_FREE: Final = np.float32(2.0)  # alerts in that time that cost nothing
_COST: Final = np.float32(0.08)  # of each further one: a noisy series has to be ever clearer
_LONG_AGO: Final = 100_000_000


@dataclass(slots=True)
class Life(Columns):
    """Where the incident of each series stands."""

    worst: Single = column("single")
    age: np.ndarray = column("long", fill=_LONG_AGO)  # points since it opened or escalated
    alerts: Single = column("single")  # leaky count


def advance(life: Life, unusual: Single, step_s: np.ndarray, measured: Flags) -> Single:
    """How strong the onset of each series is, in units of what alerts; 0 where nothing opens or escalates."""
    refractory = np.maximum(_REFRACTORY_POINTS_MIN, _REFRACTORY_S / step_s).astype(np.float32)
    life.alerts *= np.exp(-step_s / _MEMORY_S).astype(np.float32)
    life.age += 1
    share = life.age / refractory
    falling = np.where(share < _HOLD, 1, 1 - (share - _HOLD) / (1 - _HOLD))
    barrier = np.where(share > 1, 0, life.worst * _ESCALATION * falling)
    onset = measured & (unusual >= _OPEN_MIN) & (unusual > barrier)
    crowded = 1 + _COST * np.maximum(0, life.alerts - _FREE)
    rhythm = (1 + 0.1 * np.log10(step_s / 300)).astype(np.float32)
    strength = np.where(onset, rhythm * unusual / crowded, 0) / ALERT_AT
    life.worst = np.where(onset, unusual, life.worst).astype(np.float32)
    life.age[onset] = 0
    life.alerts += onset & (unusual >= ALERT_AT)
    return strength.astype(np.float32)
