"""States that an earlier version of this program stored, read as what the present one keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np

from handoff.analytics.calibration import BINS, Histograms, fit
from handoff.analytics.columns import Columns, Single, column
from handoff.analytics.detector import PARTS, Memory
from handoff.analytics.echoes import Echoes
from handoff.analytics.features import FEATURES
from handoff.analytics.incidents import Life
from handoff.analytics.lasting import Lasting
from handoff.analytics.levels import Levels
from handoff.analytics.pooling import Pools
from handoff.analytics.profile import Visit
from handoff.analytics.silence import Silences

_NONE: Final = 255


@dataclass(slots=True)
class _Histograms(Columns):
    """Version 1: the bins of up to 16 points were not in `counts` yet."""

    counts: np.ndarray = column("word", BINS, len(FEATURES))
    pending: np.ndarray = column("byte", 16, len(FEATURES))
    phase: np.ndarray = column("byte")
    base: Single = column("single")


@dataclass(slots=True)
class _Pools(Columns):
    """Version 1: means were taken over the points themselves."""

    recent: Single = column("half", 2, 6)
    ten: Single = column("half", 10)
    thirty: Single = column("half", 30)
    scores: Single = column("single", 2)


@dataclass(slots=True)
class _Life(Columns):
    """Version 1: nothing was known about the direction of what was told."""

    worst: Single = column("single")
    age: np.ndarray = column("long")
    alerts: Single = column("single")
    since: np.ndarray = column("word")
    peak: Single = column("single")
    lowest: Single = column("single")
    highest: Single = column("single")


@dataclass(slots=True)
class _Levels(Columns):
    """Versions 1 and 2: the range of what was not unusual was not kept."""

    last: Single = column("single")
    previous: Single = column("single")
    lowest: Single = column("single")
    highest: Single = column("single")
    slow_lowest: Single = column("single")
    slow_highest: Single = column("single")
    means: Single = column("single", 6)
    residuals: Single = column("single", 2)
    squares: Single = column("single", 5)


def _memory_of_1(parts: dict[str, Any]) -> Memory:
    count = len(parts["scale"].unit)
    old, pools, life = parts["histograms"], parts["pools"], parts["life"]
    histograms = Histograms.empty(count)
    histograms.counts, histograms.phase, histograms.base = old.counts, old.phase, old.base
    for bins in old.pending:
        feature, at = np.nonzero(bins != _NONE)
        histograms.counts[bins[feature, at], feature, at] += 1
    fit(histograms)
    means = np.stack((pools.ten.mean(axis=0), pools.thirty.mean(axis=0))).astype(np.float32)
    now = Life.empty(count)
    for it in fields(life):
        values = getattr(now, it.name)
        values[:] = np.minimum(getattr(life, it.name), values) if it.name == "age" else getattr(life, it.name)
    made: dict[str, Any] = {"histograms": histograms, "pools": Pools(pools.recent, means, pools.scores), "life": now}
    return _memory_of_2(parts | made)


def _memory_of_2(parts: dict[str, Any]) -> Memory:
    old = parts["levels"]
    kept: dict[str, Any] = {it.name: getattr(old, it.name) for it in fields(old)}
    made: dict[str, Any] = {"levels": Levels(**kept, usual_lowest=old.lowest.copy(), usual_highest=old.highest.copy())}
    return _memory_of_3(parts | made)


def _memory_of_3(parts: dict[str, Any]) -> Memory:
    return _memory_of_4(parts | {"echoes": Echoes.empty(len(parts["scale"].unit))})


def _memory_of_4(parts: dict[str, Any]) -> Memory:
    return _memory_of_5(parts | {"silences": Silences.empty(len(parts["scale"].unit))})


def _memory_of_5(parts: dict[str, Any]) -> Memory:
    return _memory_of_6(parts | {"lasting": Lasting.empty(len(parts["scale"].unit))})


def _memory_of_6(parts: dict[str, Any]) -> Memory:
    return Memory(**parts, visit=Visit.empty(len(parts["scale"].unit)))


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a version stored, and how to make of it what is kept now."""

    parts: Mapping[str, type[Columns]]
    read: Callable[[dict[str, Any]], Memory]


_PARTS_6: Final[dict[str, type[Columns]]] = {name: part for name, part in PARTS.items() if part is not Visit}
_PARTS_5: Final[dict[str, type[Columns]]] = {name: part for name, part in _PARTS_6.items() if part is not Lasting}
_PARTS_4: Final[dict[str, type[Columns]]] = {name: part for name, part in _PARTS_5.items() if part is not Silences}
_PARTS_3: Final[dict[str, type[Columns]]] = {name: part for name, part in _PARTS_4.items() if part is not Echoes}
_PARTS_2: Final[dict[str, type[Columns]]] = _PARTS_3 | {"levels": _Levels}
_PARTS_1: Final[dict[str, type[Columns]]] = _PARTS_2 | {"histograms": _Histograms, "pools": _Pools, "life": _Life}
EARLIER: Final[Mapping[int, Earlier]] = {
    1: Earlier(_PARTS_1, _memory_of_1),
    2: Earlier(_PARTS_2, _memory_of_2),
    3: Earlier(_PARTS_3, _memory_of_3),
    4: Earlier(_PARTS_4, _memory_of_4),
    5: Earlier(_PARTS_5, _memory_of_5),
    6: Earlier(_PARTS_6, _memory_of_6),
}
