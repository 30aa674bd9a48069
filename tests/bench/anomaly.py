"""Scores the detector on labelled series: `make bench-anomaly DATA=folder`, where the folder holds score.py and its data.

`detect` is what the scorer calls; its interface is explained there. Simple rules are scored in the same run, each at a fixed
threshold, with the same refractory period.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from handoff.analytics.detector import Detector
from handoff.analytics.profile import bin_of, bins_per_day
from handoff.analytics.sampling import FINEST_S, fold, gaps_in, step_of

Series = Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]]
Found = list[tuple[NDArray[np.float64], NDArray[np.float64]]]
_DAY_S: Final = 86_400
FALLS: Final = ((61, 0.1), (61, 0.3), (61, 0.5), (61, 0.7), (30, 0.1), (20, 0.1), (10, 0.1), (5, 0.1))
SHIFTS: Final = (4, 5, 6, 8)
_REFRACTORY_S: Final = 18 * 3_600


def detect(series: Series, count_events: NDArray[np.bool_] | None = None) -> Found:
    """The score of each point, and the strength of each onset, of series of (seconds since 1970, values).

    Of labelled series nobody says which count events, so none is taken to.
    """
    steps = np.array([max(step_of(t), FINEST_S) for t, _ in series])
    points = [_folded(t, x) for t, x in series]
    bins_of = bins_per_day(steps)
    longest, count = max(len(t) for t, _, _ in points), len(series)
    values = np.full((longest, count), np.nan)
    bins = np.zeros((longest, count), np.int64)
    gaps = np.zeros((longest, count), np.bool_)
    for number, (t, x, _) in enumerate(points):
        values[: len(x), number] = x
        bins[: len(x), number] = bin_of(t % _DAY_S, bins_of[number])
        gaps[: len(x), number] = gaps_in(t, x, float(steps[number]))
    detector = Detector(steps, count_events=count_events)
    scores, strengths = np.zeros((longest, count)), np.zeros((longest, count))
    for at in range(longest):
        verdict = detector.step(values[at], bins[at], gaps[at])
        scores[at], strengths[at] = verdict.score, verdict.strength
    return [
        _unfolded(scores[: len(closes), number], strengths[: len(closes), number], closes, len(series[number][0]))
        for number, (_, _, closes) in enumerate(points)
    ]


def _folded(
    t: NDArray[np.int64], x: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """The points that the detector gets, each with the index of the one on which it is known."""
    step = step_of(t)
    return fold(t, x, step, FINEST_S) if step < FINEST_S else (t, x, np.arange(len(t)))


def _unfolded(
    scores: NDArray[np.float64], strengths: NDArray[np.float64], closes: NDArray[np.int64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each onset where it is known; each score from there to the next."""
    onsets = np.zeros(count)
    np.maximum.at(onsets, closes, strengths)
    known = np.zeros(count, np.int64)
    np.add.at(known, closes, 1)
    latest = np.cumsum(known) - 1
    return np.where(latest >= 0, scores[latest], 0.0) if len(scores) else np.zeros(count), onsets


# --- simple rules -----------------------------------------------------------------------------------------------------


def constant_threshold(x: NDArray[np.float64], _: int) -> NDArray[np.float64]:
    """How far x is above twice the highest of the first day: a number that somebody wrote down once."""
    limit = 2 * np.nanmax(np.abs(x[:288]), initial=1e-12)
    return np.abs(x) / limit


def z_score(x: NDArray[np.float64], day: int) -> NDArray[np.float64]:
    """(x - avg_over_time(x[1d])) / stddev_over_time(x[1d]), as rule authors write it in PromQL; 3 alerts."""
    mean, deviation = _window(x, day)
    return np.abs(x - mean) / (3 * deviation + 1e-12)


def seasonal_naive(x: NDArray[np.float64], day: int) -> NDArray[np.float64]:
    """The difference to yesterday's value, in thirds of its standard deviation over the past week."""
    difference = np.full(len(x), np.nan)
    difference[day:] = x[day:] - x[:-day] if day < len(x) else np.nan
    _, deviation = _window(difference, 7 * day)
    return np.abs(difference) / (3 * deviation + 1e-12)


def promql_ratio(x: NDArray[np.float64], day: int) -> NDArray[np.float64]:
    """x > 2 * x offset 1d or x < 0.5 * x offset 1d, for two points (`for:`)."""
    ratio = np.full(len(x), np.nan)
    if day < len(x):
        ratio[day:] = np.abs(np.log2((np.abs(x[day:]) + 1e-9) / (np.abs(x[:-day]) + 1e-9)))
    ratio[1:] = np.minimum(ratio[1:], ratio[:-1])
    return ratio


def _window(x: NDArray[np.float64], points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the points before each one."""
    filled, counted = np.where(np.isfinite(x), x, 0), np.isfinite(x)
    centre = filled.sum() / max(counted.sum(), 1)  # only for numerical reasons; it cancels out
    filled = np.where(counted, filled - centre, 0)

    def before(it: NDArray[Any]) -> NDArray[np.float64]:
        total = np.concatenate([[0.0], np.cumsum(it)])
        at = np.arange(len(x))
        return total[at] - total[np.maximum(at - points, 0)]

    count = np.maximum(before(counted), 1)
    mean = before(filled) / count
    return mean + centre, np.sqrt(np.maximum(before(filled * filled) / count - mean * mean, 0))


RULES: Final[Mapping[str, Callable[[NDArray[np.float64], int], NDArray[np.float64]]]] = {
    "constant threshold": constant_threshold,
    "z-score over a day (PromQL)": z_score,
    "seasonal naive": seasonal_naive,
    "twice or half of yesterday (PromQL)": promql_ratio,
}


def by_rule(rule: Callable[[NDArray[np.float64], int], NDArray[np.float64]]) -> Callable[[Series], Found]:
    """A detector made of a rule: an onset is where it alerts and has not for a refractory period."""

    def run(series: Series) -> Found:
        out: Found = []
        for t, x in series:
            step = step_of(t)
            score = np.nan_to_num(rule(x, max(2, round(_DAY_S / step))), posinf=0.0)
            score[:40] = 0
            onset, quiet_until, worst = np.zeros(len(x)), -1.0, 0.0
            for at in np.flatnonzero(score >= 0.5).tolist():
                if t[at] >= quiet_until or score[at] > 1.2 * worst:
                    onset[at] = worst = score[at]
                    quiet_until = t[at] + _REFRACTORY_S
            out.append((score, onset))
        return out

    return run


# --- quiet series of other kinds than the scorer makes ------------------------------------------------------------------


def quiet_families(seed: int, count: int = 24) -> dict[str, Series]:
    """Series in which nothing happens, by sampling step and noise. Half of the longer ones have quiet weekends."""
    rng = np.random.default_rng(seed)
    families: dict[str, Series] = {}
    for step, days in ((60, 10), (300, 21), (3_600, 84)):
        points = days * _DAY_S // step
        t = np.arange(points) * step + 1_700_000_000
        phase = rng.random((count, 1))
        wave = 1_000 + rng.uniform(0, 200, (count, 1)) * np.sin(2 * np.pi * (t / _DAY_S + phase))
        if days >= 21:
            wave[::2] *= np.where((t // _DAY_S + 4) % 7 >= 5, 0.6, 1.0)
        shape = (count, points)
        noises = {
            "normal": wave + rng.normal(0, 25, shape),
            "Laplace": wave + rng.laplace(0, 20, shape),
            "t with 4 degrees, no season": 1_000 + 10 * rng.standard_t(4, shape),
            "log-normal": wave * rng.lognormal(0, 0.15, shape),
            "counts around 10": rng.poisson(10, shape).astype(float),
            "shares of 200": rng.binomial(200, 0.97, shape) / 200,
        }
        if step == 60:
            noises["counts around 61, whose rate drifts"] = drifting(61, count, points, seed)
        for name, values in noises.items():
            families[f"{name}, every {step} s"] = [(t, x) for x in values]
    return families


def drifting(rate: float, count: int, points: int, seed: int) -> NDArray[np.float64]:
    """Counts of events whose rate is off by 15 %, with a memory of half an hour in minutes."""
    rng = np.random.default_rng(seed)
    kept = 1 - 1 / 30
    drift = np.zeros((count, points))
    for at in range(1, points):
        drift[:, at] = kept * drift[:, at - 1] + rng.normal(0, 0.15 * np.sqrt(1 - kept**2), count)
    return rng.poisson(rate * np.exp(drift)).astype(float)


def falls(rate: float, to: float, seed: int, count: int = 100, days: int = 3) -> list[float]:
    """The minutes until each is told, of so many counts around `rate` a minute that fall to a share for half an hour."""
    points, fallen = days * 1_440, 30
    rates = np.where(np.arange(points + fallen) < points, rate, rate * to)
    return _told(np.random.default_rng(seed).poisson(rates, (count, len(rates))).astype(float), fallen, counts=True)


def shifts(deviations: float, seed: int, count: int = 100, days: int = 3) -> list[float]:
    """The minutes until each is told, of so many values by the minute that move by standard deviations for five minutes."""
    values = np.random.default_rng(seed).normal(0, 1, (count, days * 1_440 + 5))
    values[:, -5:] += deviations
    return _told(values, 5, counts=False)


def _told(values: NDArray[np.float64], last: int, *, counts: bool) -> list[float]:
    t = np.arange(values.shape[1]) * 60 + 1_700_000_000
    found = detect([(t, x) for x in values], np.full(len(values), counts))
    told = [np.flatnonzero(strengths[-last:] >= 1) for _, strengths in found]
    return [float(it[0] + 1) for it in told if len(it)]


# --- the table --------------------------------------------------------------------------------------------------------

PUBLISHED: Final = {  # NAB v1.1's own results
    "ARTime (best published)": (74.9, 65.1, 80.4),
    "Numenta HTM": (70.1, 63.2, 74.3),
    "CAD OSE": (69.9, 67.0, 73.2),
    "Random Cut Forest": (51.7, None, None),
    "windowed Gaussian": (39.6, 20.9, 47.4),
}


def main(folder: Path, seed: int = 1) -> None:
    """Print the table of docs/detection.md."""
    scorer = _scorer(folder)
    nab, cloud = scorer.load_nab(), scorer.load_cloud(folder / "data" / "cloud")
    quiet = scorer.make_synthetic(seed) | scorer.make_steps(seed)
    print("| Detector | NAB, best threshold | NAB, as shipped | VUS-PR | event F1 | recall@1 |")
    print("|---|---|---|---|---|---|")
    detectors = {"this one": detect} | {name: by_rule(rule) for name, rule in RULES.items()}
    for name, run in detectors.items():
        found = run([(it.t, it.x) for it in nab]), run([(it.t, it.x) for it in cloud])
        print(f"| {name} | {' | '.join(_row(scorer, nab, cloud, *found))} |", flush=True)
        for half, start in (("even", 0), ("odd", 1)) if run is detect else ():
            part = [it[start::2] for it in (nab, cloud, *found)]
            print(f"| {name}, {half} files | {' | '.join(_row(scorer, *part))} |", flush=True)
    for name, figures in PUBLISHED.items():
        print(f"| {name} | {' / '.join('-' if it is None else f'{it:.1f}' for it in figures)} | | | | |")
    print("\n| Case | False alerts per series-week | Caught |\n|---|---|---|")
    for name, made in quiet.items():
        onsets = [it[1] >= 1 for it in detect([(it.t, it.x) for it in made])]
        figures = scorer.alert_figures(made, onsets)
        caught = f"{figures['recall']:.0%}" if made[0].events else ""
        print(f"| {name} | {figures['false_per_series_week']:.3f} | {caught} |", flush=True)
    print("\n| Quiet family | False alerts per series-week |\n|---|---|")
    families = quiet_families(11)
    are_counts = np.array([name.startswith("counts") for name, family in families.items() for _ in family])
    strengths = iter(detect([it for family in families.values() for it in family], are_counts))
    for name, family in families.items():
        made = [scorer.Series(name, t, x, []) for t, x in family]
        figures = scorer.alert_figures(made, [next(strengths)[1] >= 1 for _ in family])
        print(f"| {name} | {figures['false_per_series_week']:.3f} |", flush=True)
    faults = {f"a count falls from {rate:g} to {rate * to:g}": partial(falls, rate, to) for rate, to in FALLS}
    faults |= {f"a value moves by {it} deviations for five minutes": partial(shifts, it) for it in SHIFTS}
    print("\n| By the minute | Told, of 100 | After, median | At most |\n|---|---|---|---|")
    for name, fault in faults.items():
        told = fault(seed)
        after, most = (f"{it:g} min" for it in (np.median(told), max(told))) if told else ("-", "-")
        print(f"| {name} | {len(told)} | {after} | {most} |", flush=True)


def _row(scorer: Any, nab: Any, cloud: Any, nab_found: Found, found: Found) -> list[str]:
    onsets = [it[1] for it in nab_found]
    judge = scorer.Nab(nab)
    best, shipped = judge.best(onsets), judge.at_alerts([it >= 1 for it in onsets])
    events = scorer.events_best(cloud, [it[1] for it in found])
    volumes = [
        scorer.vus_pr(it.labels[it.probation :], score[it.probation :], 12 if np.median(np.diff(it.t)) > 600 else 60)
        for it, (score, _) in zip(cloud, found, strict=True)
        if 0 < it.labels[it.probation :].sum() < len(it.x) - it.probation
    ]
    profiles = [" / ".join(f"{it:.1f}" for it in figures.values()) for figures in (best, shipped)]
    return [*profiles, f"{np.mean(volumes):.3f}", f"{events['event_f1']:.3f}", f"{events['recall@1']:.3f}"]


def _scorer(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("score", folder / "score.py")
    if spec is None or spec.loader is None:
        raise SystemExit(
            f"{folder} has no score.py. Name the folder with the scorer and its data: make bench-anomaly DATA=..."
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules["score"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
