"""What each service loses beyond its usual: time spent, or calls failed, in units that add up along calls.

A latency says nothing about how much of a caller's time a callee takes; latency times calls does. Likewise for failed calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Metrics = Mapping[
    tuple[str, str, str], Floats
]  # (service, metric, statistic) to one value per row of time; NaN: not measured
Kind = Literal["latency", "availability"]

# A mean adds up along calls. A percentile doesn't, but is better than nothing; the median last, as it misses what hits
# few calls.
STATISTICS: Final = ("Average", "p90", "p95", "p99", "p50")
COUNT: Final = ("requests", "Sum")
COUNT_UNKNOWN: Final = 100.0  # calls per row where no service counts its calls: a percentage is then a count
MAD_TO_SIGMA: Final = 1.4826  # 1 / Phi^-1(3/4)
MEAN_TO_SIGMA: Final = (
    1.2533  # sqrt(pi / 2): mean absolute deviation. Not 0 if a minority of rows differs, as the median's is.
)
WINSORISED: Final = (
    0.95  # failure rates above this quantile of the past count as at it: a twentieth of it may have been outages
)
SPREAD_MIN: Final = 0.01  # of the usual: less than that is no change, however constant the past was


@dataclass(frozen=True, slots=True)
class Panel:
    """One metric of every service. `values` and `counts` have the shape (rows, services); NaN where nothing is known."""

    values: Floats
    counts: Floats


@dataclass(frozen=True, slots=True)
class Usual:
    """What the past says of each service, each of shape (services,); NaN for a service without a past."""

    rate: Floats  # typical latency, or failed calls per call
    spread: Floats  # latency: of the time spent in a row; availability: variance of the failures over a Poisson's

    @property
    def known(self) -> Bools:
        """Which services have a past."""
        return np.isfinite(self.rate)


@dataclass(frozen=True, slots=True)
class Losses:
    """What was lost in each row and what would usually have been; both (rows, services), 0 where nothing is known."""

    seen: Floats
    usual: Floats


def statistics(past: Metrics, now: Metrics, services: Sequence[str], kind: Kind, preferred: str) -> list[str | None]:
    """Which statistic of each service to compare: the first that was measured in both; None if there is none."""

    def measured(service: str, statistic: str) -> bool:
        return all(np.isfinite(each.get((service, kind, statistic), ())).any() for each in (past, now))

    order = dict.fromkeys((preferred, *STATISTICS))
    return [next((each for each in order if measured(service, each)), None) for service in services]


def panel(metrics: Metrics, services: Sequence[str], kind: Kind, chosen: Sequence[str | None]) -> Panel:
    """Lay out one metric of all services, in their order, with the statistic chosen for each.

    Raises ValueError if the series differ in length.
    """
    lengths = {np.shape(series) for series in metrics.values()}
    if len(lengths) > 1:
        raise ValueError(f"All series must have the same number of rows, but there are {sorted(lengths)}. Pad with NaN.")
    (rows,) = next(iter(lengths), (0,))
    values = np.full((rows, len(services)), np.nan)
    counts = np.full((rows, len(services)), np.nan)
    for column, (service, statistic) in enumerate(zip(services, chosen, strict=True)):
        if statistic is not None:
            values[:, column] = metrics[service, kind, statistic]
        if (service, *COUNT) in metrics:
            counts[:, column] = metrics[service, *COUNT]
    values[~np.isfinite(values)] = np.nan
    counted = np.isfinite(counts)
    typical = np.array(
        [np.median(column[there]) if there.any() else np.nan for column, there in zip(counts.T, counted.T, strict=True)]
    )
    typical[np.isnan(typical)] = np.median(typical[np.isfinite(typical)]) if counted.any() else COUNT_UNKNOWN
    return Panel(values, np.where(counted, np.maximum(counts, 0), typical))


def learn(past: Panel, kind: Kind) -> Usual:
    """Learn what is usual. A service that was never measured in the past stays NaN and is not judged."""
    services = past.values.shape[1]
    rate, spread = np.full(services, np.nan), np.full(services, np.nan)
    for column in range(services):
        there = np.isfinite(past.values[:, column]) & (past.counts[:, column] > 0)
        if not there.any():
            continue
        values, counts = past.values[there, column], past.counts[there, column]
        of = _duration if kind == "latency" else _failures
        rate[column], spread[column] = of(values, counts)
    return Usual(rate, spread)


def _duration(values: Floats, counts: Floats) -> tuple[float, float]:
    typical = float(np.median(values))
    away = np.abs((values - typical) * counts)
    robust = max(MAD_TO_SIGMA * float(np.median(away)), MEAN_TO_SIGMA * float(away.mean()))
    least = typical * float(np.median(counts)) * (SPREAD_MIN + 1 / len(values))  # a few rows tell little of the spread
    return typical, float(np.hypot(robust, least)) or float(np.finfo(np.float64).tiny)


def _failures(values: Floats, counts: Floats) -> tuple[float, float]:
    share = np.clip(1 - values / 100, 0, 1)
    failed = np.minimum(share, np.quantile(share, WINSORISED)) * counts
    rate = (failed.sum() + 0.5) / (counts.sum() + 1)  # never 0: the first failure ever is surprising, not impossible
    expected = rate * counts
    return float(rate), max(1.0, float(np.mean((failed - expected) ** 2 / expected)))


def losses(now: Panel, usual: Usual, kind: Kind) -> Losses:
    """What was lost, and what would usually have been at the same number of calls."""
    there = np.isfinite(now.values) & usual.known
    share = now.values if kind == "latency" else np.clip(1 - now.values / 100, 0, 1)
    return Losses(np.where(there, share * now.counts, 0.0), np.where(there, usual.rate * now.counts, 0.0))


def strength(seen: Floats, expected: Floats, rows: NDArray[np.int64] | int, usual_spread: Floats, kind: Kind) -> Floats:
    """How far sums over `rows` rows are from the usual, in standard deviations; 0 where nothing is known.

    Time spent: (seen - expected) / (spread * sqrt(rows)). Failures are counts, most often of 0: the signed root of the
    Poisson deviance, divided by the past's own overdispersion (McCullagh and Nelder, Generalized Linear Models, 2.4.3).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "latency":
            far = (seen - expected) / (usual_spread * np.sqrt(rows))
        else:
            ratio = np.where(seen > 0, seen * np.log(seen / expected), 0.0)
            deviance = 2 * np.maximum(ratio - (seen - expected), 0) / usual_spread
            far = np.sign(seen - expected) * np.sqrt(deviance)
    return np.nan_to_num(far, nan=0.0, posinf=0.0, neginf=0.0)
